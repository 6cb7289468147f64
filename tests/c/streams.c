// Streams and events by the library alone: no header of the driver's.
#include "driver.h"

static void no_such(void) {
    void *handle = &handle;
    CHECK(hbm_stream_create(99, 0, 0, &handle) == HBM_INVALID_ARGUMENT && handle == NULL);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_create(0, 0, 8, &handle));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_create(0, 0, 0, NULL));
    CHECK(hbm_event_create(99, 0, &handle) == HBM_INVALID_ARGUMENT && handle == NULL);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_event_create(0, 8, &handle));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_event_create(0, 0, NULL));
    int local = 0;
    EXPECT(HBM_NOT_OWNED, hbm_stream_destroy(&local));
    EXPECT(HBM_NOT_OWNED, hbm_event_destroy(&local));
    EXPECT(HBM_NOT_OWNED, hbm_event_record(&local, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_event_synchronize(&local));
    EXPECT(HBM_NOT_OWNED, hbm_stream_wait_event(0, NULL, &local));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_synchronize(99, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_current_device(NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_stream_device(NULL, NULL));
    EXPECT(HBM_OK, hbm_stream_destroy(NULL));
    EXPECT(HBM_OK, hbm_event_destroy(NULL));
}

static void which_device(void) {
    int32_t device = -1;
    CHECK(hbm_current_device(&device) == HBM_OK && device == 0);
    for (int32_t ordinal = 0; ordinal < 2; ordinal++) {
        void *stream = NULL;
        EXPECT(HBM_OK, hbm_stream_create(ordinal, 0, HBM_STREAM_BLOCKING, &stream));
        CHECK(hbm_stream_device(stream, &device) == HBM_OK && device == ordinal);
        EXPECT(HBM_OK, hbm_stream_synchronize(ordinal, stream));
        EXPECT(HBM_OK, hbm_stream_destroy(stream));
        EXPECT(HBM_NOT_OWNED, hbm_stream_destroy(stream));
    }
    context_push(1);
    CHECK(hbm_current_device(&device) == HBM_OK && device == 1);
    CHECK(hbm_stream_device(NULL, &device) == HBM_OK && device == 1);
    context_pop();
}

static int (*query)(void *);

enum { NOT_READY = 600 };

// What waits for an event of a stream that is held back ends once that goes on, and not before.
static void orders(void) {
    void *first = NULL, *second = NULL, *event = NULL;
    EXPECT(HBM_OK, hbm_stream_create(0, -5, 0, &first));
    EXPECT(HBM_OK, hbm_stream_create(1, 0, 0, &second));
    EXPECT(HBM_OK, hbm_event_create(0, HBM_EVENT_TIMING, &event));
    EXPECT(HBM_OK, hbm_event_synchronize(event));
    EXPECT(HBM_OK, hbm_stream_wait_event(1, second, event));
    EXPECT(HBM_DRIVER, hbm_event_record(event, second));
    int (*kernel)(void *, uint64_t, uint64_t);
    look_up("hbmsim_kernel", &kernel);
    stream_hold(first);
    CHECK(kernel(first, 0, 0) == 0);
    EXPECT(HBM_OK, hbm_event_record(event, first));
    EXPECT(HBM_OK, hbm_stream_wait_event(1, second, event));
    CHECK(kernel(second, 0, 0) == 0);
    CHECK(query(first) == NOT_READY && query(second) == NOT_READY);
    stream_release(first);
    EXPECT(HBM_OK, hbm_event_synchronize(event));
    CHECK(query(first) == 0);
    EXPECT(HBM_OK, hbm_stream_synchronize(1, second));
    CHECK(query(second) == 0);
    EXPECT(HBM_OK, hbm_event_destroy(event));
    EXPECT(HBM_NOT_OWNED, hbm_event_destroy(event));
    EXPECT(HBM_OK, hbm_stream_destroy(first));
    EXPECT(HBM_OK, hbm_stream_destroy(second));
}

// A block outlives the stream that it was allocated on, which is destroyed while it works.
static void blocks_outlive_streams(void) {
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_POOL, 0);
    void *stream = NULL, *block = NULL;
    EXPECT(HBM_OK, hbm_stream_create(0, 0, 0, &stream));
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 4096, 0, stream, &block));
    EXPECT(HBM_OK, hbm_stream_destroy(stream));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    CHECK(faults() == 0);
}

int main(void) {
    EXPECT(HBM_OK, hbm_ensure_context(0));
    look_up("cuStreamQuery", &query);
    no_such();
    which_device();
    EXPECT(HBM_OK, hbm_ensure_context(0));
    orders();
    blocks_outlive_streams();
    return 0;
}
