/* Checks that end the program with a line that says what went wrong, and a few short forms. */
#ifndef CHECK_H
#define CHECK_H

#include <hbmalloc.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n  last error: %s\n", __FILE__, __LINE__,          \
                    #condition, hbm_last_error());                                                \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

/* The status of a call, compared by name so that a failure reads well. */
#define EXPECT(wanted, call)                                                                      \
    do {                                                                                          \
        int32_t got_ = (call);                                                                    \
        if (got_ != (wanted)) {                                                                   \
            fprintf(stderr, "%s:%d: %s is '%s', not '%s'\n  last error: %s\n", __FILE__,          \
                    __LINE__, #call, hbm_status_name(got_), hbm_status_name(wanted),              \
                    hbm_last_error());                                                            \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

/* A text that must be part of the thread's last error. */
#define EXPECT_ERROR_TEXT(part) CHECK(strstr(hbm_last_error(), (part)) != NULL)

static inline hbm_allocator_desc_t descriptor_of(int32_t kind, int32_t device) {
    hbm_allocator_desc_t descriptor;
    memset(&descriptor, 0, sizeof descriptor);
    descriptor.struct_size = sizeof descriptor;
    descriptor.kind = kind;
    descriptor.device = device;
    return descriptor;
}

static inline hbm_allocator_t *allocator_of(int32_t kind, int32_t device) {
    hbm_allocator_desc_t descriptor = descriptor_of(kind, device);
    hbm_allocator_t *allocator = NULL;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    CHECK(allocator != NULL);
    return allocator;
}

static inline hbm_stats_t stats_of(int32_t device, int32_t kind) {
    hbm_stats_t stats;
    memset(&stats, 0xEE, sizeof stats);
    stats.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_stats(device, kind, &stats));
    CHECK(stats.struct_size == sizeof stats);
    return stats;
}

#endif
