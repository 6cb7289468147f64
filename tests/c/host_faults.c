/* Memory of the host while every system call and every registration that makes it fails once, at each of its positions:
 * nothing of it is left, no name, no descriptor, no registration, and the next call works. The program's own
 * definitions of the calls come before the C library's. */
#define _GNU_SOURCE
#include "driver.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum call { MMAP, MBIND, POPULATE, ADVICE, OPEN, ALLOCATE, TRUNCATE, CHMOD, LOCK, LINK, THREAD, CALLS };

static const char *const names[CALLS] = {"mmap", "syscall", "madvise", "madvise", "open64", "fallocate", "ftruncate64", "fchmod", "fcntl", "linkat", "pthread_create"};

/* The call that fails, how many of it pass before, whether those after it fail too, and with what error. */
static struct {
    enum call call;
    long passing;
    int is_lasting, error;
} plan = {CALLS, 0, 0, 0};
static int has_failed;

/* Threads that populate come here too. */
static int fails(enum call call) {
    if (__atomic_load_n(&plan.call, __ATOMIC_SEQ_CST) != call) return 0;
    long before = __atomic_fetch_sub(&plan.passing, 1, __ATOMIC_SEQ_CST);
    if (before != 0 && !(plan.is_lasting && before < 0)) return 0;
    __atomic_store_n(&has_failed, 1, __ATOMIC_SEQ_CST);
    errno = plan.error;
    return 1;
}

static void *next(enum call call) {
    void *function = dlsym(RTLD_NEXT, names[call]);
    if (function == NULL) abort();
    return function;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t);
    *(void **)&real = next(MMAP);
    /* Not those of threads' stacks, of the heap and of the simulated driver, which are not what is tested. */
    int is_ours = bytes >= 2 * MIB && (flags & (MAP_NORESERVE | MAP_HUGETLB) || (flags & MAP_SHARED && flags & MAP_FIXED));
    return is_ours && fails(MMAP) ? MAP_FAILED : real(at, bytes, protection, flags, fd, offset);
}

long syscall(long number, ...) {
    long (*real)(long, ...), at[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) at[i] = va_arg(rest, long);
    va_end(rest);
    *(void **)&real = next(MBIND);
    return number == SYS_mbind && fails(MBIND) ? -1 : real(number, at[0], at[1], at[2], at[3], at[4], at[5]);
}

int madvise(void *at, size_t bytes, int advice) {
    int (*real)(void *, size_t, int);
    *(void **)&real = next(ADVICE);
    /* 23 is MADV_POPULATE_WRITE. */
    return bytes >= 4096 && fails(advice == 23 ? POPULATE : ADVICE) ? -1 : real(at, bytes, advice);
}

int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    *(void **)&real = next(OPEN);
    return strncmp(path, "/dev/shm", 8) == 0 && fails(OPEN) ? -1 : real(path, flags, mode);
}

int fallocate(int fd, int mode, off_t at, off_t bytes) {
    int (*real)(int, int, off_t, off_t);
    *(void **)&real = next(ALLOCATE);
    return mode == 0 && fails(ALLOCATE) ? -1 : real(fd, mode, at, bytes);
}

int ftruncate64(int fd, off64_t bytes) {
    int (*real)(int, off64_t);
    *(void **)&real = next(TRUNCATE);
    return fails(TRUNCATE) ? -1 : real(fd, bytes);
}

int fchmod(int fd, mode_t mode) {
    int (*real)(int, mode_t);
    *(void **)&real = next(CHMOD);
    return fails(CHMOD) ? -1 : real(fd, mode);
}

int fcntl(int fd, int command, ...) {
    int (*real)(int, int, ...);
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    *(void **)&real = next(LOCK);
    int is_lock = command == F_OFD_SETLK || command == F_OFD_GETLK;
    return is_lock && fails(LOCK) ? -1 : real(fd, command, argument);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    int (*real)(int, const char *, int, const char *, int);
    *(void **)&real = next(LINK);
    return fails(LINK) ? -1 : real(from_fd, from, to_fd, to, flags);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *argument) {
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    *(void **)&real = next(THREAD);
    return fails(THREAD) ? plan.error : real(thread, with, run, argument);
}

static void arm(enum call call, long position, int is_lasting, int error) {
    has_failed = 0;
    plan.passing = position;
    plan.is_lasting = is_lasting;
    plan.error = error;
    __atomic_store_n(&plan.call, call, __ATOMIC_SEQ_CST);
}

static int healthy(void) {
    __atomic_store_n(&plan.call, CALLS, __ATOMIC_SEQ_CST);
    return has_failed;
}

/* Longer than one thread populates, so that several do; its leak is more than what threads and heaps come to. */
#define SIZE (70 * MIB)
static char name[64];
static int is_there = 1;

static uintptr_t make_pinned(void) { return hbm_alloc_pinned_ptr(SIZE, 0); }
static int free_pinned(uintptr_t at) { return hbm_free_pinned_ptr(at); }
static uintptr_t make_numa(void) { return hbm_alloc_numa_ptr(SIZE, 0); }
static int free_numa(uintptr_t at) { return hbm_free_numa_ptr(at, SIZE); }
static uintptr_t make_pinned_numa(void) { return hbm_alloc_pinned_numa_ptr(SIZE, 0); }
static int free_pinned_numa(uintptr_t at) { return hbm_free_pinned_numa_ptr(at, SIZE); }
static uintptr_t make_huge(void) { return hbm_alloc_hugepage_pinned_numa_ptr(4 * MIB, 0); }
static int free_huge(uintptr_t at) { return hbm_free_hugepage_pinned_numa_ptr(at, 4 * MIB); }
static uintptr_t make_shm(void) { return hbm_alloc_shm_pinned_ptr(SIZE, name); }
static int free_shm(uintptr_t at) { return hbm_free_shm_pinned_ptr(at, SIZE, name); }

static const struct kind {
    const char *name;
    uintptr_t (*make)(void);
    int (*free)(uintptr_t);
    /* How often each call is made, at least. */
    int makes[CALLS];
    int registers;
} kinds[] = {
    {"pinned", make_pinned, free_pinned, {[MMAP] = 1, [POPULATE] = 2, [ADVICE] = 2, [THREAD] = 1}, 1},
    {"numa", make_numa, free_numa, {[MMAP] = 1, [MBIND] = 1, [POPULATE] = 2, [ADVICE] = 2, [THREAD] = 1}, 0},
    {"pinned_numa", make_pinned_numa, free_pinned_numa, {[MMAP] = 1, [MBIND] = 1, [POPULATE] = 2, [ADVICE] = 2, [THREAD] = 1}, 1},
    {"hugepage", make_huge, free_huge, {[MMAP] = 1, [MBIND] = 1, [POPULATE] = 1, [ADVICE] = 1}, 1},
    {"shm", make_shm, free_shm, {[MMAP] = 2, [POPULATE] = 2, [ADVICE] = 2, [OPEN] = 1, [ALLOCATE] = 1, [TRUNCATE] = 1, [CHMOD] = 1, [LOCK] = 1, [LINK] = 1, [THREAD] = 1}, 1},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

struct state {
    hbm_host_blocks_t blocks;
    uint64_t registered, registered_bytes;
    long mapped, resident, locked, descriptors, names;
};

static long of_status(const char *field) {
    char line[256];
    long found = 0;
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, field, strlen(field)) == 0) found = strtol(line + strlen(field), NULL, 10) * 1024;
    }
    fclose(file);
    return found;
}

static long entries(const char *folder, const char *prefix) {
    long count = 0;
    DIR *all = opendir(folder);
    CHECK(all != NULL);
    for (struct dirent *entry; (entry = readdir(all)) != NULL;) count += strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
    closedir(all);
    return count;
}

static struct state now(void) {
    uint64_t counters[64] = {0};
    int (*count)(uint64_t *, uint64_t);
    look_up("hbmsim_counters", &count);
    CHECK(count(counters, sizeof counters) == 0);
    struct state state = {.blocks.struct_size = sizeof(hbm_host_blocks_t), .registered = counters[17], .registered_bytes = counters[18]};
    EXPECT(HBM_OK, hbm_host_blocks(&state.blocks));
    state.mapped = of_status("VmSize:");
    state.resident = of_status("VmRSS:");
    state.locked = of_status("VmLck:");
    state.descriptors = entries("/proc/self/fd", "");
    state.names = entries("/dev/shm", name + 1);
    return state;
}

/* As it was, but for what threads and the heap keep. */
static void expect_as(struct state before) {
    struct state state = now();
    CHECK(state.blocks.blocks == 0 && state.blocks.bytes == 0 && state.blocks.pinned == 0 && state.blocks.unbound == 0);
    CHECK(state.registered == before.registered && state.registered_bytes == before.registered_bytes);
    CHECK(state.descriptors == before.descriptors && state.names == 0 && state.locked == before.locked);
    CHECK(state.mapped < before.mapped + 40 * (long)MIB && state.resident < before.resident + 40 * (long)MIB);
}

static void works(const struct kind *kind) {
    uintptr_t block = kind->make();
    CHECK(block != 0);
    *(volatile char *)block = 1;
    EXPECT(HBM_OK, kind->free(block));
}

/* Each position fails; the answer must be that status. How many positions there were. */
static int every(const struct kind *kind, enum call call, int error, int32_t expected, const char *text) {
    struct state before = now();
    for (int position = 0;; position++) {
        arm(call, position, 0, error);
        uintptr_t block = kind->make();
        int32_t status = block ? HBM_OK : hbm_last_status();
        if (!healthy()) {
            CHECK(block != 0);
            EXPECT(HBM_OK, kind->free(block));
            expect_as(before);
            return position;
        }
        if (status != expected) {
            fprintf(stderr, "%s: %s number %d fails with %s: %s, not %s: %s\n", kind->name, names[call], position, strerror(error),
                    hbm_status_name(status), hbm_status_name(expected), hbm_last_error());
            exit(1);
        }
        if (status != HBM_OK) EXPECT_ERROR_TEXT(text);
        if (block != 0) EXPECT(HBM_OK, kind->free(block));
        expect_as(before);
        works(kind);
    }
}

static const struct {
    enum call call;
    int error;
    int32_t expected;
    const char *text;
} system_faults[] = {
    {MMAP, ENOMEM, HBM_OUT_OF_MEMORY, "memory"},
    {MBIND, EINVAL, HBM_INVALID_ARGUMENT, "cpuset.mems"},
    {MBIND, ENOMEM, HBM_OUT_OF_MEMORY, "bind to node 0"},
    {MBIND, EFAULT, HBM_INTERNAL, "mbind"},
    {MBIND, EPERM, HBM_OK, ""},
    {MBIND, ENOSYS, HBM_OK, ""},
    {POPULATE, ENOMEM, HBM_OUT_OF_MEMORY, "memory"},
    {POPULATE, EFAULT, HBM_OUT_OF_MEMORY, "memory"},
    {POPULATE, EINVAL, HBM_OK, ""},
    {ADVICE, EINVAL, HBM_OK, ""},
    {OPEN, EMFILE, HBM_IO, "open"},
    {ALLOCATE, ENOSPC, HBM_OUT_OF_MEMORY, "fallocate"},
    {ALLOCATE, EINTR, HBM_OK, ""},
    {TRUNCATE, EFBIG, HBM_IO, "ftruncate"},
    {CHMOD, EPERM, HBM_IO, "ftruncate"},
    {LOCK, EINVAL, HBM_IO, "fcntl"},
    {LINK, ENOENT, HBM_INVALID_ARGUMENT, "linkat"},
    {LINK, ENOSPC, HBM_OUT_OF_MEMORY, "linkat"},
    {THREAD, EAGAIN, HBM_OK, ""},
};

static void system_calls(const struct kind *kind) {
    for (size_t i = 0; i < sizeof system_faults / sizeof system_faults[0]; i++) {
        enum call call = system_faults[i].call;
        int found = every(kind, call, system_faults[i].error, system_faults[i].expected, system_faults[i].text);
        CHECK(found >= kind->makes[call] && (found > 0) == (kind->makes[call] > 0));
    }
}

/* What the driver answers to a registration stays with that call. */
static void registrations(const struct kind *kind) {
    int (*fail)(const char *, uint64_t, int, uint64_t), (*synchronize)(void);
    look_up("hbmsim_fail", &fail);
    look_up("cuCtxSynchronize", &synchronize);
    const int codes[] = {2, 1, 304, 712, 999};
    struct state before = now();
    for (int i = 0; kind->registers && i < 5; i++) {
        CHECK(fail("cuMemHostRegister_v2", 1, codes[i], 1) == 0);
        CHECK(kind->make() == 0 && hbm_last_driver_code() == codes[i]);
        EXPECT_ERROR_TEXT("ulimit -l");
        expect_as(before);
        void *block = NULL;
        hbm_allocator_t *allocator = allocator_of(HBM_KIND_DEVICE, 0);
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, MIB, 0, NULL, &block));
        fill(0, block, 5, MIB, NULL);
        context_push(0);
        CHECK(synchronize() == 0);
        context_pop();
        CHECK(holds(block, 5, MIB));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
        works(kind);
        expect_as(before);
    }
}

/* Refused by the system: memory from anywhere that says so, or an error. */
static void unbound(void) {
    hbm_stats_t before = stats_of(0, -1);
    arm(MBIND, 0, 1, EPERM);
    uintptr_t one = make_numa(), other = make_pinned_numa();
    CHECK(one != 0 && other != 0 && now().blocks.unbound == 2 && now().blocks.blocks == 2);
    CHECK(stats_of(0, -1).warnings == before.warnings + 2);
    EXPECT(HBM_OK, hbm_option_set("numa_policy", "strict"));
    CHECK(make_numa() == 0);
    EXPECT(HBM_UNSUPPORTED, hbm_last_status());
    EXPECT_ERROR_TEXT("CAP_SYS_NICE");
    EXPECT_ERROR_TEXT("numa_policy=fallback");
    CHECK(healthy() && now().blocks.unbound == 2 && now().blocks.blocks == 2);
    EXPECT(HBM_OK, free_numa(one));
    CHECK(now().blocks.unbound == 1);
    EXPECT(HBM_OK, free_pinned_numa(other));
    EXPECT(HBM_BAD_OPTION, hbm_option_set("numa_policy", "often"));
    EXPECT(HBM_OK, hbm_option_set("numa_policy", "fallback"));
    CHECK(now().blocks.unbound == 0);
}

/* A kernel without MADV_POPULATE_WRITE: pages are touched, and what a segment holds is not changed. */
static void an_old_kernel(void) {
    arm(POPULATE, 0, 1, EINVAL);
    for (int i = 0; i < KINDS; i++) {
        if (kinds[i].make != make_huge || is_there) works(&kinds[i]);
    }
    uintptr_t block = make_shm();
    CHECK(block != 0);
    for (size_t at = 0; at < SIZE; at += 4096) ((unsigned char *)block)[at] = (unsigned char)(at >> 12);
    uintptr_t other = hbm_attach_shm_pinned_ptr(SIZE, name);
    CHECK(other != 0 && healthy());
    for (size_t at = 0; at < SIZE; at += 4096) CHECK(((unsigned char *)other)[at] == (unsigned char)(at >> 12));
    EXPECT(HBM_OK, free_shm(block));
    EXPECT(HBM_OK, free_shm(other));
}

/* Who attaches fails as well, and leaves the maker's. */
static uintptr_t attach(void) { return hbm_attach_shm_pinned_ptr(SIZE, name); }

static void attaching(void) {
    uintptr_t made = make_shm();
    CHECK(made != 0);
    const struct {
        enum call call;
        int error;
    } all[] = {{OPEN, EMFILE}, {LOCK, EINVAL}, {MMAP, ENOMEM}, {POPULATE, EFAULT}};
    for (int i = 0; i < 4; i++) {
        for (int position = 0;; position++) {
            struct state before = now();
            arm(all[i].call, position, 0, all[i].error);
            uintptr_t other = attach();
            int failed = healthy();
            CHECK((other == 0) == failed);
            if (other != 0) EXPECT(HBM_OK, free_shm(other));
            struct state after = now();
            CHECK(after.blocks.blocks == 1 && after.descriptors == before.descriptors && after.names == 1);
            CHECK(after.mapped < before.mapped + 40 * (long)MIB && after.registered == before.registered);
            if (!failed) {
                CHECK(position > 0);
                break;
            }
        }
    }
    EXPECT(HBM_OK, free_shm(made));
}

int main(void) {
    /* One heap, so that threads reserve no addresses. */
    mallopt(M_ARENA_MAX, 1);
    snprintf(name, sizeof name, "/hbmalloc-faults-%ld", (long)getpid());
    for (int i = 0; i < KINDS; i++) {
        uintptr_t block = kinds[i].make();
        if (block == 0 && kinds[i].make == make_huge) {
            printf("SKIP %s: %s\n", kinds[i].name, hbm_last_error());
            is_there = 0;
            continue;
        }
        CHECK(block != 0);
        EXPECT(HBM_OK, kinds[i].free(block));
    }
    struct state before = now();
    for (int i = 0; i < KINDS; i++) {
        if (kinds[i].make == make_huge && !is_there) continue;
        system_calls(&kinds[i]);
        registrations(&kinds[i]);
    }
    attaching();
    unbound();
    an_old_kernel();
    expect_as(before);
    CHECK(faults() == 0);
    return 0;
}
