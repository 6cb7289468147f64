/* A pluggable allocator for PyTorch that does nothing: it walks through one device allocation. What
 * torch costs with it, every pluggable allocator costs at least. Only for blocks that are dropped
 * before 1 GiB more is asked for. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#define BYTES ((size_t)1 << 30)

static uint64_t base;
static size_t next;

static int take(void) {
    int (*alloc)(uint64_t *, size_t);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    *(void **)&alloc = driver ? dlsym(driver, "cuMemAlloc_v2") : NULL;
    return alloc && alloc(&base, BYTES) == 0;
}

void *nothing_malloc(size_t size, int device, void *stream) {
    (void)device, (void)stream;
    if (base == 0 && !take()) return NULL;
    size_t place = next;
    if (place + size > BYTES) place = 0;
    next = place + (size + 511) / 512 * 512;
    return (void *)(uintptr_t)(base + place);
}

void nothing_free(void *address, size_t size, int device, void *stream) {
    (void)address, (void)size, (void)device, (void)stream;
}
