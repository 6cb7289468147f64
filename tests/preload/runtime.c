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

static __thread int last_error;

/* What a function answers is remembered where it is a failure. */
static int told(int code) {
    if (code != 0) last_error = code;
    return code;
}

#define BEGIN(name)                                                                                                    \
    count(#name, 1);                                                                                                    \
    int begun_ = ready();                                                                                              \
    if (begun_ != 0) return told(begun_)

int cudaGetDevice(int *device) { *device = current; return 0; }
int cudaSetDevice(int device) { current = device; return ready(); }
int cudaMalloc(void **out, size_t bytes) { BEGIN(cudaMalloc); return told(CU(cuMemAlloc_v2, out, bytes)); }
int cudaFree(void *address) { BEGIN(cudaFree); return told(address == NULL ? 0 : CU(cuMemFree_v2, address)); }
int cudaMallocManaged(void **out, size_t bytes, unsigned flags) { BEGIN(cudaMallocManaged); return told(CU(cuMemAllocManaged, out, bytes, flags)); }
int cudaMallocAsync(void **out, size_t bytes, void *stream) { BEGIN(cudaMallocAsync); return told(CU(cuMemAllocAsync, out, bytes, stream)); }
int cudaFreeAsync(void *address, void *stream) { BEGIN(cudaFreeAsync); return told(CU(cuMemFreeAsync, address, stream)); }
int cudaHostAlloc(void **out, size_t bytes, unsigned flags) { BEGIN(cudaHostAlloc); return told(CU(cuMemHostAlloc, out, bytes, flags)); }
int cudaMallocHost(void **out, size_t bytes) { BEGIN(cudaMallocHost); return told(CU(cuMemHostAlloc, out, bytes, 0)); }
int cudaFreeHost(void *address) { BEGIN(cudaFreeHost); return told(CU(cuMemFreeHost, address)); }
int cudaMemGetInfo(size_t *free, size_t *total) { BEGIN(cudaMemGetInfo); return told(CU(cuMemGetInfo_v2, free, total)); }
int cudaDeviceSynchronize(void) { BEGIN(cudaDeviceSynchronize); return told(CU(cuCtxSynchronize)); }
int cudaStreamCreate(void **out) { BEGIN(cudaStreamCreate); return told(CU(cuStreamCreate, out, 1)); }
int cudaStreamDestroy(void *stream) { BEGIN(cudaStreamDestroy); return told(CU(cuStreamDestroy_v2, stream)); }
int cudaStreamSynchronize(void *stream) { BEGIN(cudaStreamSynchronize); return told(CU(cuStreamSynchronize, stream)); }
int cudaStreamIsCapturing(void *stream, int *status) { BEGIN(cudaStreamIsCapturing); return told(CU(cuStreamIsCapturing, stream, status)); }
int cudaStreamBeginCapture(void *stream, int mode) { BEGIN(cudaStreamBeginCapture); return told(CU(cuStreamBeginCapture_v2, stream, mode)); }
int cudaStreamEndCapture(void *stream, void **graph) { BEGIN(cudaStreamEndCapture); return told(CU(cuStreamEndCapture, stream, graph)); }
int cudaDeviceGetDefaultMemPool(void **out, int device) { BEGIN(cudaDeviceGetDefaultMemPool); return told(CU(cuDeviceGetDefaultMemPool, out, device)); }
int cudaMallocFromPoolAsync(void **out, size_t bytes, void *pool, void *stream) { BEGIN(cudaMallocFromPoolAsync); return told(CU(cuMemAllocFromPoolAsync, out, bytes, pool, stream)); }
int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) { BEGIN(cudaMemsetAsync); return told(CU(cuMemsetD8Async, to, (unsigned char)value, bytes, stream)); }
int cudaMemcpy(void *to, const void *from, size_t bytes, int way) { (void)way; BEGIN(cudaMemcpy); return told(CU(cuMemcpy, to, from, bytes)); }
int cudaGetLastError(void) { int last = last_error; last_error = 0; return last; }
int cudaPeekAtLastError(void) { return last_error; }
int cudaHostGetFlags(unsigned *out, void *address) { BEGIN(cudaHostGetFlags); return told(CU(cuMemHostGetFlags, out, address)); }
int cudaHostGetDevicePointer(void **out, void *address, unsigned flags) { BEGIN(cudaHostGetDevicePointer); return told(CU(cuMemHostGetDevicePointer_v2, out, address, flags)); }
int cudaDeviceGetMemPool(void **out, int device) { BEGIN(cudaDeviceGetMemPool); return told(CU(cuDeviceGetMemPool, out, device)); }
int cudaDeviceSetMemPool(int device, void *pool) { BEGIN(cudaDeviceSetMemPool); return told(CU(cuDeviceSetMemPool, device, pool)); }
int cudaMemPoolCreate(void **out, const void *properties) { BEGIN(cudaMemPoolCreate); return told(CU(cuMemPoolCreate, out, properties)); }
int cudaMemPoolDestroy(void *pool) { BEGIN(cudaMemPoolDestroy); return told(CU(cuMemPoolDestroy, pool)); }
int cudaMemSetMemPool(const int *location, int kind, void *pool) { (void)kind; BEGIN(cudaMemSetMemPool); return told(CU(cuDeviceSetMemPool, location[1], pool)); }
