// The handle that programs hold.
#pragma once

#include <hbmalloc/kinds.hpp>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

namespace [[gnu::visibility("default")]] hbmalloc {

namespace detail {

// One allocator serves all that ask for plain memory of a place: any of them may free what another gave out. They
// are kept for good, so that statics may free at the end of the process.
inline std::shared_ptr<AllocatorImpl> plain(Device device) {
    static auto &lock = *new std::mutex;
    static auto &made = *new std::map<std::pair<DeviceType, int>, std::shared_ptr<AllocatorImpl>>;
    const Kind kind = device.type == kCPU ? Kind::host : device.type == kCPUpinned ? Kind::pinned : Kind::device;
    std::lock_guard<std::mutex> guard(lock);
    auto &slot = made[{device.type, device.type == kDEVICE ? device.id : 0}];
    if (slot == nullptr) {
        Options options;
        // Pinned memory is had by way of whatever device is in use; all reach it.
        options.device = device.type == kCPUpinned ? current_device() : device.type == kDEVICE ? device.id : 0;
        slot = std::make_shared<KindAllocator>(kind, options);
    }
    return slot;
}

inline Options for_stream(Stream stream) {
    // An invalid stream would mean the legacy one, which waits for all others.
    static_cast<void>(stream.handle());
    Options options;
    options.stream = std::move(stream);
    return options;
}

}  // namespace detail

template <class Impl>
class AllocatorOf;

// A shared handle of an allocator; empty by default. Copies mean the same allocator, whose blocks any of them frees;
// the last one ends it. Any thread. Blocks of the library's kinds are aligned to 256 bytes at least.
class Allocator {
public:
    Allocator() = default;

    // Plain memory of a place: the host's heap, pinned memory of the host, or synchronous device memory. All handles of
    // one place are equal.
    explicit Allocator(Device device) : impl_(detail::plain(device)) {}
    explicit Allocator(DeviceType type) : Allocator(Device(type)) {}

    // Memory of the stream's device in the order of `stream`: from the driver's stream-ordered pool (true), or from the
    // caching pool of this library, which all threads share (false).
    Allocator(Stream stream, bool use_default_pool)
        : Allocator(use_default_pool ? Kind::stream_ordered : Kind::pool, detail::for_stream(std::move(stream))) {}

    // Of any kind.
    explicit Allocator(Kind kind, const Options &options = {}) : impl_(std::make_shared<KindAllocator>(kind, options)) {}

    // Whatever was made of AllocatorImpl.
    template <class Impl, class = std::enable_if_t<std::is_convertible_v<Impl *, AllocatorImpl *>>>
    Allocator(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}  // NOLINT: implicit as TurboMind's

    // Throws where it is empty, as all others do that are not noexcept.
    AllocatorImpl *operator->() const {
        if (__builtin_expect(impl_ == nullptr, 0)) {
            raise_empty();
        }
        return impl_.get();
    }

    explicit operator bool() const noexcept { return impl_ != nullptr; }
    const std::shared_ptr<AllocatorImpl> &impl() const noexcept { return impl_; }

    // An allocator of the class T over this one: T's constructor gets this one's implementation, then `args`.
    template <class T, class... Args>
    AllocatorOf<T> adapt(Args &&...args) const;

    // NULL for 0 bytes. Throws OutOfMemory, and Failure for anything else.
    void *allocate(std::size_t bytes) const {
        if (__builtin_expect(bytes > detail::most_bytes, 0)) {
            detail::raise_allocation(HBM_INVALID_ARGUMENT, bytes);
        }
        return (*this)->allocate(static_cast<ssize_t>(bytes));
    }

    // For use on `stream` rather than on the allocator's, aligned to `alignment` (a power of two; 0 for its own).
    void *allocate(std::size_t bytes, StreamRef stream, std::size_t alignment = 0) const {
        void *address = nullptr;
        if (int status = (*this)->try_allocate(bytes, alignment, stream, &address)) {
            raise_failed(status, bytes);
        }
        return address;
    }

    // Takes a block back; what work given to the allocator's stream before does with it is waited for, by what comes
    // after on the device where it can be. NULL is fine. Errors go to the handler of set_deallocation_handler.
    void deallocate(void *address, std::size_t bytes) const noexcept {
        if (address == nullptr) {
            return;
        }
        try {
            (*this)->deallocate(address, static_cast<ssize_t>(bytes));
        } catch (...) {
            report_exception(address);
        }
    }

    // The same, behind work given to `stream` before, as well as to the stream of the allocation.
    void deallocate(void *address, std::size_t bytes, StreamRef stream) const noexcept {
        if (int status = try_deallocate(address, bytes, stream)) {
            const bool is_of_library = impl_ != nullptr && impl_->native() != nullptr;
            is_of_library ? detail::report_last(status, address)
                          : detail::report(static_cast<hbm_status>(status), hbm_status_name(status), address);
        }
    }

    // As the above, with a status: hbm_last_error() tells the rest. HBM_INVALID_ARGUMENT where the handle is empty.
    hbm_status try_allocate(std::size_t bytes, StreamRef stream, void **out, std::size_t alignment = 0) const noexcept {
        *out = nullptr;
        return impl_ == nullptr ? HBM_INVALID_ARGUMENT : impl_->try_allocate(bytes, alignment, stream, out);
    }
    hbm_status try_allocate(std::size_t bytes, void **out) const noexcept {
        *out = nullptr;
        try {
            return try_allocate(bytes, (*this)->stream(), out);
        } catch (...) {
            return detail::status_of_exception();
        }
    }
    hbm_status try_deallocate(void *address, std::size_t bytes, StreamRef stream) const noexcept {
        if (address == nullptr) {
            return HBM_OK;
        }
        return impl_ == nullptr ? HBM_INVALID_ARGUMENT : impl_->try_deallocate(address, bytes, stream);
    }
    hbm_status try_deallocate(void *address, std::size_t bytes) const noexcept {
        if (address == nullptr) {
            return HBM_OK;
        }
        try {
            return try_deallocate(address, bytes, (*this)->stream());
        } catch (...) {
            return detail::status_of_exception();
        }
    }

    // Says that work already given to `stream`, of any device, uses the block. For allocators of the library.
    void record_stream(void *address, StreamRef stream) const {
        detail::check(hbm_allocator_record_stream(native(), address, stream.raw()));
    }

    // Statistics of the kind on its device; of memory of the host, of this allocator. For allocators of the library.
    hbm_stats_t stats() const {
        hbm_stats_t stats{};
        stats.struct_size = sizeof stats;
        detail::check(hbm_allocator_stats(native(), &stats));
        return stats;
    }

    // The allocator of the C interface, which stays this handle's; throws where the implementation has none.
    hbm_allocator_t *native() const {
        hbm_allocator_t *found = (*this)->native();
        if (found == nullptr) {
            detail::raise(HBM_UNSUPPORTED, "this is asked of an allocator that is none of the library's");
        }
        return found;
    }

    friend bool operator==(const Allocator &a, const Allocator &b) noexcept { return a.impl_ == b.impl_; }
    friend bool operator!=(const Allocator &a, const Allocator &b) noexcept { return !(a == b); }

private:
    [[noreturn, gnu::cold, gnu::noinline]] static void raise_empty() {
        detail::raise(HBM_INVALID_ARGUMENT, "an allocator that was not made is used");
    }

    [[noreturn, gnu::cold, gnu::noinline]] void raise_failed(int status, std::size_t bytes) const {
        if (impl_->native() != nullptr) {
            detail::raise_allocation(status, bytes);
        }
        // The library's last error is not this one.
        const auto failed = static_cast<hbm_status>(status);
        const std::string name = hbm_status_name(failed);
        detail::raise(failed, "allocate: " + name + ": " + std::to_string(bytes) + " bytes");
    }

    [[gnu::cold, gnu::noinline]] static void report_exception(void *address) noexcept {
        try {
            throw;
        } catch (const Error &error) {
            detail::report(error.status(), error.what(), address);
        } catch (const std::exception &error) {
            detail::report(HBM_INTERNAL, error.what(), address);
        } catch (...) {
            detail::report(HBM_INTERNAL, "deallocate threw something", address);
        }
    }

    std::shared_ptr<AllocatorImpl> impl_;
};

// An Allocator whose implementation is known to be an Impl, for what only that has.
template <class Impl>
class AllocatorOf : public Allocator {
public:
    AllocatorOf() = default;
    AllocatorOf(std::shared_ptr<Impl> impl) noexcept : Allocator(std::move(impl)) {}  // NOLINT: implicit as Allocator's

    Impl *operator->() const { return static_cast<Impl *>(Allocator::operator->()); }
};

template <class T, class... Args>
AllocatorOf<T> Allocator::adapt(Args &&...args) const {
    static_assert(std::is_base_of_v<AllocatorImpl, T>, "T must derive from AllocatorImpl");
    static_cast<void>(operator->());
    return AllocatorOf<T>(std::make_shared<T>(impl_, std::forward<Args>(args)...));
}

}  // namespace hbmalloc
