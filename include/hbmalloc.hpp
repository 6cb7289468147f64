// hbmalloc for C++17: allocators as shared handles, contexts by thread, buffers, arenas, and resources for the containers
// of the standard library and of CUDA's. Header only, over hbmalloc.h; link with -lhbmalloc. Needs no headers of CUDA, and
// is for GCC and Clang.
//
// Failures throw hbmalloc::Error (OutOfMemory is a std::bad_alloc, the rest a std::runtime_error), or are a status of the
// calls whose names begin with try_. Giving memory back never throws and never ends the process. Sizes are bytes; 0
// bytes are NULL. Everything may be called from any thread where its class does not say otherwise.
//
// `#define HBMALLOC_NO_CCCL` before it keeps <cuda/memory_resource> out where it is there.
#pragma once

#include <hbmalloc/allocator.hpp>
#include <hbmalloc/arena.hpp>
#include <hbmalloc/buffer.hpp>
#include <hbmalloc/context.hpp>
#include <hbmalloc/device.hpp>
#include <hbmalloc/error.hpp>
#include <hbmalloc/function_allocator.hpp>
#include <hbmalloc/kinds.hpp>
#include <hbmalloc/stream.hpp>
#include <hbmalloc/turbomind.hpp>

#if __has_include(<memory_resource>)
#include <hbmalloc/pmr.hpp>
#endif

#include <hbmalloc/cccl.hpp>
