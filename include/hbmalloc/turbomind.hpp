// The names of TurboMind's allocator framework. `namespace turbomind { namespace core = hbmalloc::turbomind; }` puts them
// where its code looks for them; docs/cpp.md says what differs.
#pragma once

#include <hbmalloc/allocator.hpp>
#include <hbmalloc/arena.hpp>
#include <hbmalloc/context.hpp>
#include <hbmalloc/function_allocator.hpp>

namespace [[gnu::visibility("default")]] hbmalloc {
namespace turbomind {

using hbmalloc::Allocator;
using hbmalloc::AllocatorImpl;
using hbmalloc::Context;
using hbmalloc::ContextGuard;
using hbmalloc::Device;
using hbmalloc::DeviceType;
using hbmalloc::Event;
using hbmalloc::kCPU;
using hbmalloc::kCPUpinned;
using hbmalloc::kDEVICE;
using hbmalloc::Stream;

using SimpleAllocator = FunctionAllocator;
using StackAllocatorImpl = Arena;

// Memory of the host's heap.
class HostAllocator : public KindAllocator {
public:
    HostAllocator() : KindAllocator(Kind::host) {}
};

// Pinned memory of the host.
class CudaHostAllocator : public KindAllocator {
public:
    CudaHostAllocator() : KindAllocator(Kind::pinned) {}
};

// Synchronous memory of the current device.
class CudaAllocator : public KindAllocator {
public:
    CudaAllocator() : KindAllocator(Kind::device) {}
};

// Memory in the order of a stream: from the driver's stream-ordered pool, or from this library's, which all threads share.
class CudaMemPoolAllocator : public KindAllocator {
public:
    CudaMemPoolAllocator(Stream stream, bool use_default_pool)
        : KindAllocator(use_default_pool ? Kind::stream_ordered : Kind::pool, detail::for_stream(std::move(stream))) {}
};

}  // namespace turbomind
}  // namespace hbmalloc
