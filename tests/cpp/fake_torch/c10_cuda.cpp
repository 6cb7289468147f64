#include "allocator.h"

namespace c10::cuda::CUDACachingAllocator {

std::atomic<CUDAAllocator *> allocator;

}
