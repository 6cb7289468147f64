// The C interface as a C++17 program uses it: owners that give back in their destructors, a standard
// memory resource over an allocator, callbacks that are lambdas, threads.
#include "check.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

struct Failure : std::runtime_error {
    explicit Failure(std::int32_t code) : std::runtime_error(hbm_last_error()), status(code) {}
    std::int32_t status;
};

void check(std::int32_t status) {
    if (status != HBM_OK) {
        throw Failure(status);
    }
}

struct Destroy {
    void operator()(hbm_allocator_t *allocator) const { CHECK(hbm_allocator_destroy(allocator) == HBM_OK); }
};
using Allocator = std::unique_ptr<hbm_allocator_t, Destroy>;

Allocator make(hbm_kind kind, std::int32_t device = 0, const char *tag = nullptr) {
    hbm_allocator_desc_t descriptor{};
    descriptor.struct_size = sizeof descriptor;
    descriptor.kind = kind;
    descriptor.device = device;
    descriptor.tag = tag;
    hbm_allocator_t *allocator = nullptr;
    check(hbm_allocator_create(&descriptor, &allocator));
    return Allocator(allocator);
}

hbm_stats_t stats(hbm_allocator_t *allocator) {
    hbm_stats_t out{};
    out.struct_size = sizeof out;
    check(hbm_allocator_stats(allocator, &out));
    return out;
}

class Resource : public std::pmr::memory_resource {
public:
    explicit Resource(hbm_allocator_t *allocator) : allocator_(allocator) {}

private:
    void *do_allocate(std::size_t bytes, std::size_t alignment) override {
        void *block = nullptr;
        if (hbm_allocator_allocate(allocator_, bytes, alignment, nullptr, &block) != HBM_OK) {
            throw std::bad_alloc();
        }
        return block;
    }
    void do_deallocate(void *block, std::size_t, std::size_t) override {
        CHECK(hbm_allocator_deallocate(allocator_, block, nullptr) == HBM_OK);
    }
    bool do_is_equal(const memory_resource &other) const noexcept override { return this == &other; }

    hbm_allocator_t *allocator_;
};

void owners_and_exceptions() {
    for (hbm_kind kind : {HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_VMM, HBM_KIND_POOL, HBM_KIND_PINNED}) {
        Allocator allocator = make(kind, 0, "owners");
        void *block = nullptr;
        check(hbm_allocator_allocate(allocator.get(), 12345, 0, nullptr, &block));
        CHECK(stats(allocator.get()).requested == 12345);
        check(hbm_allocator_record_stream(allocator.get(), block, nullptr));
        check(hbm_allocator_deallocate(allocator.get(), block, nullptr));
        try {
            check(hbm_allocator_allocate(allocator.get(), std::size_t(-1), 0, nullptr, &block));
            CHECK(!"reached");
        } catch (const Failure &failure) {
            CHECK(failure.status == HBM_OUT_OF_MEMORY);
            CHECK(std::strstr(failure.what(), "out of memory") != nullptr);
        }
        std::uint64_t released = 0;
        check(hbm_allocator_trim(allocator.get(), 0, &released));
        CHECK(stats(allocator.get()).reserved == 0);
    }
    try {
        make(HBM_KIND_VMM, 99);
        CHECK(!"reached");
    } catch (const Failure &failure) {
        CHECK(failure.status == HBM_INVALID_ARGUMENT);
    }
}

// On the simulated driver, as with managed memory on a card, the host may touch what it is given.
void standard_containers() {
    Allocator allocator = make(HBM_KIND_MANAGED, 1);
    Resource resource(allocator.get());
    {
        std::pmr::vector<int> numbers(&resource);
        for (int i = 0; i < 10000; i++) {
            numbers.push_back(i);
        }
        std::pmr::string text("a text that does not fit into the string itself", &resource);
        CHECK(numbers[9999] == 9999 && text.size() == 47);
        CHECK(stats(allocator.get()).requested >= 10000 * sizeof(int));
    }
    CHECK(stats(allocator.get()).requested == 0);
    try {
        std::pmr::vector<std::byte> huge(&resource);
        huge.reserve(std::size_t(1) << 60);
        CHECK(!"reached");
    } catch (const std::bad_alloc &) {
    }
}

void lambdas_as_callbacks() {
    std::atomic<int> lines{0};
    check(hbm_log_set_callback(
        [](std::int32_t, const char *, const char *, void *user) { ++*static_cast<std::atomic<int> *>(user); },
        &lines));
    Allocator allocator = make(HBM_KIND_ASYNC);
    CHECK(hbm_allocator_deallocate(allocator.get(), &lines, nullptr) == HBM_NOT_OWNED);
    check(hbm_log_set_callback(nullptr, nullptr));
    CHECK(lines == 1);
}

void threads() {
    std::vector<std::thread> workers;
    for (int t = 0; t < 4; t++) {
        workers.emplace_back([t] {
            Allocator allocator = make(t % 2 ? HBM_KIND_ASYNC : HBM_KIND_VMM, t % 2);
            std::array<void *, 16> blocks{};
            for (int round = 0; round < 20; round++) {
                for (void *&block : blocks) {
                    check(hbm_allocator_allocate(allocator.get(), 70000, 0, nullptr, &block));
                }
                for (void *block : blocks) {
                    check(hbm_allocator_deallocate(allocator.get(), block, nullptr));
                }
            }
        });
    }
    for (std::thread &worker : workers) {
        worker.join();
    }
}

void torch_entries() {
    static_assert(std::is_same_v<decltype(&hbm_malloc), void *(*)(std::size_t, int, void *)>);
    static_assert(std::is_same_v<decltype(&hbm_free), void (*)(void *, std::size_t, int, void *)>);
    for (auto allocate : {hbm_malloc, device_malloc, managed_malloc, async_malloc, vmm_malloc, pool_malloc,
                          hbm_segment_malloc, device_segment_malloc, managed_segment_malloc,
                          async_segment_malloc, vmm_segment_malloc, pool_segment_malloc, pinned_malloc,
                          pinned_segment_malloc}) {
        void *block = allocate(1 << 20, 0, nullptr);
        CHECK(block != nullptr);
        hbm_free(block, 1 << 20, 0, nullptr);
        // libstdc++ is here, but torch is not: nothing is thrown.
        CHECK(allocate(std::size_t(1) << 58, 0, nullptr) == nullptr);
    }
}

}  // namespace

int main() {
    CHECK(hbm_version() == HBM_VERSION);
    CHECK(std::string(hbm_status_name(HBM_BUSY)) == "busy");
    owners_and_exceptions();
    standard_containers();
    lambdas_as_callbacks();
    threads();
    torch_entries();
    std::puts("C++ interface: fine");
}
