// The allocators as memory resources of CUDA's C++ library, whose own type erasure calls them. Prints "skipped" where
// that library is not there.
#include "check.hpp"

#include <hbmalloc.hpp>

#if !defined(HBMALLOC_HAS_CCCL)

int main() { std::puts("skipped: <cuda/memory_resource> is not there, or too old"); }

#else

#include <type_traits>

namespace mr = cuda::mr;
using hbmalloc::Allocator;
using hbmalloc::DeviceResource;
using hbmalloc::HostOnlyResource;
using hbmalloc::Kind;
using hbmalloc::SharedResource;
using hbmalloc::Stream;

namespace {

template <class R>
constexpr bool for_device = mr::resource_with<R, mr::device_accessible>;
template <class R>
constexpr bool for_host = mr::resource_with<R, mr::host_accessible>;

static_assert(mr::resource<DeviceResource>);
static_assert(for_device<DeviceResource> && !for_host<DeviceResource>);
static_assert(for_device<SharedResource> && for_host<SharedResource>);
static_assert(!for_device<HostOnlyResource> && for_host<HostOnlyResource>);
static_assert(std::is_nothrow_move_constructible_v<DeviceResource> && std::is_copy_constructible_v<DeviceResource>);

template <class R>
void refuses(const Allocator &allocator) {
    try {
        R resource(allocator);
        CHECK(!"reached");
    } catch (const hbmalloc::Error &error) {
        CHECK(error.status() == HBM_UNSUPPORTED);
    }
}

void by_stream(Kind kind) {
    Stream stream = Stream::create();
    hbmalloc::Options options;
    options.stream = stream;
    DeviceResource resource{Allocator(kind, options)}, copy = resource, other{Allocator(kind, options)};
    CHECK(resource == copy && resource != other);
    cuda::stream_ref order(stream.handle());
#if defined(CCCL_VERSION) && CCCL_VERSION >= 3001000
    static_assert(noexcept(resource.deallocate(order, nullptr, 0, 256)));
    void *block = resource.allocate(order, 1 << 20, 256);
    CHECK(block != nullptr);
    copy.deallocate(order, block, 1 << 20, 256);
    block = resource.allocate_sync(4096, 256);
    resource.deallocate_sync(block, 4096, 256);
#if CCCL_VERSION >= 3002000
    mr::any_resource<mr::device_accessible> any(resource);
    block = any.allocate(order, 4096, 256);
    CHECK(resource.allocator().stats().requested == 4096);
    any.deallocate(order, block, 4096, 256);
    mr::resource_ref<mr::device_accessible> reference(resource);
    block = reference.allocate_sync(4096, 256);
    reference.deallocate_sync(block, 4096, 256);
#endif
#else
    mr::async_resource_ref<mr::device_accessible> reference(resource);
    void *block = reference.allocate_async(4096, 256, order);
    reference.deallocate_async(block, 4096, 256, order);
    block = reference.allocate(4096, 256);
    reference.deallocate(block, 4096, 256);
#endif
    CHECK(resource.allocator().stats().requested == 0);
    try {
        static_cast<void>(resource.allocate_sync(std::size_t(1) << 60, 256));
        CHECK(!"reached");
    } catch (const std::bad_alloc &) {
    }
}

}  // namespace

int main() {
    by_stream(Kind::pool);
    by_stream(Kind::stream_ordered);
    by_stream(Kind::vmm);
    refuses<DeviceResource>(Allocator(hbmalloc::kCPU));
    refuses<SharedResource>(Allocator(hbmalloc::kDEVICE));
    refuses<HostOnlyResource>(Allocator(Kind::pool));
    SharedResource pinned{Allocator(hbmalloc::kCPUpinned)};
    HostOnlyResource host{Allocator(hbmalloc::kCPU)};
    for (int round = 0; round < 2; round++) {
        void *block = round == 0 ? pinned.allocate_sync(100) : host.allocate_sync(100, 4096);
        static_cast<char *>(block)[99] = 1;
        round == 0 ? pinned.deallocate_sync(block, 100) : host.deallocate_sync(block, 100, 4096);
    }
    std::puts("CCCL: fine");
}

#endif
