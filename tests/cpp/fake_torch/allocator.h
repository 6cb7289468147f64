// Stand-ins for torch's allocator classes, written from their public interface: the names of the class,
// its table and its functions are torch's, hence the same symbols. Not all functions are played.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace c10 {

using DeviceIndex = std::int8_t;

class Allocator {
public:
    virtual ~Allocator() = default;
};

namespace cuda::CUDACachingAllocator {

class CUDAAllocator : public Allocator {
public:
    virtual bool isEnabled() const = 0;
    virtual void cacheInfo(DeviceIndex device, std::size_t *largestBlock) = 0;
    virtual void *getBaseAllocation(void *address, std::size_t *size) = 0;
    virtual std::string name() = 0;
};

// The allocator in use.
extern std::atomic<CUDAAllocator *> allocator;

}  // namespace cuda::CUDACachingAllocator
}  // namespace c10

namespace torch::cuda::CUDAPluggableAllocator {

class CUDAPluggableAllocator : public c10::cuda::CUDACachingAllocator::CUDAAllocator {
public:
    explicit CUDAPluggableAllocator(bool *destroyed);
    ~CUDAPluggableAllocator() override;
    bool isEnabled() const override;
    void cacheInfo(c10::DeviceIndex device, std::size_t *largestBlock) override;
    void *getBaseAllocation(void *address, std::size_t *size) override;
    std::string name() override;

private:
    bool *destroyed_;
};

}  // namespace torch::cuda::CUDAPluggableAllocator
