/* Blocks of device 0 that a stream of device 1 uses, as a peer copy does. Device 1 gave no memory out here
 * and the program made its streams itself. */
#include "driver.h"

static void *stream_of(int device) {
    context_push(device);
    void *stream = stream_create();
    context_pop();
    return stream;
}

/* With the context of device 1 current, for the handles that every device has. */
static void busy_on_1(void *stream) {
    context_push(1);
    stream_busy(stream);
    context_pop();
}

static void idle_on_1(void *stream) {
    context_push(1);
    stream_idle(stream);
    stream_wait(stream);
    context_pop();
}

enum naming { BY_RECORDING, BY_THE_FREE, BY_CONTEXT, BY_TORCH };

static void use(enum naming naming, hbm_allocator_t *allocator, void *block, void *other) {
    if (naming == BY_TORCH) {
        hbm_torch_record_stream(block, other);
    } else if (naming != BY_THE_FREE) {
        context_push(1);
        EXPECT(HBM_OK, hbm_allocator_record_stream(allocator, block, other));
        context_pop();
    }
}

static void *give(enum naming naming, hbm_allocator_t *allocator, void *own) {
    void *block = NULL;
    if (naming == BY_TORCH) {
        block = pool_malloc(4 * MIB, 0, own);
    } else {
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 4 * MIB, 0, own, &block));
    }
    CHECK(block != NULL);
    return block;
}

static void take(enum naming naming, hbm_allocator_t *allocator, void *block, void *own) {
    if (naming == BY_TORCH) {
        pool_free(block, 4 * MIB, 0, own);
    } else {
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, own));
    }
}

/* `other` is named for a block that is freed while it has work: nobody gets the memory meanwhile. */
static void waits(int32_t kind, enum naming naming, void *own, void *other) {
    hbm_allocator_t *allocator = allocator_of(kind, 0);
    void *block = give(naming, allocator, own);
    busy_on_1(other);
    use(naming, allocator, block, other);
    take(naming, allocator, block, naming == BY_THE_FREE ? other : own);
    CHECK(physical_bytes(0) >= 4 * MIB);
    void *more[3];
    for (int i = 0; i < 3; i++) {
        more[i] = give(naming, allocator, own);
        CHECK(more[i] != block);
    }
    if (kind == HBM_KIND_VMM) {
        CHECK(stats_of(0, -1).pending_frees == 1);
    }
    idle_on_1(other);
    for (int i = 0; i < 3; i++) {
        take(naming, allocator, more[i], own);
    }
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0 && stats_of(0, -1).pending_frees == 0);
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

/* Forgotten and destroyed before the free: other work of its device stands for it. */
static void forgotten(int32_t kind, void *own, void *busy) {
    hbm_allocator_t *allocator = allocator_of(kind, 0);
    void *block = give(BY_RECORDING, allocator, own), *other = stream_of(1);
    EXPECT(HBM_OK, hbm_allocator_record_stream(allocator, block, other));
    EXPECT(HBM_OK, hbm_stream_forget(1, other));
    stream_destroy(other);
    busy_on_1(busy);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, own));
    void *next = give(BY_RECORDING, allocator, own);
    CHECK(next != block && physical_bytes(0) >= 8 * MIB);
    idle_on_1(busy);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, next, own));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0);
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

/* The block's own stream costs no question. */
static void own_streams_ask_nothing(void *own) {
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_POOL, 0);
    void *block = give(BY_RECORDING, allocator, own), *legacy = give(BY_RECORDING, allocator, NULL);
    uint64_t before = calls("*");
    EXPECT(HBM_OK, hbm_allocator_record_stream(allocator, block, own));
    EXPECT(HBM_OK, hbm_allocator_record_stream(allocator, legacy, NULL));
    hbm_torch_record_stream(legacy, NULL);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, own));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, legacy, NULL));
    CHECK(calls("*") == before);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("log", "off"));
    EXPECT(HBM_OK, hbm_captures_told(1));
    hbm_torch_set_hooked(1);
    /* This opens the driver. */
    pool_free(pool_malloc(MIB, 0, NULL), MIB, 0, NULL);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    void *own = stream_of(0), *other = stream_of(1);
    own_streams_ask_nothing(own);
    for (int in_use = 0; in_use < 2; in_use++) {
        waits(HBM_KIND_POOL, BY_RECORDING, own, other);
        waits(HBM_KIND_VMM, BY_RECORDING, own, other);
        waits(HBM_KIND_POOL, BY_THE_FREE, own, other);
        waits(HBM_KIND_VMM, BY_THE_FREE, own, other);
        waits(HBM_KIND_POOL, BY_CONTEXT, own, NULL);
        waits(HBM_KIND_VMM, BY_CONTEXT, own, NULL);
        waits(HBM_KIND_POOL, BY_TORCH, own, other);
        /* torch has the block's device current, and names the default stream of any by this. */
        context_push(0);
        waits(HBM_KIND_POOL, BY_TORCH, own, NULL);
        context_pop();
        forgotten(HBM_KIND_POOL, own, other);
        forgotten(HBM_KIND_VMM, own, other);
        if (in_use == 0) {
            hbm_allocator_t *there = allocator_of(HBM_KIND_POOL, 1);
            void *block = give(BY_RECORDING, there, NULL);
            EXPECT(HBM_OK, hbm_allocator_deallocate(there, block, NULL));
        }
    }
    /* Both have a legacy stream, and the one that is meant is of the current context. */
    waits(HBM_KIND_POOL, BY_CONTEXT, NULL, NULL);
    CHECK(stats_of(0, -1).warnings == 0);
    CHECK(faults() == 0);
    puts("across devices: fine");
    return 0;
}
