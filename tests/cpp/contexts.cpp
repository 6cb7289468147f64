// The stacks of streams and allocators that each thread has.
#include "expect.hpp"

#include <memory>
#include <thread>
#include <vector>

using hbmalloc::Allocator;
using hbmalloc::Context;
using hbmalloc::ContextGuard;
using hbmalloc::Device;
using hbmalloc::kCPU;
using hbmalloc::kCPUpinned;
using hbmalloc::kDEVICE;
using hbmalloc::Kind;
using hbmalloc::Stream;

namespace {

static_assert(!std::is_copy_constructible_v<ContextGuard> && !std::is_move_constructible_v<ContextGuard>);
static_assert(!std::is_copy_assignable_v<ContextGuard> && !std::is_move_assignable_v<ContextGuard>);
static_assert(!std::is_constructible_v<ContextGuard, ContextGuard &> && !std::is_constructible_v<ContextGuard, int>);
static_assert(!std::is_default_constructible_v<ContextGuard>);

void nothing_pushed() {
    CHECK(has(thrown(HBM_INVALID_ARGUMENT, [] { Context::stream(); }), "no stream"));
    thrown(HBM_INVALID_ARGUMENT, [] { Context::device_alloc(); });
    thrown(HBM_INVALID_ARGUMENT, [] { Context::pinned_alloc(); });
    thrown(HBM_INVALID_ARGUMENT, [] { Context::alloc(Device(kDEVICE, 0)); });
    CHECK(Context::host_alloc() == Allocator(kCPU) && Context::alloc(kCPU) == Allocator(kCPU));
}

void nested() {
    Stream outer = Stream::create(), inner = Stream::create();
    Allocator pool(outer, false), pinned(kCPUpinned), host(Kind::host), driver_pool(inner, true);
    {
        ContextGuard guard{outer, pool, pinned, host};
        CHECK(Context::stream() == outer && Context::device_alloc() == pool);
        CHECK(Context::pinned_alloc() == pinned && Context::host_alloc() == host);
        CHECK(Context::alloc(kCPUpinned) == pinned && Context::alloc(Device(kDEVICE, 0)) == pool);
        Allocator &seen = Context::device_alloc();
        {
            ContextGuard further(inner, driver_pool);
            CHECK(Context::stream() == inner && Context::device_alloc() == driver_pool && Context::host_alloc() == host);
            CHECK(seen == pool);
        }
        CHECK(Context::stream() == outer && Context::device_alloc() == pool);
    }
    nothing_pushed();
}

void several_gpus() {
    Allocator first(Stream::create_on(0), false), second(Stream::create_on(1), false);
    ContextGuard guard(first, second);
    CHECK(Context::device_alloc() == second);
    CHECK(Context::alloc(Device(kDEVICE, 0)) == first && Context::alloc(Device(kDEVICE, 1)) == second);
}

// A guard that is half made takes back what it had pushed.
void exceptions() {
    Stream stream = Stream::create();
    Allocator none;
    thrown(HBM_INVALID_ARGUMENT, [&] { ContextGuard guard(stream, Allocator(kCPUpinned), none); });
    nothing_pushed();
    thrown(HBM_INVALID_ARGUMENT, [&] { ContextGuard guard(stream, Stream()); });
    nothing_pushed();
    struct Throwing {
        explicit Throwing(const Stream &stream) : guard(stream, Allocator(kCPUpinned)) {
            CHECK(Context::stream() == stream);
            throw std::runtime_error("in a constructor");
        }
        ContextGuard guard;
    };
    try {
        Throwing throwing(stream);
        CHECK(!"reached");
    } catch (const std::runtime_error &) {
    }
    nothing_pushed();
}

// Guards on the heap may end in any order, and on another thread they do no harm.
void in_any_order() {
    Stream a = Stream::create(), b = Stream::create();
    auto first = std::make_unique<ContextGuard>(a), second = std::make_unique<ContextGuard>(b);
    first.reset();
    CHECK(Context::stream() == b);
    second.reset();
    nothing_pushed();
    auto elsewhere = std::make_unique<ContextGuard>(a);
    std::thread([&] {
        Refusals refusals;
        elsewhere.reset();
        CHECK(refusals.take() == 1);
        nothing_pushed();
    }).join();
    CHECK(Context::stream() == a);
    std::thread([&] { elsewhere = std::make_unique<ContextGuard>(b); }).join();
    Refusals refusals;
    elsewhere.reset();
    CHECK(refusals.take() == 1 && Context::stream() == a);
}

void threads() {
    std::vector<std::thread> workers;
    for (int t = 0; t < 4; t++) {
        workers.emplace_back([t] {
            for (int round = 0; round < 20; round++) {
                nothing_pushed();
                Stream stream = Stream::create_on(t % 2);
                ContextGuard guard(stream, Allocator(stream, t % 2 == 0), Allocator(kCPU));
                void *block = Context::device_alloc()->allocate(10000);
                CHECK(Context::stream() == stream && Context::device_alloc()->device() == Device(kDEVICE, t % 2));
                Context::device_alloc()->deallocate(block, 10000);
            }
        });
    }
    for (auto &worker : workers) {
        worker.join();
    }
}

}  // namespace

int main() {
    CHECK(hbm_option_set("log", "off") == HBM_OK);
    for (int run = 0; run < 2; run++) {
        std::thread([] {
            nothing_pushed();
            nested();
            several_gpus();
            exceptions();
            in_any_order();
        }).join();
        threads();
    }
    std::puts("contexts: fine");
}
