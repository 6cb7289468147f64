// An unmodified program that has freed 1.25 GiB and allocates beside a kernel which waits for the program: what a cudaMalloc
// takes then, and that it comes back at all.
//
//     nvcc -O2 -std=c++17 -cudart shared benches/preload/kernel_waits.cu -o kernel_waits
//     ./kernel_waits; hbmalloc run -- ./kernel_waits
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#define CHECK(call)                                                                                        \
    do {                                                                                                   \
        cudaError_t code_ = (call);                                                                        \
        if (code_ != cudaSuccess) {                                                                        \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(code_)); \
            std::exit(1);                                                                                  \
        }                                                                                                  \
    } while (0)

__global__ void wait(volatile int *flag) {
    while (*flag == 0) {
    }
}

int main() {
    int *flag, *on_device;
    void *freed[20], *made[3];
    cudaStream_t stream;
    CHECK(cudaHostAlloc(&flag, sizeof *flag, cudaHostAllocMapped));
    *flag = 0;
    CHECK(cudaHostGetDevicePointer(&on_device, flag, 0));
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (auto &block : freed) CHECK(cudaMalloc(&block, 64 << 20));
    for (auto block : freed) CHECK(cudaFree(block));
    wait<<<1, 1, 0, stream>>>(on_device);
    CHECK(cudaGetLastError());
    for (auto &block : made) {
        const auto begun = std::chrono::steady_clock::now();
        CHECK(cudaMalloc(&block, 100 << 20));
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begun;
        std::printf("cudaMalloc of 100 MiB: %.3f ms\n", took.count());
    }
    *static_cast<volatile int *>(flag) = 1;
    CHECK(cudaStreamSynchronize(stream));
}
