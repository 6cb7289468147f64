/* A process that forks: before the driver is used the child has lost nothing; afterwards allocating in
 * the child is an error, freeing does nothing, and no call hangs on a lock whose holder is not there. */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void *(*malloc_function)(size_t, int, void *);

static const malloc_function ENTRIES[] = {
    hbm_malloc,          hbm_segment_malloc,  device_malloc, device_segment_malloc, managed_malloc, managed_segment_malloc,
    async_malloc,        async_segment_malloc, vmm_malloc,   vmm_segment_malloc,    pool_malloc,    pool_segment_malloc,
    pinned_malloc,       pinned_segment_malloc,
};
enum { ENTRY_COUNT = sizeof ENTRIES / sizeof ENTRIES[0], FORKS = 150 };

static malloc_function tagged_malloc;
static atomic_int stop;

/* Instead of the loader's, for the library too: it may have been forked halfway through a call of another
 * thread, so a child that lost the driver must not ask it. */
__attribute__((visibility("default"))) void *dlopen(const char *name, int mode) {
    static void *(*next)(const char *, int);
    CHECK(hbm_forked() == 0);
    if (next == NULL) {
        void *found = dlsym(RTLD_NEXT, "dlopen");
        memcpy(&next, &found, sizeof next);
    }
    return next(name, mode);
}

static void ignore(int32_t level, const char *target, const char *message, void *user) {
    (void)level, (void)target, (void)message, (void)user;
}

static void wait_for(pid_t child) {
    int status = -1;
    CHECK(child > 0);
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "the child ended with status %#x%s\n", (unsigned)status,
                WIFSIGNALED(status) ? " (14: it hung)" : "");
        exit(1);
    }
}

static void child_uses_the_driver_first(void) {
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        CHECK(hbm_forked() == 0);
        void *block = vmm_malloc(MIB, 0, NULL);
        CHECK(block != NULL);
        vmm_free(block, MIB, 0, NULL);
        exit(0);
    }
    wait_for(child);
    CHECK(hbm_driver_used() == 0);
}

static void statistics_in_child(void) {
    hbm_block_stats_t of_blocks = {.struct_size = sizeof of_blocks};
    hbm_pool_stats_t of_pool = {.struct_size = sizeof of_pool};
    hbm_driver_stats_t of_driver = {.struct_size = sizeof of_driver};
    size_t count = 0;
    char name[256];
    EXPECT(HBM_FORKED, hbm_tag_stats(0, "any", &of_blocks));
    EXPECT(HBM_FORKED, hbm_stream_stats(0, NULL, &of_blocks));
    EXPECT(HBM_FORKED, hbm_stream_list(0, NULL, 0, &count));
    EXPECT(HBM_FORKED, hbm_pool_stats(0, &of_pool));
    EXPECT(HBM_FORKED, hbm_driver_stats(&of_driver));
    EXPECT(HBM_FORKED, hbm_tag_name(0, name, sizeof name));
    CHECK(hbm_tag_count() == 0);
}

/* Everything that a child inherits is called once. */
static void in_the_child(hbm_allocator_t *allocator, void *block, void *torch_block) {
    alarm(20);
    void *out = NULL, *function = NULL, *function_free = NULL;
    uint64_t released;
    int32_t count;
    size_t size;
    hbm_stats_t stats;
    hbm_option_t option;
    hbm_allocator_t *other = NULL;
    hbm_allocator_desc_t descriptor = descriptor_of(HBM_KIND_VMM, 0);
    stats.struct_size = sizeof stats;
    option.struct_size = sizeof option;

    CHECK(hbm_forked() == 1);
    for (int i = 0; i < ENTRY_COUNT; i++) {
        CHECK(ENTRIES[i](MIB, 0, NULL) == NULL);
        EXPECT_ERROR_TEXT("forked");
    }
    CHECK(tagged_malloc(MIB, 0, NULL) == NULL);
    EXPECT(HBM_FORKED, hbm_allocator_allocate(allocator, MIB, 0, NULL, &out));
    EXPECT(HBM_FORKED, hbm_allocator_create(&descriptor, &other));
    EXPECT(HBM_FORKED, hbm_allocator_stats(allocator, &stats));
    EXPECT(HBM_FORKED, hbm_allocator_trim(allocator, 0, &released));
    EXPECT(HBM_FORKED, hbm_stats(0, -1, &stats));
    statistics_in_child();
    EXPECT(HBM_FORKED, hbm_trim(0, 0, &released));
    EXPECT(HBM_FORKED, hbm_device_count(&count));
    EXPECT(HBM_FORKED, hbm_option_set("log", "warn"));
    EXPECT(HBM_FORKED, hbm_option_validate("log", "warn"));
    EXPECT(HBM_FORKED, hbm_option_get("log", NULL, 0, &size));
    EXPECT(HBM_FORKED, hbm_option_describe(0, &option));
    EXPECT(HBM_FORKED, hbm_log_set_callback(NULL, NULL));
    EXPECT(HBM_FORKED, hbm_torch_segment_functions(0, "new", &function, &function_free));
    CHECK(out == NULL && other == NULL);

    EXPECT(HBM_OK, hbm_allocator_record_stream(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    EXPECT(HBM_OK, hbm_stream_forget(0, NULL));
    char name[256];
    EXPECT(HBM_OK, hbm_tag_place("of the child", HBM_PLACEMENT_HOST));
    EXPECT(HBM_OK, hbm_tag_push("of the child"));
    EXPECT(HBM_OK, hbm_tag_pop());
    EXPECT(HBM_OK, hbm_set_default_tag("of the child"));
    EXPECT(HBM_OK, hbm_tag_current(name, sizeof name));
    uint64_t limit;
    EXPECT(HBM_FORKED, hbm_set_limit(0, MIB));
    EXPECT(HBM_FORKED, hbm_set_limit_fraction(-1, 0.5));
    EXPECT(HBM_FORKED, hbm_get_limit(0, &limit));
    EXPECT(HBM_FORKED, hbm_captures_told(1));
    EXPECT(HBM_FORKED, hbm_graph_begin(0, 1, 2));
    EXPECT(HBM_OK, hbm_graph_end(0, 1, 2));
    EXPECT(HBM_OK, hbm_graph_release(0, 1, 2));
    EXPECT(HBM_FORKED, hbm_tag_of(block, name, sizeof name));
    hbm_export_t export = {.struct_size = sizeof export, .kind = HBM_EXPORT_FABRIC, .chunk_bytes = 2 * MIB, .bytes = 2 * MIB};
    EXPECT(HBM_FORKED, hbm_import(&export, 0, &out));
    EXPECT(HBM_FORKED, hbm_export(torch_block, &export));
    EXPECT(HBM_FORKED, hbm_export_close(1));
    EXPECT(HBM_FORKED, hbm_import_close(torch_block));
    hbm_free(torch_block, MIB, 0, NULL);
    vmm_segment_free(torch_block, MIB, 0, NULL);
    hbm_torch_record_stream(torch_block, NULL);
    CHECK(hbm_torch_base_alloc(torch_block, &size) == torch_block);
    hbm_torch_set_hooked(1);
    hbm_torch_init(2);
    hbm_torch_reset();
    hbm_torch_memory_fraction(0.5, 0);
    hbm_torch_begin_allocate_to_pool(0, 1, 2, NULL);
    hbm_torch_end_allocate_to_pool(0, 1, 2);
    hbm_torch_release_pool(0, 1, 2);
    CHECK(hbm_driver_used() == 1 && hbm_version() == HBM_VERSION && hbm_option_count() > 0);
    CHECK(strcmp(hbm_status_name(HBM_FORKED), "forked process") == 0);
}

static void *hammer(void *argument) {
    uintptr_t which = (uintptr_t)argument;
    while (!atomic_load(&stop)) {
        hbm_allocator_t *allocator = allocator_of(HBM_KIND_VMM, (int32_t)(which % 2));
        hbm_stats_t stats;
        hbm_option_t option;
        void *blocks[4], *function, *function_free;
        stats.struct_size = sizeof stats;
        option.struct_size = sizeof option;
        for (int i = 0; i < 4; i++) {
            EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 1000, 0, NULL, &blocks[i]));
        }
        for (int i = 0; i < 4; i++) {
            EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, blocks[i], NULL));
        }
        EXPECT(HBM_OK, hbm_allocator_stats(allocator, &stats));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
        void *tagged = tagged_malloc(1000, 0, NULL);
        CHECK(tagged != NULL);
        hbm_free(tagged, 1000, 0, NULL);
        void *block = hbm_malloc(1000, 0, NULL);
        CHECK(block != NULL);
        hbm_free(block, 1000, 0, NULL);
        if (which == 0) {
            EXPECT(HBM_OK, hbm_option_set("log", "warn"));
            EXPECT(HBM_OK, hbm_option_set("prefetch_threshold", "1GiB"));
            EXPECT(HBM_OK, hbm_option_describe(0, &option));
            EXPECT(HBM_OK, hbm_log_set_callback(ignore, NULL));
            EXPECT(HBM_OK, hbm_torch_segment_functions(3, "tag", &function, &function_free));
        }
    }
    return NULL;
}

static void children_of_a_busy_process(void) {
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    hbm_allocator_t *allocator = allocator_of(HBM_KIND_ASYNC, 0);
    void *block = NULL, *address = NULL, *release = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
    void *torch_block = vmm_malloc(MIB, 0, NULL);
    /* This thread has caches, of its own stream too, which a child that exits takes down. */
    void *own = pool_malloc(1000, 0, (void *)2), *pooled = pool_malloc(1000, 0, NULL);
    CHECK(own != NULL && pooled != NULL);
    pool_free(own, 1000, 0, NULL);
    pool_free(pooled, 1000, 0, NULL);
    EXPECT(HBM_OK, hbm_torch_segment_functions(3, "tag", &address, &release));
    memcpy(&tagged_malloc, &address, sizeof tagged_malloc);
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, hammer, (void *)i) == 0);
    }
    for (int i = 0; i < FORKS; i++) {
        pid_t child = fork();
        if (child == 0) {
            in_the_child(allocator, block, torch_block);
            /* With and without exit handlers. */
            if (i % 2 == 0) {
                exit(0);
            }
            _exit(0);
        }
        wait_for(child);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    /* What the children freed is still ours. */
    CHECK(hbm_forked() == 0);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    vmm_free(torch_block, MIB, 0, NULL);
    for (int32_t device = 0; device < 2; device++) {
        EXPECT(HBM_OK, hbm_trim(device, 0, NULL));
        CHECK(stats_of(device, -1).reserved == 0);
    }
}

static sem_t initialising, forked;

/* The greeting is logged while the driver is being initialised. */
static void hold_initialisation(int32_t level, const char *target, const char *message, void *user) {
    (void)level, (void)target, (void)message, (void)user;
    sem_post(&initialising);
    sem_wait(&forked);
}

static void *initialise(void *unused) {
    (void)unused;
    int32_t count = 0;
    EXPECT(HBM_OK, hbm_device_count(&count));
    return NULL;
}

static void child_forked_while_the_driver_is_initialised(void) {
    pthread_t thread;
    CHECK(sem_init(&initialising, 0, 0) == 0 && sem_init(&forked, 0, 0) == 0);
    EXPECT(HBM_OK, hbm_option_set("log", "info"));
    EXPECT(HBM_OK, hbm_log_set_callback(hold_initialisation, NULL));
    CHECK(pthread_create(&thread, NULL, initialise, NULL) == 0);
    sem_wait(&initialising);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        CHECK(hbm_forked() == 1);
        CHECK(vmm_malloc(MIB, 0, NULL) == NULL);
        EXPECT_ERROR_TEXT("forked");
        exit(0);
    }
    sem_post(&forked);
    wait_for(child);
    CHECK(pthread_join(thread, NULL) == 0);
    EXPECT(HBM_OK, hbm_log_set_callback(NULL, NULL));
    EXPECT(HBM_OK, hbm_option_set("log", "off"));
}

/* A driver that cannot be opened is no loss for the child either. */
static void child_forked_after_the_driver_was_not_found(void) {
    EXPECT(HBM_OK, hbm_option_set("driver", "/no/such/driver.so"));
    CHECK(vmm_malloc(MIB, 0, NULL) == NULL);
    EXPECT_ERROR_TEXT("no driver");
    EXPECT(HBM_OK, hbm_option_set("driver", "sim"));
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        CHECK(hbm_forked() == 0 && vmm_malloc(MIB, 0, NULL) != NULL);
        exit(0);
    }
    wait_for(child);
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("log", "off"));
    child_uses_the_driver_first();
    child_forked_after_the_driver_was_not_found();
    child_forked_while_the_driver_is_initialised();
    children_of_a_busy_process();
    puts("forks: fine");
    return 0;
}
