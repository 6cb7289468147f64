/* Statistics of tags, streams, the pool and the driver, and what a struct of another size gets. */
#include "driver.h"

#include <pthread.h>

static hbm_block_stats_t tag_stats_of(const char *name) {
    hbm_block_stats_t stats;
    memset(&stats, 0xEE, sizeof stats);
    stats.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_tag_stats(0, name, &stats));
    return stats;
}

static hbm_block_stats_t stream_stats_of(void *stream) {
    hbm_block_stats_t stats;
    memset(&stats, 0xEE, sizeof stats);
    stats.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_stream_stats(0, stream, &stats));
    return stats;
}

static hbm_pool_stats_t pool_stats(void) {
    hbm_pool_stats_t stats;
    memset(&stats, 0xEE, sizeof stats);
    stats.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_pool_stats(0, &stats));
    return stats;
}

static hbm_driver_stats_t driver_stats(void) {
    hbm_driver_stats_t stats;
    memset(&stats, 0xEE, sizeof stats);
    stats.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_driver_stats(&stats));
    return stats;
}

static size_t streams_known(void) {
    size_t count = 77;
    EXPECT(HBM_OK, hbm_stream_list(0, NULL, 0, &count));
    return count;
}

static void asking_starts_nothing(void) {
    CHECK(tag_stats_of(NULL).allocations == 0 && tag_stats_of("weights").reserved == 0);
    CHECK(stream_stats_of(NULL).allocations == 0 && pool_stats().hits == 0);
    CHECK(driver_stats().calls == 0 && streams_known() == 0);
    /* What was asked for did not become a name. */
    CHECK(hbm_tag_count() == 0 && hbm_driver_used() == 0);
}

static void bad_arguments(void) {
    char name[256];
    hbm_block_stats_t block_stats = {.struct_size = sizeof block_stats};
    hbm_pool_stats_t pool = {.struct_size = 3};
    hbm_driver_stats_t driver = {.struct_size = 0};
    size_t count = 0;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_stats(-1, NULL, &block_stats));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_stats(0, "", &block_stats));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_stats(0, "\xff", &block_stats));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_stats(0, NULL, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_stats(-1, NULL, &block_stats));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_stats(0, NULL, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_pool_stats(0, &pool));
    EXPECT_ERROR_TEXT("struct_size");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_pool_stats(0, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_driver_stats(&driver));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_driver_stats(NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_list(0, NULL, 1, &count));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_list(0, NULL, 0, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_list(-1, NULL, 0, &count));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_name(0, name, sizeof name));
    EXPECT_ERROR_TEXT("there are 0 tags");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_name(SIZE_MAX, name, sizeof name));
}

/* A program whose struct ends earlier, or later, than the library's. */
static void structs_of_other_sizes(void) {
    struct {
        hbm_pool_stats_t stats;
        uint64_t more;
    } larger;
    memset(&larger, 0xEE, sizeof larger);
    larger.stats.struct_size = sizeof larger;
    EXPECT(HBM_OK, hbm_pool_stats(0, &larger.stats));
    CHECK(larger.stats.struct_size == sizeof larger);
    CHECK(larger.stats.largest_free == pool_stats().largest_free);
    CHECK(larger.more == 0xEEEEEEEEEEEEEEEEu);
    memset(&larger, 0xEE, sizeof larger);
    larger.stats.struct_size = 2 * sizeof(uint64_t);
    EXPECT(HBM_OK, hbm_pool_stats(0, &larger.stats));
    CHECK(larger.stats.hits == pool_stats().hits);
    CHECK(larger.stats.collected == 0xEEEEEEEEEEEEEEEEu);
}

static void tags_and_streams(void) {
    char name[256];
    void *stream = NULL, *known[4] = {0}, *weights = NULL, *cache = NULL;
    int32_t devices = 0;
    EXPECT(HBM_OK, hbm_device_count(&devices));
    context_push(0);
    stream = stream_create();
    for (int32_t kind = HBM_KIND_DEVICE; kind <= HBM_KIND_PINNED; kind++) {
        hbm_allocator_t *allocator = allocator_of(kind, 0);
        hbm_block_stats_t of_weights = tag_stats_of("weights"), of_stream = stream_stats_of(stream);
        EXPECT(HBM_OK, hbm_tag_push("weights"));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 3 * MIB, 0, stream, &weights));
        EXPECT(HBM_OK, hbm_tag_pop());
        EXPECT(HBM_OK, hbm_tag_push("cache"));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 5 * MIB, 0, NULL, &cache));
        EXPECT(HBM_OK, hbm_tag_pop());
        CHECK(tag_stats_of("weights").requested == 3 * MIB);
        CHECK(tag_stats_of("weights").reserved >= tag_stats_of("weights").allocated);
        CHECK(tag_stats_of("cache").requested == 5 * MIB);
        CHECK(tag_stats_of(NULL).allocations == 0 && tag_stats_of("none such").reserved == 0);
        CHECK(stream_stats_of(stream).requested == 3 * MIB);
        CHECK(stream_stats_of(NULL).requested == 5 * MIB);
        CHECK(stream_stats_of((void *)1).requested == 5 * MIB); /* the legacy stream's other name */
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, weights, stream));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, cache, NULL));
        CHECK(tag_stats_of("weights").requested == 0);
        CHECK(tag_stats_of("weights").total_requested == of_weights.total_requested + 3 * MIB);
        CHECK(stream_stats_of(stream).deallocations == of_stream.deallocations + 1);
        CHECK(stream_stats_of(stream).reserved == 0);
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
    CHECK(hbm_tag_count() == 2);
    EXPECT(HBM_OK, hbm_tag_name(0, name, sizeof name));
    CHECK(strcmp(name, "weights") == 0);
    EXPECT(HBM_OK, hbm_tag_name(1, name, sizeof name));
    CHECK(strcmp(name, "cache") == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_tag_name(1, name, 3));
    size_t count = 0;
    EXPECT(HBM_OK, hbm_stream_list(0, known, 1, &count));
    CHECK(count == 2 && known[1] == NULL);
    EXPECT(HBM_OK, hbm_stream_list(0, known, 4, &count));
    CHECK(count == 2 && (known[0] == stream) + (known[1] == stream) == 1);
    CHECK(tag_stats_of("cache").peak_requested >= 5 * MIB);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_OK, hbm_stats_reset_peaks(0));
    CHECK(tag_stats_of("cache").peak_requested == 0 && tag_stats_of("cache").peak_reserved == 0);
    CHECK(stream_stats_of(stream).peak_blocks == 0);
    EXPECT(HBM_OK, hbm_stream_forget(0, stream));
    stream_destroy(stream);
    CHECK(stream_stats_of(stream).allocations == 6);
    context_pop();
}

static void the_pool_and_the_driver(void) {
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_POOL, 0);
    void *block = NULL;
    EXPECT(HBM_OK, hbm_captures_told(1));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 20 * MIB, 0, NULL, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    hbm_pool_stats_t before = pool_stats();
    hbm_driver_stats_t calls = driver_stats();
    for (int i = 0; i < 100; i++) {
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 20 * MIB, 0, NULL, &block));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    }
    hbm_pool_stats_t after = pool_stats();
    CHECK(after.hits == before.hits + 100 && after.misses == before.misses);
    CHECK(driver_stats().calls == calls.calls && calls.nanoseconds == 0);
    CHECK(after.creates > 0 && after.chunks > 0 && after.peak_chunks >= after.chunks);
    CHECK(after.cached >= 20 * MIB && after.kept + after.releasable <= after.cached);
    hbm_stats_t stats = stats_of(0, HBM_KIND_POOL);
    CHECK(after.hits + after.collected + after.misses == stats.allocations);
    CHECK(stats.segments == after.chunks && stats.total_segments == after.creates);
    EXPECT(HBM_BAD_OPTION, hbm_option_set("driver_timing", "perhaps"));
    EXPECT(HBM_OK, hbm_option_set("driver_timing", "on"));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_OK, hbm_option_set("driver_timing", "off"));
    hbm_driver_stats_t timed = driver_stats();
    CHECK(timed.timed_calls > 0 && timed.timed_calls == timed.calls - calls.calls);
    CHECK(timed.nanoseconds > 0);
    CHECK(pool_stats().chunks == 0 && pool_stats().releases == pool_stats().creates);
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

static void *tag_in_thread(void *allocator) {
    void *blocks[16];
    EXPECT(HBM_OK, hbm_tag_push("threads"));
    for (int i = 0; i < 16; i++) {
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &blocks[i]));
    }
    for (int i = 0; i < 8; i++) {
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, blocks[i], NULL));
    }
    return NULL;
}

static void counts_of_threads_that_are_gone(void) {
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_POOL, 0);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, tag_in_thread, allocator) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    hbm_block_stats_t stats = tag_stats_of("threads");
    CHECK(stats.allocations == 64 && stats.deallocations == 32 && stats.requested == 32 * MIB);
    CHECK(stats.peak_requested >= 32 * MIB && stats.reserved >= 32 * MIB);
    EXPECT(HBM_BUSY, hbm_allocator_destroy(allocator));
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("sim", "devices=1,memory=4GiB"));
    asking_starts_nothing();
    bad_arguments();
    tags_and_streams();
    the_pool_and_the_driver();
    structs_of_other_sizes();
    counts_of_threads_that_are_gone();
    CHECK(faults() == 0);
    puts("stats: fine");
    return 0;
}
