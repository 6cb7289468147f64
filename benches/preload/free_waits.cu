// How long the runtime's cudaFree of device 0's memory takes while a kernel of 100 ms runs, on that device or on another, by
// the device that the thread uses. Two devices.
//
//     nvcc -O2 -std=c++17 -cudart shared benches/preload/free_waits.cu -o free_waits && ./free_waits
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

__global__ void spin(long long clocks) {
    for (long long begun = clock64(); clock64() - begun < clocks;) {
    }
}

int main() {
    cudaStream_t streams[2];
    for (int device = 0; device < 2; ++device) {
        CHECK(cudaSetDevice(device));
        CHECK(cudaFree(nullptr));
        CHECK(cudaDeviceEnablePeerAccess(1 - device, 0));
        CHECK(cudaStreamCreateWithFlags(&streams[device], cudaStreamNonBlocking));
        spin<<<1, 1, 0, streams[device]>>>(1000);
        CHECK(cudaDeviceSynchronize());
    }
    for (size_t bytes : {size_t(1) << 20, size_t(64) << 20}) {
        for (int busy = 0; busy < 2; ++busy) {
            for (int used = 0; used < 2; ++used) {
                void *block;
                CHECK(cudaSetDevice(0));
                CHECK(cudaMalloc(&block, bytes));
                CHECK(cudaDeviceSynchronize());
                CHECK(cudaSetDevice(busy));
                spin<<<1, 1, 0, streams[busy]>>>(200000000);
                CHECK(cudaGetLastError());
                CHECK(cudaSetDevice(used));
                const auto begun = std::chrono::steady_clock::now();
                CHECK(cudaFree(block));
                const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begun;
                std::printf("%zu MiB of device 0, device %d busy, device %d used: cudaFree took %.3f ms\n", bytes >> 20, busy,
                            used, took.count());
                for (int device = 0; device < 2; ++device) {
                    CHECK(cudaSetDevice(device));
                    CHECK(cudaDeviceSynchronize());
                }
            }
        }
    }
}
