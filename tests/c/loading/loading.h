/* The library as programs load it that do not link with it. */
#ifndef LOADING_H
#define LOADING_H

#include <hbmalloc.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

struct library {
    void *handle;
    void *(*allocate)(size_t, int, void *);
    void (*release)(void *, size_t, int, void *);
    int32_t (*stats)(int32_t, int32_t, hbm_stats_t *);
    int32_t (*log_set_callback)(hbm_log_callback_t, void *);
};

static inline void find(struct library *library, const char *name, void *function) {
    void *address = dlsym(library->handle, name);
    CHECK(address != NULL);
    memcpy(function, &address, sizeof address);
}

static inline struct library load(const char *path) {
    struct library library;
    library.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library.handle == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    find(&library, "vmm_malloc", &library.allocate);
    find(&library, "vmm_free", &library.release);
    find(&library, "hbm_stats", &library.stats);
    find(&library, "hbm_log_set_callback", &library.log_set_callback);
    return library;
}

static inline hbm_stats_t stats_of(const struct library *library) {
    hbm_stats_t stats;
    stats.struct_size = sizeof stats;
    CHECK(library->stats(0, -1, &stats) == HBM_OK);
    return stats;
}

#endif
