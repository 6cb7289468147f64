// Allocators that are functions of the program.
#pragma once

#include <hbmalloc/allocator.hpp>

#include <functional>

namespace [[gnu::visibility("default")]] hbmalloc {

// Two functions and where their memory is. They are `void *(ssize_t)` and `void (void *, ssize_t)`, or know streams and
// alignments: `void *(std::size_t bytes, std::size_t alignment, StreamRef)` and `void (void *, std::size_t, StreamRef)`.
// An alignment is a power of two, 256 where none was asked for. Called by any thread that uses the allocator. Nothing is recorded: what is freed twice reaches the function twice.
class FunctionAllocator final : public AllocatorImpl {
public:
    template <class Allocate, class Deallocate>
    FunctionAllocator(Allocate &&allocate, Deallocate &&deallocate, Device device) : device_(device) {
        constexpr bool is_aware = std::is_invocable_r_v<void *, Allocate &, std::size_t, std::size_t, StreamRef>;
        if constexpr (is_aware) {
            aware_allocate_ = std::forward<Allocate>(allocate);
            aware_deallocate_ = std::forward<Deallocate>(deallocate);
        } else {
            allocate_ = std::forward<Allocate>(allocate);
            deallocate_ = std::forward<Deallocate>(deallocate);
        }
    }

    template <class Allocate, class Deallocate>
    static AllocatorOf<FunctionAllocator> Create(Allocate &&allocate, Deallocate &&deallocate, Device device) {
        return std::make_shared<FunctionAllocator>(std::forward<Allocate>(allocate), std::forward<Deallocate>(deallocate),
                                                   device);
    }

    // Throws what the function throws, and OutOfMemory where it returns NULL.
    void *allocate(ssize_t bytes) override {
        if (bytes <= 0) {
            return bytes == 0 ? nullptr : (detail::raise_negative(bytes), nullptr);
        }
        const auto size = static_cast<std::size_t>(bytes);
        void *address = allocate_ ? allocate_(bytes) : aware_allocate_(size, detail::own_alignment, nullptr);
        if (address == nullptr) {
            detail::raise(HBM_OUT_OF_MEMORY, "the function of an allocator gave no " + std::to_string(bytes) + " bytes");
        }
        return address;
    }

    void deallocate(void *address, ssize_t bytes) override {
        if (address == nullptr) {
            return;
        }
        if (deallocate_) {
            return deallocate_(address, bytes);
        }
        aware_deallocate_(address, static_cast<std::size_t>(bytes), nullptr);
    }

    Device device() const noexcept override { return device_; }

    hbm_status try_allocate(std::size_t bytes, std::size_t alignment, StreamRef stream, void **out) noexcept override {
        if (!aware_allocate_ || bytes == 0) {
            return AllocatorImpl::try_allocate(bytes, alignment, stream, out);
        }
        try {
            *out = nullptr;
            *out = aware_allocate_(bytes, alignment == 0 ? detail::own_alignment : alignment, stream);
            return *out == nullptr ? HBM_OUT_OF_MEMORY : HBM_OK;
        } catch (...) {
            return detail::status_of_exception();
        }
    }

    hbm_status try_deallocate(void *address, std::size_t bytes, StreamRef stream) noexcept override {
        if (!aware_deallocate_) {
            return AllocatorImpl::try_deallocate(address, bytes, stream);
        }
        try {
            aware_deallocate_(address, bytes, stream);
            return HBM_OK;
        } catch (...) {
            return detail::status_of_exception();
        }
    }

private:
    std::function<void *(ssize_t)> allocate_;
    std::function<void(void *, ssize_t)> deallocate_;
    std::function<void *(std::size_t, std::size_t, StreamRef)> aware_allocate_;
    std::function<void(void *, std::size_t, StreamRef)> aware_deallocate_;
    Device device_;
};

}  // namespace hbmalloc
