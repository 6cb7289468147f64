/* Slabs that grow, and objects on them: what each call gives, what misuse is, what a driver that fails to pin leaves,
 * a child, an exit in the middle. */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static hbm_host_blocks_t held(void) {
    hbm_host_blocks_t blocks;
    memset(&blocks, 0, sizeof blocks);
    blocks.struct_size = sizeof blocks;
    EXPECT(HBM_OK, hbm_host_blocks(&blocks));
    return blocks;
}

static hbm_slab_stats_t progress_of(hbm_slab_t *slab) {
    hbm_slab_stats_t stats;
    memset(&stats, 0xEE, sizeof stats);
    stats.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_slab_stats(slab, &stats));
    return stats;
}

static hbm_objects_usage_t usage_of(hbm_objects_t *objects) {
    hbm_objects_usage_t usage;
    memset(&usage, 0xEE, sizeof usage);
    usage.struct_size = sizeof usage;
    EXPECT(HBM_OK, hbm_objects_usage(objects, &usage));
    return usage;
}

static hbm_slab_desc_t wanted(uint64_t bytes, uint64_t initial, uint64_t part, uint32_t flags) {
    hbm_slab_desc_t descriptor;
    memset(&descriptor, 0, sizeof descriptor);
    descriptor.struct_size = sizeof descriptor;
    descriptor.bytes = bytes;
    descriptor.initial_bytes = initial;
    descriptor.part_bytes = part;
    descriptor.flags = flags;
    return descriptor;
}

static hbm_slab_t *open_slab(hbm_slab_desc_t descriptor) {
    hbm_slab_t *slab = NULL;
    EXPECT(HBM_OK, hbm_slab_open(&descriptor, &slab));
    return slab;
}

static hbm_objects_t *open_objects(hbm_slab_t *slab) {
    hbm_objects_t *objects = NULL;
    EXPECT(HBM_OK, hbm_objects_open(slab, 0, &objects));
    return objects;
}

static void without_a_driver(void) {
    hbm_slab_t *slab = open_slab(wanted(64 * MIB, 4 * MIB, 16 * MIB, HBM_SLAB_PAGEABLE));
    CHECK(progress_of(slab).ready >= 4 * MIB);
    EXPECT(HBM_OK, hbm_slab_wait(slab, 64 * MIB, -1));
    hbm_slab_stats_t stats = progress_of(slab);
    CHECK(stats.ready == 64 * MIB && stats.bytes == 64 * MIB && stats.parts == 5 && stats.failure == 0);
    CHECK(stats.address % (2 * MIB) == 0 && hbm_driver_used() == 0);
    uint64_t ends[8];
    size_t count = 0;
    EXPECT(HBM_OK, hbm_slab_seams(slab, ends, 8, &count));
    CHECK(count == 5 && ends[0] == 4 * MIB && ends[1] == 20 * MIB && ends[4] == 64 * MIB);
    EXPECT(HBM_OK, hbm_slab_seams(slab, NULL, 0, &count));
    CHECK(count == 5 && held().blocks == 1 && held().bytes == 64 * MIB && held().pinned == 0);
    memset((void *)(uintptr_t)stats.address, 1, 64 * MIB);
    uint64_t released = 0;
    EXPECT(HBM_OK, hbm_slab_shrink(slab, 10 * MIB, &released));
    CHECK(released == 44 * MIB && progress_of(slab).ready == 20 * MIB && progress_of(slab).is_growing == 0);
    EXPECT(HBM_OK, hbm_slab_grow(slab, 40 * MIB));
    EXPECT(HBM_OK, hbm_slab_wait(slab, 40 * MIB, -1));
    CHECK(progress_of(slab).ready == 40 * MIB);
    /* What was given back is zeros again, what stayed is as it was. */
    CHECK(((char *)(uintptr_t)stats.address)[20 * MIB - 1] == 1 && ((char *)(uintptr_t)stats.address)[20 * MIB] == 0);
    EXPECT(HBM_OK, hbm_slab_close(slab));
    EXPECT(HBM_NOT_OWNED, hbm_slab_close(slab));
    CHECK(held().blocks == 0 && held().bytes == 0);
}

static void a_slab_that_the_driver_keeps(void) {
    int (*fail)(const char *, uint64_t, int, uint64_t);
    look_up("hbmsim_fail", &fail);
    hbm_slab_t *slab = open_slab(wanted(32 * MIB, 8 * MIB, 8 * MIB, 0));
    EXPECT(HBM_OK, hbm_slab_wait(slab, 32 * MIB, -1));
    CHECK(progress_of(slab).parts == 4 && fail("cuMemHostUnregister", 2, 999, 2) == 0);
    EXPECT(HBM_DRIVER, hbm_slab_close(slab));
    EXPECT_ERROR_TEXT("16777216 bytes are still there");
    CHECK(held().blocks == 1 && held().pinned == 16 * MIB && progress_of(slab).ready == 16 * MIB);
    EXPECT(HBM_OK, hbm_slab_grow(slab, 32 * MIB));
    CHECK(progress_of(slab).ready == 16 * MIB);
    EXPECT(HBM_OK, hbm_slab_close(slab));
    EXPECT(HBM_NOT_OWNED, hbm_slab_close(slab));
    CHECK(held().blocks == 0 && held().bytes == 0);
}

static void misuse_of_slabs(void) {
    hbm_slab_t *slab = NULL;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_slab_open(NULL, &slab));
    hbm_slab_desc_t bad = wanted(0, 0, 0, HBM_SLAB_PAGEABLE);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_slab_open(&bad, &slab));
    bad = wanted(MIB, 2 * MIB, 0, HBM_SLAB_PAGEABLE);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_slab_open(&bad, &slab));
    bad = wanted(MIB, 0, 0, 64);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_slab_open(&bad, &slab));
    bad = wanted(MIB, 0, 0, HBM_SLAB_PAGEABLE | HBM_SLAB_ON_NODE);
    bad.numa_node = 999;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_slab_open(&bad, &slab));
    EXPECT_ERROR_TEXT("no node 999");
    bad = wanted(MIB, 0, 0, HBM_SLAB_PAGEABLE);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_slab_open(&bad, NULL));
    bad = wanted((uint64_t)1 << 46, 0, 0, HBM_SLAB_PAGEABLE);
    EXPECT(HBM_OUT_OF_MEMORY, hbm_slab_open(&bad, &slab));
    EXPECT(HBM_NOT_OWNED, hbm_slab_wait(NULL, 1, 0));
    EXPECT(HBM_NOT_OWNED, hbm_slab_grow((hbm_slab_t *)(uintptr_t)77, 1));
    CHECK(slab == NULL && held().blocks == 0);
}

static void objects_on_a_slab(void) {
    hbm_slab_t *slab = open_slab(wanted(32 * MIB, 0, 0, 0));
    CHECK(hbm_driver_used() == 1 && held().pinned == 32 * MIB);
    hbm_objects_t *objects = open_objects(slab), *second = NULL;
    EXPECT(HBM_BUSY, hbm_objects_open(slab, 0, &second));
    EXPECT(HBM_BUSY, hbm_slab_close(slab));
    uint64_t shape[3] = {2, 32, 128}, offsets[3] = {9, 9, 9};
    hbm_group_t groups[2] = {{shape, 3, 2}, {shape, 1, 4}};
    EXPECT(HBM_OK, hbm_layout(groups, 2, offsets));
    CHECK(offsets[0] == 0 && offsets[1] == 16384 && offsets[2] == 16392);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_layout(groups, 0, offsets));

    uint64_t handles[10], addresses[10];
    EXPECT(HBM_OK, hbm_objects_allocate(objects, offsets[2], 10, 0, handles, addresses, NULL));
    for (int i = 0; i < 10; i++) {
        CHECK(handles[i] != 0 && addresses[i] == progress_of(slab).address + (uint64_t)i * 20480);
        memset((void *)(uintptr_t)addresses[i], i, offsets[2]);
    }
    CHECK(usage_of(objects).used == 204800 && usage_of(objects).objects == 10 && usage_of(objects).total == 32 * MIB);
    size_t feasible = 0;
    EXPECT(HBM_OUT_OF_MEMORY, hbm_objects_allocate(objects, 10 * MIB, 10, -1, handles, NULL, &feasible));
    CHECK(feasible == 3);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_objects_allocate(objects, 0, 1, 0, handles, NULL, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_objects_allocate(objects, 1, 1, 0, NULL, NULL, NULL));
    EXPECT(HBM_OK, hbm_objects_allocate(objects, 1, 0, 0, NULL, NULL, NULL));

    uint32_t count = 0, pins = 0;
    EXPECT(HBM_OK, hbm_object_retain(objects, handles[0], &count));
    CHECK(count == 2);
    EXPECT(HBM_OK, hbm_objects_view(objects, handles, 10));
    uint64_t with_a_wrong_one[3] = {handles[0], 12345, handles[1]};
    EXPECT(HBM_NOT_OWNED, hbm_objects_view(objects, with_a_wrong_one, 3));
    EXPECT_ERROR_TEXT("number 1 of 3");
    uint32_t views = 9;
    EXPECT(HBM_OK, hbm_object_counts(objects, handles[0], &count, &pins, &views));
    CHECK(count == 2 && pins == 0 && views == 1);
    EXPECT(HBM_OK, hbm_objects_unview(objects, handles, 9));
    EXPECT(HBM_OK, hbm_object_pin(objects, handles[0], 5, &count));
    EXPECT(HBM_OK, hbm_object_pin(objects, handles[1], 5, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_object_unpin(objects, handles[0], 6, NULL));
    EXPECT(HBM_OK, hbm_object_counts(objects, handles[0], &count, &pins, NULL));
    CHECK(count == 2 && pins == 1);
    EXPECT(HBM_OK, hbm_objects_free(objects, handles, 10));
    EXPECT(HBM_NOT_OWNED, hbm_objects_free(objects, handles, 10));
    EXPECT(HBM_OK, hbm_object_release(objects, handles[0], &count));
    /* Two are pinned, one is seen. */
    CHECK(count == 0 && usage_of(objects).objects == 3);
    EXPECT(HBM_NOT_OWNED, hbm_object_retain(objects, handles[9], NULL));
    EXPECT(HBM_NOT_OWNED, hbm_object_pin(objects, handles[9], 1, NULL));
    EXPECT(HBM_OK, hbm_objects_unview(objects, handles + 9, 1));
    EXPECT(HBM_NOT_OWNED, hbm_objects_unview(objects, handles + 9, 1));
    EXPECT(HBM_OK, hbm_object_retain(objects, handles[1], &count));
    EXPECT(HBM_OK, hbm_object_release(objects, handles[1], &count));
    CHECK(count == 0 && usage_of(objects).objects == 2);
    EXPECT(HBM_OK, hbm_objects_check(objects));
    EXPECT(HBM_OK, hbm_object_unpin(objects, handles[0], 5, &count));
    EXPECT(HBM_OK, hbm_objects_unpin_all(objects, 5, &count));
    CHECK(count == 1 && usage_of(objects).used == 0);
    EXPECT(HBM_NOT_OWNED, hbm_object_counts(objects, handles[0], NULL, NULL, NULL));
    EXPECT(HBM_OK, hbm_objects_free(objects, NULL, 0));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_objects_free(objects, NULL, 1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_objects_extend(objects, 4096));
    EXPECT(HBM_OK, hbm_objects_close(objects));
    EXPECT(HBM_NOT_OWNED, hbm_objects_allocate(objects, 1, 1, 0, handles, NULL, NULL));
    EXPECT(HBM_OK, hbm_slab_close(slab));
    CHECK(held().blocks == 0);
}

static void addresses_alone(void) {
    hbm_objects_t *objects = open_objects(NULL);
    uint64_t handle, address;
    EXPECT(HBM_OUT_OF_MEMORY, hbm_objects_allocate(objects, 4096, 1, -1, &handle, &address, NULL));
    EXPECT(HBM_OK, hbm_objects_extend(objects, 8192));
    EXPECT(HBM_OK, hbm_objects_extend(objects, 8192));
    EXPECT(HBM_OK, hbm_objects_allocate(objects, 12288, 1, 0, &handle, &address, NULL));
    CHECK(address == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_objects_extend(objects, 100));
    EXPECT(HBM_OK, hbm_objects_close(objects));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_objects_open(NULL, 24, &objects));
}

static void a_part_that_cannot_be_pinned_stops_growing(void) {
    int (*arm)(const char *, uint64_t, int, uint64_t);
    void (*clear_all)(void);
    look_up("hbmsim_fail", &arm);
    look_up("hbmsim_fail_clear", &clear_all);
    CHECK(arm("cuMemHostRegister", 3, 2, 1) == 0);
    hbm_slab_t *slab = open_slab(wanted(64 * MIB, 16 * MIB, 16 * MIB, 0));
    EXPECT(HBM_OUT_OF_MEMORY, hbm_slab_wait(slab, 64 * MIB, -1));
    EXPECT_ERROR_TEXT("33554432 bytes of the slab are there");
    hbm_slab_stats_t stats = progress_of(slab);
    CHECK(stats.ready == 32 * MIB && stats.failure == HBM_OUT_OF_MEMORY && stats.is_growing == 0);
    hbm_objects_t *objects = open_objects(slab);
    uint64_t handles[8], addresses[8];
    size_t feasible = 0;
    EXPECT(HBM_OUT_OF_MEMORY, hbm_objects_allocate(objects, 8 * MIB, 8, -1, handles, addresses, &feasible));
    CHECK(feasible == 4);
    EXPECT_ERROR_TEXT("could not grow on");
    clear_all();
    EXPECT(HBM_OK, hbm_slab_grow(slab, 64 * MIB));
    EXPECT(HBM_OK, hbm_objects_allocate(objects, 8 * MIB, 8, -1, handles, addresses, NULL));
    CHECK(usage_of(objects).used == 64 * MIB);
    EXPECT(HBM_OK, hbm_objects_free(objects, handles, 8));
    uint64_t released = 0;
    EXPECT(HBM_OK, hbm_slab_shrink(slab, 0, &released));
    CHECK(released == 48 * MIB);
    EXPECT(HBM_OK, hbm_objects_close(objects));
    EXPECT(HBM_OK, hbm_slab_close(slab));
    /* And the first part is an error at once. */
    CHECK(arm("cuMemHostRegister", 1, 2, 1) == 0);
    hbm_slab_desc_t descriptor = wanted(64 * MIB, 16 * MIB, 0, 0);
    EXPECT(HBM_OUT_OF_MEMORY, hbm_slab_open(&descriptor, &slab));
    clear_all();
    CHECK(held().blocks == 0);
}

static void closing_does_not_wait_for_growth(void) {
    hbm_slab_desc_t descriptor = wanted((uint64_t)1 << 30, 2 * MIB, 0, HBM_SLAB_PAGEABLE);
    descriptor.bytes_per_second = MIB;
    hbm_slab_t *slab = open_slab(descriptor);
    struct timespec begun, ended;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    EXPECT(HBM_OK, hbm_slab_wait(slab, 0, 10));
    EXPECT(HBM_OK, hbm_slab_close(slab));
    clock_gettime(CLOCK_MONOTONIC, &ended);
    /* At its pace it would be a quarter of an hour. */
    CHECK(ended.tv_sec - begun.tv_sec < 60);
}

static void shared_by_name(void) {
    char name[64];
    snprintf(name, sizeof name, "hbmalloc_objects_%d", (int)getpid());
    hbm_slab_desc_t descriptor = wanted(8 * MIB, 0, 0, 0);
    descriptor.shm_name = name;
    hbm_slab_t *slab = open_slab(descriptor), *other = NULL;
    EXPECT(HBM_BUSY, hbm_slab_open(&descriptor, &other));
    uintptr_t attached = hbm_attach_shm_pinned_ptr(8 * MIB, name);
    CHECK(attached != 0);
    ((char *)attached)[5 * MIB] = 7;
    CHECK(((char *)(uintptr_t)progress_of(slab).address)[5 * MIB] == 7);
    EXPECT(HBM_OK, hbm_free_shm_pinned_ptr(attached, 8 * MIB, name));
    EXPECT(HBM_OK, hbm_slab_close(slab));
    CHECK(hbm_attach_shm_pinned_ptr(8 * MIB, name) == 0);
    descriptor.initial_bytes = 2 * MIB;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_slab_open(&descriptor, &slab));
}

struct work {
    hbm_objects_t *objects;
    unsigned char mark;
};

static void *churn(void *argument) {
    struct work *work = argument;
    uint64_t handles[4], addresses[4];
    for (int round = 0; round < 2000; round++) {
        size_t size = 4096 * (size_t)(1 + (round + work->mark) % 5);
        EXPECT(HBM_OK, hbm_objects_allocate(work->objects, size, 4, 0, handles, addresses, NULL));
        for (int i = 0; i < 4; i++) memset((void *)(uintptr_t)addresses[i], work->mark, size);
        for (int i = 0; i < 4; i++)
            for (size_t at = 0; at < size; at += 512) CHECK(((unsigned char *)(uintptr_t)addresses[i])[at] == work->mark);
        EXPECT(HBM_OK, hbm_objects_free(work->objects, handles, 4));
    }
    return NULL;
}

static void many_threads(void) {
    hbm_slab_t *slab = open_slab(wanted(32 * MIB, 0, 0, HBM_SLAB_PAGEABLE));
    hbm_objects_t *objects = open_objects(slab);
    pthread_t threads[16];
    struct work works[16];
    for (int i = 0; i < 16; i++) {
        works[i] = (struct work){objects, (unsigned char)(i + 1)};
        CHECK(pthread_create(&threads[i], NULL, churn, &works[i]) == 0);
    }
    for (int i = 0; i < 16; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    EXPECT(HBM_OK, hbm_objects_check(objects));
    CHECK(usage_of(objects).used == 0);
    EXPECT(HBM_OK, hbm_objects_close(objects));
    EXPECT(HBM_OK, hbm_slab_close(slab));
}

static void a_child_has_none_of_it(void) {
    hbm_slab_t *slab = open_slab(wanted(256 * MIB, 16 * MIB, 16 * MIB, HBM_SLAB_PAGEABLE));
    hbm_objects_t *objects = open_objects(slab);
    pid_t child = fork();
    if (child == 0) {
        uint64_t handle;
        EXPECT(HBM_FORKED, hbm_objects_allocate(objects, 4096, 1, -1, &handle, NULL, NULL));
        EXPECT(HBM_FORKED, hbm_slab_close(slab));
        exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    uint64_t handle;
    EXPECT(HBM_OK, hbm_objects_allocate(objects, 4096, 1, 0, &handle, NULL, NULL));
    EXPECT(HBM_OK, hbm_objects_close(objects));
    EXPECT(HBM_OK, hbm_slab_close(slab));
}

int main(void) {
    without_a_driver();
    misuse_of_slabs();
    many_threads();
    a_child_has_none_of_it();
    addresses_alone();
    a_slab_that_the_driver_keeps();
    objects_on_a_slab();
    a_part_that_cannot_be_pinned_stops_growing();
    closing_does_not_wait_for_growth();
    shared_by_name();
    /* Left open, and growing: exit must not wait for it, nor crash. */
    hbm_slab_desc_t descriptor = wanted((uint64_t)1 << 30, 16 * MIB, 16 * MIB, 0);
    descriptor.bytes_per_second = 16 * MIB;
    open_objects(open_slab(descriptor));
    return 0;
}
