// An unmodified program of CUDA's runtime: devices that are reset, and memory of one device that comes and goes while a kernel
// of another runs. Prints how many words were wrong.
//
//     nvcc -O2 -std=c++17 -cudart shared tests/gpu/devices.cu -o devices
//     ./devices; hbmalloc run -- ./devices
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                                        \
    do {                                                                                                   \
        cudaError_t code_ = (call);                                                                        \
        if (code_ != cudaSuccess) {                                                                        \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(code_)); \
            std::exit(1);                                                                                  \
        }                                                                                                  \
    } while (0)

// After so many clocks.
__global__ void fill(unsigned *words, size_t count, unsigned value, long long clocks) {
    for (const long long begun = clock64(); clock64() - begun < clocks;) {
    }
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) words[i] = value;
}

__global__ void check(const unsigned *words, size_t count, unsigned value, unsigned long long *wrong) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        if (words[i] != value) atomicAdd(wrong, 1ull);
}

constexpr size_t kBytes = size_t(1) << 20, kWords = kBytes / sizeof(unsigned);
static unsigned long long wrong_words = 0;

static void count_wrong(const std::vector<unsigned *> &blocks, unsigned first) {
    unsigned long long *wrong, found;
    CHECK(cudaMalloc(&wrong, sizeof *wrong));
    CHECK(cudaMemset(wrong, 0, sizeof *wrong));
    for (size_t i = 0; i < blocks.size(); ++i) check<<<64, 256>>>(blocks[i], kWords, first + unsigned(i), wrong);
    CHECK(cudaMemcpy(&found, wrong, sizeof found, cudaMemcpyDeviceToHost));
    CHECK(cudaFree(wrong));
    wrong_words += found;
}

// Streams and memory of all sorts, some of it freed behind work under way; all gone with the context, and again.
static void resets() {
    for (unsigned round = 1; round <= 3; ++round) {
        cudaStream_t stream;
        CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        std::vector<unsigned *> blocks(16);
        for (size_t i = 0; i < blocks.size(); ++i) {
            unsigned *gone;
            CHECK(cudaMalloc(&blocks[i], kBytes));
            CHECK(cudaMallocAsync(reinterpret_cast<void **>(&gone), kBytes, stream));
            fill<<<64, 256, 0, stream>>>(gone, kWords, 9, 100000);
            CHECK(cudaFreeAsync(gone, stream));
            CHECK(cudaMalloc(&gone, kBytes));
            fill<<<64, 256, 0, stream>>>(gone, kWords, 8, 100000);
            CHECK(cudaFree(gone));
            fill<<<64, 256, 0, stream>>>(blocks[i], kWords, 1000 * round + unsigned(i), 0);
        }
        CHECK(cudaStreamSynchronize(stream));
        count_wrong(blocks, 1000 * round);
        CHECK(cudaDeviceReset());
    }
    size_t free, total;
    CHECK(cudaMemGetInfo(&free, &total));
    std::printf("reset 3 times; %.0f MiB of the card are used\n", double(total - free) / (1 << 20));
}

static void beside_another() {
    constexpr long long kSeconds = 2;
    int count = 0, reaches = 0, kilohertz = 0;
    CHECK(cudaGetDeviceCount(&count));
    if (count > 1) CHECK(cudaDeviceCanAccessPeer(&reaches, 1, 0));
    if (!reaches) {
        std::printf("no other device reaches device 0\n");
        return;
    }
    cudaStream_t far, near;
    CHECK(cudaSetDevice(1));
    CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 1));
    CHECK(cudaStreamCreateWithFlags(&far, cudaStreamNonBlocking));
    CHECK(cudaDeviceEnablePeerAccess(0, 0));
    CHECK(cudaSetDevice(0));
    // The other's kernel writes to it, as late as it ends.
    unsigned *shared;
    CHECK(cudaMalloc(&shared, kBytes));
    CHECK(cudaSetDevice(1));
    fill<<<16, 256, 0, far>>>(shared, kWords, 7, kSeconds * 1000 * kilohertz);
    CHECK(cudaSetDevice(0));
    CHECK(cudaStreamCreateWithFlags(&near, cudaStreamNonBlocking));
    size_t before, least = ~size_t(0), free, total;
    CHECK(cudaMemGetInfo(&before, &total));
    for (unsigned round = 0; round < 100; ++round) {
        std::vector<unsigned *> blocks(20);
        for (size_t i = 0; i < blocks.size(); ++i) {
            CHECK(cudaMalloc(&blocks[i], kBytes));
            fill<<<16, 256, 0, near>>>(blocks[i], kWords, round + unsigned(i), 0);
        }
        CHECK(cudaStreamSynchronize(near));
        count_wrong(blocks, round);
        for (unsigned *block : blocks) CHECK(cudaFree(block));
        CHECK(cudaMemGetInfo(&free, &total));
        least = std::min(least, free);
    }
    const bool is_running = cudaStreamQuery(far) == cudaErrorNotReady;
    std::printf("2000 blocks of 1 MiB while %s on another device; %.0f MiB more of the card were used\n",
                is_running ? "a kernel ran" : "nothing ran any more", double(before - least) / (1 << 20));
    CHECK(cudaSetDevice(1));
    CHECK(cudaStreamSynchronize(far));
    CHECK(cudaSetDevice(0));
    count_wrong({shared}, 7);
    CHECK(cudaFree(shared));
}

int main() {
    resets();
    beside_another();
    std::printf("%llu words were wrong\n", wrong_words);
    return wrong_words != 0;
}
