/* Stands in for CUDA's runtime in tests: the functions that programs and the preload library ask it for, over the
 * simulated driver, and how often each was called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *driver(const char *name) {
    static void *library;
    if (library == NULL) library = dlopen(getenv("STAND_IN_DRIVER"), RTLD_NOW);
    void *found = library == NULL ? NULL : dlsym(library, name);
    if (found == NULL) {
        fprintf(stderr, "stand-in runtime: no %s\n", name);
        abort();
    }
    return found;
}

#define CU(name, ...) ((int (*)())driver(#name))(__VA_ARGS__)

static __thread int current;
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;
static uint64_t calls[64];
static const char *names[64];

/* How often a function came here, past the preload library; once more with `more`. */
static uint64_t count(const char *name, int more) {
    uint64_t now = 0;
    pthread_mutex_lock(&counting);
    for (int i = 0; i < 64; i++) {
        if (names[i] == NULL && more) names[i] = name;
        if (names[i] == NULL) break;
        if (strcmp(names[i], name) == 0) {
            now = calls[i] += (uint64_t)more;
            break;
        }
    }
    pthread_mutex_unlock(&counting);
    return now;
}

uint64_t stand_in_calls(const char *name) { return count(name, 0); }

static __thread void *contexts[16];

static int ready(void) {
    int code = CU(cuInit, 0);
    if (code != 0) return code;
    if (contexts[current] == NULL && (code = CU(cuDevicePrimaryCtxRetain, &contexts[current], current)) != 0) return code;
    return CU(cuCtxSetCurrent, contexts[current]);
}

#define BEGIN(name)                                                                                                    \
    count(#name, 1);                                                                                                    \
    int begun_ = ready();                                                                                              \
    if (begun_ != 0) return begun_

int cudaGetDevice(int *device) { *device = current; return 0; }
int cudaSetDevice(int device) { current = device; return ready(); }
int cudaMalloc(void **out, size_t bytes) { BEGIN(cudaMalloc); return CU(cuMemAlloc_v2, out, bytes); }
int cudaFree(void *address) { BEGIN(cudaFree); return address == NULL ? 0 : CU(cuMemFree_v2, address); }
int cudaMallocManaged(void **out, size_t bytes, unsigned flags) { BEGIN(cudaMallocManaged); return CU(cuMemAllocManaged, out, bytes, flags); }
int cudaMallocAsync(void **out, size_t bytes, void *stream) { BEGIN(cudaMallocAsync); return CU(cuMemAllocAsync, out, bytes, stream); }
int cudaFreeAsync(void *address, void *stream) { BEGIN(cudaFreeAsync); return CU(cuMemFreeAsync, address, stream); }
int cudaHostAlloc(void **out, size_t bytes, unsigned flags) { BEGIN(cudaHostAlloc); return CU(cuMemHostAlloc, out, bytes, flags); }
int cudaMallocHost(void **out, size_t bytes) { BEGIN(cudaMallocHost); return CU(cuMemHostAlloc, out, bytes, 0); }
int cudaFreeHost(void *address) { BEGIN(cudaFreeHost); return CU(cuMemFreeHost, address); }
int cudaMemGetInfo(size_t *free, size_t *total) { BEGIN(cudaMemGetInfo); return CU(cuMemGetInfo_v2, free, total); }
int cudaDeviceSynchronize(void) { BEGIN(cudaDeviceSynchronize); return CU(cuCtxSynchronize); }
int cudaStreamCreate(void **out) { BEGIN(cudaStreamCreate); return CU(cuStreamCreate, out, 1); }
int cudaStreamDestroy(void *stream) { BEGIN(cudaStreamDestroy); return CU(cuStreamDestroy_v2, stream); }
int cudaStreamSynchronize(void *stream) { BEGIN(cudaStreamSynchronize); return CU(cuStreamSynchronize, stream); }
int cudaStreamIsCapturing(void *stream, int *status) { BEGIN(cudaStreamIsCapturing); return CU(cuStreamIsCapturing, stream, status); }
int cudaStreamBeginCapture(void *stream, int mode) { BEGIN(cudaStreamBeginCapture); return CU(cuStreamBeginCapture_v2, stream, mode); }
int cudaStreamEndCapture(void *stream, void **graph) { BEGIN(cudaStreamEndCapture); return CU(cuStreamEndCapture, stream, graph); }
int cudaDeviceGetDefaultMemPool(void **out, int device) { BEGIN(cudaDeviceGetDefaultMemPool); return CU(cuDeviceGetDefaultMemPool, out, device); }
int cudaMallocFromPoolAsync(void **out, size_t bytes, void *pool, void *stream) { BEGIN(cudaMallocFromPoolAsync); return CU(cuMemAllocFromPoolAsync, out, bytes, pool, stream); }
int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) { BEGIN(cudaMemsetAsync); return CU(cuMemsetD8Async, to, (unsigned char)value, bytes, stream); }
int cudaMemcpy(void *to, const void *from, size_t bytes, int way) { (void)way; BEGIN(cudaMemcpy); return CU(cuMemcpy, to, from, bytes); }
