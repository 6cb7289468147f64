/* torch_memory_saver's functions under LD_PRELOAD, as its Python uses them: regions, tags, pause and resume, contents.
 * Linked with the stand-in runtime only; what the preload library has is looked up. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cudaMalloc(void **, size_t);
int cudaFree(void *);
int cudaMemcpy(void *, const void *, size_t, int);
int cudaMemsetAsync(void *, int, size_t, void *);
int cudaMemGetInfo(size_t *, size_t *);
int cudaDeviceSynchronize(void);

#define MIB ((size_t)1 << 20)
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, last_error());                          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define FUNCTIONS(X)                                                                                                   \
    X(int, tms_pause, (const char *))                                                                                  \
    X(int, tms_resume, (const char *))                                                                                 \
    X(uint8_t *, tms_get_cpu_backup_pointer, (const uint8_t *, uint64_t))                                              \
    X(void, tms_set_interesting_region, (bool))                                                                        \
    X(bool, tms_get_interesting_region, (void))                                                                        \
    X(void, tms_set_current_tag, (const char *))                                                                       \
    X(const char *, tms_get_current_tag, (void))                                                                       \
    X(void, tms_set_enable_cpu_backup, (bool))                                                                         \
    X(bool, tms_get_enable_cpu_backup, (void))                                                                         \
    X(void, tms_set_enable_disk_backup, (bool))                                                                        \
    X(bool, tms_get_enable_disk_backup, (void))                                                                        \
    X(void, tms_set_cpu_backup_backend, (const char *))                                                                \
    X(const char *, tms_get_cpu_backup_backend, (void))                                                                \
    X(void, tms_set_disk_backup_dir, (const char *))                                                                   \
    X(void, tms_set_retain_cpu_backup, (bool))                                                                         \
    X(bool, tms_get_retain_cpu_backup, (void))                                                                         \
    X(void, set_memory_margin_bytes, (uint64_t))                                                                       \
    X(void *, tms_torch_malloc, (ptrdiff_t, int, void *))                                                              \
    X(void, tms_torch_free, (void *, ptrdiff_t, int, void *))                                                          \
    X(const char *, hbm_last_error, (void))                                                                            \
    X(int, hbm_tag_of, (const void *, char *, size_t))

#define DECLARE(result, name, arguments) static result(*name) arguments;
FUNCTIONS(DECLARE)

static const char *last_error(void) { return hbm_last_error == NULL ? "" : hbm_last_error(); }

static void look_up(void) {
#define LOOK_UP(result, name, arguments)                                                                               \
    *(void **)&name = dlsym(RTLD_DEFAULT, #name);                                                                      \
    if (name == NULL) {                                                                                                \
        fprintf(stderr, "no %s\n", #name);                                                                             \
        exit(1);                                                                                                       \
    }
    FUNCTIONS(LOOK_UP)
}

enum fate { NOWHERE, HOST, FILES };

static void region(const char *tag, enum fate fate) {
    tms_set_current_tag(tag);
    tms_set_interesting_region(true);
    tms_set_enable_cpu_backup(fate == HOST);
    tms_set_enable_disk_backup(fate == FILES);
}

static void out_of_regions(void) { region("default", NOWHERE), tms_set_interesting_region(false); }

static unsigned char *block(const char *tag, enum fate fate, size_t bytes, int byte) {
    void *address = NULL;
    if (tag != NULL) region(tag, fate);
    CHECK(cudaMalloc(&address, bytes) == 0 && address != NULL);
    out_of_regions();
    CHECK(cudaMemsetAsync(address, byte, bytes, NULL) == 0);
    return address;
}

static bool holds(const unsigned char *address, int byte, size_t bytes) {
    unsigned char *copy = malloc(bytes);
    CHECK(cudaMemcpy(copy, address, bytes, 4) == 0);
    bool is_all = true;
    for (size_t i = 0; i < bytes; i++) is_all = is_all && copy[i] == (unsigned char)byte;
    free(copy);
    return is_all;
}

/* What the driver says, past the preload library, which counts what the pool has cached as well. */
static size_t free_of_driver(void) {
    void *runtime = dlopen("libcudart.so.13", RTLD_NOW | RTLD_NOLOAD);
    int (*ask)(size_t *, size_t *) = NULL;
    *(void **)&ask = dlsym(runtime, "cudaMemGetInfo");
    size_t free = 0, total = 0;
    CHECK(ask != NULL && ask(&free, &total) == 0);
    return free;
}

/* As programs ask. */
static size_t free_bytes(void) {
    size_t free = 0, total = 0;
    CHECK(cudaMemGetInfo(&free, &total) == 0);
    return free;
}

static void what_a_thread_begins_with(void) {
    CHECK(!tms_get_interesting_region() && !tms_get_enable_cpu_backup() && !tms_get_enable_disk_backup());
    CHECK(strcmp(tms_get_current_tag(), "default") == 0 && strcmp(tms_get_cpu_backup_backend(), "pinned") == 0);
    CHECK(!tms_get_retain_cpu_backup());
    CHECK(tms_pause(NULL) == 0 && tms_resume(NULL) == 0 && tms_pause("nobody") == 0 && tms_resume("nobody") == 0);
    CHECK(tms_get_cpu_backup_pointer(NULL, 1) == NULL);
}

static void every_fate(void) {
    size_t each = 70 * MIB;
    unsigned char *weights = block("weights", HOST, each, 1), *cache = block("cache", NOWHERE, each, 2);
    unsigned char *cold = block("cold", FILES, each, 3), *plain = block(NULL, NOWHERE, each, 4);
    unsigned char *small = block("weights", HOST, 700, 5);
    char tag[256];
    CHECK(hbm_tag_of(weights, tag, sizeof tag) == 0 && strcmp(tag, "tms.host.weights") == 0);
    CHECK(hbm_tag_of(plain, tag, sizeof tag) == 0 && strcmp(tag, "") == 0);
    size_t awake = free_bytes(), awake_driver = free_of_driver();

    CHECK(tms_get_cpu_backup_pointer(weights, each) == NULL);
    CHECK(tms_pause("weights") == 0);
    size_t without_weights = free_bytes();
    CHECK(without_weights >= awake + each && free_of_driver() >= awake_driver + each);
    CHECK(tms_pause("weights") == 0 && free_bytes() == without_weights);
    uint8_t *saved = tms_get_cpu_backup_pointer(weights, each);
    CHECK(saved != NULL && saved[0] == 1 && saved[each - 1] == 1 && memcmp(saved, saved + 1, each - 1) == 0);
    CHECK(tms_get_cpu_backup_pointer(weights, each) == saved);
    uint8_t *part = tms_get_cpu_backup_pointer(weights + 64, 512);
    CHECK(part != NULL && part[0] == 1 && part[511] == 1);
    saved = tms_get_cpu_backup_pointer(small, 700);
    CHECK(saved != NULL && saved[0] == 5 && saved[699] == 5);
    CHECK(tms_get_cpu_backup_pointer(cache, each) == NULL && tms_get_cpu_backup_pointer(plain, each) == NULL);

    CHECK(tms_pause(NULL) == 0);
    CHECK(free_bytes() >= awake + 3 * each && free_of_driver() >= awake_driver + 3 * each);
    CHECK(tms_get_cpu_backup_pointer(cold, each) == NULL && tms_get_cpu_backup_pointer(cache, each) == NULL);
    CHECK(holds(plain, 4, each));
    CHECK(tms_resume("cache") == 0 && tms_resume("cache") == 0);
    CHECK(cudaMemsetAsync(cache, 6, each, NULL) == 0 && holds(cache, 6, each));
    CHECK(tms_resume("") == 0 && tms_resume(NULL) == 0);
    CHECK(holds(weights, 1, each) && holds(small, 5, 700) && holds(cold, 3, each) && holds(cache, 6, each));
    CHECK(tms_get_cpu_backup_pointer(weights, each) == NULL);

    /* Freed asleep. */
    CHECK(tms_pause(NULL) == 0);
    CHECK(cudaFree(weights) == 0 && cudaFree(cold) == 0);
    CHECK(tms_resume(NULL) == 0);
    CHECK(holds(small, 5, 700));
    CHECK(cudaFree(cache) == 0 && cudaFree(plain) == 0 && cudaFree(small) == 0);
}

static void what_is_retained(void) {
    size_t bytes = 5 * MIB;
    unsigned char *weights = block("kept", HOST, bytes, 7);
    tms_set_retain_cpu_backup(true);
    CHECK(tms_get_retain_cpu_backup());
    CHECK(tms_pause("kept") == 0 && tms_resume("kept") == 0);
    CHECK(cudaMemsetAsync(weights, 8, bytes, NULL) == 0 && cudaDeviceSynchronize() == 0);
    uint8_t *saved = tms_get_cpu_backup_pointer(weights, bytes);
    CHECK(saved != NULL && saved[0] == 7 && saved[bytes - 1] == 7);
    CHECK(tms_pause("kept") == 0 && tms_resume("kept") == 0);
    CHECK(holds(weights, 8, bytes));
    tms_set_retain_cpu_backup(false);
    CHECK(tms_pause("kept") == 0 && tms_resume("kept") == 0);
    CHECK(tms_get_cpu_backup_pointer(weights, bytes) == NULL && holds(weights, 8, bytes));
    CHECK(cudaFree(weights) == 0);
}

static void what_is_refused(void) {
    void *address = NULL;
    region("both", HOST);
    tms_set_enable_disk_backup(true);
    CHECK(cudaMalloc(&address, MIB) != 0 && address == NULL);
    region("margin", HOST);
    set_memory_margin_bytes((uint64_t)1 << 50);
    CHECK(cudaMalloc(&address, MIB) == 2 && address == NULL);
    CHECK(tms_torch_malloc((ptrdiff_t)MIB, 0, NULL) == NULL);
    set_memory_margin_bytes(MIB);
    CHECK(cudaMalloc(&address, MIB) == 0 && cudaFree(address) == 0);
    set_memory_margin_bytes(0);
    tms_set_cpu_backup_backend("shelf");
    CHECK(strcmp(tms_get_cpu_backup_backend(), "pinned") == 0);
    tms_set_cpu_backup_backend("mmap");
    CHECK(strcmp(tms_get_cpu_backup_backend(), "mmap") == 0);
    tms_set_cpu_backup_backend("pinned");
    tms_set_current_tag(NULL);
    CHECK(strcmp(tms_get_current_tag(), "margin") == 0);
    out_of_regions();

    /* A folder that is none: nothing sleeps, and what is right later works. */
    unsigned char *cold = block("cold", FILES, 3 * MIB, 9);
    tms_set_disk_backup_dir("/nowhere/at/all");
    CHECK(tms_pause("cold") != 0 && holds(cold, 9, 3 * MIB));
    tms_set_disk_backup_dir(getenv("SAVER_FOLDER"));
    CHECK(tms_pause("cold") == 0 && tms_resume("cold") == 0 && holds(cold, 9, 3 * MIB));
    CHECK(cudaFree(cold) == 0);
}

/* What is freed while it is paused is nobody's before it is back. */
static void freed_while_paused(void) {
    enum { COUNT = 300 };
    void *blocks[COUNT];
    region("gone", NOWHERE);
    for (int i = 0; i < COUNT; i++) CHECK(cudaMalloc(&blocks[i], 4096) == 0);
    out_of_regions();
    CHECK(tms_pause("gone") == 0);
    for (int i = 0; i < COUNT; i++) CHECK(cudaFree(blocks[i]) == 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) blocks[i] = block("gone", NOWHERE, 4096, i);
        for (int i = 0; i < COUNT; i++) CHECK(holds(blocks[i], i, 4096));
        for (int i = 0; i < COUNT; i++) CHECK(cudaFree(blocks[i]) == 0);
    }
    CHECK(tms_resume("gone") == 0);
}

static void segments_of_torch(void) {
    region("torch", HOST);
    unsigned char *segment = tms_torch_malloc((ptrdiff_t)(20 * MIB), 0, NULL);
    CHECK(segment != NULL && tms_torch_malloc(0, 0, NULL) == NULL && tms_torch_malloc(-1, 0, NULL) == NULL);
    out_of_regions();
    unsigned char *outside = tms_torch_malloc((ptrdiff_t)(2 * MIB), 0, NULL);
    CHECK(cudaMemsetAsync(segment, 1, 20 * MIB, NULL) == 0 && cudaMemsetAsync(outside, 2, 2 * MIB, NULL) == 0);
    CHECK(tms_pause(NULL) == 0);
    CHECK(tms_get_cpu_backup_pointer(segment, 20 * MIB) != NULL && holds(outside, 2, 2 * MIB));
    CHECK(tms_resume(NULL) == 0 && holds(segment, 1, 20 * MIB));
    tms_torch_free(segment, 20 * MIB, 0, NULL);
    tms_torch_free(outside, 2 * MIB, 0, NULL);
}

static void *thread(void *number) {
    char tag[16];
    snprintf(tag, sizeof tag, "thread%d", *(int *)number);
    CHECK(!tms_get_interesting_region() && strcmp(tms_get_current_tag(), "default") == 0);
    for (int round = 0; round < 20; round++) {
        unsigned char *mine = block(tag, round % 2 ? HOST : FILES, 3 * MIB, round);
        CHECK(tms_pause(tag) == 0 && tms_pause(tag) == 0);
        CHECK(tms_resume(tag) == 0 && holds(mine, round, 3 * MIB));
        CHECK(cudaFree(mine) == 0);
    }
    return NULL;
}

int main(void) {
    look_up();
    what_a_thread_begins_with();
    every_fate();
    what_is_retained();
    what_is_refused();
    freed_while_paused();
    segments_of_torch();
    pthread_t threads[4];
    int numbers[4] = {0, 1, 2, 3};
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, thread, &numbers[i]) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    puts("done");
    return 0;
}
