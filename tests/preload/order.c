/* What a free orders against, and what captures are told of: the program knows nothing of hbmalloc in the one case, and uses
 * it beside CUDA's runtime in the other. */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

static int overlap(const void *one, const void *other, size_t bytes) {
    return (const char *)one < (const char *)other + bytes && (const char *)other < (const char *)one + bytes;
}

static uint64_t order_points(void) {
    uint64_t (*calls)(const char *);
    look_up("hbmsim_calls", &calls);
    return calls("cuCtxRecordEvent");
}

/* Enough for the pool to look whether its work is done. */
enum { ENOUGH = 64 };

/* What another device does keeps nothing back, as with the runtime's cudaFree; what this one does, by whatever stream, does. */
static void other_devices(void) {
    void *block = NULL, *stream = NULL, *elsewhere = NULL, *later[ENOUGH], *more[ENOUGH];
    OK(cudaSetDevice(1));
    OK(cudaStreamCreate(&elsewhere));
    stream_hold(elsewhere);
    stream_busy(elsewhere);
    OK(cudaSetDevice(0));
    OK(cudaStreamCreate(&stream));
    OK(cudaMalloc(&block, 3 * MIB));
    for (int i = 0; i < ENOUGH; i++) OK(cudaMalloc(&more[i], 3 * MIB));
    stream_hold(stream);
    OK(cudaMemsetAsync(block, 7, 3 * MIB, stream));
    OK(cudaFree(block));
    for (int i = 0; i < ENOUGH; i++) OK(cudaFree(more[i]));
    uint64_t before = order_points();
    for (int i = 0; i < ENOUGH; i++) {
        OK(cudaMalloc(&later[i], 3 * MIB));
        CHECK(!overlap(later[i], block, 3 * MIB));
    }
    CHECK(order_points() > before);
    stream_release(stream);
    OK(cudaStreamSynchronize(stream));
    for (int i = 0; i < ENOUGH; i++) OK(cudaFree(later[i]));
    /* Once it is done, the memory serves again. */
    int is_there = 0;
    for (int i = 0; i < ENOUGH; i++) OK(cudaMalloc(&later[i], 3 * MIB));
    for (int i = 0; i < ENOUGH; i++) is_there |= overlap(later[i], block, 3 * MIB);
    CHECK(is_there);
    for (int i = 0; i < ENOUGH; i++) OK(cudaFree(later[i]));
    OK(cudaStreamDestroy(stream));
    stream_idle(elsewhere);
    stream_release(elsewhere);
    OK(cudaSetDevice(1));
    OK(cudaStreamDestroy(elsewhere));
    OK(cudaSetDevice(0));
}

static atomic_int is_released;

static void *release_soon(void *stream) {
    usleep(200000);
    atomic_store(&is_released, 1);
    stream_release(stream);
    return NULL;
}

/* Managed memory, used by a device on which nothing was allocated. */
static void managed_elsewhere(void) {
    void *block = NULL, *stream = NULL;
    pthread_t releaser;
    OK(cudaSetDevice(2));
    OK(cudaStreamCreate(&stream));
    OK(cudaSetDevice(0));
    OK(cudaMallocManaged(&block, 3 * MIB, 1));
    OK(cudaSetDevice(2));
    stream_hold(stream);
    OK(cudaMemsetAsync(block, 7, 3 * MIB, stream));
    OK(cudaSetDevice(0));
    CHECK(pthread_create(&releaser, NULL, release_soon, stream) == 0);
    OK(cudaFree(block));
    CHECK(atomic_load(&is_released));
    CHECK(pthread_join(releaser, NULL) == 0);
    OK(cudaSetDevice(2));
    OK(cudaStreamDestroy(stream));
    OK(cudaSetDevice(0));
}

enum { SOON, NEVER, CAPTURED };

static void *release_in_a_moment(void *stream) {
    usleep(20000);
    stream_release(stream);
    return NULL;
}

/* The most that is held of memory that is freed again at once, whose work is done at some time. */
static uint64_t held_ahead(int when) {
    enum { BLOCK = 64, ROUNDS = 40 };
    void *stream = NULL, *capturing = NULL, *graph = NULL, *block = NULL;
    pthread_t releaser;
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_OK, hbm_stats_reset_peaks(0));
    OK(cudaStreamCreate(&stream));
    OK(cudaStreamCreate(&capturing));
    stream_hold(stream);
    OK(cudaMalloc(&block, MIB));
    OK(cudaMemsetAsync(block, 1, MIB, stream));
    OK(cudaFree(block));
    if (when == CAPTURED) OK(cudaStreamBeginCapture(capturing, 2));
    if (when == SOON) CHECK(pthread_create(&releaser, NULL, release_in_a_moment, stream) == 0);
    for (int i = 0; i < ROUNDS; i++) {
        OK(cudaMalloc(&block, BLOCK * MIB));
        OK(cudaFree(block));
    }
    uint64_t held = stats_of(0, -1).peak_reserved;
    if (when == CAPTURED) OK(cudaStreamEndCapture(capturing, &graph));
    if (when == SOON) CHECK(pthread_join(releaser, NULL) == 0);
    else stream_release(stream);
    OK(cudaStreamDestroy(stream));
    OK(cudaStreamDestroy(capturing));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    return held;
}

/* A program that is far ahead of its device waits for it, as the runtime's cudaFree would, once 1 GiB waits to be used again;
 * but not for ever, since the work may wait for the program, and not at all while a stream captures. */
static void far_ahead(void) {
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 5 && least > (1024 + 256) * MIB; i++) {
        uint64_t held = held_ahead(SOON);
        least = held < least ? held : least;
    }
    CHECK(least <= (1024 + 256) * MIB);
    CHECK(held_ahead(NEVER) >= 2048 * MIB);
    CHECK(held_ahead(CAPTURED) >= 2048 * MIB);
}

static uint64_t points_of(int rounds) {
    void *blocks[ENOUGH];
    uint64_t before = order_points();
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ENOUGH; i++) OK(cudaMalloc(&blocks[i], 3 * MIB));
        for (int i = 0; i < ENOUGH; i++) OK(cudaFree(blocks[i]));
    }
    return order_points() - before;
}

/* Streams of other devices can join a capture, so that their order points break it too; wherever it ends. */
static void captures_of_other_devices(void) {
    void *stream = NULL, *graph = NULL;
    int (*end)(void *, void **);
    look_up("cuStreamEndCapture", &end);
    for (int by_driver = 0; by_driver < 2; by_driver++) {
        OK(cudaSetDevice(1));
        OK(cudaStreamCreate(&stream));
        OK(cudaStreamBeginCapture(stream, 2));
        OK(cudaSetDevice(0));
        CHECK(points_of(4) == 0);
        OK(cudaSetDevice(1));
        OK(by_driver ? end(stream, &graph) : cudaStreamEndCapture(stream, &graph));
        OK(cudaSetDevice(0));
        CHECK(points_of(4) > 0);
        OK(cudaSetDevice(1));
        OK(cudaStreamDestroy(stream));
        OK(cudaSetDevice(0));
        EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    }
}

/* What the pool gives to a stream that captures is its graph's, also where the runtime's functions began the capture. */
static void captured_by_the_library(void) {
    hbm_allocator_desc_t descriptor = {.struct_size = sizeof descriptor, .kind = HBM_KIND_POOL};
    hbm_allocator_t *allocator = NULL;
    void *stream = NULL, *graph = NULL, *block = NULL, *later[8];
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    OK(cudaStreamCreate(&stream));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 3 * MIB, 0, stream, &block));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, stream));
    OK(cudaStreamBeginCapture(stream, 2));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 3 * MIB, 0, stream, &block));
    OK(cudaMemsetAsync(block, 1, 3 * MIB, stream));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, stream));
    OK(cudaStreamEndCapture(stream, &graph));
    for (int i = 0; i < 8; i++) {
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 3 * MIB, 0, stream, &later[i]));
        CHECK(!overlap(later[i], block, 3 * MIB));
    }
    for (int i = 0; i < 8; i++) EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, later[i], stream));
    OK(cudaStreamDestroy(stream));
    hbm_allocator_destroy(allocator);
}

/* Of a graph that is told of besides: its memory is kept for its replays, and comes back with its release. */
static void captured_and_told(void) {
    hbm_allocator_desc_t descriptor = {.struct_size = sizeof descriptor, .kind = HBM_KIND_POOL};
    hbm_allocator_t *allocator = NULL;
    void *stream = NULL, *graph = NULL, *block = NULL, *plain = NULL;
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    OK(cudaStreamCreate(&stream));
    for (uint64_t round = 0; round < 8; round++) {
        EXPECT(HBM_OK, hbm_graph_begin(0, 7, round));
        OK(cudaStreamBeginCapture(stream, 2));
        /* It is no part of the capture, and says nothing of it. */
        OK(cudaMalloc(&plain, 3 * MIB));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 64 * MIB, 0, stream, &block));
        OK(cudaMemsetAsync(block, 1, 3 * MIB, stream));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, stream));
        OK(cudaStreamEndCapture(stream, &graph));
        EXPECT(HBM_OK, hbm_graph_end(0, 7, round));
        EXPECT(HBM_OK, hbm_graph_release(0, 7, round));
        OK(cudaFree(plain));
    }
    OK(cudaStreamSynchronize(stream));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    hbm_stats_t now = {.struct_size = sizeof now};
    EXPECT(HBM_OK, hbm_stats(0, HBM_KIND_POOL, &now));
    CHECK(now.reserved <= 128 * MIB);
    OK(cudaStreamDestroy(stream));
    hbm_allocator_destroy(allocator);
}

/* What waits in one tag's heap serves another's once its work is done. */
static void from_tag_to_tag(void) {
    void *blocks[16];
    hbm_stats_t now = {.struct_size = sizeof now};
    const char *tags[] = {"one", "another", "a third"};
    for (int i = 0; i < 3; i++) {
        EXPECT(HBM_OK, hbm_tag_push(tags[i]));
        for (int k = 0; k < 16; k++) OK(cudaMalloc(&blocks[k], 40 * MIB));
        for (int k = 0; k < 16; k++) OK(cudaFree(blocks[k]));
        EXPECT(HBM_OK, hbm_tag_pop());
    }
    EXPECT(HBM_OK, hbm_stats(0, HBM_KIND_POOL, &now));
    CHECK(now.reserved <= 900 * MIB);
}

/* Between threads: all of it comes back. */
enum { THREADS = 4, ROUNDS = 4000, SLOTS = 64 };
static _Atomic(void *) slots[SLOTS];

static void *pass_on(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    for (int i = 0; i < ROUNDS; i++) {
        void *block = NULL;
        size_t bytes = (size_t)1 << (8 + rand_r(&seed) % 13);
        OK(cudaMalloc(&block, bytes));
        void *old = atomic_exchange(&slots[rand_r(&seed) % SLOTS], block);
        if (old != NULL) OK(cudaFree(old));
    }
    return NULL;
}

static void threads(void) {
    pthread_t ours[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&ours[i], NULL, pass_on, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(ours[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++) OK(cudaFree(atomic_exchange(&slots[i], NULL)));
    uint64_t released = 0;
    EXPECT(HBM_OK, hbm_trim(0, 0, &released));
    hbm_stats_t now = {.struct_size = sizeof now};
    EXPECT(HBM_OK, hbm_stats(0, -1, &now));
    CHECK(released > 0 && now.allocated == 0 && now.reserved == 0);
}

int main(void) {
    other_devices();
    managed_elsewhere();
    far_ahead();
    captures_of_other_devices();
    threads();
    from_tag_to_tag();
    captured_and_told();
    captured_by_the_library();
    return 0;
}
