/* Captures that a program tells of by itself: what their graphs write to is theirs until release, and
 * is given back then; and what happens to calls in a wrong order. */
#include "driver.h"

#include <pthread.h>

static const int32_t KINDS[] = {HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_VMM, HBM_KIND_POOL, HBM_KIND_PINNED};
enum { KIND_COUNT = sizeof KINDS / sizeof KINDS[0], OTHERS = 8 };

static void capture_begin(void *stream) {
    int (*begin)(void *, int);
    look_up("cuStreamBeginCapture_v2", &begin);
    CHECK(begin(stream, 0) == 0);
}

static void *capture_end(void *stream) {
    int (*end)(void *, void **);
    int (*instantiate)(void **, void *, unsigned long long);
    int (*destroy)(void *);
    void *graph = NULL, *executable = NULL;
    look_up("cuStreamEndCapture", &end);
    look_up("cuGraphInstantiateWithFlags", &instantiate);
    look_up("cuGraphDestroy", &destroy);
    CHECK(end(stream, &graph) == 0 && graph != NULL);
    CHECK(instantiate(&executable, graph, 0) == 0);
    CHECK(destroy(graph) == 0);
    return executable;
}

static void launch(void *executable, void *stream) {
    int (*launch)(void *, void *);
    look_up("cuGraphLaunch", &launch);
    CHECK(launch(executable, stream) == 0);
}

static void executable_destroy(void *executable) {
    int (*destroy)(void *);
    look_up("cuGraphExecDestroy", &destroy);
    CHECK(destroy(executable) == 0);
}

static void *allocate(hbm_allocator_t *allocator, void *stream) {
    void *block = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, stream, &block));
    return block;
}

/* Blocks of a capture, freed in it, after it and after release: no other block may be where a replay
 * writes, and nothing is kept in the end. */
static void memory_of_a_graph_is_its_own_until_release(void) {
    for (int k = 0; k < KIND_COUNT; k++) {
        hbm_allocator_t *allocator = allocator_of(KINDS[k], 0);
        void *stream = stream_create(), *others[OTHERS];
        EXPECT(HBM_OK, hbm_graph_begin(0, 5, (uint64_t)k + 1));
        capture_begin(stream);
        void *inside = allocate(allocator, stream), *after = allocate(allocator, stream);
        void *last = allocate(allocator, stream);
        fill(0, inside, 1, MIB, stream);
        fill(0, after, 2, MIB, stream);
        fill(0, last, 3, MIB, stream);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, inside, stream));
        void *graph = capture_end(stream);
        EXPECT(HBM_OK, hbm_graph_end(0, 5, (uint64_t)k + 1));
        launch(graph, stream);
        stream_wait(stream);
        CHECK(holds(after, 2, MIB) && holds(last, 3, MIB));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, after, stream));
        EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
        for (int i = 0; i < OTHERS; i++) {
            others[i] = allocate(allocator, stream);
            CHECK(others[i] != inside && others[i] != after && others[i] != last);
            fill(0, others[i], 9, MIB, stream);
        }
        launch(graph, stream);
        stream_wait(stream);
        for (int i = 0; i < OTHERS; i++) {
            CHECK(holds(others[i], 9, MIB));
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, others[i], stream));
        }
        CHECK(holds(last, 3, MIB));
        executable_destroy(graph);
        EXPECT(HBM_OK, hbm_graph_release(0, 5, (uint64_t)k + 1));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, last, stream));
        EXPECT(HBM_OK, hbm_stream_forget(0, stream));
        stream_destroy(stream);
        EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
        CHECK(stats_of(0, -1).reserved == 0 && physical_bytes(0) == 0);
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
    CHECK(faults() == 0);
}

/* Two graphs of one pool share memory in the order of their captures; it goes with the second. */
static void graphs_of_one_pool(void) {
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_VMM, 0);
    void *stream = stream_create(), *graphs[2], *blocks[2];
    for (int i = 0; i < 2; i++) {
        EXPECT(HBM_OK, hbm_graph_begin(0, 6, 1));
        capture_begin(stream);
        blocks[i] = allocate(allocator, stream);
        fill(0, blocks[i], 4, MIB, stream);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, blocks[i], stream));
        graphs[i] = capture_end(stream);
        EXPECT(HBM_OK, hbm_graph_end(0, 6, 1));
    }
    CHECK(blocks[0] == blocks[1]);
    EXPECT(HBM_OK, hbm_graph_release(0, 6, 1));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    launch(graphs[1], stream);
    stream_wait(stream);
    CHECK(physical_bytes(0) == 2 * MIB && faults() == 0);
    EXPECT(HBM_OK, hbm_graph_release(0, 6, 1));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0);
    executable_destroy(graphs[0]);
    executable_destroy(graphs[1]);
    stream_destroy(stream);
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

/* A capture that breaks is ended like any other. */
static void a_failed_capture(void) {
    int (*synchronize)(void *);
    int (*end)(void *, void **);
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_VMM, 0);
    void *stream = stream_create(), *graph = NULL;
    look_up("cuStreamSynchronize", &synchronize);
    look_up("cuStreamEndCapture", &end);
    EXPECT(HBM_OK, hbm_graph_begin(0, 7, 1));
    capture_begin(stream);
    void *block = allocate(allocator, stream);
    CHECK(synchronize(stream) != 0);
    CHECK(end(stream, &graph) != 0);
    EXPECT(HBM_OK, hbm_graph_end(0, 7, 1));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, stream));
    EXPECT(HBM_OK, hbm_graph_release(0, 7, 1));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0);

    /* Until its end is told trim takes none of its memory: it may have ended well. */
    EXPECT(HBM_OK, hbm_graph_begin(0, 7, 2));
    capture_begin(stream);
    block = allocate(allocator, stream);
    CHECK(synchronize(stream) != 0 && end(stream, &graph) != 0);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, stream));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 2 * MIB);
    EXPECT(HBM_OK, hbm_graph_end(0, 7, 2));
    EXPECT(HBM_OK, hbm_graph_release(0, 7, 2));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_end(0, 7, 2));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0);

    /* Where its thread allocates before, it is given up; release still counts. */
    EXPECT(HBM_OK, hbm_graph_begin(0, 7, 3));
    capture_begin(stream);
    block = allocate(allocator, stream);
    CHECK(synchronize(stream) != 0 && end(stream, &graph) != 0);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, stream));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, allocate(allocator, stream), stream));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(physical_bytes(0) == 0);
    EXPECT(HBM_NOT_OWNED, hbm_graph_end(0, 7, 3));
    EXPECT_ERROR_TEXT("(7, 3)");
    EXPECT(HBM_OK, hbm_graph_release(0, 7, 3));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_release(0, 7, 3));
    stream_destroy(stream);
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
}

static void calls_in_a_wrong_order(void) {
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_end(0, 8, 1));
    EXPECT_ERROR_TEXT("(8, 1)");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_release(0, 8, 1));
    EXPECT(HBM_OK, hbm_graph_begin(0, 8, 1));
    EXPECT(HBM_BUSY, hbm_graph_release(0, 8, 1));
    EXPECT_ERROR_TEXT("not ended");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_end(1, 8, 1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_end(0, 1, 8));
    EXPECT(HBM_OK, hbm_graph_end(0, 8, 1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_end(0, 8, 1));
    EXPECT(HBM_OK, hbm_graph_release(0, 8, 1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_release(0, 8, 1));
    EXPECT_ERROR_TEXT("once");
    /* An id may be used again. */
    EXPECT(HBM_OK, hbm_graph_begin(0, 8, 1));
    EXPECT(HBM_OK, hbm_graph_end(0, 8, 1));
    EXPECT(HBM_OK, hbm_graph_release(0, 8, 1));
    for (int i = 0; i < 2; i++) {
        uint64_t id = i == 0 ? 0 : UINT64_MAX;
        EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_begin(0, id, id));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_end(0, id, id));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_release(0, id, id));
    }
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_begin(99, 8, 1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_graph_begin(-1, 8, 1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_captures_told(2));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_captures_told(-1));
    CHECK(stats_of(0, -1).rejected_frees == 0);
}

static void *capture_elsewhere(void *argument) {
    uint64_t id = (uint64_t)(uintptr_t)argument;
    context_push(0);
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_POOL, 0);
    for (int round = 0; round < 20; round++) {
        void *stream = stream_create();
        EXPECT(HBM_OK, hbm_graph_begin(0, 9, id));
        int (*begin)(void *, int);
        look_up("cuStreamBeginCapture_v2", &begin);
        CHECK(begin(stream, 2) == 0);
        void *block = allocate(allocator, stream);
        fill(0, block, (unsigned char)id, MIB, stream);
        void *graph = capture_end(stream);
        EXPECT(HBM_OK, hbm_graph_end(0, 9, id));
        launch(graph, stream);
        stream_wait(stream);
        CHECK(holds(block, (unsigned char)id, MIB));
        executable_destroy(graph);
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, stream));
        EXPECT(HBM_OK, hbm_graph_release(0, 9, id));
        EXPECT(HBM_OK, hbm_stream_forget(0, stream));
        stream_destroy(stream);
    }
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    context_pop();
    return NULL;
}

/* With the promise the pool does not ask about streams, and captures still get blocks of their own. */
static void captures_told(void) {
    pthread_t threads[4];
    EXPECT(HBM_OK, hbm_captures_told(1));
    memory_of_a_graph_is_its_own_until_release();
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, capture_elsewhere, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    EXPECT(HBM_OK, hbm_captures_told(0));
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(faults() == 0 && physical_bytes(0) == 0);
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("sim", "devices=2,memory=4GiB"));
    int32_t devices = 0;
    EXPECT(HBM_OK, hbm_device_count(&devices));
    context_push(0);
    memory_of_a_graph_is_its_own_until_release();
    graphs_of_one_pool();
    a_failed_capture();
    calls_in_a_wrong_order();
    captures_told();
    context_pop();
    puts("graphs: fine");
    return 0;
}
