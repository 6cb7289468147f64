/* Blocks that sleep and wake, and where they are meanwhile. */
#ifndef SLEEPING_H
#define SLEEPING_H

#include "driver.h"

#include <stdint.h>

static hbm_residency_request_t request_of(const char *const *tags, size_t count) {
    hbm_residency_request_t request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    request.tags = tags;
    request.tag_count = count;
    return request;
}

static hbm_residency_t where(int32_t device, const char *tag) {
    hbm_residency_t found;
    memset(&found, 0xEE, sizeof found);
    found.struct_size = sizeof found;
    EXPECT(HBM_OK, hbm_residency(device, tag, &found));
    CHECK(found.struct_size == sizeof found);
    return found;
}

static hbm_host_buffer_t host(void) {
    hbm_host_buffer_t found;
    memset(&found, 0xEE, sizeof found);
    found.struct_size = sizeof found;
    EXPECT(HBM_OK, hbm_host_buffer(&found));
    CHECK(found.used <= found.pinned);
    return found;
}

static void *block_of(int32_t kind, const char *tag, size_t bytes, unsigned char byte) {
    hbm_allocator_t *allocator = allocator_of(kind, 0);
    void *block = NULL;
    if (tag != NULL) {
        EXPECT(HBM_OK, hbm_tag_push(tag));
    }
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, bytes, 0, NULL, &block));
    if (tag != NULL) {
        EXPECT(HBM_OK, hbm_tag_pop());
    }
    fill(0, block, byte, bytes, NULL);
    return block;
}

static void free_block(void *block) {
    /* Of whatever kind: the entry that torch calls looks at the record. */
    hbm_free(block, 0, 0, NULL);
}

#endif
