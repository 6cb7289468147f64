// The question that convolutions ask under cudnn.benchmark, put to stand-ins of torch's allocator: its
// pluggable one, another (NATIVE), or a torch that lacks the class (NO_CLASS).
#include "check.hpp"
#include "fake_torch/allocator.h"

#include <cstring>
#include <stdexcept>
#include <typeinfo>

using c10::cuda::CUDACachingAllocator::allocator;
using c10::cuda::CUDACachingAllocator::CUDAAllocator;

namespace {

constexpr std::size_t MIB = 1 << 20;

hbm_stats_t stats() {
    hbm_stats_t stats{};
    stats.struct_size = sizeof stats;
    CHECK(hbm_stats(0, -1, &stats) == HBM_OK);
    return stats;
}

// Through the virtual table, as torch asks.
std::size_t largest(CUDAAllocator *of, int device) {
    std::size_t bytes = 1;
    of->cacheInfo(static_cast<c10::DeviceIndex>(device), &bytes);
    return bytes;
}

#if defined(NATIVE) || defined(NO_CLASS)

// What is not as we know it: refused, warned of, and left as it was.
void refuses(const char *why) {
    std::uint64_t warnings = stats().warnings;
    CHECK(hbm_torch_serve_cache_info() == HBM_UNSUPPORTED);
    CHECK(std::strstr(hbm_last_error(), why) != nullptr);
    CHECK(stats().warnings == warnings + 1);
}

class Native : public CUDAAllocator {
public:
    bool isEnabled() const override { return true; }
    void cacheInfo(c10::DeviceIndex, std::size_t *largestBlock) override { *largestBlock = 42; }
    void *getBaseAllocation(void *address, std::size_t *) override { return address; }
    std::string name() override { return "native"; }
};

void run() {
    refuses("torch has no allocator");
    Native native;
    allocator = &native;
#ifdef NATIVE
    refuses("not torch's pluggable one");
#else
    refuses("libtorch_cuda.so");
#endif
    CHECK(largest(allocator, 0) == 42);
}

#else

using torch::cuda::CUDAPluggableAllocator::CUDAPluggableAllocator;

bool throws(CUDAAllocator *of) {
    try {
        largest(of, 0);
    } catch (const std::runtime_error &) {
        return true;
    }
    return false;
}

void run() {
    bool destroyed = false, other_destroyed = false;
    CUDAAllocator *other = new CUDAPluggableAllocator(&other_destroyed);
    CUDAAllocator *ours = new CUDAPluggableAllocator(&destroyed);
    allocator = ours;
    CHECK(throws(ours) && throws(other));
    CHECK(hbm_torch_serve_cache_info() == HBM_OK);
    CHECK(hbm_torch_serve_cache_info() == HBM_OK);
    CHECK(hbm_driver_used() == 0 && stats().warnings == 0);

    CHECK(largest(ours, 0) == 64 * MIB);
    void *block = vmm_malloc(8 * MIB, 0, nullptr);
    CHECK(block != nullptr && largest(ours, 0) == 56 * MIB);
    // What is given back and not yet with the driver could be had too.
    vmm_free(block, 8 * MIB, 0, nullptr);
    CHECK(stats().pending_bytes == 8 * MIB && largest(ours, 0) == 64 * MIB);
    hbm_torch_reset();
    hbm_torch_memory_fraction(0.25, 0);
    CHECK(largest(ours, 0) == 16 * MIB);
    block = vmm_malloc(4 * MIB, 0, nullptr);
    CHECK(block != nullptr && largest(ours, 0) == 12 * MIB);
    vmm_free(block, 4 * MIB, 0, nullptr);
    CHECK(largest(ours, 99) == 0 && std::strstr(hbm_last_error(), "no device 99") != nullptr);

    // Everything else of the object is as before, and so are other objects of its class.
    std::size_t size = 0;
    CHECK(ours->isEnabled() && ours->name() == "pluggable");
    CHECK(ours->getBaseAllocation(&size, &size) == &size && size == 7);
    CHECK(typeid(*ours) == typeid(CUDAPluggableAllocator));
    CHECK(dynamic_cast<CUDAPluggableAllocator *>(static_cast<c10::Allocator *>(ours)) == ours);
    CHECK(throws(other));

    // A second allocator is served as well.
    allocator = other;
    CHECK(hbm_torch_serve_cache_info() == HBM_OK && !throws(other) && !throws(ours));
    delete other;
    delete ours;
    CHECK(destroyed && other_destroyed);
}

#endif

}  // namespace

int main() {
    CHECK(hbm_option_set("log", "off") == HBM_OK);
    CHECK(hbm_option_set("sim", "devices=1,memory=64MiB") == HBM_OK);
    run();
    std::puts("cache info: fine");
}
