/* A pluggable allocator for PyTorch that does nothing: it walks through one device allocation. What
 * torch costs with it, every pluggable allocator costs at least. Only for blocks that are dropped
 * before 1 GiB more is asked for, but those of the first 2 MiB, which are given out once: torch ends
 * the process when an address that was given out twice is freed twice. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#define BYTES ((size_t)1 << 30)
#define ONCE ((size_t)2 << 20)

static uint64_t base;
static size_t next;

/* In the device's primary context, which torch may not have made current yet. */
static int take(int device) {
    int (*init)(unsigned), (*retain)(void **, int), (*push)(void *), (*pop)(void **), (*alloc)(uint64_t *, size_t);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW), *context = NULL;
    if (driver == NULL) return 0;
    *(void **)&init = dlsym(driver, "cuInit");
    *(void **)&retain = dlsym(driver, "cuDevicePrimaryCtxRetain");
    *(void **)&push = dlsym(driver, "cuCtxPushCurrent_v2");
    *(void **)&pop = dlsym(driver, "cuCtxPopCurrent_v2");
    *(void **)&alloc = dlsym(driver, "cuMemAlloc_v2");
    if (!init || !retain || !push || !pop || !alloc) return 0;
    if (init(0) != 0 || retain(&context, device) != 0 || push(context) != 0) return 0;
    int answer = alloc(&base, BYTES);
    pop(&context);
    return answer == 0;
}

void *nothing_malloc(size_t size, int device, void *stream) {
    (void)stream;
    if (size == 0 || (base == 0 && !take(device))) return NULL;
    if (size > BYTES - ONCE) return NULL;
    size_t place = next;
    if (place + size > BYTES) place = ONCE;
    next = place + (size + 511) / 512 * 512;
    return (void *)(uintptr_t)(base + place);
}

void nothing_free(void *address, size_t size, int device, void *stream) {
    (void)address, (void)size, (void)device, (void)stream;
}
