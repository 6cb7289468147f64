// An unmodified program of CUDA's runtime: kernels in flight on several streams write and check blocks that are allocated
// and freed meanwhile. Prints what a cudaMalloc and its cudaFree cost, and how many bytes were wrong. Run it alone and
// under the preload library:
//
//     nvcc -O2 -std=c++17 -cudart shared benches/preload/streams.cu -o streams
//     ./streams; hbmalloc run -- ./streams
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                                 \
    do {                                                                                            \
        cudaError_t code_ = (call);                                                                 \
        if (code_ != cudaSuccess) {                                                                 \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(code_)); \
            std::exit(1);                                                                           \
        }                                                                                           \
    } while (0)

__global__ void fill(unsigned *words, size_t count, unsigned value) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) words[i] = value;
}

__global__ void check(const unsigned *words, size_t count, unsigned value, unsigned long long *wrong) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        if (words[i] != value) atomicAdd(wrong, 1ull);
}

using Clock = std::chrono::steady_clock;
static double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

int main() {
    constexpr int kStreams = 4, kRounds = 4000, kLive = 16;
    cudaStream_t streams[kStreams];
    CHECK(cudaFree(nullptr));
    for (auto &stream : streams) CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    unsigned long long *wrong;
    CHECK(cudaMalloc(&wrong, sizeof *wrong));
    CHECK(cudaMemset(wrong, 0, sizeof *wrong));
    CHECK(cudaDeviceSynchronize());
    const size_t sizes[] = {4096, size_t(1) << 20, size_t(20) << 20};

    for (size_t size : sizes) {
        void *block;
        for (int i = 0; i < 300; ++i) { CHECK(cudaMalloc(&block, size)); CHECK(cudaFree(block)); }
        const auto begun = Clock::now();
        for (int i = 0; i < 2000; ++i) { CHECK(cudaMalloc(&block, size)); CHECK(cudaFree(block)); }
        std::printf("%9zu bytes, nothing in flight: %8.2f us a pair\n", size, seconds(Clock::now() - begun) / 2000 * 1e6);
    }
    for (size_t size : sizes) {
        struct Live { void *block; unsigned value; int stream; };
        std::vector<Live> live;
        Clock::duration spent{}, longest{};
        const auto begun = Clock::now();
        const size_t words = size / sizeof(unsigned);
        const int blocks = int(std::min<size_t>(256, (words + 255) / 256));
        for (int i = 0; i < kRounds; ++i) {
            Live next{nullptr, unsigned(i) * 2654435761u, i % kStreams};
            auto before = Clock::now();
            CHECK(cudaMalloc(&next.block, size));
            spent += Clock::now() - before;
            fill<<<blocks, 256, 0, streams[next.stream]>>>(static_cast<unsigned *>(next.block), words, next.value);
            live.push_back(next);
            if (live.size() > kLive) {
                Live old = live.front();
                live.erase(live.begin());
                check<<<blocks, 256, 0, streams[old.stream]>>>(static_cast<unsigned *>(old.block), words, old.value, wrong);
                before = Clock::now();
                // Its check may not have begun.
                CHECK(cudaFree(old.block));
                const auto took = Clock::now() - before;
                spent += took;
                longest = std::max(longest, took);
            }
        }
        for (auto &old : live) CHECK(cudaFree(old.block));
        CHECK(cudaDeviceSynchronize());
        const auto all = Clock::now() - begun;
        std::printf("%9zu bytes, kernels in flight: %8.2f us a pair, of %.2f us a round; longest free %.0f us\n", size,
                    seconds(spent) / kRounds * 1e6, seconds(all) / kRounds * 1e6, seconds(longest) * 1e6);
    }
    unsigned long long found;
    CHECK(cudaMemcpy(&found, wrong, sizeof found, cudaMemcpyDeviceToHost));
    size_t free, total;
    CHECK(cudaMemGetInfo(&free, &total));
    std::printf("%llu words were wrong; %.0f MiB of the card are used\n", found, double(total - free) / (1 << 20));
    return found != 0;
}
