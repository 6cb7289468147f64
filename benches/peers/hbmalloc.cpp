// hbmalloc, by its C interface ("pool", "async", "vmm", ...) and by the entry points that torch calls
// ("pool/torch"). --library names libhbmalloc.so.
#include "loops.hpp"

#include "hbmalloc.h"

namespace {

using bench::Options;
using bench::Stream;

// The library's calls. A kind that an older library lacks is an error of its own.
struct Library {
    explicit Library(const Options &options) : handle(bench::open_library(options.library)) {
        last_error = bench::symbol<decltype(&hbm_last_error)>(handle, "hbm_last_error");
        bench::symbol<decltype(&hbm_torch_set_hooked)>(handle, "hbm_torch_set_hooked")(1);
    }

    [[noreturn]] void fail() const { throw std::runtime_error(last_error()); }

    hbm_allocator_t *create(int kind) const {
        hbm_allocator_desc_t descriptor{};
        descriptor.struct_size = sizeof descriptor;
        descriptor.kind = kind;
        hbm_allocator_t *made = nullptr;
        if (bench::symbol<decltype(&hbm_allocator_create)>(handle, "hbm_allocator_create")(&descriptor, &made) != HBM_OK) {
            fail();
        }
        return made;
    }

    // Opens the device by a block of device memory, which stays.
    void open_device() const {
        void *block = nullptr;
        auto allocate = bench::symbol<decltype(&hbm_allocator_allocate)>(handle, "hbm_allocator_allocate");
        if (allocate(create(HBM_KIND_DEVICE), 512, 0, nullptr, &block) != HBM_OK) fail();
    }

    void *handle;
    decltype(&hbm_last_error) last_error;
};

int kind_number(const std::string &name) {
    const char *const names[] = {"device", "managed", "async", "vmm", "pool"};
    for (int kind = 0; kind < 5; ++kind) {
        if (name == names[kind]) return kind;
    }
    throw std::runtime_error("hbmalloc has no kind " + name);
}

class Interface {
public:
    static void open_device(const Options &options) { Library(options).open_device(); }

    explicit Interface(const Options &options)
        : library_(options),
          allocator_(library_.create(kind_number(options.allocator))),
          allocate_(bench::symbol<decltype(allocate_)>(library_.handle, "hbm_allocator_allocate")),
          deallocate_(bench::symbol<decltype(deallocate_)>(library_.handle, "hbm_allocator_deallocate")) {}

    void *alloc(std::size_t bytes, Stream stream) {
        void *block = nullptr;
        if (allocate_(allocator_, bytes, 0, stream, &block) != HBM_OK) library_.fail();
        return block;
    }

    void free(void *block, std::size_t, Stream stream) {
        if (deallocate_(allocator_, block, stream) != HBM_OK) library_.fail();
    }

private:
    Library library_;
    hbm_allocator_t *allocator_;
    decltype(&hbm_allocator_allocate) allocate_;
    decltype(&hbm_allocator_deallocate) deallocate_;
};

class TorchEntries {
public:
    static void open_device(const Options &options) { Library(options).open_device(); }

    explicit TorchEntries(const Options &options) : library_(options) {
        const std::string source = options.allocator.substr(0, options.allocator.find('/'));
        malloc_ = bench::symbol<decltype(malloc_)>(library_.handle, (source + "_malloc").c_str());
        free_ = bench::symbol<decltype(free_)>(library_.handle, (source + "_free").c_str());
    }

    void *alloc(std::size_t bytes, Stream stream) {
        void *block = malloc_(bytes, 0, stream);
        if (block == nullptr) library_.fail();
        return block;
    }

    void free(void *block, std::size_t bytes, Stream stream) { free_(block, bytes, 0, stream); }

private:
    Library library_;
    decltype(&hbm_malloc) malloc_;
    decltype(&hbm_free) free_;
};

}  // namespace

int main(int count, char **arguments) {
    return bench::main_with(count, arguments, [](const Options &options) {
        if (options.allocator.find("/torch") != std::string::npos) bench::run<TorchEntries>(options);
        else bench::run<Interface>(options);
    });
}
