/* The pool over managed memory: its memory lives where the tag that it is made for is placed. */
#include "driver.h"

/* What a tag has already is handed out without a driver call. */
static void memory_is_placed_as_its_tag(hbm_allocator_t *allocator) {
    static const struct {
        const char *tag;
        int32_t placement;
        int preferred;
    } cases[] = {{"near", HBM_PLACEMENT_DEVICE, 0}, {"far", HBM_PLACEMENT_HOST, -1}, {"free", HBM_PLACEMENT_NONE, -2}};
    for (int i = 0; i < 3; i++) {
        void *block = NULL, *again = NULL;
        EXPECT(HBM_OK, hbm_tag_place(cases[i].tag, cases[i].placement));
        EXPECT(HBM_OK, hbm_tag_push(cases[i].tag));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
        CHECK(advice(block, 2) == cases[i].preferred);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
        uint64_t before = calls("*");
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &again));
        CHECK(again == block && calls("*") == before);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, again, NULL));
        EXPECT(HBM_OK, hbm_tag_pop());
    }
}

static void what_lies_on_the_host_takes_nothing_of_the_limit(hbm_allocator_t *allocator) {
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_OK, hbm_set_limit(0, 64 * MIB));
    void *far = NULL, *near = NULL;
    EXPECT(HBM_OK, hbm_tag_push("far"));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 256 * MIB, 0, NULL, &far));
    EXPECT(HBM_OK, hbm_tag_pop());
    EXPECT(HBM_OK, hbm_tag_push("near"));
    EXPECT(HBM_OUT_OF_MEMORY, hbm_allocator_allocate(allocator, 256 * MIB, 0, NULL, &near));
    EXPECT(HBM_OK, hbm_tag_pop());
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, far, NULL));
    EXPECT(HBM_OK, hbm_set_limit(0, 0));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("pool_source", "managed"));
    EXPECT(HBM_OK, hbm_captures_told(1));
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_POOL, 0);
    memory_is_placed_as_its_tag(allocator);
    what_lies_on_the_host_takes_nothing_of_the_limit(allocator);
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    CHECK(faults() == 0);
    puts("placed pool: fine");
    return 0;
}
