/* Arenas over every kind of allocator, and allocators of the caller's own functions. */
#define _GNU_SOURCE
#include "driver.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static hbm_allocator_t *arena_over(hbm_allocator_t *upstream) {
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_ARENA, 0);
    hbm_allocator_t *arena = NULL;
    descriptor.upstream = upstream;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &arena));
    return arena;
}

static hbm_arena_stats_t arena_stats(hbm_allocator_t *arena) {
    hbm_arena_stats_t stats = {.struct_size = sizeof stats};
    EXPECT(HBM_OK, hbm_arena_stats(arena, &stats));
    return stats;
}

static hbm_stats_t stats(hbm_allocator_t *allocator) {
    hbm_stats_t stats = {.struct_size = sizeof stats};
    EXPECT(HBM_OK, hbm_allocator_stats(allocator, &stats));
    CHECK(stats.requested <= stats.allocated && stats.allocated <= stats.reserved);
    return stats;
}

static void *take(hbm_allocator_t *allocator, size_t bytes) {
    void *block = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, bytes, 0, NULL, &block));
    CHECK(block != NULL && (uintptr_t)block % 256 == 0);
    return block;
}

static void give(hbm_allocator_t *allocator, void *block, size_t bytes) {
    EXPECT(HBM_OK, hbm_allocator_deallocate_sized(allocator, block, bytes, NULL));
}

/* An upstream of this program's: memory of malloc, of which each block is known, with failures on demand. */
struct upstream {
    pthread_mutex_t lock;
    size_t live, bytes, calls, trims;
    /* The call that fails, counted down; the status it returns. */
    size_t fails_at;
    int32_t status;
    void *freed_on;
};

static int fails(struct upstream *upstream) {
    upstream->calls++;
    return upstream->fails_at > 0 && --upstream->fails_at == 0;
}

static int32_t upstream_allocate(void *context, size_t bytes, size_t alignment, void *stream, void **out) {
    struct upstream *upstream = context;
    int32_t status = HBM_OK;
    (void)stream;
    pthread_mutex_lock(&upstream->lock);
    if (fails(upstream)) {
        status = upstream->status;
    } else {
        char *memory = malloc(bytes + alignment + sizeof(size_t));
        CHECK(memory != NULL);
        uintptr_t address = ((uintptr_t)memory + sizeof(size_t) + alignment - 1) / alignment * alignment;
        memcpy((void *)(address - sizeof memory), &memory, sizeof memory);
        *out = (void *)address;
        upstream->live++;
        upstream->bytes += bytes;
    }
    pthread_mutex_unlock(&upstream->lock);
    return status;
}

static int32_t upstream_deallocate(void *context, void *address, size_t bytes, void *stream) {
    struct upstream *upstream = context;
    int32_t status = HBM_OK;
    pthread_mutex_lock(&upstream->lock);
    upstream->freed_on = stream;
    if (fails(upstream)) {
        status = upstream->status;
    } else {
        char *memory = NULL;
        memcpy(&memory, (void *)((uintptr_t)address - sizeof memory), sizeof memory);
        CHECK(upstream->live > 0 && upstream->bytes >= bytes);
        upstream->live--;
        upstream->bytes -= bytes;
        free(memory);
    }
    pthread_mutex_unlock(&upstream->lock);
    return status;
}

static int32_t upstream_trim(void *context, uint64_t keep, uint64_t *released) {
    struct upstream *upstream = context;
    upstream->trims++;
    *released = keep == 0 ? 7 : 0;
    return HBM_OK;
}

static struct upstream heap = {.lock = PTHREAD_MUTEX_INITIALIZER, .status = HBM_OUT_OF_MEMORY};

static hbm_allocator_t *custom(struct upstream *upstream) {
    hbm_custom_t functions = {sizeof functions, upstream, upstream_allocate, upstream_deallocate, upstream_trim};
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_CUSTOM, -7);
    hbm_allocator_t *allocator = NULL;
    descriptor.functions = &functions;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    memset(&functions, 0xEE, sizeof functions);
    return allocator;
}

static void steps(hbm_allocator_t *upstream) {
    hbm_allocator_t *arena = arena_over(upstream);
    const size_t sizes[] = {1, 300, 4096, MIB + 1};
    const size_t need = 256 + 512 + 4096 + MIB + 256;
    void *blocks[4];
    EXPECT(HBM_BUSY, hbm_allocator_destroy(upstream));
    EXPECT_ERROR_TEXT("1 arenas are over it");
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < 4; i++) blocks[i] = take(arena, sizes[i]);
        hbm_stats_t during = stats(arena);
        CHECK(during.requested == 1 + 300 + 4096 + MIB + 1);
        hbm_arena_stats_t now = arena_stats(arena);
        CHECK(now.largest_need == need && now.blocks == 4 && now.spills == 4);
        CHECK(now.region_bytes == (step == 0 ? 0 : need) && now.spilled_blocks == (step == 0 ? 4 : 0));
        CHECK(step == 0 || (during.allocated == need && during.reserved == need && during.segments == 1));
        EXPECT(step == 0 ? HBM_OK : HBM_BUSY, hbm_arena_iter(arena, NULL));
        EXPECT(HBM_BUSY, hbm_allocator_destroy(arena));
        for (int i = 3; i >= 0; i--) give(arena, blocks[i], sizes[i]);
        EXPECT(HBM_OK, hbm_arena_iter(arena, NULL));
    }
    hbm_stats_t after = stats(arena);
    CHECK(after.requested == 0 && after.allocated == 0 && after.reserved == need && after.peak_blocks == 4);
    CHECK(after.allocations == 12 && after.deallocations == 12 && after.failed_allocations == 0);
    EXPECT(HBM_OK, hbm_allocator_destroy(arena));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_destroy(arena));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_arena_iter(arena, NULL));
}


/* What every kind does. */
static void as_every_kind(hbm_allocator_t *allocator, hbm_allocator_t *other) {
    hbm_stats_t before = stats(allocator);
    for (size_t alignment = 1; alignment <= 2 * MIB; alignment *= 2) {
        void *block = NULL;
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 100, alignment, NULL, &block));
        CHECK((uintptr_t)block % alignment == 0 && (uintptr_t)block % 256 == 0);
        EXPECT(HBM_BUSY, hbm_allocator_destroy(allocator));
        EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(other, block, NULL));
        EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, (char *)block + 256, NULL));
        EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate_sized(allocator, &block, 100, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate_sized(allocator, block, 101, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate_sized(allocator, block, 0, NULL));
        EXPECT_ERROR_TEXT("100 bytes, not 0");
        give(allocator, block, 100);
        EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate_sized(allocator, block, 100, NULL));
        EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, block, NULL));
        EXPECT(HBM_NOT_OWNED, hbm_allocator_record_stream(allocator, block, NULL));
    }
    const size_t wrong[] = {0, SIZE_MAX, SIZE_MAX - 255, (size_t)1 << 63};
    for (int i = 0; i < 4; i++) {
        void *block = NULL;
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, wrong[i], 0, NULL, &block));
        CHECK(block == NULL);
    }
    void *block = NULL;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 1, 3, NULL, &block));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 1, 0, NULL, NULL));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, NULL, NULL));
    EXPECT(HBM_OK, hbm_allocator_deallocate_sized(allocator, NULL, 7, NULL));
    hbm_stats_t after = stats(allocator);
    CHECK(after.requested == before.requested && after.allocations == before.allocations + 22);
    CHECK(after.failed_allocations == before.failed_allocations + 4);
    EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, NULL));
}

static void conformance(void) {
    hbm_allocator_t *pool = allocator_of(HBM_KIND_POOL, 0), *own = custom(&heap), *over[3];
    hbm_allocator_t *other = allocator_of(HBM_KIND_POOL, 0);
    as_every_kind(own, other);
    over[0] = arena_over(own);
    over[1] = arena_over(pool);
    over[2] = arena_over(over[1]);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 3; i++) {
            as_every_kind(over[i], other);
            give(over[i], take(over[i], 5 * MIB), 5 * MIB);
            EXPECT(HBM_OK, hbm_arena_iter(over[i], NULL));
            CHECK(arena_stats(over[i]).region_bytes >= 5 * MIB);
        }
    }
    hbm_allocator_t *no_arena[] = {pool, own, NULL};
    hbm_arena_stats_t of_arena = {.struct_size = sizeof of_arena};
    for (int i = 0; i < 3; i++) {
        EXPECT(HBM_INVALID_ARGUMENT, hbm_arena_iter(no_arena[i], NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_arena_stats(no_arena[i], &of_arena));
    }
    EXPECT(HBM_INVALID_ARGUMENT, hbm_arena_stats(over[0], NULL));
    EXPECT(HBM_BUSY, hbm_allocator_destroy(over[1]));
    for (int i = 2; i >= 0; i--) EXPECT(HBM_OK, hbm_allocator_destroy(over[i]));
    EXPECT(HBM_OK, hbm_allocator_destroy(own));
    EXPECT(HBM_OK, hbm_allocator_destroy(pool));
    EXPECT(HBM_OK, hbm_allocator_destroy(other));
    CHECK(heap.live == 0);
}

static void wrong_descriptors(void) {
    hbm_allocator_t *pool = allocator_of(HBM_KIND_POOL, 0), *made = NULL;
    hbm_custom_t functions = {sizeof functions, &heap, upstream_allocate, upstream_deallocate, NULL};
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_ARENA, 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    EXPECT_ERROR_TEXT("upstream is NULL");
    descriptor.upstream = (hbm_allocator_t *)(void *)&descriptor;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    EXPECT_ERROR_TEXT("not an allocator");
    descriptor.upstream = pool;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, NULL));
    descriptor.tag = "arena";
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    descriptor.tag = NULL;
    descriptor.functions = &functions;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    descriptor.kind = HBM_KIND_CUSTOM;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    EXPECT_ERROR_TEXT("only an arena");
    descriptor.upstream = NULL;
    descriptor.numa_nodes = 1;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    descriptor.numa_nodes = 0;
    functions.struct_size = 8;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    functions.struct_size = sizeof functions;
    functions.deallocate = NULL;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    descriptor.functions = NULL;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    descriptor.kind = HBM_KIND_HEAP;
    descriptor.upstream = pool;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &made));
    CHECK(made == NULL);
    EXPECT(HBM_OK, hbm_allocator_destroy(pool));
}

/* TurboMind's six, as they show from outside. */
static void six_defects(void) {
    hbm_allocator_t *upstream = custom(&heap), *arena = arena_over(upstream);
    void *blocks[64], *block = NULL;
    uint64_t released = 0;
    /* 1: the rounding of many small blocks finds room. 2: overflow spills, and the region grows. */
    for (int step = 0; step < 2; step++) {
        for (int i = 0; i < 64; i++) blocks[i] = take(arena, 1);
        CHECK(arena_stats(arena).spilled_blocks == (step == 0 ? 64 : 0));
        for (int i = 63; i >= 0; i--) give(arena, blocks[i], 1);
        EXPECT(HBM_OK, hbm_arena_iter(arena, NULL));
        CHECK(arena_stats(arena).region_bytes == 64 * 256);
    }
    blocks[0] = take(arena, 64 * 256);
    blocks[1] = take(arena, MIB);
    CHECK(arena_stats(arena).spilled_bytes == MIB);
    give(arena, blocks[0], 64 * 256);
    EXPECT(HBM_OK, hbm_arena_iter(arena, NULL));
    CHECK(arena_stats(arena).region_bytes == MIB + 64 * 256);
    give(arena, blocks[1], MIB);
    /* 3: a wrong size that ends at the top. */
    blocks[0] = take(arena, 256);
    blocks[1] = take(arena, 256);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate_sized(arena, blocks[0], 512, NULL));
    /* 4: a foreign block that ends where the region begins. */
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate_sized(arena, (char *)blocks[0] - 256, 256, NULL));
    /* 5: sizes below zero, and none. */
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(arena, (size_t)-256, 0, NULL, &block));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(arena, 0, 0, NULL, &block));
    blocks[2] = take(arena, 1);
    CHECK((char *)blocks[2] == (char *)blocks[1] + 256);
    /* 6: an order that is not last in, first out; trim goes on to the upstream. */
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate(arena, blocks[0], NULL));
    EXPECT_ERROR_TEXT("below 2 other blocks");
    size_t trims = heap.trims;
    EXPECT(HBM_OK, hbm_allocator_trim(arena, 0, &released));
    CHECK(heap.trims == trims + 1 && released == 7);
    for (int i = 2; i >= 0; i--) EXPECT(HBM_OK, hbm_allocator_deallocate(arena, blocks[i], NULL));
    EXPECT(HBM_OK, hbm_allocator_trim(arena, 0, &released));
    CHECK(heap.trims == trims + 2 && released == 7 + MIB + 64 * 256 && heap.live == 0);
    EXPECT(HBM_OK, hbm_allocator_destroy(arena));
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
}

/* Each call to the functions fails in turn. */
static void failures(void) {
    const int32_t statuses[] = {HBM_OUT_OF_MEMORY, HBM_DRIVER, 77, -1};
    for (size_t at = 1; at < 24; at++) {
        hbm_allocator_t *upstream = custom(&heap), *arena = arena_over(upstream);
        heap.fails_at = at;
        heap.status = statuses[at % 4];
        for (int step = 0; step < 3; step++) {
            void *blocks[3] = {NULL};
            for (int i = 0; i < 3; i++) {
                int32_t status = hbm_allocator_allocate(arena, 1000 * (size_t)(step + i + 1), 0, NULL, &blocks[i]);
                CHECK((status == HBM_OK) == (blocks[i] != NULL));
                CHECK(status == HBM_OK || status == (heap.status == 77 || heap.status < 0 ? HBM_INTERNAL : heap.status));
            }
            for (int i = 2; i >= 0; i--) {
                while (hbm_allocator_deallocate(arena, blocks[i], NULL) != HBM_OK) CHECK(heap.live > 0);
            }
            hbm_arena_iter(arena, NULL);
            CHECK(stats(arena).reserved == heap.bytes);
        }
        hbm_allocator_trim(arena, 0, NULL);
        while (hbm_allocator_destroy(arena) != HBM_OK) CHECK(heap.live == 1);
        CHECK(heap.live == 0 && heap.bytes == 0 && stats(upstream).reserved == 0);
        EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
    }
    heap.fails_at = 0;
    heap.status = HBM_OUT_OF_MEMORY;
}

/* Functions that do not keep to the rules, and one that comes back. */
static hbm_allocator_t *itself;
static uintptr_t gives;
static size_t taken_back;

static int32_t odd_allocate(void *context, size_t bytes, size_t alignment, void *stream, void **out) {
    (void)context, (void)bytes, (void)alignment, (void)stream;
    hbm_stats_t stats = {.struct_size = sizeof stats};
    EXPECT(HBM_OK, hbm_allocator_stats(itself, &stats));
    EXPECT(HBM_BUSY, hbm_allocator_destroy(itself));
    *out = (void *)gives;
    return HBM_OK;
}

static int32_t odd_deallocate(void *context, void *address, size_t bytes, void *stream) {
    (void)context, (void)address, (void)bytes, (void)stream;
    taken_back++;
    return HBM_OK;
}

static void odd_functions(void) {
    hbm_custom_t functions = {sizeof functions, NULL, odd_allocate, odd_deallocate, NULL};
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_CUSTOM, 0);
    void *block = NULL;
    descriptor.functions = &functions;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &itself));
    hbm_allocator_t *upstream = itself;
    for (int round = 0; round < 2; round++) {
        gives = 0;
        EXPECT(HBM_INTERNAL, hbm_allocator_allocate(itself, 100, 0, NULL, &block));
        gives = 0x10080;
        EXPECT(HBM_INTERNAL, hbm_allocator_allocate(itself, 100, 0, NULL, &block));
        EXPECT_ERROR_TEXT("no multiple of 256");
        CHECK(block == NULL && taken_back == 1);
        gives = 0x10000;
        EXPECT(HBM_OK, hbm_allocator_allocate(itself, 100, 0, NULL, &block));
        EXPECT(HBM_INTERNAL, hbm_allocator_allocate(itself, 100, 0, NULL, &block));
        EXPECT(HBM_OK, hbm_allocator_deallocate(itself, block, NULL));
        CHECK(taken_back == 2);
        block = NULL;
        taken_back = 0;
        if (round == 0) itself = arena_over(upstream);
    }
    EXPECT(HBM_OK, hbm_allocator_destroy(itself));
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
}

static void sizes_are_checked_by_every_kind(void) {
    const int32_t kinds[] = {HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_VMM, HBM_KIND_POOL, HBM_KIND_PINNED, HBM_KIND_HEAP};
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        hbm_allocator_t *allocator = allocator_of(kinds[k], 0), *other = allocator_of(kinds[k], 0);
        const size_t sizes[] = {1, 512, 513, MIB + 1};
        for (int i = 0; i < 4; i++) {
            void *block = take(allocator, sizes[i]);
            EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate_sized(allocator, block, sizes[i] + 1, NULL));
            EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate_sized(allocator, block, 0, NULL));
            EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate_sized(other, block, sizes[i], NULL));
            give(allocator, block, sizes[i]);
            EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate_sized(allocator, block, sizes[i], NULL));
        }
        EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, NULL));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
        EXPECT(HBM_OK, hbm_allocator_destroy(other));
    }
}

static void streams(void) {
    hbm_allocator_t *pool = allocator_of(HBM_KIND_POOL, 0), *arena = arena_over(pool);
    context_push(0);
    void *own = stream_create(), *other = stream_create(), *block = NULL, *second = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(arena, MIB, 0, own, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(arena, block, own));
    EXPECT(HBM_OK, hbm_arena_iter(arena, own));
    EXPECT(HBM_OK, hbm_allocator_allocate(arena, MIB, 0, own, &block));
    CHECK(arena_stats(arena).spilled_blocks == 0);
    EXPECT(HBM_OK, hbm_allocator_allocate(arena, 1000, 0, other, &second));
    CHECK(arena_stats(arena).spilled_blocks == 1);
    EXPECT(HBM_OK, hbm_allocator_deallocate(arena, second, other));
    /* Work of another stream holds the region back, also once it is given back. */
    EXPECT(HBM_OK, hbm_allocator_record_stream(arena, block, other));
    stream_hold(other);
    fill(0, block, 1, MIB, other);
    EXPECT(HBM_OK, hbm_allocator_deallocate(arena, block, own));
    EXPECT(HBM_OK, hbm_allocator_allocate(arena, MIB, 0, own, &second));
    CHECK(second != block && arena_stats(arena).spilled_blocks == 1);
    EXPECT(HBM_OK, hbm_allocator_deallocate(arena, second, own));
    EXPECT(HBM_OK, hbm_arena_iter(arena, own));
    EXPECT(HBM_OK, hbm_allocator_allocate(arena, MIB, 0, own, &second));
    CHECK(second != block && arena_stats(arena).spilled_blocks == 0);
    EXPECT(HBM_OK, hbm_allocator_deallocate(arena, second, own));
    stream_release(other);
    stream_wait(other);
    /* A stream that is forgotten is named no more. */
    EXPECT(HBM_OK, hbm_stream_forget(0, own));
    stream_destroy(own);
    EXPECT(HBM_OK, hbm_allocator_destroy(arena));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0 && faults() == 0);
    EXPECT(HBM_OK, hbm_stream_forget(0, other));
    stream_destroy(other);
    EXPECT(HBM_OK, hbm_allocator_destroy(pool));
}

/* Destroying one of the library's own streams says as much to arenas as forgetting one does. */
static void destroyed_stream(void) {
    hbm_allocator_t *upstream = custom(&heap), *arena = arena_over(upstream);
    void *own = NULL, *block = NULL;
    EXPECT(HBM_OK, hbm_stream_create(0, 0, 0, &own));
    EXPECT(HBM_OK, hbm_allocator_allocate(arena, MIB, 0, own, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(arena, block, own));
    EXPECT(HBM_OK, hbm_arena_iter(arena, own));
    CHECK(arena_stats(arena).region_bytes >= MIB && heap.freed_on == own);
    EXPECT(HBM_OK, hbm_stream_destroy(own));
    EXPECT(HBM_OK, hbm_allocator_destroy(arena));
    CHECK(heap.live == 0 && heap.freed_on != own);
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
}

/* Two threads on one arena: what lies below another's block stays for later. */
static void *share(void *argument) {
    hbm_allocator_t *arena = argument;
    unsigned char mark = (unsigned char)(uintptr_t)&arena;
    void *held[64];
    int count = 0;
    for (int i = 0; i < 20000; i++) {
        void *block = NULL;
        EXPECT(HBM_OK, hbm_allocator_allocate(arena, 300, 0, NULL, &block));
        memset(block, mark, 300);
        held[count++] = block;
        while (count > 0) {
            for (int j = 0; j < 300; j++) CHECK(((unsigned char *)held[count - 1])[j] == mark);
            if (hbm_allocator_deallocate_sized(arena, held[count - 1], 300, NULL) != HBM_OK) break;
            count--;
        }
        if (count == 64) {
            sched_yield();
            while (count > 0 && hbm_allocator_deallocate(arena, held[count - 1], NULL) != HBM_OK) sched_yield();
            count = count > 0 ? count - 1 : 0;
        }
    }
    for (int tries = 0; count > 0; tries++) {
        CHECK(tries < 100000000);
        if (hbm_allocator_deallocate(arena, held[count - 1], NULL) == HBM_OK) count--;
    }
    return NULL;
}

static void two_threads(void) {
    hbm_allocator_t *upstream = allocator_of(HBM_KIND_HEAP, 0), *arena = arena_over(upstream);
    give(arena, take(arena, 2 * MIB), 2 * MIB);
    EXPECT(HBM_OK, hbm_arena_iter(arena, NULL));
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, share, arena) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    hbm_stats_t after = stats(arena);
    CHECK(after.requested == 0 && after.allocations == after.deallocations);
    EXPECT(HBM_OK, hbm_allocator_destroy(arena));
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
}

static void stale_handles(void) {
    hbm_allocator_t *upstream = custom(&heap), *stale = arena_over(upstream);
    void *block = take(stale, 100);
    give(stale, block, 100);
    EXPECT(HBM_OK, hbm_arena_iter(stale, NULL));
    give(stale, take(stale, 100), 100);
    EXPECT(HBM_OK, hbm_allocator_destroy(stale));
    hbm_allocator_t *next = arena_over(upstream);
    uintptr_t wrong[] = {(uintptr_t)stale, (uintptr_t)next + 1, (uintptr_t)next | 0xFFF, (uintptr_t)1 << 62, UINTPTR_MAX, 1};
    CHECK(next != stale);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        hbm_allocator_t *handle = (hbm_allocator_t *)wrong[i];
        hbm_arena_stats_t of_arena = {.struct_size = sizeof of_arena};
        int32_t device;
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(handle, 100, 0, NULL, &block));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate(handle, block, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate_sized(handle, block, 100, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_arena_iter(handle, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_arena_stats(handle, &of_arena));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_device(handle, &device));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_trim(handle, 0, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_destroy(handle));
    }
    EXPECT(HBM_OK, hbm_allocator_destroy(next));
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
}

static hbm_allocator_t *late;
static void *late_block;

static void at_the_end(void) {
    EXPECT(HBM_OK, hbm_allocator_deallocate(late, late_block, NULL));
    hbm_allocator_destroy(late);
}

/* A child has neither the memory nor the locks; freeing at exit returns. */
static void forks_and_exits(int uses_driver) {
    hbm_allocator_t *upstream = uses_driver ? allocator_of(HBM_KIND_POOL, 0) : custom(&heap);
    late = arena_over(upstream);
    give(late, take(late, 4096), 4096);
    EXPECT(HBM_OK, hbm_arena_iter(late, NULL));
    late_block = take(late, 100);
    pid_t child = fork();
    if (child == 0) {
        void *block = NULL;
        alarm(20);
        EXPECT(HBM_FORKED, hbm_allocator_allocate(late, 100, 0, NULL, &block));
        EXPECT(HBM_FORKED, hbm_arena_iter(late, NULL));
        EXPECT(uses_driver ? HBM_OK : HBM_FORKED, hbm_allocator_deallocate(late, late_block, NULL));
        EXPECT(uses_driver ? HBM_OK : HBM_FORKED, hbm_allocator_deallocate_sized(late, late_block, 100, NULL));
        exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    give(late, late_block, 100);
    if (uses_driver) {
        late_block = take(late, 100);
        CHECK(atexit(at_the_end) == 0);
        return;
    }
    EXPECT(HBM_OK, hbm_allocator_destroy(late));
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
}

int main(void) {
    /* The log would repeat each rejected free once. */
    EXPECT(HBM_OK, hbm_option_set("log", "off"));
    hbm_allocator_t *upstream = custom(&heap);
    int32_t device = 0;
    EXPECT(HBM_OK, hbm_allocator_device(upstream, &device));
    CHECK(device == -7);
    steps(upstream);
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
    CHECK(heap.live == 0 && heap.bytes == 0);
    six_defects();
    failures();
    odd_functions();
    stale_handles();
    two_threads();
    forks_and_exits(0);
    CHECK(hbm_driver_used() == 0);
    const int32_t kinds[] = {HBM_KIND_HEAP, HBM_KIND_NUMA, HBM_KIND_POOL, HBM_KIND_VMM, HBM_KIND_ASYNC, HBM_KIND_DEVICE};
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        upstream = allocator_of(kinds[k], 0);
        steps(upstream);
        EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
    }
    wrong_descriptors();
    conformance();
    sizes_are_checked_by_every_kind();
    streams();
    destroyed_stream();
    CHECK(faults() == 0);
    forks_and_exits(1);
    puts("arena: fine");
    return 0;
}
