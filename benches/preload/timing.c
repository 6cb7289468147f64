/* Says at the end of a program how long its calls of cudaMalloc and cudaFree took: preloaded before the library that serves
 * them, or alone before CUDA's runtime. Apart it says how much of that went into the calls of 100 us and more: memory made
 * for the first time, contexts, waits.
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

enum { LONG = 100000 };

static atomic_ulong calls[2], nanoseconds[2], long_calls[2], long_nanoseconds[2];

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

static void count(int which, unsigned long begun) {
    unsigned long took = now() - begun;
    nanoseconds[which] += took;
    calls[which]++;
    if (took < LONG) return;
    long_nanoseconds[which] += took;
    long_calls[which]++;
}

static void tell_of(int which, const char *name) {
    if (calls[which] == 0) return;
    fprintf(stderr, "timing: %lu %s, %.2f us each; %lu of them long, %.2f ms in all\n", (unsigned long)calls[which], name,
            (double)nanoseconds[which] / (double)calls[which] / 1e3, (unsigned long)long_calls[which],
            (double)long_nanoseconds[which] / 1e6);
}

int cudaMalloc(void **out, size_t bytes) {
    static int (*real)(void **, size_t);
    if (real == NULL) *(void **)&real = next("cudaMalloc");
    unsigned long begun = now();
    int code = real(out, bytes);
    count(0, begun);
    return code;
}

int cudaFree(void *address) {
    static int (*real)(void *);
    if (real == NULL) *(void **)&real = next("cudaFree");
    unsigned long begun = now();
    int code = real(address);
    count(1, begun);
    return code;
}

__attribute__((destructor)) static void tell(void) {
    tell_of(0, "cudaMalloc");
    tell_of(1, "cudaFree");
}
