// Allocators as memory resources of CUDA's C++ libraries, for whatever takes those: RMM's pools, libcudf, Thrust. Nothing
// where <cuda/memory_resource>, of CCCL, and the headers of the CUDA runtime are not there.
#pragma once

#include <hbmalloc/allocator.hpp>

#if !defined(HBMALLOC_NO_CCCL) && __has_include(<cuda/memory_resource>) && __has_include(<cuda_runtime_api.h>) && \
    __has_include(<crt/host_defines.h>)
#include <cuda/memory_resource>
// Before 3.1 the resources are an experiment, which this switches on.
#if defined(CCCL_VERSION)
#if CCCL_VERSION >= 3001000 || defined(LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE)
#define HBMALLOC_HAS_CCCL 1
#endif
#elif defined(LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE)
#define HBMALLOC_HAS_CCCL 1
#endif
#endif

#if defined(HBMALLOC_HAS_CCCL)

namespace [[gnu::visibility("default")]] hbmalloc {

namespace detail {

struct NotForHost {};
struct NotForDevice {};

struct ForHost {
    friend constexpr void get_property(const ForHost &, ::cuda::mr::host_accessible) noexcept {}
};

struct ForDevice {
    friend constexpr void get_property(const ForDevice &, ::cuda::mr::device_accessible) noexcept {}
};

}  // namespace detail

// An allocator as a cuda::mr::resource, of CCCL 3.1 and later and, by the names of the time, before. Copies mean the same
// allocator, and are equal. Any thread. Alignments are in bytes, a power of two; only the kinds pool, vmm and host have
// more than 256. Throws what Allocator does; deallocation is noexcept.
template <bool is_for_host, bool is_for_device>
class Resource : public std::conditional_t<is_for_host, detail::ForHost, detail::NotForHost>,
                 public std::conditional_t<is_for_device, detail::ForDevice, detail::NotForDevice> {
public:
    // Throws Failure (HBM_UNSUPPORTED) where the memory is not for whom this resource says that it is.
    explicit Resource(Allocator allocator) : allocator_(std::move(allocator)) {
        if ((is_for_host && !allocator_->is_host_accessible()) || (is_for_device && !allocator_->is_device_accessible())) {
            detail::raise(HBM_UNSUPPORTED, std::string("this allocator's memory is not accessible from ") +
                                               (is_for_host && !allocator_->is_host_accessible() ? "the host" : "devices"));
        }
        stream_ = allocator_->stream();
        device_ = allocator_->device();
    }

    // In the order of `stream`, of the allocator's device.
    void *allocate(::cuda::stream_ref stream, std::size_t bytes, std::size_t alignment = own_alignment) {
        return allocator_.allocate(bytes, raw(stream), alignment);
    }
    void deallocate(::cuda::stream_ref stream, void *address, std::size_t bytes, std::size_t = own_alignment) noexcept {
        allocator_.deallocate(address, bytes, raw(stream));
    }

    // For use on any stream: where memory is in the order of one, that is waited for.
    void *allocate_sync(std::size_t bytes, std::size_t alignment = own_alignment) {
        void *address = allocator_.allocate(bytes, stream_, alignment);
        if (device_.type == kDEVICE) {
            if (int status = hbm_stream_synchronize(device_.id, StreamRef(stream_).raw())) {
                allocator_.deallocate(address, bytes, stream_);
                detail::raise_last(status);
            }
        }
        return address;
    }
    // All use of the block must be over.
    void deallocate_sync(void *address, std::size_t bytes, std::size_t = own_alignment) noexcept {
        allocator_.deallocate(address, bytes, stream_);
    }

    // The names before CCCL 3.1.
    void *allocate(std::size_t bytes, std::size_t alignment = own_alignment) { return allocate_sync(bytes, alignment); }
    void deallocate(void *address, std::size_t bytes, std::size_t alignment = own_alignment) noexcept {
        deallocate_sync(address, bytes, alignment);
    }
    void *allocate_async(std::size_t bytes, std::size_t alignment, ::cuda::stream_ref stream) {
        return allocate(stream, bytes, alignment);
    }
    void *allocate_async(std::size_t bytes, ::cuda::stream_ref stream) { return allocate(stream, bytes); }
    void deallocate_async(void *address, std::size_t bytes, std::size_t alignment, ::cuda::stream_ref stream) noexcept {
        deallocate(stream, address, bytes, alignment);
    }
    void deallocate_async(void *address, std::size_t bytes, ::cuda::stream_ref stream) noexcept {
        deallocate(stream, address, bytes);
    }

    const Allocator &allocator() const noexcept { return allocator_; }

    friend bool operator==(const Resource &a, const Resource &b) noexcept { return a.allocator_ == b.allocator_; }
    friend bool operator!=(const Resource &a, const Resource &b) noexcept { return !(a == b); }

private:
    static constexpr std::size_t own_alignment = detail::own_alignment;

    static StreamRef raw(::cuda::stream_ref stream) noexcept { return StreamRef(stream.get()); }

    Allocator allocator_;
    Stream stream_;
    Device device_;
};

// Of any kind but host and numa.
using DeviceResource = Resource<false, true>;
// Of pinned and managed memory.
using SharedResource = Resource<true, true>;
// Of any kind that HostResource takes.
using HostOnlyResource = Resource<true, false>;

#if defined(CCCL_VERSION) && CCCL_VERSION >= 3001000
static_assert(::cuda::mr::resource_with<DeviceResource, ::cuda::mr::device_accessible>);
static_assert(::cuda::mr::resource_with<SharedResource, ::cuda::mr::device_accessible, ::cuda::mr::host_accessible>);
static_assert(::cuda::mr::resource_with<HostOnlyResource, ::cuda::mr::host_accessible>);
#else
static_assert(::cuda::mr::async_resource_with<DeviceResource, ::cuda::mr::device_accessible>);
static_assert(::cuda::mr::async_resource_with<SharedResource, ::cuda::mr::device_accessible, ::cuda::mr::host_accessible>);
static_assert(::cuda::mr::async_resource_with<HostOnlyResource, ::cuda::mr::host_accessible>);
#endif

}  // namespace hbmalloc

#endif
