/* Memory of the host as descriptors say it, by allocators and by itself: each kind the same, a line a kind; policies
 * as the system has them; what descriptors may not say; nothing left at the end. */
#define _GNU_SOURCE
#include "driver.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static hbm_host_blocks_t held(void) {
    hbm_host_blocks_t blocks = {.struct_size = sizeof blocks};
    EXPECT(HBM_OK, hbm_host_blocks(&blocks));
    return blocks;
}

static char name[64];

static hbm_allocator_desc_t of(int32_t kind) {
    hbm_allocator_desc_t descriptor = descriptor_of(kind, 0);
    if (kind == HBM_KIND_SHM) descriptor.shm_name = name;
    return descriptor;
}

static hbm_allocator_desc_t on_node(int32_t kind, int32_t policy, uint64_t nodes) {
    hbm_allocator_desc_t descriptor = of(kind);
    descriptor.numa_policy = policy;
    descriptor.numa_nodes = nodes;
    return descriptor;
}

static hbm_allocator_desc_t unpinned(int32_t kind) {
    hbm_allocator_desc_t descriptor = of(kind);
    descriptor.unpinned = 1;
    return descriptor;
}

static hbm_allocator_desc_t mapped(int32_t kind) {
    hbm_allocator_desc_t descriptor = of(kind);
    descriptor.host_flags = 2;
    return descriptor;
}

static int is_zero(const unsigned char *bytes, size_t size) {
    for (size_t at = 0; at < size; at += at % 4096 == 0 ? 4095 : 1) {
        if (bytes[at] != 0) return 0;
    }
    return bytes[size - 1] == 0;
}

static hbm_stats_t stats(hbm_allocator_t *allocator) {
    hbm_stats_t stats = {.struct_size = sizeof stats};
    EXPECT(HBM_OK, hbm_allocator_stats(allocator, &stats));
    return stats;
}

static void one_block(hbm_allocator_t *allocator, hbm_allocator_t *other, size_t size, size_t alignment, int is_pinned) {
    hbm_stats_t before = stats(allocator);
    void *block = NULL;
    EXPECT(HBM_OK, hbm_allocator_allocate(allocator, size, alignment, NULL, &block));
    CHECK(block != NULL && (uintptr_t)block % (alignment ? alignment : 256) == 0 && is_zero(block, size));
    memset(block, 7, size);
    hbm_stats_t during = stats(allocator);
    CHECK(during.requested == size && during.allocated >= size && during.reserved == during.allocated);
    CHECK(during.allocations == before.allocations + 1 && during.segments == 1 && during.peak_requested >= size);
    CHECK(held().blocks == 1 && held().requested == size && held().pinned == (is_pinned ? held().bytes : 0));
    EXPECT(HBM_OK, hbm_allocator_record_stream(allocator, block, NULL));
    EXPECT(HBM_BUSY, hbm_allocator_destroy(allocator));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(other, block, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, (char *)block + 256, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_pinned_ptr((uintptr_t)block));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_free_host_ptr((uintptr_t)block, size));
    EXPECT_ERROR_TEXT("given out by hbm_allocator_allocate");
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, block, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_allocator_record_stream(allocator, block, NULL));
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, NULL, NULL));
    hbm_stats_t after = stats(allocator);
    CHECK(after.requested == 0 && after.allocated == 0 && after.segments == 0 && held().blocks == 0);
    CHECK(after.deallocations == after.allocations && after.total_requested == before.total_requested + size);
}

/* Whether there is such memory here. */
static int kind(const char *what, hbm_allocator_desc_t descriptor, int is_pinned, size_t most_alignment) {
    hbm_allocator_t *allocator = NULL, *other = allocator_of(HBM_KIND_HEAP, 0);
    const size_t sizes[] = {1, 4096, 5 * MIB + 1};
    EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
    void *block = NULL;
    int status = hbm_allocator_allocate(allocator, 1, 0, NULL, &block);
    if (status == HBM_OUT_OF_MEMORY && strstr(hbm_last_error(), "huge pages") != NULL) {
        printf("SKIP %s: %s\n", what, hbm_last_error());
        CHECK(held().blocks == 0 && stats(allocator).out_of_memory == 1);
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
        EXPECT(HBM_OK, hbm_allocator_destroy(other));
        return 0;
    }
    EXPECT(HBM_OK, status);
    EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
    for (int i = 0; i < 3; i++) {
        one_block(allocator, other, sizes[i], 0, is_pinned);
        for (size_t alignment = 1; alignment <= most_alignment; alignment *= 8) {
            one_block(allocator, other, sizes[i], alignment, is_pinned);
        }
        one_block(allocator, other, sizes[i], most_alignment, is_pinned);
    }
    const size_t wrong[] = {0, SIZE_MAX, (size_t)1 << 62};
    for (int i = 0; i < 3; i++) {
        CHECK(hbm_allocator_allocate(allocator, wrong[i], 0, NULL, &block) != HBM_OK);
    }
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 1, 3, NULL, &block));
    if (most_alignment < 64 * MIB) {
        EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_allocate(allocator, 1, 64 * MIB, NULL, &block));
    }
    uint64_t released = 7;
    EXPECT(HBM_OK, hbm_allocator_trim(allocator, 0, &released));
    CHECK(released == 0 && held().blocks == 0);
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    EXPECT(HBM_OK, hbm_allocator_destroy(other));
    return 1;
}

/* What the system has: the policy of an address (get_mempolicy(2)), and the node that a page is on. */
static void expect_policy(uintptr_t address, int policy) {
    const int modes[] = {[HBM_NUMA_BIND] = 2, [HBM_NUMA_PREFERRED] = 1, [HBM_NUMA_INTERLEAVE] = 3};
    int mode = -1, node = -1;
    unsigned long mask[16] = {0};
    if (held().unbound > 0) {
        printf("SKIP policies: mbind is refused here\n");
        return;
    }
    if (syscall(SYS_get_mempolicy, &mode, mask, 1024UL, address, 2UL) != 0) {
        perror("SKIP policies: get_mempolicy");
        return;
    }
    CHECK(mode == modes[policy] && mask[0] == 1);
    CHECK(syscall(SYS_get_mempolicy, &node, NULL, 0UL, address, 3UL) == 0 && node == 0);
}

static void policies(void) {
    const int32_t kinds[] = {HBM_KIND_NUMA, HBM_KIND_PINNED_NUMA, HBM_KIND_SHM};
    for (int k = 0; k < 3; k++) {
        for (int policy = HBM_NUMA_BIND; policy <= HBM_NUMA_INTERLEAVE; policy++) {
            hbm_allocator_desc_t descriptor = on_node(kinds[k], policy, 1);
            uintptr_t block = hbm_alloc_host_ptr(3 * MIB, &descriptor);
            CHECK(block != 0);
            expect_policy(block + 2 * MIB, policy);
            EXPECT(HBM_INVALID_ARGUMENT, hbm_free_host_ptr(block, 2 * MIB));
            EXPECT(HBM_OK, hbm_free_host_ptr(block, 3 * MIB));
            EXPECT(HBM_NOT_OWNED, hbm_free_host_ptr(block, 3 * MIB));
        }
    }
    uintptr_t block = hbm_alloc_numa_ptr(MIB, 0);
    CHECK(block != 0);
    expect_policy(block, HBM_NUMA_BIND);
    EXPECT(HBM_OK, hbm_free_numa_ptr(block, MIB));
}

static void refused(hbm_allocator_desc_t descriptor, int32_t status, const char *text) {
    hbm_allocator_t *allocator = NULL;
    CHECK(hbm_alloc_host_ptr(MIB, &descriptor) == 0);
    EXPECT(status, hbm_last_status());
    EXPECT_ERROR_TEXT(text);
    if (descriptor.kind != HBM_KIND_DEVICE && hbm_allocator_create(&descriptor, &allocator) == HBM_OK) {
        void *block = NULL;
        EXPECT(status, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
        EXPECT_ERROR_TEXT(text);
        CHECK(block == NULL && stats(allocator).failed_allocations == 1);
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
    CHECK(held().blocks == 0);
}

static void wrong_descriptors(void) {
    hbm_allocator_desc_t descriptor;
    const int bad = HBM_INVALID_ARGUMENT;
    refused(on_node(HBM_KIND_NUMA, 0, (uint64_t)1 << 63), bad, "Nodes with memory here: 0");
    refused(on_node(HBM_KIND_NUMA, HBM_NUMA_INTERLEAVE, 1 | (uint64_t)1 << 40), bad, "no node 40");
    refused(on_node(HBM_KIND_PINNED_NUMA, 9, 1), bad, "policy 9");
    refused(on_node(HBM_KIND_HEAP, HBM_NUMA_BIND, 1), bad, "heap");
    refused(on_node(HBM_KIND_SHM, 0, 1), bad, "no policy");
    refused(of(HBM_KIND_DEVICE), bad, "none of the host's");
    refused(of(13), bad, "kind 13");
    refused(of(HBM_KIND_ARENA), bad, "");
    refused(of(HBM_KIND_CUSTOM), bad, "");
    refused(of(-1), bad, "kind -1");
    refused(mapped(HBM_KIND_NUMA), bad, "flags 0x2");
    refused(mapped(HBM_KIND_HEAP), bad, "flags 0x2");
    refused(unpinned(HBM_KIND_PINNED_NUMA), bad, "pinned or not");
    descriptor = mapped(HBM_KIND_HUGEPAGE);
    descriptor.host_flags = 4;
    refused(descriptor, bad, "flags 0x4");
    descriptor = of(HBM_KIND_NUMA);
    descriptor.numa_node = -1;
    refused(descriptor, bad, "unknown");
    descriptor = of(HBM_KIND_NUMA);
    descriptor.tag = "weights";
    refused(descriptor, bad, "no tag");
    descriptor = of(HBM_KIND_SHM);
    descriptor.shm_name = NULL;
    refused(descriptor, bad, "shm_name is NULL");
    descriptor.shm_name = "a/b";
    refused(descriptor, bad, "a/b");
    descriptor = of(HBM_KIND_SHM);
    descriptor.shm_attach = 1;
    refused(descriptor, bad, name);
    descriptor = of(HBM_KIND_HEAP);
    descriptor.page_bytes = 2 * MIB;
    refused(descriptor, bad, "only hugepage");
    descriptor = of(HBM_KIND_HUGEPAGE);
    descriptor.page_bytes = 4 * MIB;
    refused(descriptor, bad, "huge pages of 4194304");
    descriptor = of(HBM_KIND_NUMA);
    descriptor.struct_size = 25;
    refused(descriptor, bad, "struct_size");
    CHECK(hbm_alloc_host_ptr(MIB, NULL) == 0);
    hbm_allocator_t *allocator = NULL;
    descriptor = descriptor_of(HBM_KIND_VMM, 0);
    descriptor.numa_policy = HBM_NUMA_BIND;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_allocator_create(&descriptor, &allocator));
    EXPECT_ERROR_TEXT("memory of the host");
}

/* As many pages of 1 GiB as nobody has. */
static void large_pages(void) {
    hbm_allocator_desc_t descriptor = unpinned(HBM_KIND_HUGEPAGE);
    descriptor.page_bytes = 1024 * MIB;
    CHECK(hbm_alloc_host_ptr((size_t)1 << 46, &descriptor) == 0);
    EXPECT(HBM_OUT_OF_MEMORY, hbm_last_status());
    EXPECT_ERROR_TEXT("65536 huge pages of 1024 MiB are needed");
    descriptor.numa_policy = HBM_NUMA_BIND;
    uintptr_t block = hbm_alloc_host_ptr(5, &descriptor);
    if (block == 0) {
        printf("SKIP huge pages of 1 GiB: %s\n", hbm_last_error());
        EXPECT_ERROR_TEXT("1 huge pages of 1024 MiB are needed");
        return;
    }
    CHECK(held().bytes == 1024 * MIB && block % (1024 * MIB) == 0);
    EXPECT(HBM_OK, hbm_free_host_ptr(block, 5));
}

/* Both in one process, and without a driver. */
static void named(void) {
    hbm_allocator_desc_t make = unpinned(HBM_KIND_SHM), attach = unpinned(HBM_KIND_SHM);
    attach.shm_attach = 1;
    uintptr_t made = hbm_alloc_host_ptr(3 * MIB, &make);
    CHECK(made != 0 && held().pinned == 0);
    CHECK(hbm_alloc_host_ptr(3 * MIB, &make) == 0 && hbm_last_status() == HBM_BUSY);
    uintptr_t other = hbm_alloc_host_ptr(3 * MIB, &attach);
    CHECK(other != 0 && other != made);
    attach.numa_policy = HBM_NUMA_BIND;
    CHECK(hbm_alloc_host_ptr(3 * MIB, &attach) == 0 && hbm_last_status() == HBM_INVALID_ARGUMENT);
    EXPECT_ERROR_TEXT("its maker chose");
    *(volatile char *)made = 5;
    CHECK(*(volatile char *)other == 5);
    EXPECT(HBM_OK, hbm_free_host_ptr(other, 3 * MIB));
    CHECK(hbm_alloc_host_ptr(3 * MIB, &make) == 0 && hbm_last_status() == HBM_BUSY);
    EXPECT(HBM_OK, hbm_free_host_ptr(made, 3 * MIB));
    CHECK(held().blocks == 0);
}

/* Blocks that are still there at exit, and in a forked child that has none of them. */
static int leave(char *told) {
    const int32_t kinds[] = {HBM_KIND_HEAP, HBM_KIND_NUMA, HBM_KIND_SHM};
    strncpy(name, told, sizeof name - 1);
    for (int i = 0; i < 3; i++) {
        hbm_allocator_desc_t descriptor = kinds[i] == HBM_KIND_SHM ? unpinned(kinds[i]) : of(kinds[i]);
        hbm_allocator_t *allocator = NULL;
        void *block = NULL;
        EXPECT(HBM_OK, hbm_allocator_create(&descriptor, &allocator));
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
        pid_t child = fork();
        if (child == 0) {
            EXPECT(HBM_FORKED, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
            EXPECT(HBM_FORKED, hbm_allocator_deallocate(allocator, block, NULL));
            exit(0);
        }
        int status = 1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        *(volatile char *)block = 1;
    }
    char path[80];
    snprintf(path, sizeof path, "/dev/shm%s", name);
    /* The child's exit was not its maker's. */
    CHECK(access(path, F_OK) == 0);
    CHECK(hbm_driver_used() == 0 && held().blocks == 3);
    return 0;
}

static void leaving(void) {
    char path[80];
    int status = 1;
    snprintf(path, sizeof path, "/dev/shm%s-left", name);
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "host_kinds", path + strlen("/dev/shm"), (char *)NULL);
        _exit(9);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(access(path, F_OK) != 0);
}

int main(int count, char **arguments) {
    if (count == 2) return leave(arguments[1]);
    snprintf(name, sizeof name, "/hbmalloc-kinds-%ld", (long)getpid());
    named();
    leaving();
    kind("heap", of(HBM_KIND_HEAP), 0, 64 * MIB);
    kind("numa", of(HBM_KIND_NUMA), 0, 2 * MIB);
    kind("numa in turn", on_node(HBM_KIND_NUMA, HBM_NUMA_INTERLEAVE, 1), 0, 2 * MIB);
    kind("numa preferred", on_node(HBM_KIND_NUMA, HBM_NUMA_PREFERRED, 0), 0, 2 * MIB);
    kind("shm unpinned", unpinned(HBM_KIND_SHM), 0, 2 * MIB);
    kind("hugepage unpinned", unpinned(HBM_KIND_HUGEPAGE), 0, 2 * MIB);
    CHECK(hbm_driver_used() == 0);
    wrong_descriptors();
    kind("pinned_numa", of(HBM_KIND_PINNED_NUMA), 1, 2 * MIB);
    kind("pinned_numa mapped", mapped(HBM_KIND_PINNED_NUMA), 1, 2 * MIB);
    kind("shm", of(HBM_KIND_SHM), 1, 2 * MIB);
    kind("hugepage", of(HBM_KIND_HUGEPAGE), 1, 2 * MIB);
    kind("hugepage on a node", on_node(HBM_KIND_HUGEPAGE, HBM_NUMA_BIND, 1), 1, 2 * MIB);
    policies();
    large_pages();
    CHECK(faults() == 0 && held().blocks == 0);
    return 0;
}
