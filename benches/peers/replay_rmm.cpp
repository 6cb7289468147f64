// RMM's "pool" and "arena", over cudaMalloc, as their users make them: the pool grows as needed, the arena
// takes half of the free memory at once.
#include "replay.hpp"

#include <cuda/stream_ref>
#include <rmm/aligned.hpp>
#include <rmm/mr/arena_memory_resource.hpp>
#include <rmm/mr/cuda_memory_resource.hpp>
#include <rmm/mr/pool_memory_resource.hpp>

namespace {

using bench::Driver;
using bench::Stream;

std::size_t free_memory(const Driver &driver) {
    std::size_t free = 0, total = 0;
    Driver::check(driver.function<int (*)(std::size_t *, std::size_t *)>("cuMemGetInfo_v2")(&free, &total),
                  "cuMemGetInfo");
    return free;
}

template <typename Resource>
class Rmm {
public:
    Rmm(const Driver &driver, Resource &resource, std::size_t free_before)
        : driver_(driver), resource_(resource), free_before_(free_before) {}

    void *alloc(std::size_t bytes, Stream stream) {
        return resource_.allocate(cuda::stream_ref(static_cast<cudaStream_t>(stream)), bytes,
                                  rmm::CUDA_ALLOCATION_ALIGNMENT);
    }

    void free(void *block, std::size_t bytes, Stream stream) {
        resource_.deallocate(cuda::stream_ref(static_cast<cudaStream_t>(stream)), block, bytes,
                             rmm::CUDA_ALLOCATION_ALIGNMENT);
    }

    // Neither gives memory back before it ends, so what the device has less by then is the peak.
    double peak_reserved() { return static_cast<double>(free_before_ - free_memory(driver_)); }

    double count(double ns) { return ns; }

    // It does not tell the driver's part.
    void tell_times(double total_ms) {
        replay::figure("host_ms", total_ms);
        replay::figure("total_ms", total_ms);
    }

private:
    const Driver &driver_;
    Resource &resource_;
    std::size_t free_before_;
};

}  // namespace

int main(int count, char **given) {
    return replay::main_with(count, given, [](const replay::Arguments &arguments) {
        const replay::Trace trace(arguments.events);
        const Driver driver(arguments.driver);
        const auto streams = replay::make_streams(driver, trace);
        const std::size_t free_before = free_memory(driver);
        rmm::mr::cuda_memory_resource cuda;
        if (arguments.allocator == "pool") {
            rmm::mr::pool_memory_resource pool(cuda, 0);
            Rmm<decltype(pool)> allocator(driver, pool, free_before);
            replay::run(trace, streams, allocator);
        } else if (arguments.allocator == "arena") {
            rmm::mr::arena_memory_resource arena(cuda);
            Rmm<decltype(arena)> allocator(driver, arena, free_before);
            replay::run(trace, streams, allocator);
        } else {
            throw std::runtime_error("RMM has no " + arguments.allocator);
        }
    });
}
