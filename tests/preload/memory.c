/* A program of CUDA's runtime that knows nothing of hbmalloc, but for looking at its counters: under the preload library
 * its memory is the pool's, and all of it behaves as the runtime's does. */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t driver_calls(const char *name) {
    uint64_t (*calls)(const char *);
    look_up("hbmsim_calls", &calls);
    return calls(name);
}

static unsigned char byte_at(const void *address) {
    unsigned char byte = 0;
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(&byte, address, 1, 4));
    return byte;
}

static void usual(void) {
    void *blocks[100];
    for (size_t i = 0; i < 100; i++) {
        OK(cudaMalloc(&blocks[i], 1 + i * 10007));
        CHECK((uintptr_t)blocks[i] % 512 == 0);
        OK(cudaMemsetAsync(blocks[i], (int)i, 1 + i * 10007, NULL));
    }
    CHECK(stats_of(0, -1).allocations >= 100 && stand_in_calls("cudaMalloc") == 0);
    for (size_t i = 0; i < 100; i++) {
        CHECK(byte_at(blocks[i]) == i && byte_at((char *)blocks[i] + i * 10007) == i);
    }
    uint64_t frees = stand_in_calls("cudaFree");
    for (size_t i = 0; i < 100; i++) OK(cudaFree(blocks[i]));
    CHECK(stand_in_calls("cudaFree") == frees && stats_of(0, -1).allocated == 0);
    /* Not ours any more: what the runtime says of it. */
    CHECK(cudaFree(blocks[0]) != 0 && stand_in_calls("cudaFree") == frees + 1);
    OK(cudaFree(NULL));
    void *none = &none;
    OK(cudaMalloc(&none, 0));
    CHECK(none == NULL && cudaMalloc(NULL, 10) == 1);
    CHECK(cudaMalloc(&none, (size_t)1 << 60) == 2 && none == NULL);
    EXPECT_ERROR_TEXT("bytes");
    /* The runtime remembers both. */
    CHECK(stand_in_calls("cudaMalloc") == 2);
    OK(cudaSetDevice(1));
    OK(cudaMalloc(&none, 5));
    CHECK(stats_of(1, -1).requested == 5 && stats_of(0, -1).requested == 0);
    OK(cudaSetDevice(0));
    OK(cudaFree(none));
}

/* What a free orders against: all streams, also those that the legacy stream does not wait for. */
static void no_reuse_before_work_is_done(void) {
    void *stream = NULL, *block = NULL, *later[64], *more[64];
    OK(cudaStreamCreate(&stream));
    OK(cudaMalloc(&block, 3 * MIB));
    for (int i = 0; i < 64; i++) OK(cudaMalloc(&more[i], 3 * MIB));
    stream_hold(stream);
    OK(cudaMemsetAsync(block, 7, 3 * MIB, stream));
    OK(cudaFree(block));
    /* Enough for the pool to look whether their work is done. */
    for (int i = 0; i < 64; i++) OK(cudaFree(more[i]));
    uint64_t looks = driver_calls("cuCtxRecordEvent");
    for (int i = 0; i < 64; i++) {
        OK(cudaMalloc(&later[i], 3 * MIB));
        CHECK((char *)later[i] + 3 * MIB <= (char *)block || (char *)later[i] >= (char *)block + 3 * MIB);
    }
    CHECK(driver_calls("cuCtxRecordEvent") > looks);
    stream_release(stream);
    OK(cudaStreamSynchronize(stream));
    for (int i = 0; i < 64; i++) OK(cudaFree(later[i]));
    uint64_t points = driver_calls("cuCtxRecordEvent"), pairs = 0;
    /* One order point for many frees. */
    for (; pairs < 2000; pairs++) {
        OK(cudaMalloc(&block, 4096));
        OK(cudaFree(block));
    }
    CHECK(driver_calls("cuCtxRecordEvent") - points < pairs / 20);
    OK(cudaStreamDestroy(stream));
}

static void rows(void) {
    void *block = NULL;
    size_t pitch = 0;
    OK(cudaMallocPitch(&block, &pitch, 1000, 10));
    CHECK(pitch == 1024 && stats_of(0, -1).requested == 10240);
    OK(cudaFree(block));
    CHECK(cudaMallocPitch(&block, &pitch, SIZE_MAX, 2) == 1 && cudaMallocPitch(&block, NULL, 1, 1) == 1);
    CHECK(cudaMallocPitch(&block, &pitch, SIZE_MAX / 4, 8) == 1);
    pitched_t pitched = {0};
    extent_t extent = {600, 3, 2};
    OK(cudaMalloc3D(&pitched, extent));
    CHECK(pitched.pitch == 1024 && pitched.row == 600 && pitched.rows == 3 && stats_of(0, -1).requested == 6 * 1024);
    OK(cudaFree(pitched.address));
    CHECK(cudaMalloc3D(NULL, extent) == 1);
}

static void ordered(void) {
    void *stream = NULL, *block = NULL, *again = NULL, *pool = NULL;
    OK(cudaStreamCreate(&stream));
    OK(cudaMallocAsync(&block, MIB, stream));
    OK(cudaFreeAsync(block, stream));
    OK(cudaMallocAsync(&again, MIB, stream));
    /* In the stream's order it is free at once. */
    CHECK(again == block && stand_in_calls("cudaMallocAsync") == 0);
    OK(cudaFreeAsync(again, stream));
    OK(cudaMallocAsync_ptsz(&block, 100, NULL));
    OK(cudaFreeAsync_ptsz(block, NULL));
    OK(cudaDeviceGetDefaultMemPool(&pool, 0));
    OK(cudaMallocFromPoolAsync(&block, 100, pool, stream));
    CHECK(stand_in_calls("cudaMallocFromPoolAsync") == 0 && stats_of(0, -1).requested == 100);
    /* Any of them may be freed by any of them. */
    OK(cudaFree(block));
    OK(cudaMalloc(&block, 100));
    OK(cudaFreeAsync(block, stream));
    CHECK(stats_of(0, -1).allocated == 0 && stand_in_calls("cudaFreeAsync") == 0);
    OK(cudaStreamDestroy(stream));
}

static void managed(void) {
    void *block = NULL;
    OK(cudaMallocManaged(&block, 3 * MIB, 1));
    CHECK(stand_in_calls("cudaMallocManaged") == 0);
    memset(block, 3, 3 * MIB);
    OK(cudaFree(block));
    OK(cudaMallocManaged(&block, 3 * MIB, 2));
    CHECK(stand_in_calls("cudaMallocManaged") == 1);
    OK(cudaFree(block));
}

static void pinned(void) {
    void *block = NULL;
    hbm_host_blocks_t held = {.struct_size = sizeof held};
    OK(cudaHostAlloc(&block, 5 * MIB, 0));
    EXPECT(HBM_OK, hbm_host_blocks(&held));
    CHECK(held.blocks == 1 && held.pinned >= 5 * MIB && stand_in_calls("cudaHostAlloc") == 0);
    memset(block, 1, 5 * MIB);
    OK(cudaFreeHost(block));
    /* As the runtime says of its own: what was asked for, and mapped; of all that lies in the block. */
    for (unsigned flags = 0; flags < 8; flags++) {
        unsigned seen = 99;
        void *there = NULL;
        OK(cudaHostAlloc(&block, 5 * MIB, flags));
        OK(cudaHostGetFlags(&seen, (char *)block + 5 * MIB - 1));
        CHECK(seen == (flags | 2));
        OK(cudaHostGetDevicePointer(&there, (char *)block + 4096, 0));
        CHECK(there == (char *)block + 4096);
        CHECK(cudaHostGetFlags(NULL, block) == 1);
        OK(cudaFreeHost(block));
        CHECK(cudaHostGetFlags(&seen, block) == 1);
    }
    OK(cudaMallocHost(&block, 5 * MIB));
    OK(cudaFreeHost(block));
    CHECK(stand_in_calls("cudaFreeHost") == 0);
    CHECK(cudaFreeHost(block) != 0);
    CHECK(cudaMallocHost(&block, (size_t)1 << 50) == 2 && cudaMallocHost(&block, SIZE_MAX) == 2);
    OK(cudaHostAlloc(&block, 4096, 0));
    CHECK(stand_in_calls("cudaHostAlloc") == 1);
    OK(cudaFreeHost(block));
    EXPECT(HBM_OK, hbm_host_blocks(&held));
    CHECK(held.blocks == 0);
}

/* A capture grows and waits for nothing: an order point would break it. */
static void captured(void) {
    void *stream = NULL, *other = NULL, *graph = NULL, *block = NULL, *more[40];
    OK(cudaStreamCreate(&stream));
    OK(cudaStreamCreate(&other));
    OK(cudaMalloc(&block, 40 * MIB));
    OK(cudaFree(block));
    OK(cudaStreamBeginCapture(stream, 2));
    uint64_t points = driver_calls("cuCtxRecordEvent");
    for (int i = 0; i < 20; i++) {
        OK(cudaMalloc(&more[i], 30 * MIB));
        OK(cudaMemsetAsync(more[i], i, MIB, stream));
        OK(cudaFree(more[i]));
    }
    CHECK(driver_calls("cuCtxRecordEvent") == points);
    OK(cudaStreamEndCapture(stream, &graph));
    CHECK(graph != NULL);
    for (int i = 0; i < 40; i++) {
        OK(cudaMalloc(&more[i], 3 * MIB));
    }
    for (int i = 0; i < 40; i++) OK(cudaFree(more[i]));
    /* The runtime's own, of a graph. */
    OK(cudaStreamBeginCapture(other, 2));
    uint64_t before = stand_in_calls("cudaMallocAsync");
    (void)cudaMallocAsync(&block, 100, other);
    CHECK(stand_in_calls("cudaMallocAsync") == before + 1);
    (void)cudaStreamEndCapture(other, &graph);
    OK(cudaStreamDestroy(stream));
    OK(cudaStreamDestroy(other));
    OK(cudaMalloc(&block, 200 * MIB));
    OK(cudaFree(block));
}

static void *beside(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    void *mine[16] = {0};
    for (int i = 0; i < 3000; i++) {
        int place = rand_r(&seed) % 16;
        if (mine[place] != NULL) OK(cudaFree(mine[place]));
        OK(cudaMalloc(&mine[place], 1 + (size_t)rand_r(&seed) % (256 << 10)));
    }
    for (int place = 0; place < 16; place++) OK(cudaFree(mine[place]));
    return NULL;
}

static void threads(void) {
    pthread_t ours[4];
    for (uintptr_t i = 0; i < 4; i++) CHECK(pthread_create(&ours[i], NULL, beside, (void *)(i + 1)) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(ours[i], NULL) == 0);
    CHECK(stats_of(0, -1).allocated == 0);
}

static void info(void) {
    size_t free = 0, total = 0, less = 0;
    void *block = NULL;
    OK(cudaMemGetInfo(&free, &total));
    CHECK(total == 1024 * MIB && free <= total);
    OK(cudaMalloc(&block, 512 * MIB));
    OK(cudaMemGetInfo(&less, &total));
    CHECK(less <= free - 510 * MIB && less >= 400 * MIB);
    void *beyond = NULL;
    CHECK(cudaMalloc(&beyond, 600 * MIB) == 2);
    OK(cudaFree(block));
    OK(cudaMemGetInfo(&less, &total));
    CHECK(less >= free - 4 * MIB);
    OK(cudaMalloc(&block, 900 * MIB));
    OK(cudaFree(block));
}

static void forked(void) {
    void *block = NULL;
    OK(cudaMalloc(&block, MIB));
    pid_t child = fork();
    if (child == 0) {
        void *other = NULL;
        CHECK(cudaMalloc(&other, MIB) != 0);
        (void)cudaFree(block);
        exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    OK(cudaFree(block));
}

int main(void) {
    CHECK(hbm_driver_used() == 0);
    usual();
    no_reuse_before_work_is_done();
    rows();
    ordered();
    managed();
    pinned();
    captured();
    threads();
    info();
    forked();
    CHECK(stats_of(0, -1).allocated == 0 && stats_of(0, -1).rejected_frees == 0);
    return 0;
}
