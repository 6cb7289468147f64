// The streams and allocators that code finds without being handed them: a stack of each for every thread.
#pragma once

#include <hbmalloc/allocator.hpp>

#include <atomic>
#include <list>
#include <vector>

namespace [[gnu::visibility("default")]] hbmalloc {

namespace detail {

// Lists, since guards may end in another order than that of their making and references must stay good.
struct ContextStacks {
    std::list<Stream> streams;
    std::list<Allocator> host;
    std::list<Allocator> device;
    std::list<Allocator> pinned;
    Allocator plain_host;
    // The address of what a thread left behind may be another's.
    std::uint64_t serial = next_serial();

    std::list<Allocator> &of(DeviceType type) { return type == kCPU ? host : type == kCPUpinned ? pinned : device; }

private:
    static std::uint64_t next_serial() noexcept {
        static std::atomic<std::uint64_t> last{0};
        return last.fetch_add(1, std::memory_order_relaxed) + 1;
    }
};

// Of trivial types, so that destructors which run later than this thread's may still look.
inline thread_local ContextStacks *context_stacks = nullptr;
inline thread_local bool has_context_ended = false;

struct ContextOwner {
    ~ContextOwner() {
        delete std::exchange(context_stacks, nullptr);
        has_context_ended = true;
    }
};

inline ContextStacks &context() {
    if (context_stacks == nullptr) {
        if (!has_context_ended) {
            thread_local ContextOwner owner;
        }
        context_stacks = new ContextStacks;
    }
    return *context_stacks;
}

template <class T>
T &top(std::list<T> &stack, const char *what) {
    if (stack.empty()) {
        const std::string text = std::string("the context of this thread has no ") + what;
        raise(HBM_INVALID_ARGUMENT, text + ": push one by a ContextGuard");
    }
    return stack.back();
}

}  // namespace detail

// What the calling thread's innermost ContextGuards say. References are good while the guard lives. All throw where nobody
// pushed one, but host_alloc.
class Context {
public:
    static Stream &stream() { return detail::top(detail::context().streams, "stream"); }
    static Allocator &device_alloc() { return detail::top(detail::context().device, "device allocator"); }
    static Allocator &pinned_alloc() { return detail::top(detail::context().pinned, "pinned allocator"); }

    // Allocator(kCPU) where nobody pushed one.
    static Allocator &host_alloc() {
        auto &context = detail::context();
        if (!context.host.empty()) {
            return context.host.back();
        }
        if (!context.plain_host) {
            context.plain_host = Allocator(kCPU);
        }
        return context.plain_host;
    }

    // The innermost one for memory of the place; of several GPUs, that of its number.
    static Allocator &alloc(Device device) {
        if (device.type != kDEVICE) {
            return device.type == kCPU ? host_alloc() : pinned_alloc();
        }
        auto &stack = detail::context().device;
        for (auto each = stack.rbegin(); each != stack.rend(); ++each) {
            if ((*each)->device() == device) {
                return *each;
            }
        }
        detail::raise(HBM_INVALID_ARGUMENT, "the context of this thread has no allocator of device " +
                                                std::to_string(device.id) + ": push one by a ContextGuard");
    }
};

// Pushes streams and allocators, each allocator onto the stack of its device()'s type, for as long as it lives. Must end on
// the thread that made it; elsewhere what it pushed stays, and the handler of set_deallocation_handler hears of that.
class [[nodiscard]] ContextGuard {
public:
    template <class... Args, class = std::enable_if_t<(sizeof...(Args) > 0) &&
                                                      ((std::is_convertible_v<const Args &, Stream> ||
                                                        std::is_convertible_v<const Args &, Allocator>)&&...)>>
    explicit ContextGuard(const Args &...args) : ContextGuard(Empty{}) {
        // The guard is whole here: what was pushed is popped even if the next push throws.
        pushed_.reserve(sizeof...(Args));
        (push(args), ...);
    }

    ContextGuard(const ContextGuard &) = delete;
    ContextGuard(ContextGuard &&) = delete;
    ContextGuard &operator=(const ContextGuard &) = delete;
    ContextGuard &operator=(ContextGuard &&) = delete;

    ~ContextGuard() {
        const bool is_own = detail::context_stacks != nullptr && detail::context_stacks->serial == serial_;
        if (!is_own) {
            detail::report(HBM_INVALID_ARGUMENT, "a ContextGuard ended on another thread than its own, or after it", this);
            return;
        }
        while (!pushed_.empty()) {
            pushed_.back().pop();
            pushed_.pop_back();
        }
    }

private:
    struct Empty {};

    struct Pushed {
        std::list<Stream>::iterator stream;
        std::list<Allocator> *stack;
        std::list<Allocator>::iterator allocator;

        void pop() const noexcept {
            if (stack == nullptr) {
                detail::context_stacks->streams.erase(stream);
            } else {
                stack->erase(allocator);
            }
        }
    };

    explicit ContextGuard(Empty) : serial_(detail::context().serial) {}

    template <class Arg>
    void push(const Arg &arg) {
        if constexpr (std::is_convertible_v<const Arg &, Stream>) {
            push_stream(arg);
        } else {
            push_allocator(arg);
        }
    }

    void push_stream(const Stream &stream) {
        static_cast<void>(stream.handle());
        auto &streams = detail::context().streams;
        pushed_.push_back({streams.insert(streams.end(), stream), nullptr, {}});
    }

    void push_allocator(const Allocator &allocator) {
        auto &stack = detail::context().of(allocator->device().type);
        pushed_.push_back({{}, &stack, stack.insert(stack.end(), allocator)});
    }

    std::uint64_t serial_;
    std::vector<Pushed> pushed_;
};

}  // namespace hbmalloc
