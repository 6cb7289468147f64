/* The entry points that torch, vLLM and CuPy load by name, in a process without torch: NULL on
 * failure. And the hooks, called in the order in which torch calls them. */
#include "driver.h"

typedef void *(*malloc_function)(size_t, int, void *);
typedef void (*free_function)(void *, size_t, int, void *);

struct source {
    int32_t kind;
    malloc_function allocate, allocate_segment;
    free_function release, release_segment;
};

static const struct source SOURCES[] = {
    {HBM_KIND_DEVICE, device_malloc, device_segment_malloc, device_free, device_segment_free},
    {HBM_KIND_MANAGED, managed_malloc, managed_segment_malloc, managed_free, managed_segment_free},
    {HBM_KIND_ASYNC, async_malloc, async_segment_malloc, async_free, async_segment_free},
    {HBM_KIND_VMM, vmm_malloc, vmm_segment_malloc, vmm_free, vmm_segment_free},
    {HBM_KIND_POOL, pool_malloc, pool_segment_malloc, pool_free, pool_segment_free},
    {HBM_KIND_PINNED, pinned_malloc, pinned_segment_malloc, pinned_free, pinned_segment_free},
    /* The one that the option `backend` names, which main sets to vmm. */
    {HBM_KIND_VMM, hbm_malloc, hbm_segment_malloc, hbm_free, hbm_segment_free},
};
enum { SOURCE_COUNT = sizeof SOURCES / sizeof SOURCES[0] };

static void gives_and_takes_back(int32_t kind, malloc_function allocate, free_function release) {
    CHECK(allocate(0, 0, NULL) == NULL);
    void *block = allocate(1000, 1, NULL);
    CHECK(block != NULL);
    CHECK(stats_of(1, kind).requested == 1000);
    fill(1, block, 9, 1000, NULL);
    size_t size = 0;
    CHECK(hbm_torch_base_alloc((char *)block + 999, &size) == block && size >= 1000);
    /* torch has passed wrong sizes, devices and streams here. */
    release(block, 7, 55, (void *)(uintptr_t)2);
    CHECK(stats_of(1, kind).requested == 0);
    uint64_t rejected = stats_of(1, kind).rejected_frees;
    release(block, 1000, 1, NULL);
    release(&size, 1000, 1, NULL);
    release(NULL, 0, 0, NULL);
    CHECK(stats_of(1, kind).rejected_frees == rejected + 2);
    CHECK(allocate(SIZE_MAX, 1, NULL) == NULL);
    EXPECT_ERROR_TEXT("out of memory");
    CHECK(allocate(1000, -1, NULL) == NULL);
    EXPECT_ERROR_TEXT("no device -1");
    CHECK(allocate(1000, 99, NULL) == NULL);
    EXPECT_ERROR_TEXT("no device 99");
    EXPECT(HBM_OK, hbm_trim(1, 0, NULL));
    CHECK(physical_bytes(1) == 0);
}

static void segment_functions(void) {
    void *allocate_address = NULL, *release_address = NULL, *again = NULL;
    malloc_function allocate;
    free_function release;
    for (int32_t kind = -1; kind <= HBM_KIND_PINNED; kind++) {
        EXPECT(HBM_OK, hbm_torch_segment_functions(kind, "kv_cache", &allocate_address, &release_address));
        EXPECT(HBM_OK, hbm_torch_segment_functions(kind, "kv_cache", &again, &release_address));
        CHECK(allocate_address == again);
        EXPECT(HBM_OK, hbm_torch_segment_functions(kind, "weights", &again, &release_address));
        CHECK(allocate_address != again);
        memcpy(&allocate, &allocate_address, sizeof allocate);
        memcpy(&release, &release_address, sizeof release);
        gives_and_takes_back(kind == -1 ? HBM_KIND_VMM : kind, allocate, release);
    }
    EXPECT(HBM_OK, hbm_torch_segment_functions(0, NULL, &again, &release_address));
    CHECK(allocate_address != again);
    memcpy(&allocate, &again, sizeof allocate);
    gives_and_takes_back(HBM_KIND_DEVICE, allocate, release);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_torch_segment_functions(0, "t", NULL, &release_address));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_torch_segment_functions(0, "t", &again, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_torch_segment_functions(9, "t", &again, &release_address));
    /* There are 64 pairs of functions: fourteen here by kind and tag, one without a tag, and the "default" before. */
    int32_t status = HBM_OK;
    int bound = 16;
    for (; bound < 1000 && status == HBM_OK; bound++) {
        char tag[16];
        snprintf(tag, sizeof tag, "tag%d", bound);
        status = hbm_torch_segment_functions(0, tag, &again, &release_address);
    }
    EXPECT(HBM_BUSY, status);
    CHECK(bound == 65);
}

/* Blocks come from the pool, segments from what it is over: their owner keeps freed ones himself. */
static void the_pool_is_what_one_gets(void) {
    void *block = hbm_malloc(1000, 0, NULL), *segment = hbm_segment_malloc(1000, 0, NULL);
    CHECK(block != NULL && segment != NULL);
    CHECK(stats_of(0, HBM_KIND_POOL).requested == 1000 && stats_of(0, HBM_KIND_VMM).requested == 1000);
    hbm_segment_free(segment, 1000, 0, NULL);
    hbm_free(block, 1000, 0, NULL);
    void *allocate_address = NULL, *release_address = NULL;
    malloc_function allocate;
    EXPECT(HBM_OK, hbm_torch_segment_functions(-1, "default", &allocate_address, &release_address));
    memcpy(&allocate, &allocate_address, sizeof allocate);
    segment = allocate(1000, 0, NULL);
    CHECK(segment != NULL && stats_of(0, HBM_KIND_VMM).requested == 1000);
    vmm_segment_free(segment, 1000, 0, NULL);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0);
}

static void limits(void) {
    void *block = vmm_malloc(2 * MIB, 0, NULL);
    CHECK(block != NULL);
    hbm_torch_memory_fraction(0.0, 0);
    CHECK(vmm_malloc(2 * MIB, 0, NULL) == NULL);
    EXPECT_ERROR_TEXT("limit");
    hbm_torch_memory_fraction(1.0, 0);
    void *second = vmm_malloc(2 * MIB, 0, NULL);
    CHECK(second != NULL);
    hbm_torch_memory_fraction(0.5, 99);
    EXPECT_ERROR_TEXT("no device 99");
    vmm_free(second, 2 * MIB, 0, NULL);
    vmm_free(block, 2 * MIB, 0, NULL);
    hbm_torch_reset();
    CHECK(physical_bytes(0) == 0);
}

static void recorded_streams_are_waited_for(void) {
    void *stream = stream_create();
    void *block = vmm_malloc(MIB, 0, NULL);
    stream_hold(stream);
    fill(0, block, 4, MIB, stream);
    hbm_torch_record_stream(block, stream);
    hbm_torch_record_stream(NULL, stream);
    vmm_free(block, MIB, 0, NULL);
    CHECK(stats_of(0, -1).pending_frees == 1 && physical_bytes(0) == 2 * MIB);
    stream_release(stream);
    hbm_torch_reset();
    CHECK(stats_of(0, -1).pending_frees == 0 && physical_bytes(0) == 0);
    stream_destroy(stream);
    int local = 0;
    CHECK(hbm_torch_base_alloc(&local, NULL) == &local);
}

/* A replay writes where its capture did, so what was freed stays mapped until the pool's release. */
static void memory_of_a_capture_stays_until_release(void) {
    int (*begin)(void *, int);
    int (*end)(void *, void **);
    int (*destroy)(void *);
    look_up("cuStreamBeginCapture_v2", &begin);
    look_up("cuStreamEndCapture", &end);
    look_up("cuGraphDestroy", &destroy);
    void *stream = stream_create(), *graph = NULL;
    for (int s = 0; s < SOURCE_COUNT; s++) {
        hbm_torch_begin_allocate_to_pool(0, 7, (uint64_t)s, NULL);
        CHECK(begin(stream, 2) == 0);
        void *block = SOURCES[s].allocate(MIB, 0, stream);
        CHECK(block != NULL);
        fill(0, block, 1, MIB, stream);
        SOURCES[s].release(block, MIB, 0, stream);
        CHECK(end(stream, &graph) == 0);
        hbm_torch_end_allocate_to_pool(0, 7, (uint64_t)s);
        hbm_torch_reset();
        /* Managed memory and the host's take none of the simulated device. */
        CHECK(stats_of(0, -1).reserved >= MIB);
        int is_elsewhere = SOURCES[s].kind == HBM_KIND_MANAGED || SOURCES[s].kind == HBM_KIND_PINNED;
        CHECK(is_elsewhere || physical_bytes(0) >= MIB);
        CHECK(destroy(graph) == 0);
        hbm_torch_release_pool(0, 7, (uint64_t)s);
        hbm_torch_reset();
        CHECK(physical_bytes(0) == 0 && stats_of(0, -1).reserved == 0);
    }
    hbm_torch_end_allocate_to_pool(0, 1, 2);
    hbm_torch_release_pool(0, 1, 2);
    stream_destroy(stream);
}

static void without_torch_there_is_no_allocator_to_answer_for(void) {
    uint64_t warnings = stats_of(0, -1).warnings;
    EXPECT(HBM_UNSUPPORTED, hbm_torch_serve_cache_info());
    EXPECT_ERROR_TEXT("libc10_cuda.so");
    CHECK(stats_of(0, -1).warnings == warnings + 1);
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("log", "off"));
    without_torch_there_is_no_allocator_to_answer_for();
    hbm_torch_init(2);
    CHECK(hbm_driver_used() == 0);
    the_pool_is_what_one_gets();
    EXPECT(HBM_OK, hbm_option_set("backend", "vmm"));
    for (int hooked = 0; hooked < 2; hooked++) {
        hbm_torch_set_hooked(hooked);
        for (int s = 0; s < SOURCE_COUNT; s++) {
            gives_and_takes_back(SOURCES[s].kind, SOURCES[s].allocate, SOURCES[s].release);
            gives_and_takes_back(SOURCES[s].kind, SOURCES[s].allocate_segment, SOURCES[s].release_segment);
        }
    }
    context_push(0);
    segment_functions();
    limits();
    recorded_streams_are_waited_for();
    memory_of_a_capture_stays_until_release();
    CHECK(faults() == 0);
    puts("torch entries: fine");
    return 0;
}
