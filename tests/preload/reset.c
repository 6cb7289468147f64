/* A program of CUDA's runtime that resets its devices, and what is left of the memory that it had there; and devices that
 * reach each other's. */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

static void works(void) {
    void *block = NULL, *ordered = NULL, *stream = NULL;
    OK(cudaStreamCreate(&stream));
    OK(cudaMalloc(&block, 5 * MIB));
    OK(cudaMallocAsync(&ordered, 3 * MIB, stream));
    OK(cudaMemsetAsync(block, 0x31, 5 * MIB, stream));
    OK(cudaMemsetAsync(ordered, 0x32, 3 * MIB, stream));
    OK(cudaStreamSynchronize(stream));
    CHECK(different(block, 0x31, 5 * MIB) == 0 && different(ordered, 0x32, 3 * MIB) == 0);
    OK(cudaFreeAsync(ordered, stream));
    OK(cudaStreamDestroy(stream));
    OK(cudaFree(block));
}

/* Memory of every kind, on streams that the reset destroys, some of it freed behind work under way. */
static void a_device_begins_anew(void) {
    void *blocks[8], *stream, *ordered, *again, *managed, *host, *elsewhere;
    for (int round = 0; round < 3; round++) {
        works();
        OK(cudaSetDevice(1));
        OK(cudaMalloc(&elsewhere, 4 * MIB));
        OK(cudaMemsetAsync(elsewhere, 0x44, 4 * MIB, NULL));
        OK(cudaDeviceSynchronize());
        OK(cudaSetDevice(0));
        OK(cudaStreamCreate(&stream));
        for (int i = 0; i < 8; i++) OK(cudaMalloc(&blocks[i], (size_t)(i + 1) * MIB));
        OK(cudaMallocAsync(&ordered, 4 * MIB, stream));
        OK(cudaMallocAsync(&again, 4 * MIB, stream));
        OK(cudaMallocManaged(&managed, MIB, 1));
        OK(cudaHostAlloc(&host, 4 * MIB, 0));
        OK(cudaMemsetAsync(ordered, 1, 4 * MIB, stream));
        OK(cudaMemsetAsync(elsewhere, 0x45, 4 * MIB, stream));
        OK(cudaFreeAsync(again, stream));
        OK(cudaFreeAsync(elsewhere, stream));
        OK(cudaFree(blocks[7]));
        OK(cudaDeviceReset());
        CHECK(stand_in_calls("cudaDeviceReset") == (uint64_t)round + 1);
        hbm_stats_t now = stats_of(0, -1);
        CHECK(now.allocated == 0 && now.reserved == 0);
        /* What was there before is memory no more, and freeing it does no harm. */
        for (int i = 0; i < 8; i++) CHECK(cudaFree(blocks[i]) != 0);
        CHECK(cudaFree(ordered) != 0 && cudaFree(managed) != 0);
        memset(host, 1, 4 * MIB);
        OK(cudaFreeHost(host));
        works();
        OK(cudaSetDevice(1));
        works();
        OK(cudaSetDevice(0));
        OK(hbm_trim(0, 0, NULL));
        OK(hbm_trim(1, 0, NULL));
        CHECK(stats_of(0, -1).reserved == 0 && stats_of(1, -1).allocated == 0);
    }
    CHECK(faults() == 0);
}

static void not_while_a_stream_captures(void) {
    void *stream, *graph, *block;
    OK(cudaMalloc(&block, MIB));
    OK(cudaStreamCreate(&stream));
    OK(cudaStreamBeginCapture(stream, 2));
    CHECK(cudaDeviceReset() == 900);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaFree(block));
    OK(cudaDeviceReset());
    works();
    CHECK(faults() == 0);
}

/* Memory of a capture goes with the graph, which goes with the context. */
static void graphs_go_too(void) {
    void *stream, *graph, *block;
    works();
    OK(cudaStreamCreate(&stream));
    OK(cudaStreamBeginCapture(stream, 2));
    OK(cudaMalloc(&block, 4 * MIB));
    OK(cudaFree(block));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaDeviceReset());
    CHECK(stats_of(0, -1).reserved == 0 && stats_of(0, -1).allocated == 0);
    works();
    CHECK(faults() == 0);
}

/* After a failure that breaks the context nothing works there; the reset makes it work again. */
/* Memory that work uses is unmapped under it. */
static void breaks(int device, void *block, void *stream) {
    void *mapped;
    int (*hold)(void *), (*release)(void *), (*kernel)(void *, uint64_t, uint64_t), (*unmap)(uint64_t, size_t);
    look_up("hbmsim_hold", &hold);
    look_up("hbmsim_release", &release);
    look_up("hbmsim_kernel", &kernel);
    look_up("cuMemUnmap", &unmap);
    hbm_export_t export = {.struct_size = sizeof export};
    EXPECT(HBM_OK, hbm_export(block, &export));
    EXPECT(HBM_OK, hbm_import(&export, device, &mapped));
    EXPECT(HBM_OK, hbm_export_close(export.serial));
    OK(close(export.fd));
    OK(hold(stream));
    OK(kernel(stream, (uintptr_t)mapped, MIB));
    OK(unmap((uintptr_t)mapped - export.offset, export.chunk_bytes));
    OK(release(stream));
    CHECK(cudaDeviceSynchronize() == 700);
    CHECK(cudaMemsetAsync(block, 0, MIB, stream) == 700);
}

static void a_broken_context_is_mended(void) {
    void *block, *stream, *ordered;
    works();
    OK(cudaStreamCreate(&stream));
    OK(cudaMalloc(&block, 4 * MIB));
    OK(cudaMallocAsync(&ordered, 4 * MIB, stream));
    OK(cudaFreeAsync(ordered, stream));
    breaks(0, block, stream);
    OK(cudaDeviceReset());
    CHECK(stats_of(0, -1).allocated == 0 && stats_of(0, -1).reserved == 0);
    works();
}

/* What another device has done wrong keeps no memory of this one. */
static void beside_a_broken_context(void) {
    void *block, *stream;
    OK(cudaSetDevice(1));
    OK(cudaStreamCreate(&stream));
    OK(cudaMalloc(&block, 4 * MIB));
    breaks(1, block, stream);
    OK(cudaSetDevice(0));
    for (int i = 0; i < 1000; i++) {
        OK(cudaMalloc(&block, MIB));
        OK(cudaFree(block));
    }
    CHECK(stats_of(0, -1).reserved <= 128 * MIB);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(stats_of(0, -1).reserved == 0);
    works();
}

static void without_memory_of_ours(void) {
    OK(cudaSetDevice(0));
    OK(cudaDeviceReset());
    OK(cudaDeviceReset());
    works();
}

/* A free can wait for a device's work on which nothing was allocated; with its context that is gone. */
static void after_a_device_that_only_works(void) {
    void *stream, *own, *block;
    OK(cudaSetDevice(0));
    OK(cudaStreamCreate(&own));
    for (int round = 0; round < 3; round++) {
        OK(cudaSetDevice(1));
        OK(cudaStreamCreate(&stream));
        OK(cudaSetDevice(0));
        for (int i = 0; i < 300; i++) {
            OK(cudaMalloc(&block, MIB));
            OK(cudaFree(block));
        }
        /* In the order of a stream that goes too. */
        OK(cudaMallocAsync(&block, 3 * MIB, own));
        OK(cudaFreeAsync(block, stream));
        OK(cudaSetDevice(1));
        OK(cudaDeviceReset());
        OK(cudaSetDevice(0));
        for (int i = 0; i < 300; i++) {
            OK(cudaMalloc(&block, MIB));
            OK(cudaFree(block));
        }
        CHECK(stats_of(0, -1).reserved <= 128 * MIB && stats_of(1, -1).reserved == 0);
        /* Waits for all that is freed. */
        EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
        CHECK(stats_of(0, -1).pending_frees == 0 && stats_of(0, -1).reserved == 0);
        works();
    }
    CHECK(faults() == 0);
}

static void devices_reach_each_other(void) {
    void *block, *other;
    OK(cudaSetDevice(1));
    OK(cudaMalloc(&block, 4 * MIB));
    OK(cudaSetDevice(0));
    OK(cudaDeviceEnablePeerAccess(1, 0));
    CHECK(cudaDeviceEnablePeerAccess(1, 0) == 704);
    CHECK(cudaDeviceEnablePeerAccess(99, 0) != 0);
    OK(cudaMemsetAsync(block, 0x51, 4 * MIB, NULL));
    OK(cudaDeviceSynchronize());
    CHECK(different(block, 0x51, 4 * MIB) == 0);
    OK(cudaSetDevice(1));
    OK(cudaMalloc(&other, 4 * MIB));
    OK(cudaSetDevice(0));
    OK(cudaMemsetAsync(other, 0x52, 4 * MIB, NULL));
    OK(cudaDeviceSynchronize());
    CHECK(different(other, 0x52, 4 * MIB) == 0);
    CHECK(faults() == 0);
}

int main(int argc, char **argv) {
    static const part_t parts[] = {
        {"anew", a_device_begins_anew},
        {"capture", not_while_a_stream_captures},
        {"graphs", graphs_go_too},
        {"broken", a_broken_context_is_mended},
        {"beside", beside_a_broken_context},
        {"unused", without_memory_of_ours},
        {"worked", after_a_device_that_only_works},
        {"peers", devices_reach_each_other},
    };
    return run_part(argc, argv, parts, sizeof parts / sizeof parts[0]);
}
