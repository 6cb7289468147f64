/* Memory of the host by the functions that LMCache knows: what each gives, who may give it back and how, what a
 * driver that fails leaves, and nothing left at the end. */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

static hbm_host_blocks_t held(void) {
    hbm_host_blocks_t blocks;
    memset(&blocks, 0xEE, sizeof blocks);
    blocks.struct_size = sizeof blocks;
    EXPECT(HBM_OK, hbm_host_blocks(&blocks));
    return blocks;
}

static void fail(const char *call, int code, uint64_t times) {
    int (*arm)(const char *, uint64_t, int, uint64_t);
    look_up("hbmsim_fail", &arm);
    CHECK(arm(call, 1, code, times) == 0);
}

static void clear(void) {
    void (*clear_all)(void);
    look_up("hbmsim_fail_clear", &clear_all);
    clear_all();
}

/* All of it can be written to, and was zero. */
static void use(uintptr_t address, size_t size) {
    unsigned char *bytes = (unsigned char *)address;
    for (size_t at = 0; at < size; at += 4096) {
        CHECK(bytes[at] == 0);
        bytes[at] = 1;
    }
    CHECK(bytes[size - 1] <= 1);
    bytes[size - 1] = 2;
}

static void on_a_node_without_a_driver(void) {
    uintptr_t block = hbm_alloc_numa_ptr(70 * MIB + 5, 0);
    CHECK(block != 0 && block % (2 * MIB) == 0);
    use(block, 70 * MIB + 5);
    hbm_host_blocks_t now = held();
    CHECK(now.blocks == 1 && now.requested == 70 * MIB + 5 && now.bytes == 72 * MIB && now.pinned == 0);
    CHECK(hbm_driver_used() == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_numa_ptr(block, 70 * MIB));
    EXPECT_ERROR_TEXT("73400325 bytes, not 73400320");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_pinned_ptr(block));
    EXPECT_ERROR_TEXT("given out by hbm_alloc_numa_ptr");
    EXPECT(HBM_NOT_OWNED, hbm_free_numa_ptr(block + 4096, 70 * MIB + 5));
    CHECK(held().blocks == 1);
    EXPECT(HBM_OK, hbm_free_numa_ptr(block, 70 * MIB + 5));
    EXPECT(HBM_NOT_OWNED, hbm_free_numa_ptr(block, 70 * MIB + 5));
    EXPECT_ERROR_TEXT("freed before");
    CHECK(held().blocks == 0);
}

/* The pages are not in a child, which may have others at their addresses. */
static void in_a_child(void) {
    CHECK(hbm_alloc_numa_ptr(4 * MIB, 1023) == 0);
    uintptr_t block = hbm_alloc_numa_ptr(4 * MIB, 0);
    CHECK(block != 0);
    EXPECT(HBM_OK, hbm_free_numa_ptr(block, 4 * MIB));
    /* A parent that had some, and has none any more, has nothing that a child could lose. */
    pid_t free_child = fork();
    if (free_child == 0) {
        block = hbm_alloc_numa_ptr(4 * MIB, 0);
        CHECK(block != 0 && held().blocks == 1);
        use(block, 4 * MIB);
        EXPECT(HBM_OK, hbm_free_numa_ptr(block, 4 * MIB));
        _exit(0);
    }
    int free_status = 1;
    CHECK(waitpid(free_child, &free_status, 0) == free_child && free_status == 0);
    block = hbm_alloc_numa_ptr(4 * MIB, 0);
    CHECK(block != 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(hbm_alloc_numa_ptr(4 * MIB, 0) == 0 && hbm_last_status() == HBM_FORKED);
        EXPECT(HBM_FORKED, hbm_free_numa_ptr(block, 4 * MIB));
        _exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    use(block, 4 * MIB);
    EXPECT(HBM_OK, hbm_free_numa_ptr(block, 4 * MIB));
}

static void wrong_arguments(void) {
    const int nodes[] = {-1, -2, 1023, 64, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof nodes / sizeof nodes[0]; i++) {
        CHECK(hbm_alloc_numa_ptr(MIB, nodes[i]) == 0);
        EXPECT_ERROR_TEXT("Nodes with memory here: 0");
        CHECK(hbm_alloc_pinned_numa_ptr(MIB, nodes[i]) == 0);
        CHECK(hbm_alloc_hugepage_pinned_numa_ptr(MIB, nodes[i]) == 0);
    }
    const size_t sizes[] = {0, SIZE_MAX, SIZE_MAX - 4095, (size_t)1 << 50};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        CHECK(hbm_alloc_pinned_ptr(sizes[i], 0) == 0);
        CHECK(hbm_alloc_numa_ptr(sizes[i], 0) == 0);
        CHECK(hbm_alloc_hugepage_pinned_ptr(sizes[i], 0) == 0);
    }
    CHECK(hbm_alloc_numa_ptr((size_t)1 << 46, 0) == 0);
    EXPECT_ERROR_TEXT("bytes left");
    CHECK(hbm_last_status() == HBM_OUT_OF_MEMORY);
    CHECK(hbm_alloc_pinned_ptr((size_t)1 << 46, 4) == 0);
    EXPECT_ERROR_TEXT("bytes left");
    hbm_allocator_desc_t heap;
    memset(&heap, 0, sizeof heap);
    heap.struct_size = sizeof heap;
    heap.kind = HBM_KIND_HEAP;
    CHECK(hbm_alloc_host_ptr((size_t)1 << 46, &heap) == 0);
    EXPECT_ERROR_TEXT("bytes left");
    CHECK(hbm_alloc_pinned_ptr(MIB, 8) == 0);
    CHECK(hbm_last_status() == HBM_INVALID_ARGUMENT);
    EXPECT_ERROR_TEXT("flags 0x8");
    CHECK(hbm_alloc_hugepage_pinned_ptr(MIB, 4) == 0);
    EXPECT(HBM_NOT_OWNED, hbm_free_pinned_ptr(0));
    EXPECT(HBM_NOT_OWNED, hbm_free_hugepage_pinned_numa_ptr(4096, 4096));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_host_blocks(NULL));
    CHECK(held().blocks == 0);
}

/* The simulated driver says it; the system has no such device on its bus. */
static void nearest_node(void) {
    int node = 7;
    EXPECT(HBM_OK, hbm_nearest_numa_node(0, &node));
    CHECK(node == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_nearest_numa_node(99, &node));
    CHECK(node == -1);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_nearest_numa_node(-1, &node));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_nearest_numa_node(0, NULL));
}

static void pinned(void) {
    for (unsigned flags = 0; flags < 8; flags++) {
        uintptr_t block = hbm_alloc_pinned_ptr(3 * MIB, flags);
        CHECK(block != 0 && block % 4096 == 0);
        ((unsigned char *)block)[3 * MIB - 1] = 1;
        CHECK(held().pinned >= 3 * MIB);
        size_t count = 9;
        uint64_t ends[2] = {7, 7};
        EXPECT(HBM_OK, hbm_host_seams(block, NULL, 0, &count));
        CHECK(count == 1);
        EXPECT(HBM_OK, hbm_host_seams(block, ends, 2, &count));
        CHECK(count == 1 && ends[0] >= 3 * MIB && ends[1] == 7);
        EXPECT(HBM_NOT_OWNED, hbm_host_seams(block + 4096, NULL, 0, &count));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_host_seams(block, NULL, 1, &count));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_host_seams(block, ends, 2, NULL));
        EXPECT(HBM_INVALID_ARGUMENT, hbm_free_pinned_numa_ptr(block, 3 * MIB));
        EXPECT(HBM_OK, hbm_free_pinned_ptr(block));
        EXPECT(HBM_NOT_OWNED, hbm_free_pinned_ptr(block));
    }
    uintptr_t small = hbm_alloc_pinned_numa_ptr(1, 0);
    CHECK(small != 0 && held().bytes == 4096 && held().pinned == 4096);
    use(small, 4096);
    EXPECT(HBM_OK, hbm_free_pinned_numa_ptr(small, 1));
    CHECK(held().blocks == 0);
}

static void from_pages_set_aside(void) {
    uintptr_t block = hbm_alloc_hugepage_pinned_ptr(3 * MIB, 0);
    if (block == 0) {
        printf("SKIP huge pages: %s\n", hbm_last_error());
        EXPECT_ERROR_TEXT("2 huge pages of 2 MiB are needed");
        return;
    }
    use(block, 3 * MIB);
    CHECK(held().bytes == 4 * MIB);
    EXPECT(HBM_OK, hbm_free_hugepage_pinned_ptr(block, 3 * MIB));
    block = hbm_alloc_hugepage_pinned_numa_ptr(2 * MIB, 0);
    CHECK(block != 0);
    EXPECT(HBM_OK, hbm_free_hugepage_pinned_numa_ptr(block, 2 * MIB));
}

static void a_driver_that_fails(void) {
    fail("cuMemHostRegister_v2", 2, 1);
    CHECK(hbm_alloc_pinned_numa_ptr(8 * MIB, 0) == 0);
    CHECK(hbm_last_driver_code() == 2);
    EXPECT_ERROR_TEXT("ulimit -l");
    fail("cuMemHostAlloc", 2, 1);
    CHECK(hbm_alloc_pinned_ptr(8 * MIB, 4) == 0);
    CHECK(held().blocks == 0);
    clear();
    uintptr_t block = hbm_alloc_pinned_ptr(8 * MIB, 0);
    CHECK(block != 0);
    fail("cuMemHostUnregister", 999, 1);
    EXPECT(HBM_DRIVER, hbm_free_pinned_ptr(block));
    EXPECT_ERROR_TEXT("still allocated");
    use(block, 8 * MIB);
    CHECK(held().blocks == 1);
    EXPECT(HBM_OK, hbm_free_pinned_ptr(block));
    block = hbm_alloc_pinned_ptr(8 * MIB, 4);
    CHECK(block != 0);
    fail("cuMemFreeHost", 999, 1);
    EXPECT(HBM_DRIVER, hbm_free_pinned_ptr(block));
    EXPECT(HBM_OK, hbm_free_pinned_ptr(block));
    clear();
    CHECK(held().blocks == 0);
}

/* What a process makes another sees; what a killed one leaves is no obstacle. */
static void shared(void) {
    char name[64], path[80];
    snprintf(name, sizeof name, "/hbmalloc-test-host-%ld", (long)getpid());
    snprintf(path, sizeof path, "/dev/shm%s", name);
    uintptr_t block = hbm_alloc_shm_pinned_ptr(5 * MIB, name);
    CHECK(block != 0 && block % (2 * MIB) == 0);
    use(block, 5 * MIB);
    CHECK(held().blocks == 1 && held().pinned == 6 * MIB);
    CHECK(hbm_alloc_shm_pinned_ptr(5 * MIB, name) == 0);
    EXPECT_ERROR_TEXT("a process that lives");
    uintptr_t other = hbm_attach_shm_pinned_ptr(5 * MIB, name + 1);
    CHECK(other != 0 && other != block && ((unsigned char *)other)[4096] == 1);
    CHECK(hbm_attach_shm_pinned_ptr(100 * MIB, name) == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_shm_pinned_ptr(block, 4 * MIB, name));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_shm_pinned_ptr(block, 5 * MIB, "/another"));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_shm_pinned_ptr(block, 5 * MIB, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_pinned_ptr(block));
    fail("cuMemHostUnregister", 999, 1);
    EXPECT(HBM_DRIVER, hbm_free_shm_pinned_ptr(block, 5 * MIB, name));
    CHECK(access(path, F_OK) == 0);
    EXPECT(HBM_OK, hbm_free_shm_pinned_ptr(block, 5 * MIB, name));
    CHECK(access(path, F_OK) != 0);
    CHECK(((unsigned char *)other)[4096] == 1);
    EXPECT(HBM_OK, hbm_free_shm_pinned_ptr(other, 5 * MIB, name));
    CHECK(hbm_attach_shm_pinned_ptr(MIB, name) == 0);
    fail("cuMemHostRegister_v2", 2, 1);
    CHECK(hbm_alloc_shm_pinned_ptr(MIB, name) == 0);
    CHECK(access(path, F_OK) != 0);
    clear();

    pid_t child = fork();
    if (child == 0) {
        /* A child that uses the library from the beginning: this one's driver is not its own. */
        execl("/proc/self/exe", "host", "die", name, (char *)NULL);
        _exit(9);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(access(path, F_OK) == 0);
    block = hbm_alloc_shm_pinned_ptr(3 * MIB, name);
    CHECK(block != 0);
    use(block, 3 * MIB);
    EXPECT(HBM_OK, hbm_free_shm_pinned_ptr(block, 3 * MIB, name));

    /* While a child has it, it is the child's, and its contents are seen here. */
    int pipes[2];
    char byte = 0;
    CHECK(pipe(pipes) == 0);
    child = fork();
    if (child == 0) {
        dup2(pipes[1], 1);
        execl("/proc/self/exe", "host", "stay", name, (char *)NULL);
        _exit(9);
    }
    CHECK(read(pipes[0], &byte, 1) == 1 && byte == 'r');
    CHECK(hbm_alloc_shm_pinned_ptr(MIB, name) == 0);
    EXPECT_ERROR_TEXT("a process that lives");
    other = hbm_attach_shm_pinned_ptr(MIB, name);
    CHECK(other != 0 && ((unsigned char *)other)[0] == 42);
    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(((unsigned char *)other)[0] == 42);
    CHECK(hbm_attach_shm_pinned_ptr(MIB, name) == 0);
    EXPECT_ERROR_TEXT("nobody who lives");
    EXPECT(HBM_OK, hbm_free_shm_pinned_ptr(other, MIB, name));
    CHECK(unlink(path) == 0);
    child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "host", "leave", name, (char *)NULL);
        _exit(9);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(access(path, F_OK) != 0);
    CHECK(held().blocks == 0);
}

static int as_a_child(const char *what, const char *name) {
    uintptr_t block = hbm_alloc_shm_pinned_ptr(MIB, name);
    CHECK(block != 0);
    *(unsigned char *)block = 42;
    if (strcmp(what, "stay") == 0) {
        CHECK(write(1, "r", 1) == 1);
        sleep(60);
    }
    if (strcmp(what, "leave") == 0) return 0;
    return raise(SIGKILL);
}

static void *beside(void *argument) {
    (void)argument;
    for (size_t i = 1; i <= 40; i++) {
        uintptr_t one = hbm_alloc_numa_ptr(i * 100000, 0), other = hbm_alloc_pinned_ptr(i * 50000, 0);
        CHECK(one != 0 && other != 0);
        ((char *)one)[i * 100000 - 1] = 1;
        ((char *)other)[i * 50000 - 1] = 1;
        EXPECT(HBM_OK, hbm_free_numa_ptr(one, i * 100000));
        EXPECT(HBM_OK, hbm_free_pinned_ptr(other));
    }
    return NULL;
}

int main(int count, char **arguments) {
    if (count == 3) return as_a_child(arguments[1], arguments[2]);
    on_a_node_without_a_driver();
    in_a_child();
    wrong_arguments();
    nearest_node();
    pinned();
    from_pages_set_aside();
    a_driver_that_fails();
    shared();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, beside, NULL) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(held().blocks == 0 && held().bytes == 0 && held().pinned == 0);
    return 0;
}
