// RMM's pool and its buffers over memory of ours: blocks hold what was written to them, the pool has its memory from
// us and gives it back, and a limit of ours is RMM's out of memory. Needs a GPU: `scripts/rmm-upstream` fetches RMM from
// PyPI, compiles this against it and runs it, and shows the commands.
#include "check.hpp"

#include <hbmalloc.hpp>

#include <rmm/device_buffer.hpp>
#include <rmm/error.hpp>
#include <rmm/mr/per_device_resource.hpp>
#include <rmm/mr/pool_memory_resource.hpp>

#include <cuda_runtime_api.h>

#include <vector>

using hbmalloc::Allocator;
using hbmalloc::DeviceResource;
using hbmalloc::Kind;

namespace {

constexpr std::size_t MIB = std::size_t(1) << 20;

std::uint64_t requested(const Allocator &allocator) { return allocator.stats().requested; }

struct Filled {
    rmm::device_buffer buffer;
    unsigned char byte;
    cudaStream_t stream;
};

void check(const Filled &filled) {
    std::vector<unsigned char> found(filled.buffer.size());
    CHECK(cudaMemcpyAsync(found.data(), filled.buffer.data(), found.size(), cudaMemcpyDeviceToHost, filled.stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(filled.stream) == cudaSuccess);
    for (unsigned char each : found) {
        CHECK(each == filled.byte);
    }
}

// Buffers of many sizes on two streams, freed in another order, each filled and read back.
void fill_and_read(rmm::device_async_resource_ref resource) {
    const hbmalloc::Stream streams[2] = {hbmalloc::Stream::create(), hbmalloc::Stream::create()};
    std::vector<Filled> all;
    for (int round = 0; round < 300; round++) {
        const std::size_t bytes = 256 + std::size_t(round) * 7919 % (2 * MIB);
        const auto stream = static_cast<cudaStream_t>(streams[round % 2]);
        all.push_back({rmm::device_buffer(bytes, cuda::stream_ref(stream), resource), static_cast<unsigned char>(round), stream});
        CHECK(cudaMemsetAsync(all.back().buffer.data(), round % 256, bytes, stream) == cudaSuccess);
        if (round % 3 == 0) {
            const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
            check(*middle);
            all.erase(middle);
        }
    }
    for (const Filled &each : all) {
        check(each);
    }
    all.clear();
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

void pool_over(Kind kind, const char *name) {
    Allocator allocator(kind);
    DeviceResource upstream(allocator);
    const std::uint64_t before = requested(allocator);
    {
        rmm::mr::pool_memory_resource pool(upstream, 64 * MIB, 2048 * MIB);
        CHECK(requested(allocator) >= before + 64 * MIB);
        fill_and_read(pool);
        CHECK(pool.pool_size() >= 64 * MIB);
    }
    CHECK(requested(allocator) == before);
    std::printf("RMM's pool over %s: fine\n", name);
}

void without_a_pool() {
    Allocator allocator(Kind::pool);
    DeviceResource resource(allocator);
    fill_and_read(resource);
    CHECK(requested(allocator) == 0);
    auto before = rmm::mr::set_current_device_resource(resource);
    {
        rmm::device_buffer buffer(MIB, cuda::stream_ref(cudaStream_t(cudaStreamLegacy)));
        CHECK(requested(allocator) == MIB);
    }
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    rmm::mr::set_current_device_resource(before);
    CHECK(requested(allocator) == 0);
    std::puts("buffers straight from our pool: fine");
}

void limit() {
    Allocator allocator(Kind::vmm);
    CHECK(hbm_trim(0, 0, nullptr) == HBM_OK);
    hbm_stats_t stats{};
    stats.struct_size = sizeof stats;
    CHECK(hbm_stats(0, -1, &stats) == HBM_OK);
    CHECK(hbm_set_limit(0, stats.limit_used + 256 * MIB) == HBM_OK);
    try {
        rmm::mr::pool_memory_resource pool(DeviceResource(allocator), 512 * MIB);
        CHECK(!"reached");
    } catch (const std::bad_alloc &error) {
        std::printf("a limit of ours: %s\n", error.what());
    }
    CHECK(hbm_set_limit(0, 0) == HBM_OK);
}

}  // namespace

int main() {
    CHECK(cudaFree(nullptr) == cudaSuccess);
    pool_over(Kind::vmm, "vmm");
    pool_over(Kind::device, "device");
    pool_over(Kind::pool, "pool");
    pool_over(Kind::stream_ordered, "stream_ordered");
    without_a_pool();
    limit();
    std::puts("RMM: fine");
}
