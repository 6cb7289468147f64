/* Allocators as objects: what each kind gives, how streams hold memory back, what is counted, and
 * many threads at once. */
#include "driver.h"

#include <pthread.h>

static const int32_t KINDS[] = {HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_VMM, HBM_KIND_POOL, HBM_KIND_PINNED};
enum { KIND_COUNT = sizeof KINDS / sizeof KINDS[0] };

static void every_kind_gives_and_takes_back(void) {
    for (int k = 0; k < KIND_COUNT; k++) {
        for (int32_t device = 0; device < 2; device++) {
            hbm_allocator_t *allocator = allocator_of(KINDS[k], device);
            hbm_stats_t before = stats_of(device, KINDS[k]);
            void *blocks[3] = {NULL, NULL, NULL};
            const size_t sizes[3] = {1, 4096, 5 * MIB + 1};
            for (int i = 0; i < 3; i++) {
                EXPECT(HBM_OK, hbm_allocator_allocate(allocator, sizes[i], 0, NULL, &blocks[i]));
                CHECK(blocks[i] != NULL && (uintptr_t)blocks[i] % 256 == 0);
                for (int j = 0; j < i; j++) {
                    CHECK(blocks[i] != blocks[j]);
                }
                fill(device, blocks[i], 0x5A, sizes[i], NULL);
            }
            hbm_stats_t during;
            during.struct_size = sizeof during;
            EXPECT(HBM_OK, hbm_allocator_stats(allocator, &during));
            CHECK(during.requested == before.requested + 1 + 4096 + 5 * MIB + 1);
            CHECK(during.requested <= during.allocated && during.allocated <= during.reserved);
            CHECK(during.allocations == before.allocations + 3);
            CHECK(during.peak_requested >= during.requested);
            CHECK(during.peak_allocated >= during.allocated);
            CHECK(during.peak_reserved >= during.reserved);

            EXPECT(HBM_BUSY, hbm_allocator_destroy(allocator));
            EXPECT_ERROR_TEXT("3 of its blocks");
            for (int i = 0; i < 3; i++) {
                EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, blocks[i], NULL));
            }
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, NULL, NULL));
            hbm_stats_t after = stats_of(device, KINDS[k]);
            CHECK(after.requested == before.requested && after.allocated == before.allocated);
            CHECK(after.deallocations == before.deallocations + 3);
            CHECK(after.total_requested == before.total_requested + 1 + 4096 + 5 * MIB + 1);
            CHECK(after.total_allocated >= after.total_requested && after.peak_blocks >= 3);
            CHECK(after.out_of_memory == 0 && after.limit == UINT64_MAX);
            EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, NULL));
            EXPECT(HBM_OK, hbm_stats_reset_peaks(device));
            hbm_stats_t reset = stats_of(device, KINDS[k]);
            CHECK(reset.reserved == 0 && reset.peak_reserved == 0);
            CHECK(reset.peak_requested == 0 && reset.peak_allocated == 0 && reset.peak_blocks == 0);
            CHECK(reset.total_requested == after.total_requested);
            CHECK(physical_bytes(device) == 0);
            EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
        }
    }
    EXPECT(HBM_OK, hbm_allocator_destroy(NULL));
}

static void alignment_is_kept_or_refused(void) {
    for (int k = 0; k < KIND_COUNT; k++) {
        hbm_allocator_t *allocator = allocator_of(KINDS[k], 0);
        for (size_t alignment = 1; alignment <= 256 * MIB; alignment *= 2) {
            void *block = NULL;
            int32_t status = hbm_allocator_allocate(allocator, 100, alignment, NULL, &block);
            if (alignment > 256 && KINDS[k] != HBM_KIND_VMM && KINDS[k] != HBM_KIND_POOL) {
                EXPECT(HBM_INVALID_ARGUMENT, status);
                EXPECT_ERROR_TEXT("vmm");
                CHECK(block == NULL);
                continue;
            }
            EXPECT(HBM_OK, status);
            CHECK((uintptr_t)block % alignment == 0);
            CHECK(KINDS[k] != HBM_KIND_POOL || (uintptr_t)block % 512 == 0);
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
        }
        void *block = NULL;
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 100, 3, NULL, &block));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 100, 257, NULL, &block));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 100, SIZE_MAX, NULL, &block));
        CHECK(block == NULL);
        EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, NULL));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
}

/* A stream that still uses a freed block keeps its memory, whoever named the stream and how. */
static void streams_hold_memory_back(int32_t kind) {
    hbm_allocator_t *allocator = allocator_of(kind, 0);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    for (int way = 0; way < 3; way++) {
        void *own = stream_create(), *other = stream_create();
        void *busy = way == 2 ? own : other;
        void *block = NULL;
        uint64_t released = 77;
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, own, &block));
        stream_hold(busy);
        fill(0, block, 1, MIB, busy);
        if (way == 0) {
            EXPECT(HBM_OK, hbm_allocator_record_stream(allocator, block, other));
        }
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, way == 1 ? other : own));
        hbm_stats_t waiting = stats_of(0, -1);
        /* The pool has a block at once that only its own stream used, and that stream has it again. */
        int waits = kind != HBM_KIND_POOL || way != 2;
        size_t bytes = kind == HBM_KIND_POOL ? MIB : 2 * MIB;
        CHECK(waiting.pending_frees == (uint64_t)waits && waiting.pending_bytes == (waits ? bytes : 0));
        CHECK(waiting.requested == 0 && waiting.reserved >= 2 * MIB);
        void *second = NULL;
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, waits ? own : other, &second));
        CHECK(second != block);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, second, own));
        stream_release(busy);
        stream_wait(busy);
        EXPECT(HBM_OK, hbm_trim(0, 0, &released));
        CHECK(released >= 2 * MIB && (released <= 4 * MIB || kind == HBM_KIND_POOL));
        CHECK(stats_of(0, -1).pending_frees == 0 && physical_bytes(0) == 0);
        stream_destroy(own);
        stream_destroy(other);
    }
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    CHECK(faults() == 0);
}

static void a_destroyed_stream_is_not_named_again(void) {
    for (int k = 0; k < KIND_COUNT; k++) {
        hbm_allocator_t *allocator = allocator_of(KINDS[k], 0);
        void *stream = stream_create();
        void *block = NULL;
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, stream, &block));
        EXPECT(HBM_OK, hbm_stream_forget(0, stream));
        stream_destroy(stream);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
        EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, NULL));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_forget(99, NULL));
    CHECK(faults() == 0 && physical_bytes(0) == 0);
}

static void blocks_live_where_the_descriptor_says(void) {
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_VMM, 0);
    hbm_allocator_t *allocator = NULL;
    void *block = NULL;
    descriptor.tag = "spare";
    descriptor.location = HBM_LOCATION_HOST_NUMA;
    descriptor.numa_node = 0;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
    CHECK(physical_bytes(0) == 0);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));

    descriptor.location = HBM_LOCATION_DEVICE;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
    CHECK(physical_bytes(0) == 2 * MIB);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

enum { THREADS = 8, ROUNDS = 200, HELD = 8 };

static void *allocate_and_free(void *argument) {
    uint32_t random = 2463534242u + (uint32_t)(uintptr_t)argument;
    hbm_allocator_t *allocators[KIND_COUNT];
    for (int k = 0; k < KIND_COUNT; k++) {
        allocators[k] = allocator_of(KINDS[k], (int32_t)((uintptr_t)argument % 2));
    }
    void *blocks[HELD] = {NULL};
    int kinds[HELD] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        random ^= random << 13, random ^= random >> 17, random ^= random << 5;
        int slot = (int)(random % HELD);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocators[kinds[slot]], blocks[slot], NULL));
        kinds[slot] = (int)(random >> 8) % KIND_COUNT;
        size_t bytes = (random >> 4) % (3 * MIB) + 1;
        hbm_allocator_t *allocator = allocators[kinds[slot]];
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, bytes, 0, NULL, &blocks[slot]));
    }
    for (int slot = 0; slot < HELD; slot++) {
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocators[kinds[slot]], blocks[slot], NULL));
    }
    for (int k = 0; k < KIND_COUNT; k++) {
        EXPECT(HBM_OK, hbm_allocator_destroy(allocators[k]));
    }
    return NULL;
}

static void threads_share_the_devices(void) {
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, allocate_and_free, (void *)i) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    for (int32_t device = 0; device < 2; device++) {
        EXPECT(HBM_OK, hbm_trim(device, 0, NULL));
        hbm_stats_t stats = stats_of(device, -1);
        CHECK(stats.requested == 0 && stats.allocated == 0 && stats.reserved == 0);
        CHECK(stats.allocations == stats.deallocations && stats.pending_bytes == 0);
        CHECK(physical_bytes(device) == 0);
    }
}

int main(void) {
    every_kind_gives_and_takes_back();
    alignment_is_kept_or_refused();
    void *context = context_push(1);
    context = context_push(0);
    streams_hold_memory_back(HBM_KIND_VMM);
    streams_hold_memory_back(HBM_KIND_POOL);
    a_destroyed_stream_is_not_named_again();
    blocks_live_where_the_descriptor_says();
    threads_share_the_devices();
    CHECK(context_current() == context);
    CHECK(faults() == 0);
    puts("allocators: fine");
    return 0;
}
