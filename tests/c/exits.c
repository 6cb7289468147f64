/* Ways in which a process ends while blocks are live: each returns from every call and exits with 0.
 * Each runs in a child of a process that has not used the driver. */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

static const int32_t KINDS[] = {HBM_KIND_DEVICE, HBM_KIND_MANAGED, HBM_KIND_ASYNC, HBM_KIND_VMM, HBM_KIND_POOL, HBM_KIND_PINNED};
enum { KIND_COUNT = sizeof KINDS / sizeof KINDS[0], HELD = 100 };

static hbm_allocator_t *allocators[KIND_COUNT];
static void *blocks[KIND_COUNT][HELD];
static void *torch_blocks[HELD];
static int take_driver_down;

static void allocate_everything(void) {
    for (int k = 0; k < KIND_COUNT; k++) {
        allocators[k] = allocator_of(KINDS[k], 0);
        for (int i = 0; i < HELD; i++) {
            EXPECT(HBM_OK, hbm_allocator_allocate(allocators[k], 1000, 0, NULL, &blocks[k][i]));
        }
    }
    for (int i = 0; i < HELD; i++) {
        torch_blocks[i] = hbm_malloc(1000, 0, NULL);
        CHECK(torch_blocks[i] != NULL);
    }
}

static void free_everything(void) {
    if (take_driver_down) {
        void (*deinit)(void);
        look_up("hbmsim_deinit", &deinit);
        deinit();
    }
    for (int k = 0; k < KIND_COUNT; k++) {
        for (int i = 0; i < HELD; i++) {
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocators[k], blocks[k][i], NULL));
        }
        /* May be refused, must return. */
        hbm_stats_t stats;
        stats.struct_size = sizeof stats;
        hbm_allocator_stats(allocators[k], &stats);
        hbm_allocator_trim(allocators[k], 0, NULL);
        hbm_allocator_destroy(allocators[k]);
    }
    for (int i = 0; i < HELD; i++) {
        hbm_torch_record_stream(torch_blocks[i], NULL);
        hbm_free(torch_blocks[i], 1000, 0, NULL);
    }
    hbm_torch_reset();
    void *late = vmm_malloc(1000, 0, NULL);
    CHECK(late == NULL || !take_driver_down);
    vmm_free(late, 1000, 0, NULL);
}

static void nothing_is_freed(void) { allocate_everything(); }

/* Handlers run last come, first served: this one after the library's own. */
static void freed_by_a_handler_from_before_the_first_use(void) {
    CHECK(atexit(free_everything) == 0);
    allocate_everything();
}

static void freed_by_a_handler_from_after_the_first_use(void) {
    allocate_everything();
    CHECK(atexit(free_everything) == 0);
}

static void freed_early_after_the_driver_is_down(void) {
    take_driver_down = 1;
    freed_by_a_handler_from_after_the_first_use();
}

static void freed_late_after_the_driver_is_down(void) {
    take_driver_down = 1;
    freed_by_a_handler_from_before_the_first_use();
}

static void freed_in_main_after_the_driver_is_down(void) {
    take_driver_down = 1;
    allocate_everything();
    free_everything();
}

static void *hammer(void *argument) {
    for (;;) {
        void *block = hbm_malloc(1000, (int)(uintptr_t)argument % 2, NULL);
        hbm_free(block, 1000, 0, NULL);
    }
    return NULL;
}

static void ended_under_busy_threads(void) {
    for (uintptr_t i = 0; i < 4; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, hammer, (void *)i) == 0);
    }
    freed_by_a_handler_from_before_the_first_use();
}

static void free_block(void *block) { hbm_free(block, 1000, 0, NULL); }

/* Of virtual memory and of the pool in turn, whose caches belong to threads. */
static void *allocate_for_a_key(void *key) {
    static int count;
    void *block = count++ % 2 ? pool_malloc(1000, 0, NULL) : vmm_malloc(1000, 0, NULL);
    CHECK(block != NULL && pthread_setspecific(*(pthread_key_t *)key, block) == 0);
    /* Leaves an error behind, whose text lives in storage of the thread. */
    CHECK(vmm_malloc(1000, 99, NULL) == NULL);
    return NULL;
}

static void freed_by_destructors_of_threads(void) {
    pthread_key_t key;
    pthread_t thread;
    CHECK(pthread_key_create(&key, free_block) == 0);
    for (int i = 0; i < 8; i++) {
        CHECK(pthread_create(&thread, NULL, allocate_for_a_key, &key) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    CHECK(stats_of(0, HBM_KIND_VMM).requested == 0 && stats_of(0, HBM_KIND_VMM).deallocations == 4);
    CHECK(stats_of(0, HBM_KIND_POOL).requested == 0 && stats_of(0, HBM_KIND_POOL).deallocations == 4);
    allocate_for_a_key(&key);
    CHECK(atexit(free_everything) == 0);
    allocate_everything();
    pthread_exit(NULL);
}

/* For the streams that used the block: as the header says of hbm_allocator_deallocate. */
static int free_waits(int32_t kind) { return kind == HBM_KIND_DEVICE || kind == HBM_KIND_MANAGED || kind == HBM_KIND_PINNED; }

static void work_is_still_queued(void) {
    allocate_everything();
    context_push(0);
    void *stream = stream_create();
    stream_hold(stream);
    for (int k = 0; k < KIND_COUNT; k++) {
        fill(0, blocks[k][0], 1, 1000, stream);
        EXPECT(HBM_OK, hbm_allocator_record_stream(allocators[k], blocks[k][0], stream));
    }
    for (int k = 0; k < KIND_COUNT; k++) {
        if (!free_waits(KINDS[k])) {
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocators[k], blocks[k][0], NULL));
        }
    }
}

static void run(const char *name, void (*way)(void)) {
    int status = -1;
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(30);
        EXPECT(HBM_OK, hbm_option_set("log", "off"));
        way();
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "%s: ended with status %#x\n", name, (unsigned)status);
        exit(1);
    }
    printf("%s: fine\n", name);
}

#define RUN(way) run(#way, way)

int main(void) {
    RUN(nothing_is_freed);
    RUN(freed_by_a_handler_from_before_the_first_use);
    RUN(freed_by_a_handler_from_after_the_first_use);
    RUN(freed_early_after_the_driver_is_down);
    RUN(freed_late_after_the_driver_is_down);
    RUN(freed_in_main_after_the_driver_is_down);
    RUN(ended_under_busy_threads);
    RUN(freed_by_destructors_of_threads);
    RUN(work_is_still_queued);
    return 0;
}
