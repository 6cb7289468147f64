// A program of CUDA's runtime: devices that are reset, and memory of one device that kernels of another still write to when
// it is freed. Prints how many words were wrong. CUDA's own cudaFree does not wait for the other device, whose kernel then
// meets no memory, so without the preload library only the resets are for trying.
//
//     nvcc -O2 -std=c++17 -cudart shared tests/gpu/devices.cu -o devices
//     ./devices resets; hbmalloc run -- ./devices
#include <cuda_runtime.h>

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

static void peers() {
    int count = 0, reaches = 0;
    CHECK(cudaGetDeviceCount(&count));
    if (count > 1) CHECK(cudaDeviceCanAccessPeer(&reaches, 1, 0));
    if (!reaches) {
        std::printf("no other device reaches device 0\n");
        return;
    }
    cudaStream_t far, near;
    CHECK(cudaSetDevice(1));
    CHECK(cudaDeviceEnablePeerAccess(0, 0));
    CHECK(cudaStreamCreateWithFlags(&far, cudaStreamNonBlocking));
    CHECK(cudaSetDevice(0));
    CHECK(cudaStreamCreateWithFlags(&near, cudaStreamNonBlocking));
    std::vector<unsigned *> kept;
    for (unsigned i = 0; i < 200; ++i) {
        unsigned *block, *next;
        CHECK(cudaMalloc(&block, kBytes));
        CHECK(cudaSetDevice(1));
        fill<<<16, 256, 0, far>>>(block, kWords, 7, 200000);
        CHECK(cudaSetDevice(0));
        // Device 1 has not written to it yet.
        CHECK(cudaFree(block));
        CHECK(cudaMalloc(&next, kBytes));
        fill<<<16, 256, 0, near>>>(next, kWords, i, 0);
        kept.push_back(next);
    }
    CHECK(cudaStreamSynchronize(near));
    CHECK(cudaSetDevice(1));
    CHECK(cudaStreamSynchronize(far));
    CHECK(cudaSetDevice(0));
    count_wrong(kept, 0);
    for (unsigned *block : kept) CHECK(cudaFree(block));
    std::printf("freed under another device's work\n");
}

int main(int argc, char **) {
    resets();
    if (argc == 1) peers();
    std::printf("%llu words were wrong\n", wrong_words);
    return wrong_words != 0;
}
