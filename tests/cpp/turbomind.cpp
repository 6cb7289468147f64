// TurboMind's allocator framework by its own names: what its programs do, and what was wrong with it.
#include "expect.hpp"

#include <vector>

namespace turbomind { namespace core = hbmalloc::turbomind; } using namespace turbomind::core;

namespace {

void the_few_lines() {
    Allocator cpu(kCPU); void* p = cpu->allocate(1024); cpu->deallocate(p, 1024);
    Stream s = Stream::create(); Allocator pool(s, /*use_default_pool=*/true); void* g = pool->allocate(4096); pool->deallocate(g, 4096);
    auto st = pool.adapt<StackAllocatorImpl>(); void* f = st->allocate(256); st->deallocate(f, 256);
    CHECK(p != nullptr && g != nullptr && f != nullptr);
}

// Written as for TurboMind: nothing is noexcept, and sizes are signed.
class Counting : public AllocatorImpl {
public:
    explicit Counting(std::shared_ptr<AllocatorImpl> impl) : impl_(std::move(impl)) {}

    void *allocate(ssize_t size) override {
        void *block = impl_->allocate(size);
        live += size;
        return block;
    }
    void deallocate(void *block, ssize_t size) override {
        impl_->deallocate(block, size);
        live -= size;
    }
    Stream stream() const override { return impl_->stream(); }
    Device device() const override { return impl_->device(); }
    void trim(size_t bytes_to_keep) override {
        trims++;
        impl_->trim(bytes_to_keep);
    }

    ssize_t live = 0;
    int trims = 0;

private:
    std::shared_ptr<AllocatorImpl> impl_;
};

void places() {
    CHECK(Allocator(kCPU)->device() == Device(kCPU) && Allocator(kCPU)->device() == Device(kCPU, -1));
    CHECK(Allocator(kCPUpinned)->device() == kCPUpinned);
    CHECK(Device(kCPU) != Device(kCPUpinned));
    Stream first = Stream::create(), second = Stream::create_on(1);
    // The same GPU is the same, whoever says so.
    Device plain = Allocator(kDEVICE)->device();
    CHECK(plain.id == 0 && plain == Allocator(first, true)->device() && plain == Allocator(first, false)->device());
    CHECK(plain == CudaAllocator().device() && plain == Device(kDEVICE) && plain == Device(kDEVICE, 0));
    CHECK(plain != Device(kDEVICE, 1) && Allocator(second, false)->device() == Device(kDEVICE, 1));
    CHECK(second.device() == 1 && Allocator(second, true)->stream() == second);
    // Plain memory of a place is one allocator, so any of them frees what another gave out.
    CHECK(Allocator(kDEVICE) == Allocator(kDEVICE) && Allocator(kCPU) != Allocator(kDEVICE));
    void *block = Allocator(kCPU)->allocate(100);
    std::memset(block, 1, 100);
    Allocator(kCPU)->deallocate(block, 100);
}

void every_class() {
    Stream stream = Stream::create(-1);
    std::vector<std::shared_ptr<AllocatorImpl>> all{
        std::make_shared<HostAllocator>(), std::make_shared<CudaHostAllocator>(), std::make_shared<CudaAllocator>(),
        std::make_shared<CudaMemPoolAllocator>(stream, true), std::make_shared<CudaMemPoolAllocator>(stream, false)};
    Refusals refusals;
    for (Allocator each : all) {
        void *block = each->allocate(1000);
        CHECK(block != nullptr && reinterpret_cast<std::uintptr_t>(block) % 256 == 0);
        each->deallocate(block, 1000);
        CHECK(each->allocate(0) == nullptr);
        each->deallocate(nullptr, 0);
        CHECK(refusals.take() == 0);
        thrown<std::runtime_error>(HBM_INVALID_ARGUMENT, [&] { each->allocate(-1); });
        thrown<std::bad_alloc>(HBM_OUT_OF_MEMORY, [&] { each->allocate(ssize_t(1) << 60); });
        each->deallocate(block, 1000);
        CHECK(refusals.take() == 1 && refusals.last() == HBM_NOT_OWNED);
        each->deallocate(&each, 8);
        CHECK(refusals.take() == 1 && refusals.last() == HBM_NOT_OWNED);
        each->trim(0);
    }
}

void streams_and_events() {
    Stream none;
    CHECK(!none && none == Stream());
    thrown(HBM_INVALID_ARGUMENT, [&] { none.handle(); });
    thrown(HBM_INVALID_ARGUMENT, [&] { none.Sync(); });
    thrown(HBM_INVALID_ARGUMENT, [&] { Allocator(none, true); });
    Stream a = Stream::create(), copy = a, b = Stream::create(-3);
    CHECK(a && a == copy && a != b && static_cast<CUstream_st *>(a) == copy.handle() && a.handle() != nullptr);
    Event event;
    CHECK(!event);
    thrown(HBM_INVALID_ARGUMENT, [&] { event.Record(a); });
    event = Event::create();
    event.Record(a);
    b.Wait(event);
    event.Sync();
    b.Sync();
    CHECK(Event::create(/*timing=*/true));
    Stream borrowed = Stream::borrow(a.handle());
    CHECK(borrowed == a && borrowed.device() == 0);
    static_assert(!std::is_convertible_v<Stream, CUstream_st *> && !std::is_convertible_v<Stream, bool>);
}

// What a stack is over, and how often that was asked for memory.
void stack_over_an_implementation(const Allocator &innermost) {
    Refusals refusals;
    auto counting = std::make_shared<Counting>(innermost.impl());
    {
        Allocator over(counting);
        auto stack = over.adapt<StackAllocatorImpl>();
        Allocator as_any = stack;
        CHECK(as_any->device() == over->device());
        void *a = stack->allocate(1000), *b = stack->allocate(3000);
        stack->deallocate(b, 3000);
        stack->deallocate(a, 1000);
        CHECK(counting->live == 0);
        stack->iter();
        CHECK(counting->live >= 4096 && stack->arena_stats().region_bytes >= 4096);
        const ssize_t region = counting->live;
        a = stack->allocate(1000), b = stack->allocate(3000);
        CHECK(counting->live == region && static_cast<char *>(b) == static_cast<char *>(a) + 1024);
        stack->deallocate(b, 3000);
        stack->deallocate(a, 1000);
        // Not only its own cache: what it is over is told too.
        stack->trim(0);
        CHECK(counting->trims > 0);
        CHECK(counting->live == 0 && stack->arena_stats().region_bytes == 0);
        CHECK(stack->allocate(0) == nullptr);
        stack->deallocate(nullptr, 0);
        // Another stream than the implementation's.
        Stream other = Stream::create();
        a = as_any.allocate(100, other);
        as_any.deallocate(a, 100, other);
        a = over.allocate(100, other, 256);
        over.deallocate(a, 100, other);
        stack->deallocate(stack->allocate(1000), 1000);
        stack->iter();
        CHECK(counting->live > 0);
    }
    CHECK(counting->live == 0 && refusals.take() == 0);
}

void the_defects_of_the_stack() {
    Refusals refusals;
    Allocator upstream(kDEVICE);
    auto stack = upstream.adapt<StackAllocatorImpl>();
    // 1: blocks that each need rounding fit into the region that was made for them.
    std::vector<void *> blocks;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 100; i++) {
            blocks.push_back(stack->allocate(1));
        }
        CHECK(stack->arena_stats().spilled_blocks == (round == 0 ? 100u : 0u));
        for (; !blocks.empty(); blocks.pop_back()) {
            stack->deallocate(blocks.back(), 1);
        }
        stack->iter();
    }
    // 2: it spills, and grows.
    void *large = stack->allocate(1 << 20);
    CHECK(stack->arena_stats().spilled_blocks == 1);
    stack->deallocate(large, 1 << 20);
    stack->iter();
    large = stack->allocate(1 << 20);
    CHECK(stack->arena_stats().spilled_blocks == 0 && refusals.take() == 0);
    stack->deallocate(large, 1 << 20);
    // 3: a wrong size that ends at the top.
    void *a = stack->allocate(256), *b = stack->allocate(512);
    stack->deallocate(a, 768);
    CHECK(refusals.take() == 1 && refusals.last() == HBM_INVALID_ARGUMENT);
    // 4: a foreign block that ends where the region begins.
    stack->deallocate(static_cast<char *>(a) - 256, 256);
    CHECK(refusals.take() == 1);
    // 5: negative sizes, and none.
    thrown(HBM_INVALID_ARGUMENT, [&] { stack->allocate(-512); });
    stack->deallocate(b, -512);
    CHECK(refusals.take() == 1);
    CHECK(stack->allocate(0) == nullptr);
    // 6: another order.
    stack->deallocate(a, 256);
    CHECK(refusals.take() == 1 && refusals.last() == HBM_INVALID_ARGUMENT);
    stack->deallocate(b, 512);
    stack->deallocate(a, 256);
    CHECK(refusals.take() == 0 && stack->arena_stats().blocks == 0);
    stack->deallocate(a, 256);
    CHECK(refusals.take() == 1);
    thrown(HBM_INVALID_ARGUMENT, [] { StackAllocatorImpl over_nothing(nullptr); });
}

void functions() {
    int live = 0;
    auto simple = SimpleAllocator::Create(
        [&](ssize_t size) {
            live++;
            return ::operator new(static_cast<std::size_t>(size));
        },
        [&](void *block, ssize_t) {
            live--;
            ::operator delete(block);
        },
        Device(kCPU));
    Allocator as_any = simple;
    void *block = as_any->allocate(100);
    CHECK(live == 1 && as_any->device() == kCPU && !as_any->stream());
    as_any->deallocate(block, 100);
    thrown(HBM_INVALID_ARGUMENT, [&] { simple->allocate(-1); });
    {
        // operator new aligns to 16, the stack to 256.
        auto stack = as_any.adapt<StackAllocatorImpl>();
        for (int round = 0; round < 2; round++) {
            void *a = stack->allocate(1), *b = stack->allocate(5000);
            CHECK(reinterpret_cast<std::uintptr_t>(a) % 256 == 0 && reinterpret_cast<std::uintptr_t>(b) % 256 == 0);
            std::memset(b, 1, 5000);
            stack->deallocate(b, 5000);
            stack->deallocate(a, 1);
            stack->iter();
        }
        CHECK(live == 1);
    }
    CHECK(live == 0);
    auto none = SimpleAllocator::Create([](ssize_t) -> void * { return nullptr; }, [](void *, ssize_t) {}, Device(kCPU));
    thrown<std::bad_alloc>(HBM_OUT_OF_MEMORY, [&] { none->allocate(1); });
    auto throwing = SimpleAllocator::Create([](ssize_t) -> void * { throw std::runtime_error("mine"); },
                                            [](void *, ssize_t) { throw 1; }, Device(kCPU));
    auto stack = throwing.adapt<StackAllocatorImpl>();
    thrown(HBM_INTERNAL, [&] { stack->allocate(1); });
    Refusals refusals;
    throwing.Allocator::deallocate(&live, 4);
    CHECK(refusals.take() == 1 && refusals.last() == HBM_INTERNAL);
}

void empty() {
    Allocator none;
    CHECK(!none && none == Allocator());
    thrown(HBM_INVALID_ARGUMENT, [&] { none->allocate(1); });
    thrown(HBM_INVALID_ARGUMENT, [&] { none.adapt<StackAllocatorImpl>(); });
}

}  // namespace

int main() {
    CHECK(hbm_option_set("log", "off") == HBM_OK);
    for (int run = 0; run < 2; run++) {
        the_few_lines();
        places();
        every_class();
        streams_and_events();
        stack_over_an_implementation(Allocator(kDEVICE));
        stack_over_an_implementation(Allocator(Stream::create(), false));
        stack_over_an_implementation(Allocator(kCPU));
        the_defects_of_the_stack();
        functions();
        empty();
    }
    std::puts("TurboMind's names: fine");
}
