#include "allocator.h"

#include <stdexcept>

namespace torch::cuda::CUDAPluggableAllocator {

CUDAPluggableAllocator::CUDAPluggableAllocator(bool *destroyed) : destroyed_(destroyed) {}

CUDAPluggableAllocator::~CUDAPluggableAllocator() { *destroyed_ = true; }

bool CUDAPluggableAllocator::isEnabled() const { return true; }

void CUDAPluggableAllocator::cacheInfo(c10::DeviceIndex, std::size_t *) {
    throw std::runtime_error("CUDAPluggableAllocator does not yet support cacheInfo");
}

void *CUDAPluggableAllocator::getBaseAllocation(void *address, std::size_t *size) {
    *size = 7;
    return address;
}

std::string CUDAPluggableAllocator::name() { return "pluggable"; }

}  // namespace torch::cuda::CUDAPluggableAllocator
