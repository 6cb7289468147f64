/* Arenas over every kind of allocator, and allocators of the caller's own functions. */
#include "driver.h"

#include <pthread.h>

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
    (void)stream;
    pthread_mutex_lock(&upstream->lock);
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

int main(void) {
    hbm_allocator_t *upstream = custom(&heap);
    int32_t device = 0;
    EXPECT(HBM_OK, hbm_allocator_device(upstream, &device));
    CHECK(device == -7);
    steps(upstream);
    EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
    CHECK(heap.live == 0 && heap.bytes == 0 && hbm_driver_used() == 0);
    const int32_t kinds[] = {HBM_KIND_HEAP, HBM_KIND_NUMA, HBM_KIND_POOL, HBM_KIND_VMM, HBM_KIND_ASYNC, HBM_KIND_DEVICE};
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        upstream = allocator_of(kinds[k], 0);
        steps(upstream);
        EXPECT(HBM_OK, hbm_allocator_destroy(upstream));
    }
    CHECK(faults() == 0);
    puts("arena: fine");
    return 0;
}
