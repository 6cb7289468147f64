/* What programs of the tests use of CUDA's runtime, and of its stand-in. */
#ifndef RUNTIME_H
#define RUNTIME_H

#include "../c/driver.h"

#include <stdint.h>

typedef struct { size_t width, height, depth; } extent_t;
typedef struct { void *address; size_t pitch, row, rows; } pitched_t;
typedef struct { unsigned char reserved[64]; } ipc_t;

int cudaDeviceEnablePeerAccess(int, unsigned);
int cudaDeviceGetDefaultMemPool(void **, int);
int cudaDeviceGetMemPool(void **, int);
int cudaDeviceReset(void);
int cudaDeviceSetMemPool(int, void *);
int cudaDeviceSynchronize(void);
int cudaFree(void *);
int cudaFreeAsync(void *, void *);
int cudaFreeAsync_ptsz(void *, void *);
int cudaFreeHost(void *);
int cudaGetDevice(int *);
int cudaGetLastError(void);
int cudaHostAlloc(void **, size_t, unsigned);
int cudaHostGetDevicePointer(void **, void *, unsigned);
int cudaHostGetFlags(unsigned *, void *);
int cudaIpcCloseMemHandle(void *);
int cudaIpcGetMemHandle(ipc_t *, void *);
int cudaIpcOpenMemHandle(void **, ipc_t, unsigned);
int cudaMalloc(void **, size_t);
int cudaMalloc3D(pitched_t *, extent_t);
int cudaMallocAsync(void **, size_t, void *);
int cudaMallocAsync_ptsz(void **, size_t, void *);
int cudaMallocFromPoolAsync(void **, size_t, void *, void *);
int cudaMallocHost(void **, size_t);
int cudaMallocManaged(void **, size_t, unsigned);
int cudaMallocPitch(void **, size_t *, size_t, size_t);
int cudaMemGetInfo(size_t *, size_t *);
int cudaMemPoolCreate(void **, const void *);
int cudaMemPoolDestroy(void *);
int cudaMemSetMemPool(const int[2], int, void *);
int cudaMemcpy(void *, const void *, size_t, int);
int cudaMemset(void *, int, size_t);
int cudaMemsetAsync(void *, int, size_t, void *);
int cudaSetDevice(int);
int cudaStreamBeginCapture(void *, int);
int cudaStreamCreate(void **);
int cudaStreamDestroy(void *);
int cudaStreamEndCapture(void *, void **);
int cudaStreamSynchronize(void *);

/* How often a function came to the stand-in, past the preload library. */
uint64_t stand_in_calls(const char *);

#define OK(call) CHECK((call) == 0)

/* How many bytes are not that one. */
static inline uint64_t different(const void *address, unsigned char byte, size_t bytes) {
    unsigned char *seen = malloc(bytes);
    uint64_t count = 0;
    OK(cudaMemcpy(seen, address, bytes, 4));
    for (size_t i = 0; i < bytes; i++) count += seen[i] != byte;
    free(seen);
    return count;
}

typedef struct {
    const char *name;
    void (*run)(void);
} part_t;

/* The part of the test that a program is told. */
static inline int run_part(int argc, char **argv, const part_t *parts, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (argc == 2 && strcmp(argv[1], parts[i].name) == 0) {
            parts[i].run();
            return 0;
        }
    }
    fprintf(stderr, "no part %s\n", argv[argc - 1]);
    return 1;
}

#endif
