/* The simulated driver's own functions, looked up at run time: programs link with nothing but
 * -lhbmalloc, as their like do, and the driver is the very one that the library has opened. */
#ifndef DRIVER_H
#define DRIVER_H

#include "check.h"

#include <dlfcn.h>

/* ISO C has no conversion from dlsym's result to a function pointer. */
static inline void look_up(const char *name, void *function) {
    void *driver = dlopen("libhbmalloc_sim.so", RTLD_NOW);
    if (driver == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    void *address = dlsym(driver, name);
    CHECK(address != NULL);
    memcpy(function, &address, sizeof address);
}

/* The library needs no context and leaves the one that is current alone; making streams needs one. */
static inline void *context_push(int device) {
    int (*retain)(void **, int);
    int (*push)(void *);
    void *context = NULL;
    look_up("cuDevicePrimaryCtxRetain", &retain);
    look_up("cuCtxPushCurrent_v2", &push);
    CHECK(retain(&context, device) == 0);
    CHECK(push(context) == 0);
    return context;
}

static inline void context_pop(void) {
    int (*pop)(void **);
    void *context = NULL;
    look_up("cuCtxPopCurrent_v2", &pop);
    CHECK(pop(&context) == 0);
}

static inline void *stream_create(void) {
    /* 1 is a stream that the legacy stream does not wait for. */
    int (*create)(void **, unsigned);
    void *stream = NULL;
    look_up("cuStreamCreate", &create);
    CHECK(create(&stream, 1) == 0);
    return stream;
}

static inline void stream_destroy(void *stream) {
    int (*destroy)(void *);
    look_up("cuStreamDestroy_v2", &destroy);
    CHECK(destroy(stream) == 0);
}

/* Nothing given to the stream from now on runs until stream_release. */
static inline void stream_hold(void *stream) {
    int (*hold)(void *);
    look_up("hbmsim_hold", &hold);
    CHECK(hold(stream) == 0);
}

static inline void stream_release(void *stream) {
    int (*release)(void *);
    look_up("hbmsim_release", &release);
    CHECK(release(stream) == 0);
}

/* Work that runs until stream_idle. */
static inline void stream_busy(void *stream) {
    int (*spin)(void *, unsigned long long, uint64_t);
    look_up("hbmsim_spin", &spin);
    CHECK(spin(stream, 0, 0) == 0);
}

static inline void stream_idle(void *stream) {
    int (*stop)(void *);
    look_up("hbmsim_spin_stop", &stop);
    CHECK(stop(stream) == 0);
}

static inline void fill(int device, void *address, unsigned char byte, size_t bytes, void *stream) {
    int (*set)(unsigned long long, unsigned char, size_t, void *);
    look_up("cuMemsetD8Async", &set);
    context_push(device);
    CHECK(set((unsigned long long)(uintptr_t)address, byte, bytes, stream) == 0);
    context_pop();
}

/* Whether all bytes of device 0's memory at an address are the same one. */
static inline int holds(void *address, unsigned char byte, size_t bytes) {
    int (*copy)(void *, unsigned long long, size_t);
    unsigned char *found = malloc(bytes);
    look_up("cuMemcpyDtoH_v2", &copy);
    context_push(0);
    CHECK(found != NULL && copy(found, (unsigned long long)(uintptr_t)address, bytes) == 0);
    context_pop();
    int same = 1;
    for (size_t i = 0; i < bytes; i++) {
        same &= found[i] == byte;
    }
    free(found);
    return same;
}

static inline void stream_wait(void *stream) {
    int (*synchronize)(void *);
    look_up("cuStreamSynchronize", &synchronize);
    CHECK(synchronize(stream) == 0);
}

static inline void *context_current(void) {
    int (*current)(void **);
    void *context = NULL;
    look_up("cuCtxGetCurrent", &current);
    CHECK(current(&context) == 0);
    return context;
}

/* What would have been faults on a card. */
static inline uint64_t faults(void) {
    uint64_t (*count)(char *, uint64_t);
    static char text[4096];
    look_up("hbmsim_faults", &count);
    uint64_t found = count(text, sizeof text);
    if (found > 0) {
        fprintf(stderr, "%s\n", text);
    }
    return found;
}

static inline uint64_t physical_bytes(int device) {
    int (*physical)(int, uint64_t *, uint64_t *);
    uint64_t used = 0;
    look_up("hbmsim_physical", &physical);
    CHECK(physical(device, &used, NULL) == 0);
    return used;
}

/* What the driver keeps of managed memory: 2 is the preferred location, 4 the last prefetch; the host is
 * -1, none is -2. */
static inline int advice(void *block, int which) {
    int (*read)(void *, size_t, int, unsigned long long, size_t);
    int value = 77;
    look_up("cuMemRangeGetAttribute", &read);
    context_push(0);
    CHECK(read(&value, sizeof value, which, (unsigned long long)(uintptr_t)block, MIB) == 0);
    context_pop();
    return value;
}

/* How often a function of the driver was called; "*" is all of them. */
static inline uint64_t calls(const char *name) {
    uint64_t (*count)(const char *);
    look_up("hbmsim_calls", &count);
    return count(name);
}

#endif
