/* A program of CUDA's runtime whose streams do not wait for each other: whatever its memory is taken from, what one of them
 * still writes to is no other's. */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <unistd.h>

enum { BLOCKS = 16, ROUNDS = 300, STREAMS = 3 };

static void *release_soon(void *stream) {
    usleep(100000);
    stream_release(stream);
    return NULL;
}

/* The work is held back until the other stream's is done, but where a free or an allocation waits for it. */
static void freed_under_work(void) {
    void *busy = NULL, *other = NULL, *block = NULL, *next = NULL;
    pthread_t releaser;
    OK(cudaStreamCreate(&busy));
    OK(cudaStreamCreate(&other));
    OK(cudaMalloc(&block, MIB));
    stream_hold(busy);
    OK(cudaMemsetAsync(block, 1, MIB, busy));
    CHECK(pthread_create(&releaser, NULL, release_soon, busy) == 0);
    OK(cudaFree(block));
    OK(cudaMalloc(&next, MIB));
    OK(cudaMemsetAsync(next, 2, MIB, other));
    OK(cudaStreamSynchronize(other));
    pthread_join(releaser, NULL);
    OK(cudaDeviceSynchronize());
    CHECK(different(next, 2, MIB) == 0);
    OK(cudaFree(next));
    OK(cudaStreamDestroy(busy));
    OK(cudaStreamDestroy(other));
}

typedef struct {
    void *address;
    size_t bytes;
    unsigned char byte;
    int stream;
} live_t;

static void *allocate_and_free(void *number) {
    unsigned seed = (unsigned)(uintptr_t)number;
    void *streams[STREAMS];
    live_t live[BLOCKS] = {0};
    for (int i = 0; i < STREAMS; i++) OK(cudaStreamCreate(&streams[i]));
    for (int round = 0; round < ROUNDS; round++) {
        live_t *block = &live[rand_r(&seed) % BLOCKS];
        if (block->address != NULL) {
            if (rand_r(&seed) % 4 == 0) {
                OK(cudaStreamSynchronize(streams[block->stream]));
                CHECK(different(block->address, block->byte, block->bytes) == 0);
            }
            OK(rand_r(&seed) % 2 ? cudaFree(block->address) : cudaFreeAsync(block->address, streams[block->stream]));
        }
        *block = (live_t){NULL, 1 + (size_t)rand_r(&seed) % (200 << 10), (unsigned char)rand_r(&seed), rand_r(&seed) % STREAMS};
        void *stream = streams[block->stream];
        OK(rand_r(&seed) % 3 ? cudaMalloc(&block->address, block->bytes) : cudaMallocAsync(&block->address, block->bytes, stream));
        OK(cudaMemsetAsync(block->address, block->byte, block->bytes, stream));
    }
    for (int i = 0; i < BLOCKS; i++) OK(live[i].address == NULL ? 0 : cudaFree(live[i].address));
    for (int i = 0; i < STREAMS; i++) OK(cudaStreamDestroy(streams[i]));
    return NULL;
}

int main(void) {
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    freed_under_work();
    for (size_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, allocate_and_free, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(stats_of(0, -1).allocated == 0 && faults() == 0);
    return 0;
}
