/* A program of one runtime that loads another: all of the preload library's calls go to the one that was there first. */
#define _GNU_SOURCE
#include "runtime.h"

#include <dlfcn.h>

typedef uint64_t counting_t(const char *);

static void *second;

static void load(void) {
    second = dlopen("libcudart.so.13", RTLD_NOW | RTLD_LOCAL);
    CHECK(second != NULL);
}

static uint64_t calls_of_second(const char *name) {
    void *address = dlsym(second, "stand_in_calls");
    counting_t *counting;
    CHECK(address != NULL);
    memcpy(&counting, &address, sizeof counting);
    return counting(name);
}

int main(int argc, char **argv) {
    void *block = NULL, *stream = NULL, *ordered = NULL;
    CHECK(argc == 2);
    if (strcmp(argv[1], "before") == 0) load();
    OK(cudaSetDevice(1));
    OK(cudaMalloc(&block, MIB));
    if (strcmp(argv[1], "after") == 0) load();
    OK(cudaStreamCreate(&stream));
    OK(cudaMallocAsync(&ordered, MIB, stream));
    OK(cudaMemsetAsync(ordered, 3, MIB, stream));
    OK(cudaStreamSynchronize(stream));
    hbm_stats_t now = {.struct_size = sizeof now};
    EXPECT(HBM_OK, hbm_stats(1, -1, &now));
    CHECK(now.requested == 2 * MIB);
    CHECK(cudaMalloc(&block, (size_t)1 << 50) == 2 && cudaGetLastError() == 2);
    /* Not the library's: the runtime whose memory it is takes it back. */
    OK(cudaHostAlloc(&block, 4096, 0));
    OK(cudaFreeHost(block));
    OK(cudaStreamDestroy(stream));
    static const char *const names[] = {"cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaStreamIsCapturing", "cudaStreamDestroy"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        CHECK(stand_in_calls(names[i]) > 0 && calls_of_second(names[i]) == 0);
    }
    return 0;
}
