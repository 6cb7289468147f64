/* Host time of a cudaMalloc and its cudaFree under the preload library, and what they ask of the driver, where there is no
 * GPU: over the tests' stand-in for CUDA's runtime and the simulated driver.
 *
 *     cargo build --release --workspace --lib; export LD_LIBRARY_PATH=$PWD STAND_IN_DRIVER=$PWD/target/release/libhbmalloc_sim.so
 *     cc -O1 -fPIC -shared -Wl,-soname,libcudart.so.13 -Iinclude tests/preload/runtime.c -o libcudart.so.13 -ldl -lpthread
 *     cc -O2 benches/preload/pairs.c ./libcudart.so.13 -ldl -o pairs
 *     HBMALLOC_DRIVER=$STAND_IN_DRIVER LD_PRELOAD=target/release/libhbmalloc_preload.so ./pairs
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int cudaMalloc(void **, size_t);
int cudaFree(void *);

enum { PAIRS = 200000, LIVE = 16 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static uint64_t calls(const char *name) {
    void *driver = dlopen(getenv("STAND_IN_DRIVER"), RTLD_NOW | RTLD_NOLOAD);
    uint64_t (*ask)(const char *) = NULL;
    if (driver != NULL) *(void **)&ask = dlsym(driver, "hbmsim_calls");
    return ask == NULL ? 0 : ask(name);
}

static void *allocated(size_t bytes) {
    void *block = NULL;
    if (cudaMalloc(&block, bytes) != 0) exit(1);
    return block;
}

static void measured(size_t bytes, int live) {
    void *blocks[LIVE] = {0};
    uint64_t points = calls("cuCtxRecordEvent");
    double begun = now();
    for (int i = 0; i < PAIRS; i++) {
        void **block = &blocks[i % live];
        if (*block != NULL && cudaFree(*block) != 0) exit(1);
        *block = allocated(bytes);
    }
    double each = (now() - begun) / PAIRS;
    printf("%9zu bytes, %2d live: %5.0f ns a pair, %.3f order points\n", bytes, live, each,
           (double)(calls("cuCtxRecordEvent") - points) / PAIRS);
    for (int i = 0; i < live; i++) cudaFree(blocks[i]);
}

int main(void) {
    const size_t sizes[] = {4096, (size_t)1 << 20, (size_t)20 << 20};
    for (int i = 0; i < 3; i++) {
        for (int warm = 0; warm < 300; warm++) cudaFree(allocated(sizes[i]));
        measured(sizes[i], 1);
        measured(sizes[i], LIVE);
    }
}
