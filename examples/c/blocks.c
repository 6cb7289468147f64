/* Blocks of GPU memory under a tag: what a program gets, and what is then held for it. */
#include <hbmalloc.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int32_t status) {
    if (status != HBM_OK) {
        fprintf(stderr, "%s\n", hbm_last_error());
        exit(1);
    }
}

static hbm_allocator_t *allocator_of(int32_t kind) {
    hbm_allocator_desc_t wanted = {0};
    wanted.struct_size = sizeof wanted;
    wanted.kind = kind;
    wanted.tag = "example";
    hbm_allocator_t *allocator = NULL;
    check(hbm_allocator_create(&wanted, &allocator));
    return allocator;
}

static void copy(void *to, const void *from, size_t bytes, int direction) {
    check(hbm_memcpy_batch(&to, &from, &bytes, 1, direction, 0, NULL));
}

int main(void) {
    int32_t devices = 0;
    check(hbm_device_count(&devices));
    printf("hbmalloc %s, %" PRId32 " devices\n", hbm_version_string(), devices);

    hbm_allocator_t *pool = allocator_of(HBM_KIND_POOL);
    hbm_allocator_t *pinned = allocator_of(HBM_KIND_PINNED);
    const size_t sizes[] = {1, 4096, (size_t)5 << 20};
    enum { BLOCKS = sizeof sizes / sizeof sizes[0] };
    void *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        check(hbm_allocator_allocate(pool, sizes[i], 0, NULL, &blocks[i]));
        printf("%8zu bytes at %p\n", sizes[i], blocks[i]);
    }

    /* Host and devices reach pinned memory, so a copy to or from it goes on by itself. */
    char *text = NULL;
    char *back = NULL;
    check(hbm_allocator_allocate(pinned, 64, 0, NULL, (void **)&text));
    check(hbm_allocator_allocate(pinned, 64, 0, NULL, (void **)&back));
    strcpy(text, "to the device and back");
    copy(blocks[1], text, 64, HBM_COPY_TO_DEVICE);
    copy(back, blocks[1], 64, HBM_COPY_TO_HOST);

    hbm_stats_t stats = {0};
    stats.struct_size = sizeof stats;
    check(hbm_allocator_stats(pool, &stats));
    printf("%" PRIu64 " bytes requested, %" PRIu64 " allocated, %" PRIu64 " reserved\n", stats.requested, stats.allocated,
           stats.reserved);

    for (int i = 0; i < BLOCKS; i++) {
        check(hbm_allocator_deallocate(pool, blocks[i], NULL));
    }
    /* It waits for the copies. A program with CUDA would wait for its stream. */
    check(hbm_allocator_deallocate(pinned, text, NULL));
    printf("the device had: %s\n", back);
    int same = strcmp(back, "to the device and back") == 0;
    check(hbm_allocator_deallocate(pinned, back, NULL));

    uint64_t released = 0;
    check(hbm_trim(0, 0, &released));
    printf("%" PRIu64 " bytes given back\n", released);
    check(hbm_allocator_destroy(pinned));
    check(hbm_allocator_destroy(pool));
    return same ? 0 : 1;
}
