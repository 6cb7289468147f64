/* A program built against a header that has one more field at the end of each struct than the library
 * it finds: the library takes a zero there for "as before", and refuses what it cannot honour. */
#include "../check.h"

struct newer_descriptor {
    hbm_allocator_desc_t known;
    uint64_t unknown;
};

struct newer_stats {
    hbm_stats_t known;
    uint64_t unknown;
};

int main(void) {
    struct newer_descriptor descriptor;
    struct newer_stats stats;
    hbm_allocator_t *allocator = NULL;
    void *block = NULL;
    memset(&descriptor, 0, sizeof descriptor);
    descriptor.known = descriptor_of(HBM_KIND_ASYNC, 0);
    descriptor.known.struct_size = sizeof descriptor;
    for (int bit = 0; bit < 64; bit++) {
        descriptor.unknown = (uint64_t)1 << bit;
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor.known, &allocator));
        EXPECT_ERROR_TEXT("does not know");
        CHECK(allocator == NULL);
    }
    descriptor.unknown = 0;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor.known, &allocator));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 1000, 0, NULL, &block));

    /* The program zeroes what it asks for; what the library does not know stays zero. */
    memset(&stats, 0, sizeof stats);
    stats.known.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_allocator_stats(allocator, &stats.known));
    CHECK(stats.known.struct_size == sizeof stats);
    CHECK(stats.known.requested == 1000 && stats.unknown == 0);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    puts("newer header: fine");
    return 0;
}
