// RMM's suballocators over cudaMalloc: "pool" and "arena".
#include "loops.hpp"

#include <rmm/aligned.hpp>
#include <rmm/mr/arena_memory_resource.hpp>
#include <rmm/mr/cuda_memory_resource.hpp>
#include <rmm/mr/pool_memory_resource.hpp>

#include <memory>

namespace {

using bench::Options;
using bench::Stream;

// What a program would give RMM: plenty, but not more than half of what is free.
std::size_t pool_bytes(const Options &options) {
    std::size_t free = 0, total = 0;
    void *driver = bench::open_library(options.driver);
    bench::Driver::check(bench::symbol<int (*)(std::size_t *, std::size_t *)>(driver, "cuMemGetInfo_v2")(&free, &total),
                         "cuMemGetInfo");
    return std::min(32 * bench::GIB, free / 2 / 256 * 256);
}

template <typename Resource>
class Rmm {
public:
    static void open_device(const Options &) {}

    explicit Rmm(const Options &options) {
        if (options.bench != "cold") make(pool_bytes(options));
    }

    void *alloc(std::size_t bytes, Stream stream) {
        // From cold the pool starts empty; an arena cannot, and takes what two blocks need.
        if (!resource_) make(std::is_same_v<Resource, rmm::mr::pool_memory_resource> ? 0 : 3 * bench::GIB);
        return resource_->allocate(cuda::stream_ref(static_cast<cudaStream_t>(stream)), bytes,
                                   rmm::CUDA_ALLOCATION_ALIGNMENT);
    }

    void free(void *block, std::size_t bytes, Stream stream) {
        resource_->deallocate(cuda::stream_ref(static_cast<cudaStream_t>(stream)), block, bytes,
                              rmm::CUDA_ALLOCATION_ALIGNMENT);
    }

private:
    void make(std::size_t bytes) { resource_ = std::make_unique<Resource>(upstream_, bytes); }

    rmm::mr::cuda_memory_resource upstream_;
    std::unique_ptr<Resource> resource_;
};

}  // namespace

int main(int count, char **arguments) {
    return bench::main_with(count, arguments, [](const Options &options) {
        if (options.allocator == "pool") bench::run<Rmm<rmm::mr::pool_memory_resource>>(options);
        else if (options.allocator == "arena") bench::run<Rmm<rmm::mr::arena_memory_resource>>(options);
        else throw std::runtime_error("RMM has no " + options.allocator);
    });
}
