// Kinds, streams, statuses, exceptions and buffers of hbmalloc.hpp.
#include "expect.hpp"

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

using hbmalloc::Allocator;
using hbmalloc::Buffer;
using hbmalloc::Device;
using hbmalloc::kCPU;
using hbmalloc::kCPUpinned;
using hbmalloc::kDEVICE;
using hbmalloc::Kind;
using hbmalloc::Options;
using hbmalloc::Stream;

namespace {

struct Expectation {
    Kind kind;
    hbmalloc::DeviceType type;
    bool is_host_accessible, is_device_accessible;
};

constexpr Expectation KINDS[] = {
    {Kind::device, kDEVICE, false, true}, {Kind::managed, kDEVICE, true, true}, {Kind::stream_ordered, kDEVICE, false, true},
    {Kind::vmm, kDEVICE, false, true},    {Kind::pool, kDEVICE, false, true},   {Kind::pinned, kCPUpinned, true, true},
    {Kind::host, kCPU, true, false},      {Kind::numa, kCPU, true, false},      {Kind::pinned_numa, kCPUpinned, true, true},
};

static_assert(noexcept(std::declval<Allocator>().deallocate(nullptr, 0)));
static_assert(noexcept(std::declval<hbmalloc::KindAllocator>().deallocate(nullptr, 0)));
static_assert(noexcept(std::declval<hbmalloc::Arena>().deallocate(nullptr, 0)));
static_assert(!std::is_copy_constructible_v<Buffer> && std::is_nothrow_move_constructible_v<Buffer>);
static_assert(std::is_base_of_v<std::bad_alloc, hbmalloc::OutOfMemory>);

void kinds() {
    Refusals refusals;
    for (const Expectation &expected : KINDS) {
        Allocator allocator(expected.kind);
        CHECK(allocator->device() == Device(expected.type, 0));
        CHECK(allocator->is_host_accessible() == expected.is_host_accessible);
        CHECK(allocator->is_device_accessible() == expected.is_device_accessible);
        void *block = allocator.allocate(12345);
        CHECK(allocator.stats().requested == 12345);
        if (expected.is_host_accessible) {
            std::memset(block, 1, 12345);
        }
        allocator.deallocate(block, 12345);
        CHECK(allocator.stats().requested == 0 && refusals.take() == 0);
        allocator.deallocate(block, 12345);
        CHECK(refusals.take() == 1 && refusals.last() == HBM_NOT_OWNED);
        allocator.deallocate(&allocator, 8);
        CHECK(refusals.take() == 1);
        allocator.deallocate(nullptr, 0);
        allocator->deallocate(nullptr, 0);
        CHECK(allocator.allocate(0) == nullptr && refusals.take() == 0);
        thrown<std::bad_alloc>(HBM_OUT_OF_MEMORY, [&] { allocator.allocate(std::size_t(-1)); });
        thrown<std::exception>(HBM_OUT_OF_MEMORY, [&] { allocator.allocate(std::size_t(1) << 60); });
        thrown<std::runtime_error>(HBM_INVALID_ARGUMENT, [&] { allocator->allocate(-5); });
        thrown<std::exception>(HBM_INVALID_ARGUMENT, [&] { allocator.allocate(100, nullptr, 3); });
        allocator->trim(0);
    }
    Options one;
    one.device = 1;
    one.tag = "one";
    Allocator tagged(Kind::pool, one);
    CHECK(tagged->device() == Device(kDEVICE, 1) && tagged != Allocator(Kind::pool, one));
    void *block = tagged.allocate(1000, nullptr, 4096);
    char tag[HBM_TAG_NAME_BYTES];
    CHECK(hbm_tag_of(block, tag, sizeof tag) == HBM_OK && std::string(tag) == "one");
    CHECK(reinterpret_cast<std::uintptr_t>(block) % 4096 == 0);
    tagged.deallocate(block, 1000, nullptr);
    Options named;
    named.name = "hbmalloc-test-cpp";
    named.is_pinned = false;
    Allocator shared(Kind::shared_memory, named);
    CHECK(shared->device() == kCPU && Buffer(shared, 1000));
    one.device = 99;
    CHECK(has(thrown(HBM_INVALID_ARGUMENT, [&] { Allocator(Kind::vmm, one); }), "99"));
}

void statuses() {
    Stream stream = Stream::create(), other = Stream::create();
    Allocator pool(stream, false), none;
    void *block = &pool;
    CHECK(none.try_allocate(1, &block) == HBM_INVALID_ARGUMENT && block == nullptr);
    CHECK(none.try_deallocate(&block, 1) == HBM_INVALID_ARGUMENT && none.try_deallocate(nullptr, 0) == HBM_OK);
    CHECK(pool.try_allocate(std::size_t(1) << 60, &block) == HBM_OUT_OF_MEMORY && block == nullptr);
    CHECK(pool.try_allocate(100, &block) == HBM_OK && block != nullptr);
    pool.record_stream(block, other);
    CHECK(pool.try_deallocate(block, 100, other) == HBM_OK);
    CHECK(pool.try_deallocate(block, 100) == HBM_NOT_OWNED);
    CHECK(pool.try_allocate(100, other, &block, 8192) == HBM_OK && reinterpret_cast<std::uintptr_t>(block) % 8192 == 0);
    hbm_block_stats_t of_stream{};
    of_stream.struct_size = sizeof of_stream;
    CHECK(hbm_stream_stats(0, other.handle(), &of_stream) == HBM_OK && of_stream.requested == 100);
    CHECK(pool.try_deallocate(block, 100, other) == HBM_OK);
    // An implementation that knows its own stream only.
    auto simple = hbmalloc::FunctionAllocator::Create([](ssize_t size) { return std::malloc(static_cast<std::size_t>(size)); },
                                                      [](void *address, ssize_t) { std::free(address); }, Device(kCPU));
    CHECK(simple.try_allocate(10, stream, &block) == HBM_OK && simple.try_deallocate(block, 10, stream) == HBM_OK);
    CHECK(simple.try_allocate(10, nullptr, &block, std::size_t(1) << 30) == HBM_UNSUPPORTED && block == nullptr);
    thrown(HBM_UNSUPPORTED, [&] { simple.stats(); });
    // One that knows all.
    void *seen = nullptr;
    auto aware = hbmalloc::FunctionAllocator::Create(
        [&](std::size_t bytes, std::size_t alignment, hbmalloc::StreamRef where) {
            seen = where.raw();
            return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
        },
        [&](void *address, std::size_t, hbmalloc::StreamRef where) {
            CHECK(where.raw() == seen);
            std::free(address);
        },
        Device(kCPU));
    block = aware.allocate(10, stream, 512);
    CHECK(seen == stream.handle());
    aware.deallocate(block, 10, stream);
    for (void *plain : {aware->allocate(10), aware.allocate(10, stream)}) {
        CHECK(reinterpret_cast<std::uintptr_t>(plain) % 256 == 0);
        std::free(plain);
    }
}

void buffers() {
    Stream stream = Stream::create();
    Allocator pool(stream, false);
    const auto live = [&] { return pool.stats().requested; };
    {
        Buffer empty, a(pool, 1000), b(std::move(a));
        CHECK(!empty && !a && a.size() == 0 && b && b.size() == 1000 && live() == 1000 && !b.stream());
        a = Buffer(pool, 500, Stream::create());
        CHECK(live() == 1500 && a.stream());
        a = std::move(b);
        CHECK(live() == 1000 && a.size() == 1000);
        Buffer &same = a;
        a = std::move(same);
        CHECK(a.size() == 1000 && live() == 1000);
        a.set_stream(Stream::create());
        swap(a, empty);
        CHECK(!a && empty.as<char>() == empty.data());
        empty.reset();
        CHECK(live() == 0);
        Buffer left(pool, 10);
        void *block = left.release();
        CHECK(!left && live() == 10);
        pool.deallocate(block, 10);
        Buffer none(pool, 0);
        CHECK(!none && live() == 0);
    }
    // A buffer keeps what it is of.
    Buffer last;
    {
        Allocator own(Stream::create(), true);
        last = Buffer(own, 1 << 20);
    }
    CHECK(last.allocator().stats().requested == 1 << 20);
    last.reset();
    thrown<std::bad_alloc>(HBM_OUT_OF_MEMORY, [&] { Buffer(pool, std::size_t(1) << 60); });
    thrown(HBM_INVALID_ARGUMENT, [&] { Buffer(Allocator(), 1); });
    thrown(HBM_INVALID_ARGUMENT, [&] { Buffer(pool, 1, Stream()); });
    CHECK(live() == 0);
}

// An allocator that ends before its blocks stays behind for them.
void allocators_that_end_too_early() {
    Refusals refusals;
    void *block = nullptr;
    {
        Allocator pool(Stream::create(), false);
        block = pool.allocate(100);
    }
    CHECK(refusals.take() == 1 && refusals.last() == HBM_BUSY);
    hbm_free(block, 100, 0, nullptr);
    // So do functions that an arena still has memory of.
    static int live = 0;
    {
        auto functions = hbmalloc::FunctionAllocator::Create(
            [](ssize_t size) {
                live++;
                return std::malloc(static_cast<std::size_t>(size));
            },
            [](void *address, ssize_t) {
                live--;
                std::free(address);
            },
            Device(kCPU));
        auto arena = functions.adapt<hbmalloc::Arena>();
        block = arena->allocate(100);
    }
    CHECK(refusals.take() >= 1 && live == 1);
    CHECK(hbm_trim(0, 0, nullptr) == HBM_OK);
}

// Of the program's own, aligned to 16 at least, on a stream.
struct Unsteady : hbmalloc::AllocatorImpl {
    Stream own = Stream::create();
    int live = 0, failures = 0;

    void *allocate(ssize_t size) override {
        live++;
        return std::malloc(static_cast<std::size_t>(size));
    }
    void deallocate(void *address, ssize_t) override {
        if (failures > 0) {
            failures--;
            throw hbmalloc::Failure(HBM_BUSY, 0, "not now");
        }
        live--;
        std::free(address);
    }
    Stream stream() const override { return own; }
    Device device() const override { return kCPU; }
};

// What could not be freed is there, and can be freed again.
void freed_again() {
    auto unsteady = std::make_shared<Unsteady>();
    Refusals refusals;
    {
        auto arena = Allocator(unsteady).adapt<hbmalloc::Arena>();
        Allocator any = arena;
        for (int failures : {0, 1, 2}) {
            void *block = any.allocate(1000);
            std::memset(block, 1, 1000);
            unsteady->failures = failures;
            for (int i = 0; i < failures; i++) {
                CHECK(any.try_deallocate(block, 1000) == HBM_BUSY);
                std::memset(block, 2, 1000);
            }
            CHECK(any.try_deallocate(block, 1000) == HBM_OK && unsteady->live == 0);
            CHECK(any.try_deallocate(block, 1000) == HBM_NOT_OWNED);
        }
    }
    CHECK(unsteady->live == 0 && refusals.take() == 0);
}

// Functions that cannot be told of a stream have its work waited for, and the arena over them goes on.
void freed_behind_another_stream() {
    Stream other = Stream::create();
    int live = 0;
    const auto functions = hbmalloc::FunctionAllocator::Create(
        [&](ssize_t size) {
            live++;
            return std::malloc(static_cast<std::size_t>(size));
        },
        [&](void *address, ssize_t) {
            live--;
            std::free(address);
        },
        Device(kCPU));
    Refusals refusals;
    {
        auto arena = functions.adapt<hbmalloc::Arena>();
        arena->deallocate(arena->allocate(4096), 4096);
        arena->iter();
        for (int i = 0; i < 3; i++) {
            Buffer buffer(arena, 100);
            std::memset(buffer.data(), i, 100);
            buffer.set_stream(other);
        }
        CHECK(refusals.take() == 0 && arena->arena_stats().blocks == 0 && arena->arena_stats().spilled_blocks == 0);
        arena->iter();
        CHECK(arena->arena_stats().region_bytes >= 4096 && live == 1);
    }
    CHECK(live == 0 && refusals.take() == 0);
}

// Pinned memory is the host's, whatever device a thread uses.
void pinned_by_threads_of_all_devices() {
    void *driver = dlopen("libhbmalloc_sim.so", RTLD_NOW), *contexts[2];
    CHECK(driver != nullptr);
    const auto retain = reinterpret_cast<int (*)(void **, int)>(dlsym(driver, "cuDevicePrimaryCtxRetain"));
    const auto use = reinterpret_cast<int (*)(void *)>(dlsym(driver, "cuCtxSetCurrent"));
    for (int device : {0, 1}) {
        CHECK(retain(&contexts[device], device) == 0);
    }
    Refusals refusals;
    std::thread([&] {
        CHECK(use(contexts[1]) == 0);
        Allocator there(kCPUpinned);
        void *block = there->allocate(1000);
        CHECK(use(contexts[0]) == 0);
        CHECK(there == Allocator(kCPUpinned) && hbmalloc::current_device() == 0);
        Allocator(kCPUpinned)->deallocate(block, 1000);
    }).join();
    CHECK(refusals.take() == 0);
    // Work of any device may use it when it is freed.
    const auto of = [&](auto *function, const char *name) { return reinterpret_cast<decltype(function)>(dlsym(driver, name)); };
    const auto copy = of(static_cast<int (*)(unsigned long long, const void *, std::size_t, void *)>(nullptr), "cuMemcpyHtoDAsync_v2");
    const auto hold = of(static_cast<int (*)(void *)>(nullptr), "hbmsim_hold");
    const auto release = of(static_cast<int (*)(void *)>(nullptr), "hbmsim_release");
    CHECK(use(contexts[1]) == 0);
    {
        Stream there = Stream::create_on(1);
        Options on;
        on.device = 1;
        Buffer target(Allocator(Kind::device, on), 1000);
        Allocator pinned(kCPUpinned);
        void *block = pinned->allocate(1000);
        CHECK(hold(there.handle()) == 0);
        CHECK(copy(reinterpret_cast<std::uintptr_t>(target.data()), block, 1000, there.handle()) == 0);
        std::atomic<bool> is_released{false};
        std::thread releaser([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            is_released = true;
            CHECK(release(there.handle()) == 0);
        });
        pinned->deallocate(block, 1000);
        CHECK(is_released && refusals.take() == 0);
        releaser.join();
    }
    CHECK(use(contexts[0]) == 0);
    dlclose(driver);
}

void handlers() {
    Allocator pool(Kind::pool);
    auto before = hbmalloc::set_deallocation_handler([](const hbmalloc::DeallocationError &) { throw std::runtime_error("mine"); });
    CHECK(before == nullptr);
    pool->deallocate(&pool, 1);
    pool.deallocate(&pool, 1);
    hbmalloc::set_deallocation_handler(nullptr);
    pool.deallocate(&pool, 1);
    // The library's own count goes on.
    CHECK(pool.stats().rejected_frees >= 3);
}

void any_thread() {
    Allocator pool(Stream::create(), false);
    std::vector<std::thread> workers;
    for (int t = 0; t < 4; t++) {
        workers.emplace_back([pool] {
            std::vector<Buffer> buffers;
            for (int i = 0; i < 200; i++) {
                buffers.emplace_back(pool, 1000 + std::size_t(i));
            }
        });
    }
    for (auto &worker : workers) {
        worker.join();
    }
    CHECK(pool.stats().requested == 0);
}

// On a device of 1 GiB.
void out_of_memory() {
    Allocator pool(Stream::create(), false);
    std::vector<Buffer> buffers;
    const std::string text = thrown<std::bad_alloc>(HBM_OUT_OF_MEMORY, [&] {
        for (;;) {
            buffers.emplace_back(pool, 64 << 20);
        }
    });
    CHECK(has(text, "out of memory") && has(text, "bytes"));
    CHECK(buffers.size() >= 8 && buffers.size() <= 16);
    buffers.clear();
    Buffer again(pool, 512 << 20);
}

}  // namespace

int main(int count, char **arguments) {
    CHECK(hbm_option_set("log", "off") == HBM_OK);
    if (count > 1 && std::string(arguments[1]) == "memory") {
        out_of_memory();
        return 0;
    }
    handlers();
    for (int run = 0; run < 2; run++) {
        kinds();
        statuses();
        buffers();
        any_thread();
        freed_again();
        freed_behind_another_stream();
        pinned_by_threads_of_all_devices();
    }
    allocators_that_end_too_early();
    std::puts("allocators: fine");
}
