// What allocators of the C interface have in common.
#pragma once

#include <hbmalloc/implementation.hpp>

#include <utility>

namespace [[gnu::visibility("default")]] hbmalloc {
namespace detail {

// An allocator of the C interface, whose kind is the derived class's to say. Any thread; on its own stream unless a call
// names another.
class HandleAllocator : public AllocatorImpl {
public:
    // Blocks that are still given out stay valid, and what is behind the allocator then stays for them.
    ~HandleAllocator() override { destroy(); }

    void *allocate(ssize_t bytes) final {
        if (__builtin_expect(bytes <= 0, 0)) {
            return none_of(bytes);
        }
        void *address = nullptr;
        const auto size = static_cast<std::size_t>(bytes);
        const int status = hbm_allocator_allocate(handle_, size, 0, raw_stream_, &address);
        if (__builtin_expect(status != HBM_OK, 0)) {
            raise_allocation(status, size);
        }
        return address;
    }

    Stream stream() const noexcept final { return stream_; }
    Device device() const noexcept final { return device_; }

    void trim(std::size_t bytes_to_keep) final { check(hbm_allocator_trim(handle_, bytes_to_keep, nullptr)); }

    hbm_status try_allocate(std::size_t bytes, std::size_t alignment, StreamRef stream, void **out) noexcept final {
        *out = nullptr;
        if (bytes == 0) {
            return HBM_OK;
        }
        return allocation_status(hbm_allocator_allocate(handle_, bytes, alignment, stream.raw(), out), bytes);
    }

    hbm_allocator_t *native() const noexcept final { return handle_; }

protected:
    explicit HandleAllocator(const Stream &stream) : stream_(stream), raw_stream_(StreamRef(stream).raw()) {}

    void create(Device device, const hbm_allocator_desc_t &descriptor) {
        device_ = device;
        check(hbm_allocator_create(&descriptor, &handle_));
    }

    // For a derived class with members that the allocator needs to the end.
    void destroy() noexcept {
        hbm_allocator_t *handle = std::exchange(handle_, nullptr);
        if (int status = handle == nullptr ? HBM_OK : hbm_allocator_destroy(handle)) {
            report_last(status, handle);
        }
    }

    hbm_allocator_t *handle_ = nullptr;
    Stream stream_;
    void *raw_stream_;
    Device device_;

private:
    [[gnu::cold, gnu::noinline]] static void *none_of(ssize_t bytes) {
        if (bytes < 0) {
            raise_negative(bytes);
        }
        return nullptr;
    }
};

}  // namespace detail
}  // namespace hbmalloc
