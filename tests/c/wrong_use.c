/* Arguments and orders of calls that are wrong: an error each time, with a text that says what, and
 * everything still works afterwards. */
#include "driver.h"

static const int32_t KINDS[] = {HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_VMM, HBM_KIND_POOL, HBM_KIND_PINNED};

static void creating(void) {
    hbm_allocator_t *allocator = NULL;
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_ASYNC, 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(NULL, &allocator));
    EXPECT_ERROR_TEXT("NULL");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, NULL));
    for (int32_t kind = -3; kind < 17; kind++) {
        descriptor.kind = kind;
        /* An arena needs an upstream, custom its functions. */
        if (kind < HBM_KIND_DEVICE || kind > HBM_KIND_SHM) {
            EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
            EXPECT_ERROR_TEXT("kind");
        }
    }
    descriptor = descriptor_of(HBM_KIND_ASYNC, 0);
    const int32_t devices[] = {-1, 2, 99, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        descriptor.device = devices[i];
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
        EXPECT_ERROR_TEXT("device");
    }
    descriptor = descriptor_of(HBM_KIND_MANAGED, 0);
    descriptor.location = HBM_LOCATION_HOST_NUMA;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
    descriptor = descriptor_of(HBM_KIND_VMM, 0);
    descriptor.location = 3;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
    descriptor.location = HBM_LOCATION_HOST_NUMA;
    descriptor.numa_node = -1;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
    descriptor = descriptor_of(HBM_KIND_VMM, 0);
    descriptor.tag = "\xff\xfe";
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
    EXPECT_ERROR_TEXT("UTF-8");
    CHECK(allocator == NULL);
}

static void sizes_of_structs(void) {
    hbm_allocator_t *allocator = NULL;
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_ASYNC, 0);
    /* Also sizes that no version had: one ends within the tag. */
    const size_t sizes[] = {0, 1, sizeof(size_t) - 1, sizeof(size_t), 20, sizeof descriptor - 1, (size_t)1 << 20, SIZE_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        descriptor.struct_size = sizes[i];
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
        EXPECT_ERROR_TEXT("struct_size");
    }
    /* The least a descriptor has been: what came later counts as zero. */
    descriptor = descriptor_of(HBM_KIND_DEVICE, 0);
    descriptor.location = 77;
    descriptor.struct_size = offsetof(hbm_allocator_desc_t, location);
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    void *block = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 8, 0, NULL, &block));
    CHECK(stats_of(0, HBM_KIND_DEVICE).requested == 8);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));

    hbm_stats_t stats;
    for (size_t size = 0; size < sizeof(size_t); size++) {
        stats.struct_size = size;
        EXPECT(HBM_INVALID_ARGUMENT, hbm_stats(0, -1, &stats));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_stats(allocator, &stats));
    }
    /* What lies behind the size that was filled in is not ours to write. */
    unsigned char space[sizeof stats + 64];
    memset(space, 0xAB, sizeof space);
    size_t larger = sizeof space;
    memcpy(space, &larger, sizeof larger);
    EXPECT(HBM_OK, hbm_stats(0, -1, (hbm_stats_t *)(void *)space));
    for (size_t i = sizeof stats; i < sizeof space; i++) {
        CHECK(space[i] == 0xAB);
    }
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stats(0, -1, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_stats(allocator, NULL));
    stats.struct_size = sizeof stats;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stats(0, HBM_KIND_PINNED + 1, &stats));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stats(0, -2, &stats));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stats(7, -1, &stats));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stats_reset_peaks(7));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stats_reset_peaks(-1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_trim(7, 0, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

static void pointers_that_are_no_allocator(void) {
    hbm_allocator_t *stale = allocator_of(HBM_KIND_ASYNC, 0);
    EXPECT(HBM_OK, hbm_allocator_destroy(stale));
    int local = 0;
    hbm_allocator_t *wrong[] = {NULL, stale, (hbm_allocator_t *)(void *)&local,
                                (hbm_allocator_t *)(uintptr_t)0xDEADBEEF};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        void *block = NULL;
        hbm_stats_t stats;
        stats.struct_size = sizeof stats;
        if (wrong[i] != NULL) {
            EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_destroy(wrong[i]));
        }
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(wrong[i], 8, 0, NULL, &block));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_deallocate(wrong[i], &local, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_record_stream(wrong[i], &local, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_trim(wrong[i], 0, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_stats(wrong[i], &stats));
        EXPECT_ERROR_TEXT("not an allocator");
        CHECK(block == NULL);
    }
    /* A new allocator does not come to life under an old pointer. */
    hbm_allocator_t *next = allocator_of(HBM_KIND_ASYNC, 0);
    CHECK(next != stale);
    EXPECT(HBM_OK, hbm_allocator_destroy(next));
}

static void sizes_that_cannot_be(hbm_allocator_t *allocator, int32_t kind) {
    void *block = NULL;
    hbm_stats_t before = stats_of(0, kind);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 0, 0, NULL, &block));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 8, 0, NULL, NULL));
    const size_t huge[] = {SIZE_MAX, SIZE_MAX - 255, (size_t)1 << 63, (size_t)1 << 57};
    for (size_t i = 0; i < sizeof huge / sizeof huge[0]; i++) {
        EXPECT(HBM_OUT_OF_MEMORY, hbm_allocator_allocate(allocator, huge[i], 0, NULL, &block));
        EXPECT_ERROR_TEXT("asked for");
    }
    if (kind != HBM_KIND_MANAGED && kind != HBM_KIND_PINNED) {
        /* Managed memory may exceed the card, and the host's is its own. */
        EXPECT(HBM_OUT_OF_MEMORY, hbm_allocator_allocate(allocator, 200000 * MIB, 0, NULL, &block));
        /* The pool does not even ask for more than the device has. */
        CHECK(hbm_last_driver_code() == (kind == HBM_KIND_POOL ? 0 : 2));
        EXPECT_ERROR_TEXT("device 0 has");
    }
    CHECK(block == NULL);
    CHECK(stats_of(0, kind).failed_allocations >= before.failed_allocations + 4);
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 8, 0, NULL, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
}

static void frees_of_what_is_no_block(hbm_allocator_t *allocator, int32_t kind) {
    hbm_allocator_t *stranger = allocator_of(kind, 0);
    void *block = NULL;
    int local = 0;
    uint64_t rejected = stats_of(0, kind).rejected_frees;
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 4096, 0, NULL, &block));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(stranger, block, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, (char *)block + 256, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, &local, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, (void *)(uintptr_t)1, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_record_stream(allocator, &local, NULL));
    /* None of that touched the block. */
    fill(0, block, 3, 4096, NULL);
    stream_wait(NULL);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT_ERROR_TEXT("freed already");
    EXPECT(HBM_NOT_OWNED, hbm_allocator_record_stream(allocator, block, NULL));
    CHECK(stats_of(0, kind).rejected_frees == rejected + 5);
    CHECK(stats_of(0, kind).requested == 0);
    EXPECT(HBM_OK, hbm_allocator_destroy(stranger));
}

int main(void) {
    /* The log would repeat each rejected free once. */
    EXPECT(HBM_OK, hbm_option_set("log", "off"));
    creating();
    sizes_of_structs();
    pointers_that_are_no_allocator();
    context_push(0);
    for (size_t k = 0; k < sizeof KINDS / sizeof KINDS[0]; k++) {
        hbm_allocator_t *allocator = allocator_of(KINDS[k], 0);
        sizes_that_cannot_be(allocator, KINDS[k]);
        frees_of_what_is_no_block(allocator, KINDS[k]);
        EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, NULL));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
    CHECK(physical_bytes(0) == 0 && faults() == 0);
    puts("wrong use: fine");
    return 0;
}
