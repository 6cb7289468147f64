// Blocks freed by destructors that run after main: of globals made before the library is used and of
// statics made after, with the driver up or (argument "down") already taken down.
#include "check.hpp"

#include <cstring>
#include <dlfcn.h>
#include <thread>

namespace {

bool driver_goes_down = false;
int destroyed = 0;

class Tensors {
public:
    ~Tensors() {
        destroyed++;
        if (driver_goes_down) {
            void *driver = dlopen("libhbmalloc_sim.so", RTLD_NOW);
            CHECK(driver != nullptr);
            void *address = dlsym(driver, "hbmsim_deinit");
            CHECK(address != nullptr);
            reinterpret_cast<void (*)()>(address)();
        }
        if (allocator_ != nullptr) {
            CHECK(hbm_allocator_deallocate(allocator_, block_, nullptr) == HBM_OK);
            hbm_allocator_destroy(allocator_);
        }
        for (void *tensor : tensors_) {
            hbm_free(tensor, 1000, 0, nullptr);
        }
    }

    void fill(std::int32_t kind) {
        hbm_allocator_desc_t descriptor{};
        descriptor.struct_size = sizeof descriptor;
        descriptor.kind = kind;
        CHECK(hbm_allocator_create(&descriptor, &allocator_) == HBM_OK);
        CHECK(hbm_allocator_allocate(allocator_, 1000, 0, nullptr, &block_) == HBM_OK);
        for (void *&tensor : tensors_) {
            tensor = hbm_malloc(1000, 0, nullptr);
            CHECK(tensor != nullptr);
        }
    }

private:
    hbm_allocator_t *allocator_ = nullptr;
    void *block_ = nullptr;
    void *tensors_[100] = {};
};

struct Last {
    ~Last() {
        if (destroyed != 4) {
            std::fprintf(stderr, "%d destructors ran\n", destroyed);
            std::_Exit(1);
        }
        std::puts("static destructors: fine");
        std::fflush(stdout);
    }
};

// Destroyed in the reverse order of their making.
Last last;
Tensors global;
thread_local Tensors of_thread;

Tensors &made_late() {
    static Tensors late;
    return late;
}

}  // namespace

int main(int count, char **arguments) {
    CHECK(hbm_option_set("log", "off") == HBM_OK);
    global.fill(HBM_KIND_VMM);
    of_thread.fill(HBM_KIND_ASYNC);
    std::thread([] { of_thread.fill(HBM_KIND_MANAGED); }).join();
    made_late().fill(HBM_KIND_DEVICE);
    driver_goes_down = count > 1 && std::strcmp(arguments[1], "down") == 0;
}
