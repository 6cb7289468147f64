/* A program of CUDA's runtime whose streams are of several devices, threads and pools, and end before their memory does. */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <stdint.h>

static void *stream_of(int device) {
    void *stream = NULL;
    OK(cudaSetDevice(device));
    OK(cudaStreamCreate(&stream));
    return stream;
}

static hbm_allocator_t *arena_over(hbm_allocator_t *upstream) {
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_ARENA, 0);
    hbm_allocator_t *arena = NULL;
    descriptor.upstream = upstream;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &arena));
    return arena;
}

/* An arena whose region is used on a stream. */
static hbm_allocator_t *arena_on(hbm_allocator_t *upstream, void *stream) {
    hbm_allocator_t *arena = arena_over(upstream);
    void *block = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(arena, MIB, 0, stream, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(arena, block, stream));
    EXPECT(HBM_OK, hbm_arena_iter(arena, stream));
    hbm_arena_stats_t now = {.struct_size = sizeof now};
    EXPECT(HBM_OK, hbm_arena_stats(arena, &now));
    CHECK(now.region_bytes >= MIB);
    return arena;
}

/* A stream that is destroyed is named no more, by arenas neither. */
static void arenas_are_told(void) {
    void *stream = stream_of(0), *second = stream_of(0);
    hbm_allocator_t *pool = allocator_of(HBM_KIND_POOL, 0), *vmm = allocator_of(HBM_KIND_VMM, 0);
    hbm_allocator_t *arena = arena_on(vmm, stream), *other = arena_on(pool, second);
    uint64_t warnings = stats_of(0, -1).warnings;
    OK(cudaStreamDestroy(stream));
    EXPECT(HBM_OK, hbm_allocator_destroy(arena));
    EXPECT(HBM_OK, hbm_allocator_destroy(other));
    EXPECT(HBM_OK, hbm_allocator_destroy(pool));
    EXPECT(HBM_OK, hbm_allocator_destroy(vmm));
    OK(cudaStreamDestroy(second));
    CHECK(stats_of(0, -1).warnings == warnings && faults() == 0);
}

/* What was made on a device before its reset is named no more, whoever comes to have the handles. */
static void a_reset_takes_handles(void) {
    void *stream = NULL, *elsewhere = NULL, *event = NULL, *block = NULL;
    OK(cudaSetDevice(0));
    OK(cudaFree(NULL));
    EXPECT(HBM_OK, hbm_stream_create(0, 0, 0, &stream));
    EXPECT(HBM_OK, hbm_stream_create(1, 0, 0, &elsewhere));
    EXPECT(HBM_OK, hbm_event_create(0, 0, &event));
    EXPECT(HBM_OK, hbm_event_record(event, stream));
    hbm_allocator_t *pool = allocator_of(HBM_KIND_POOL, 0), *vmm = allocator_of(HBM_KIND_VMM, 0);
    hbm_allocator_t *other = allocator_of(HBM_KIND_POOL, 1);
    hbm_allocator_t *arenas[] = {arena_on(pool, stream), arena_on(vmm, stream), arena_on(other, elsewhere), NULL};
    arenas[3] = arena_over(arenas[0]);
    /* One in the region, one beside it. */
    EXPECT(HBM_OK, hbm_allocator_allocate(arenas[1], 1000, 0, stream, &block));
    EXPECT(HBM_OK, hbm_allocator_allocate(arenas[3], 3 * MIB, 0, stream, &block));
    EXPECT(HBM_OK, hbm_allocator_allocate(arenas[2], 1000, 0, elsewhere, &block));
    /* And of allocators themselves. */
    static const int kinds[] = {HBM_KIND_VMM, HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_POOL};
    hbm_allocator_t *direct[5];
    void *blocks[5];
    for (int i = 0; i < 5; i++) {
        direct[i] = allocator_of(kinds[i], 0);
        EXPECT(HBM_OK, hbm_allocator_allocate(direct[i], 3 * MIB, 0, stream, &blocks[i]));
        EXPECT(HBM_BUSY, hbm_allocator_destroy(direct[i]));
    }
    uint64_t warnings = stats_of(0, -1).warnings;
    OK(cudaDeviceReset());
    CHECK(stats_of(0, -1).reserved == 0 && stats_of(0, -1).allocated == 0);
    for (int i = 0; i < 5; i++) EXPECT(HBM_OK, hbm_allocator_destroy(direct[i]));
    uint64_t destroyed = calls("cuStreamDestroy_v2"), events = calls("cuEventDestroy_v2");
    EXPECT(HBM_NOT_OWNED, hbm_stream_destroy(stream));
    EXPECT(HBM_NOT_OWNED, hbm_event_record(event, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_event_synchronize(event));
    EXPECT(HBM_NOT_OWNED, hbm_event_destroy(event));
    CHECK(calls("cuStreamDestroy_v2") == destroyed && calls("cuEventDestroy_v2") == events);
    for (int i = 0; i < 4; i++) {
        hbm_arena_stats_t now = {.struct_size = sizeof now};
        EXPECT(HBM_OK, hbm_arena_stats(arenas[i], &now));
        CHECK(i == 2 ? now.region_bytes > 0 && now.blocks == 1 : now.region_bytes == 0 && now.blocks == 0 && now.spilled_bytes == 0);
    }
    /* Who has the addresses now keeps them. */
    void *later[8];
    for (int i = 0; i < 8; i++) OK(cudaMalloc(&later[i], MIB));
    EXPECT(HBM_OK, hbm_allocator_deallocate(arenas[2], block, elsewhere));
    for (int i = 3; i >= 0; i--) EXPECT(HBM_OK, hbm_allocator_destroy(arenas[i]));
    CHECK(stats_of(0, -1).allocations - stats_of(0, -1).deallocations == 8 && stats_of(0, -1).warnings == warnings);
    EXPECT(HBM_OK, hbm_allocator_destroy(pool));
    EXPECT(HBM_OK, hbm_allocator_destroy(vmm));
    EXPECT(HBM_OK, hbm_allocator_destroy(other));
    for (int i = 0; i < 8; i++) OK(cudaFree(later[i]));
    EXPECT(HBM_OK, hbm_stream_destroy(elsewhere));
    EXPECT(HBM_OK, hbm_stream_create(0, 0, 0, &stream));
    EXPECT(HBM_OK, hbm_stream_destroy(stream));
    CHECK(faults() == 0);
}

/* Whether a use of much memory on a stream, and its free, are waited for or behind an order point. */
static int takes_order_points(void *stream) {
    uint64_t before = calls("cuCtxRecordEvent") + calls("cuCtxSynchronize");
    for (int i = 0; i < 20; i++) {
        void *block = NULL;
        OK(cudaMalloc(&block, 30 * MIB));
        OK(cudaMemsetAsync(block, i, MIB, stream));
        OK(cudaFree(block));
    }
    return calls("cuCtxRecordEvent") + calls("cuCtxSynchronize") > before;
}

/* Memory and captures of streams are those of the stream's device, whichever is current. */
static void of_another_device(void) {
    void *there = stream_of(1), *block = NULL, *again = NULL, *graph = NULL, *pool = NULL;
    OK(cudaSetDevice(0));
    OK(cudaMallocAsync(&block, 3 * MIB, there));
    CHECK(stats_of(1, -1).requested == 3 * MIB && stats_of(0, -1).requested == 0 && stand_in_calls("cudaMallocAsync") == 0);
    OK(cudaMemsetAsync(block, 7, 3 * MIB, there));
    OK(cudaFreeAsync(block, there));
    OK(cudaMallocAsync(&again, 3 * MIB, there));
    CHECK(again == block);
    OK(cudaFreeAsync(again, there));
    OK(cudaDeviceGetDefaultMemPool(&pool, 1));
    OK(cudaMallocFromPoolAsync(&block, 100, pool, there));
    CHECK(stats_of(1, -1).requested == 100 && stand_in_calls("cudaMallocFromPoolAsync") == 0);
    OK(cudaFreeAsync(block, there));
    /* Of a pool of yet another device the memory is there, which the runtime alone can do. */
    OK(cudaDeviceGetDefaultMemPool(&pool, 0));
    OK(cudaMallocFromPoolAsync(&block, 100, pool, there));
    CHECK(stats_of(0, -1).requested == 0 && stats_of(1, -1).requested == 0 && stand_in_calls("cudaMallocFromPoolAsync") == 1);
    OK(cudaFreeAsync(block, there));
    /* The capture is known to be open there: nothing is waited for. */
    OK(cudaSetDevice(1));
    OK(cudaMalloc(&block, 40 * MIB));
    OK(cudaFree(block));
    OK(cudaSetDevice(0));
    OK(cudaStreamBeginCapture(there, 2));
    OK(cudaSetDevice(1));
    CHECK(!takes_order_points(there));
    OK(cudaSetDevice(0));
    OK(cudaStreamEndCapture(there, &graph));
    CHECK(graph != NULL);
    OK(cudaDeviceReset());
    OK(cudaMallocAsync(&block, 3 * MIB, there));
    uint64_t warnings = stats_of(0, -1).warnings;
    OK(cudaStreamDestroy(there));
    OK(cudaFree(block));
    EXPECT(HBM_OK, hbm_trim(1, 0, NULL));
    CHECK(stats_of(1, -1).reserved == 0 && stats_of(0, -1).warnings == warnings);
    /* A capture that its stream takes along. */
    there = stream_of(1);
    OK(cudaSetDevice(0));
    OK(cudaStreamBeginCapture(there, 2));
    OK(cudaStreamDestroy(there));
    CHECK(stats_of(0, -1).warnings == warnings && faults() == 0);
}

/* Where there is one device, nobody asks whose a stream is. */
static void of_the_only_device(void) {
    void *stream = stream_of(0), *block = NULL, *graph = NULL;
    uint64_t asked = 0;
    for (int i = 0; i < 10; i++) {
        OK(cudaMallocAsync(&block, MIB, stream));
        OK(cudaFreeAsync(block, stream));
        if (i == 0) asked = calls("cuStreamGetCtx");
    }
    OK(cudaStreamBeginCapture(stream, 2));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaStreamDestroy(stream));
    CHECK(calls("cuStreamGetCtx") == asked && stats_of(0, -1).allocated == 0);
}

#define PER_THREAD ((void *)2)

static pthread_barrier_t together;

static void *capture_own(void *argument) {
    void *graph = NULL;
    (void)argument;
    pthread_barrier_wait(&together);
    OK(cudaStreamBeginCapture(PER_THREAD, 1));
    pthread_barrier_wait(&together);
    OK(cudaStreamEndCapture(PER_THREAD, &graph));
    CHECK(graph != NULL);
    return NULL;
}

/* One handle, and another stream on each thread. */
static void captures_of_threads(void) {
    pthread_t threads[4];
    void *block = NULL;
    OK(cudaMalloc(&block, MIB));
    pthread_barrier_init(&together, NULL, 4);
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, capture_own, NULL) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    OK(cudaFree(block));
    OK(cudaDeviceReset());
}

/* A capture is open for as long as its stream captures, whatever was answered to whoever would end it. */
static void ends_that_fail(void) {
    int (*fail)(const char *, uint64_t, int, uint64_t);
    void *stream = stream_of(0), *block = NULL, *graph = NULL;
    look_up("hbmsim_fail", &fail);
    OK(cudaMalloc(&block, 40 * MIB));
    OK(cudaFree(block));
    OK(cudaStreamBeginCapture(stream, 0));
    fail("cuStreamEndCapture", 1, 908, 1);
    CHECK(cudaStreamEndCapture(stream, &graph) == 908);
    CHECK(!takes_order_points(stream));
    OK(cudaStreamEndCapture(stream, &graph));
    CHECK(graph != NULL && takes_order_points(stream));
    OK(cudaStreamBeginCapture(stream, 0));
    CHECK(cudaStreamSynchronize(stream) == 900);
    CHECK(cudaStreamEndCapture(stream, &graph) == 901);
    CHECK(takes_order_points(stream));
    OK(cudaStreamDestroy(stream));
    OK(cudaDeviceReset());
    CHECK(faults() == 0);
}

/* `cudaMemPoolProps`. */
typedef struct {
    int kind, handles, place, device;
    void *security;
    size_t most;
    unsigned short usage;
    unsigned char reserved[54];
} pool_properties_t;

static void *pool_of(int device) {
    pool_properties_t properties = {.kind = 1, .place = 1, .device = device};
    void *pool = NULL;
    OK(cudaMemPoolCreate(&pool, &properties));
    return pool;
}

/* Whether cudaMallocAsync is the runtime's on a stream. */
static int is_of_runtime(void *stream) {
    uint64_t before = stand_in_calls("cudaMallocAsync");
    void *block = NULL;
    OK(cudaMallocAsync(&block, 100, stream));
    OK(cudaFreeAsync(block, stream));
    return stand_in_calls("cudaMallocAsync") > before;
}

/* Whoever sets another pool for a device gets memory of that one. */
static void pools_of_the_program(void) {
    void *here = stream_of(0), *there = stream_of(1), *pool = pool_of(0), *usual = NULL, *current = NULL, *block = NULL;
    OK(cudaSetDevice(1));
    OK(cudaDeviceGetDefaultMemPool(&usual, 0));
    CHECK(!is_of_runtime(here) && !is_of_runtime(there));
    OK(cudaDeviceSetMemPool(0, pool));
    OK(cudaDeviceGetMemPool(&current, 0));
    CHECK(current == pool && is_of_runtime(here) && !is_of_runtime(there) && !is_of_runtime(NULL));
    /* The default pool by its name is what it was. */
    OK(cudaMallocFromPoolAsync(&block, 100, usual, here));
    CHECK(stats_of(0, -1).requested == 100);
    OK(cudaFreeAsync(block, here));
    CHECK(cudaDeviceSetMemPool(0, NULL) != 0 && is_of_runtime(here));
    OK(cudaDeviceSetMemPool(0, usual));
    CHECK(!is_of_runtime(here));
    const int place[] = {1, 0};
    OK(cudaMemSetMemPool(place, 1, pool));
    CHECK(is_of_runtime(here));
    /* The default pool is current again. */
    OK(cudaMemPoolDestroy(pool));
    OK(cudaDeviceGetMemPool(&current, 0));
    CHECK(current == usual && !is_of_runtime(here));
    OK(cudaStreamDestroy(here));
    OK(cudaStreamDestroy(there));
}

static void last_is(int code) {
    CHECK(cudaGetLastError() == code);
    CHECK(cudaGetLastError() == 0);
}

/* A failure is found by cudaGetLastError too, and finding it breaks no capture. */
static void errors_are_remembered(void) {
    const size_t much = (size_t)1 << 50;
    void *stream = stream_of(0), *block = &block, *graph = NULL;
    size_t pitch = 0;
    pitched_t pitched;
    OK(cudaMalloc(&block, 100));
    OK(cudaFree(block));
    last_is(0);
    CHECK(cudaMalloc(&block, much) == 2);
    last_is(2);
    CHECK(cudaMallocAsync(&block, much, stream) == 2);
    last_is(2);
    CHECK(cudaMallocManaged(&block, much, 1) == 2);
    last_is(2);
    CHECK(cudaMallocHost(&block, much >> 6) == 2);
    last_is(2);
    CHECK(cudaMallocPitch(&block, &pitch, much, 4) == 2);
    last_is(2);
    CHECK(cudaMalloc(NULL, 100) == 1);
    last_is(1);
    CHECK(cudaHostAlloc(NULL, 4 * MIB, 0) == 1);
    last_is(1);
    CHECK(cudaMallocAsync(NULL, 100, stream) == 1);
    last_is(1);
    CHECK(cudaMallocFromPoolAsync(&block, 100, NULL, stream) == 1);
    last_is(1);
    CHECK(cudaMallocPitch(&block, NULL, 100, 4) == 1 && cudaMalloc3D(NULL, (extent_t){1, 1, 1}) == 1);
    last_is(1);
    CHECK(cudaMalloc3D(&pitched, (extent_t){SIZE_MAX, 1, 1}) == 1);
    last_is(1);
    OK(cudaStreamBeginCapture(stream, 0));
    CHECK(cudaMalloc(&block, much) == 2);
    last_is(2);
    CHECK(cudaMalloc(NULL, 100) == 1);
    last_is(1);
    OK(cudaStreamEndCapture(stream, &graph));
    CHECK(graph != NULL);
    OK(cudaStreamDestroy(stream));
    last_is(0);
}

int main(int argc, char **argv) {
    static const part_t parts[] = {
        {"arenas", arenas_are_told},
        {"handles", a_reset_takes_handles},
        {"elsewhere", of_another_device},
        {"one", of_the_only_device},
        {"per-thread", captures_of_threads},
        {"ends", ends_that_fail},
        {"pools", pools_of_the_program},
        {"errors", errors_are_remembered},
    };
    return run_part(argc, argv, parts, sizeof parts / sizeof parts[0]);
}
