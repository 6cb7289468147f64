/* A program built against the older header beside it, run with today's library. */
#include "../check.h"

#include <stddef.h>

int main(void) {
    /* What lies behind the structs as this program knows them is its own. */
    struct {
        hbm_allocator_desc_t descriptor;
        unsigned char guard[32];
    } in;
    struct {
        hbm_stats_t stats;
        unsigned char guard[32];
    } out;
    CHECK(sizeof in.descriptor == 24 && sizeof out.stats == 12 * 8);
    memset(&in, 0xAB, sizeof in);
    memset(&out, 0xAB, sizeof out);
    in.descriptor = descriptor_of(HBM_KIND_VMM, 1);
    in.descriptor.tag = "older";
    out.stats.struct_size = sizeof out.stats;

    hbm_allocator_t *allocator = NULL;
    void *block = NULL;
    EXPECT(HBM_OK, hbm_allocator_create(&in.descriptor, &allocator));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 3 * MIB, 0, NULL, &block));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, &in, NULL));
    for (int which = 0; which < 2; which++) {
        if (which == 0) {
            EXPECT(HBM_OK, hbm_stats(1, HBM_KIND_VMM, &out.stats));
        } else {
            EXPECT(HBM_OK, hbm_allocator_stats(allocator, &out.stats));
        }
        CHECK(out.stats.struct_size == sizeof out.stats);
        CHECK(out.stats.requested == 3 * MIB && out.stats.allocated == 4 * MIB);
        CHECK(out.stats.reserved == 4 * MIB && out.stats.peak_reserved == 4 * MIB);
        CHECK(out.stats.allocations == 1 && out.stats.deallocations == 0);
        CHECK(out.stats.rejected_frees == 1 && out.stats.pending_frees == 0);
        for (size_t i = 0; i < sizeof out.guard; i++) {
            CHECK(out.guard[i] == 0xAB);
        }
    }
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    puts("older header: fine");
    return 0;
}
