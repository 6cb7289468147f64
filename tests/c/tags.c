/* Tags: what a thread pushes, what others inherit, what blocks of each kind of caller carry, and where
 * they live. */
#include "driver.h"

#include <pthread.h>

static const char *current(void) {
    static char name[256];
    memset(name, 'x', sizeof name);
    EXPECT(HBM_OK, hbm_tag_current(name, sizeof name));
    return name;
}

static const char *tag_of(void *block) {
    static char name[256];
    memset(name, 'x', sizeof name);
    EXPECT(HBM_OK, hbm_tag_of(block, name, sizeof name));
    return name;
}

static void *other_thread(void *unused) {
    (void)unused;
    CHECK(strcmp(current(), "everything else") == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_pop());
    EXPECT(HBM_OK, hbm_tag_push("left behind"));
    return NULL;
}

static void threads_have_their_own_stack_above_the_default(void) {
    pthread_t thread;
    CHECK(strcmp(current(), "") == 0);
    EXPECT(HBM_OK, hbm_set_default_tag("everything else"));
    EXPECT(HBM_OK, hbm_tag_push("weights"));
    EXPECT(HBM_OK, hbm_tag_push("adapter"));
    CHECK(strcmp(current(), "adapter") == 0);
    CHECK(pthread_create(&thread, NULL, other_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    EXPECT(HBM_OK, hbm_tag_pop());
    CHECK(strcmp(current(), "weights") == 0);
    EXPECT(HBM_OK, hbm_tag_pop());
    CHECK(strcmp(current(), "everything else") == 0);
    EXPECT(HBM_OK, hbm_set_default_tag(NULL));
    CHECK(strcmp(current(), "") == 0);
    CHECK(hbm_driver_used() == 0);
}

static void blocks_carry_the_tag_of_their_allocation(void) {
    for (int32_t kind = HBM_KIND_DEVICE; kind <= HBM_KIND_PINNED; kind++) {
        hbm_allocator_desc_t descriptor = descriptor_of(kind, 0);
        hbm_allocator_t *plain = allocator_of(kind, 0), *tagged = NULL;
        descriptor.tag = "own";
        EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &tagged));
        /* The second time, memory that was freed may serve again. */
        for (int round = 0; round < 2; round++) {
            void *none = NULL, *threads = NULL, *own = NULL;
            EXPECT(HBM_OK, hbm_allocator_allocate(plain, 1, 0, NULL, &none));
            EXPECT(HBM_OK, hbm_tag_push("thread's"));
            EXPECT(HBM_OK, hbm_allocator_allocate(plain, 1, 0, NULL, &threads));
            EXPECT(HBM_OK, hbm_allocator_allocate(tagged, 1, 0, NULL, &own));
            EXPECT(HBM_OK, hbm_tag_pop());
            CHECK(strcmp(tag_of(none), "") == 0);
            CHECK(strcmp(tag_of(threads), "thread's") == 0);
            CHECK(strcmp(tag_of(own), "own") == 0);
            EXPECT(HBM_OK, hbm_allocator_deallocate(plain, none, NULL));
            EXPECT(HBM_OK, hbm_allocator_deallocate(plain, threads, NULL));
            EXPECT(HBM_OK, hbm_allocator_deallocate(tagged, own, NULL));
        }
        EXPECT(HBM_OK, hbm_allocator_destroy(plain));
        EXPECT(HBM_OK, hbm_allocator_destroy(tagged));
    }
    void *(*segment)(size_t, int, void *);
    void *function = NULL, *release = NULL, *bound = NULL;
    EXPECT(HBM_OK, hbm_torch_segment_functions(HBM_KIND_VMM, "bound", &function, &release));
    memcpy(&segment, &function, sizeof segment);
    EXPECT(HBM_OK, hbm_tag_push("thread's"));
    bound = segment(MIB, 0, NULL);
    void *tensor = vmm_malloc(MIB, 0, NULL), *unbound = vmm_segment_malloc(MIB, 0, NULL);
    CHECK(strcmp(tag_of(bound), "bound") == 0);
    CHECK(strcmp(tag_of(tensor), "thread's") == 0);
    CHECK(strcmp(tag_of(unbound), "thread's") == 0);
    EXPECT(HBM_OK, hbm_tag_pop());
    vmm_free(tensor, MIB, 0, NULL);
    vmm_segment_free(unbound, MIB, 0, NULL);
    vmm_segment_free(bound, MIB, 0, NULL);
    EXPECT(HBM_NOT_OWNED, hbm_tag_of(tensor, (char[256]){0}, 256));
}

static void memory_lives_where_its_tag_is_placed(void) {
    static const struct {
        int32_t placement;
        int preferred;
    } cases[] = {{HBM_PLACEMENT_OPTION, 0}, {HBM_PLACEMENT_DEVICE, 0}, {HBM_PLACEMENT_HOST, -1}, {HBM_PLACEMENT_NONE, -2}};
    EXPECT(HBM_OK, hbm_tag_push("placed"));
    for (int i = 0; i < 4; i++) {
        EXPECT(HBM_OK, hbm_tag_place("placed", cases[i].placement));
        void *managed = managed_malloc(MIB, 0, NULL);
        CHECK(managed != NULL && advice(managed, 2) == cases[i].preferred);
        CHECK(advice(managed, 4) == (cases[i].preferred == 0 ? 0 : -2));
        managed_free(managed, MIB, 0, NULL);
        hbm_torch_reset();
        for (int32_t kind = HBM_KIND_DEVICE; kind <= HBM_KIND_PINNED; kind++) {
            hbm_allocator_t *allocator = allocator_of(kind, 0);
            void *block = NULL;
            int is_host = cases[i].placement == HBM_PLACEMENT_HOST;
            int is_mapped = kind == HBM_KIND_VMM || kind == HBM_KIND_POOL;
            int is_pinned = kind == HBM_KIND_PINNED;
            int can = is_host ? kind == HBM_KIND_MANAGED || is_mapped || is_pinned
                              : !is_pinned || cases[i].placement != HBM_PLACEMENT_DEVICE;
            EXPECT(can ? HBM_OK : HBM_UNSUPPORTED, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
            CHECK((block != NULL) == can);
            if (is_mapped) {
                hbm_stats_t stats = {.struct_size = sizeof stats};
                CHECK((physical_bytes(0) == 0) == is_host);
                EXPECT(HBM_OK, hbm_stats(0, kind, &stats));
                CHECK(stats.reserved >= 2 * MIB && stats.limit_used == physical_bytes(0));
            }
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
            EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
            EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
        }
    }
    EXPECT(HBM_OK, hbm_option_set("placement", "placed=host"));
    EXPECT(HBM_OK, hbm_tag_place("placed", HBM_PLACEMENT_OPTION));
    CHECK(device_malloc(MIB, 0, NULL) == NULL);
    EXPECT_ERROR_TEXT("placed");
    EXPECT_ERROR_TEXT("vmm");
    /* A place in an allocator's descriptor is nearer than the tag's. */
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_VMM, 0);
    hbm_allocator_t *allocator = NULL;
    void *block = NULL;
    descriptor.location = HBM_LOCATION_DEVICE;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
    CHECK(physical_bytes(0) == 2 * MIB);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    EXPECT(HBM_OK, hbm_tag_pop());
    EXPECT(HBM_OK, hbm_option_set("placement", ""));
    EXPECT(HBM_BAD_OPTION, hbm_option_set("placement", "placed=gpu"));
}

static void wrong_names(void) {
    char longest[257], buffer[256];
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_VMM, 0);
    hbm_allocator_t *allocator = NULL;
    memset(longest, 'n', sizeof longest);
    longest[256] = 0;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_push(NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_push(""));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_push("\xff\xfe"));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_push(longest));
    EXPECT_ERROR_TEXT("255");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_set_default_tag(longest));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_place(longest, HBM_PLACEMENT_HOST));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_place(NULL, HBM_PLACEMENT_HOST));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_place("fine", 4));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_place("fine", -1));
    descriptor.tag = longest;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_pop());
    EXPECT_ERROR_TEXT("pushed no tag");
    longest[255] = 0;
    EXPECT(HBM_OK, hbm_tag_push(longest));
    CHECK(strcmp(current(), longest) == 0);
    memset(buffer, 'b', sizeof buffer);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_current(buffer, 255));
    EXPECT_ERROR_TEXT("256");
    CHECK(buffer[0] == 'b');
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_current(NULL, 256));
    EXPECT(HBM_OK, hbm_tag_pop());
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_current(buffer, 0));
    EXPECT(HBM_OK, hbm_tag_current(buffer, 1));
    EXPECT(HBM_NOT_OWNED, hbm_tag_of(NULL, buffer, sizeof buffer));
}

int main(void) {
    threads_have_their_own_stack_above_the_default();
    blocks_carry_the_tag_of_their_allocation();
    wrong_names();
    memory_lives_where_its_tag_is_placed();
    CHECK(faults() == 0);
    puts("tags: fine");
    return 0;
}
