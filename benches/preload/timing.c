/* Says at the end of a program how long its calls of cudaMalloc and cudaFree took: preloaded before the library that serves
 * them, or alone before CUDA's runtime.
 *
 *     cc -O2 -shared -fPIC benches/preload/timing.c -o timing.so -ldl
 *     LD_PRELOAD=./timing.so python3 program.py; LD_PRELOAD=./timing.so:.../libhbmalloc_preload.so python3 program.py
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static atomic_ulong calls[2], nanoseconds[2];

static void *next(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL) {
        void *runtime = dlopen("libcudart.so.13", RTLD_LAZY | RTLD_NOLOAD);
        if (runtime == NULL) runtime = dlopen("libcudart.so.12", RTLD_LAZY | RTLD_NOLOAD);
        found = runtime == NULL ? NULL : dlsym(runtime, name);
    }
    if (found == NULL) abort();
    return found;
}

static unsigned long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (unsigned long)time.tv_sec * 1000000000ul + (unsigned long)time.tv_nsec;
}

int cudaMalloc(void **out, size_t bytes) {
    static int (*real)(void **, size_t);
    if (real == NULL) *(void **)&real = next("cudaMalloc");
    unsigned long begun = now();
    int code = real(out, bytes);
    nanoseconds[0] += now() - begun;
    calls[0]++;
    return code;
}

int cudaFree(void *address) {
    static int (*real)(void *);
    if (real == NULL) *(void **)&real = next("cudaFree");
    unsigned long begun = now();
    int code = real(address);
    nanoseconds[1] += now() - begun;
    calls[1]++;
    return code;
}

__attribute__((destructor)) static void tell(void) {
    if (calls[0] == 0) return;
    fprintf(stderr, "timing: %lu cudaMalloc, %.2f us each; %lu cudaFree, %.2f us each\n", (unsigned long)calls[0],
            (double)nanoseconds[0] / (double)calls[0] / 1e3, (unsigned long)calls[1],
            calls[1] == 0 ? 0.0 : (double)nanoseconds[1] / (double)calls[1] / 1e3);
}
