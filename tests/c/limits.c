/* Limits: before there is a driver and after, by bytes and by share, for one device and for every, for
 * each kind, lowered under what is held, and with threads that try to pass them together. What the
 * simulated driver has given out is the measure. */
#include "driver.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#define GIB ((uint64_t)1 << 30)

static const int32_t KINDS[] = {HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_VMM, HBM_KIND_POOL};
enum { KIND_COUNT = sizeof KINDS / sizeof KINDS[0] };

static uint64_t limit_of(int32_t device) {
    uint64_t limit = 77;
    EXPECT(HBM_OK, hbm_get_limit(device, &limit));
    return limit;
}

static void before_the_driver(void) {
    CHECK(limit_of(0) == 0 && limit_of(1) == 0);
    EXPECT(HBM_OK, hbm_set_limit(0, 100 * MIB));
    EXPECT(HBM_OK, hbm_set_limit(-1, 90 * MIB));
    EXPECT(HBM_OK, hbm_set_limit(1, 80 * MIB));
    CHECK(limit_of(0) == 90 * MIB && limit_of(1) == 80 * MIB);
    CHECK(stats_of(0, -1).limit == 90 * MIB && stats_of(1, -1).limit == 80 * MIB);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_set_limit(-2, MIB));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_set_limit_fraction(0, 0.0));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_set_limit_fraction(0, 1.5));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_set_limit_fraction(0, (double)NAN));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_get_limit(0, NULL));
    CHECK(hbm_driver_used() == 0);
    /* A share needs the device's size. */
    EXPECT(HBM_OK, hbm_set_limit_fraction(1, 0.5));
    CHECK(hbm_driver_used() == 0 && stats_of(1, -1).limit == UINT64_MAX);
    CHECK(limit_of(1) == 2 * GIB && hbm_driver_used() == 1);
    CHECK(stats_of(1, -1).limit == 2 * GIB);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_set_limit(2, MIB));
    EXPECT_ERROR_TEXT("2");
    /* The option is what holds for devices that have none of their own. */
    EXPECT(HBM_OK, hbm_option_set("limit", "25%"));
    CHECK(limit_of(0) == GIB && limit_of(1) == 2 * GIB);
    EXPECT(HBM_BAD_OPTION, hbm_option_set("limit", "0%"));
    EXPECT(HBM_OK, hbm_set_limit_fraction(-1, 1.0));
    CHECK(limit_of(0) == 0 && limit_of(1) == 0);
    CHECK(stats_of(1, -1).limit == UINT64_MAX);
}

/* All kinds count together, and to what the driver has given out rather than to what was asked. */
static void kinds_count_together(void) {
    hbm_allocator_t *allocators[KIND_COUNT];
    void *blocks[KIND_COUNT] = {NULL}, *more = NULL;
    for (int k = 0; k < KIND_COUNT; k++) {
        allocators[k] = allocator_of(KINDS[k], 0);
    }
    for (int k = 0; k < KIND_COUNT; k++) {
        EXPECT(HBM_OK, hbm_allocator_allocate(allocators[k], 20 * MIB, 0, NULL, &blocks[k]));
    }
    /* Some kinds take more than they are asked for, which they may give out under any limit. */
    uint64_t held = stats_of(0, -1).reserved, limit = held + 36 * MIB;
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)limit);
    CHECK(held >= KIND_COUNT * 20 * MIB && stats_of(0, HBM_KIND_ASYNC).reserved == 32 * MIB);
    EXPECT(HBM_OK, hbm_set_limit(0, limit));
    for (int k = 0; k < KIND_COUNT; k++) {
        size_t spare = stats_of(0, KINDS[k]).reserved - 20 * MIB;
        EXPECT(HBM_OUT_OF_MEMORY, hbm_allocator_allocate(allocators[k], spare + 37 * MIB, 0, NULL, &more));
        EXPECT_ERROR_TEXT(text);
        CHECK(more == NULL && stats_of(0, -1).reserved == held);
        EXPECT(HBM_OK, hbm_allocator_allocate(allocators[k], 36 * MIB, 0, NULL, &more));
        CHECK(stats_of(0, -1).reserved <= limit);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocators[k], more, NULL));
        EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
        more = NULL;
    }
    /* The stream-ordered pool has 12 MiB over. */
    EXPECT(HBM_OK, hbm_set_limit(0, held));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocators[2], 10 * MIB, 0, NULL, &more));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocators[2], more, NULL));
    for (int k = 0; k < KIND_COUNT; k++) {
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocators[k], blocks[k], NULL));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocators[k]));
    }
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0);
}

/* Memory that is only cached is given back for another kind's request. */
static void what_is_cached_makes_room(void) {
    static const int32_t CACHING[] = {HBM_KIND_ASYNC, HBM_KIND_POOL};
    EXPECT(HBM_OK, hbm_set_limit(0, 64 * MIB));
    for (int c = 0; c < 2; c++) {
        for (int k = 0; k < KIND_COUNT; k++) {
            hbm_allocator_t *caching = allocator_of(CACHING[c], 0), *other = allocator_of(KINDS[k], 0);
            void *block = NULL;
            EXPECT(HBM_OK, hbm_allocator_allocate(caching, 60 * MIB, 0, NULL, &block));
            EXPECT(HBM_OK, hbm_allocator_deallocate(caching, block, NULL));
            CHECK(physical_bytes(0) >= 60 * MIB && physical_bytes(0) <= 64 * MIB);
            EXPECT(HBM_OK, hbm_allocator_allocate(other, 60 * MIB, 0, NULL, &block));
            CHECK(stats_of(0, -1).reserved <= 64 * MIB);
            EXPECT(HBM_OK, hbm_allocator_deallocate(other, block, NULL));
            EXPECT(HBM_OK, hbm_allocator_destroy(other));
            EXPECT(HBM_OK, hbm_allocator_destroy(caching));
        }
    }
}

static void lowered_under_what_is_held(void) {
    for (int k = 0; k < KIND_COUNT; k++) {
        hbm_allocator_t *allocator = allocator_of(KINDS[k], 0);
        void *kept = NULL, *more = NULL, *freed = NULL;
        EXPECT(HBM_OK, hbm_set_limit(0, 0));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 64 * MIB, 0, NULL, &kept));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 64 * MIB, 0, NULL, &freed));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, freed, NULL));
        EXPECT(HBM_OK, hbm_set_limit(0, 32 * MIB));
        CHECK(stats_of(0, -1).reserved == 64 * MIB);
        EXPECT(HBM_OUT_OF_MEMORY, hbm_allocator_allocate(allocator, MIB, 0, NULL, &more));
        EXPECT_ERROR_TEXT("33554432");
        CHECK(more == NULL);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, kept, NULL));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &more));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, more, NULL));
        EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
    CHECK(physical_bytes(0) == 0);
}

/* Memory of the host is not the device's. */
static void host_memory_takes_nothing(void) {
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_VMM, 0);
    hbm_allocator_t *allocator = NULL;
    void *block = NULL;
    descriptor.location = HBM_LOCATION_HOST_NUMA;
    EXPECT(HBM_OK, hbm_set_limit(0, MIB));
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 16 * MIB, 0, NULL, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
}

enum { THREADS = 8, ROUNDS = 300, PLAIN = 2 /* threads with plain blocks, at most two each */ };
static atomic_int allocated, refused, passed;
/* Whether the stream-ordered pool takes part, which may have grown too far for a moment. */
static int with_async;

static void *press(void *argument) {
    int32_t kind = KINDS[(uintptr_t)argument % KIND_COUNT];
    if (kind == HBM_KIND_ASYNC && !with_async) {
        kind = HBM_KIND_VMM;
    }
    hbm_allocator_t *allocator = allocator_of(kind, 0);
    uint32_t random = 2463534242u + (uint32_t)(uintptr_t)argument;
    void *kept = NULL;
    for (int round = 0; round < ROUNDS; round++) {
        random ^= random << 13, random ^= random >> 17, random ^= random << 5;
        void *block = NULL;
        size_t bytes = (random >> 4) % (48 * MIB) + 1;
        int32_t status = hbm_allocator_allocate(allocator, bytes, 0, NULL, &block);
        /* Plain device blocks count as asked for, and the driver rounds each up to 2 MiB. */
        if (!with_async && physical_bytes(0) > 128 * MIB + PLAIN * 2 * 2 * MIB) {
            atomic_fetch_add(&passed, 1);
        }
        if (status == HBM_OK) {
            atomic_fetch_add(&allocated, 1);
        } else {
            EXPECT(HBM_OUT_OF_MEMORY, status);
            atomic_fetch_add(&refused, 1);
        }
        /* One is kept meanwhile, so that all threads together want more than there is. */
        if (kept != NULL) {
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, kept, NULL));
        }
        kept = block;
    }
    if (kept != NULL) {
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, kept, NULL));
    }
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    return NULL;
}

static void threads_do_not_pass_it_together(void) {
    pthread_t threads[THREADS];
    EXPECT(HBM_OK, hbm_set_limit(0, 128 * MIB));
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, press, (void *)i) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(allocated > 0 && refused > 0 && passed == 0);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0 && stats_of(0, -1).reserved == 0);
    /* Nothing taken was lost: all of it can be had again. */
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_VMM, 0);
    void *block = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 128 * MIB, 0, NULL, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("sim", "devices=2,memory=4GiB"));
    before_the_driver();
    kinds_count_together();
    what_is_cached_makes_room();
    lowered_under_what_is_held();
    host_memory_takes_nothing();
    for (; with_async < 2; with_async++) {
        threads_do_not_pass_it_together();
    }
    CHECK(faults() == 0);
    puts("limits: fine");
    return 0;
}
