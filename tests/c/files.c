/* Sleep to files whose every system call fails once, at each of its positions: what was awake is awake, what
 * slept sleeps, nothing of it is lost and no file is left. The program's own definitions of the calls come
 * before the C library's. */
#define _GNU_SOURCE
#include "sleeping.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

enum call { OPEN, FALLOCATE, WRITE, READ, TRUNCATE, CALLS };

static const char *const names[CALLS] = {"open64", "fallocate", "pwrite64", "pread64", "ftruncate64"};

/* The call that fails, how many of it pass before, and with what error; 0 cuts a transfer short. */
static struct {
    enum call call;
    long passing;
    int error;
} plan = {CALLS, 0, 0};

static int has_failed;

static int fails(enum call call) {
    if (plan.call != call || plan.passing-- != 0) {
        return 0;
    }
    has_failed = 1;
    errno = plan.error;
    return 1;
}

static void *real(enum call call) {
    void *function = dlsym(RTLD_NEXT, names[call]);
    CHECK(function != NULL);
    return function;
}

static const char *folder;

/* Whether it makes one of the library's files. */
static int is_made(const char *path, int flags) {
    return flags & O_CREAT && folder != NULL && strncmp(path, folder, strlen(folder)) == 0 && strstr(path, ".sleep") != NULL;
}

int open64(const char *path, int flags, ...) {
    int (*next)(const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    *(void **)&next = real(OPEN);
    return is_made(path, flags) && fails(OPEN) ? -1 : next(path, flags, mode);
}

int fallocate(int fd, int mode, off_t at, off_t bytes) {
    int (*next)(int, int, off_t, off_t);
    *(void **)&next = real(FALLOCATE);
    /* That of the simulated driver's memory punches holes. */
    return mode == 0 && fails(FALLOCATE) ? -1 : next(fd, mode, at, bytes);
}

/* Half of it, in blocks; a transfer of one block cannot be cut. */
static size_t cut(size_t bytes) {
    return bytes <= 4096 ? bytes : bytes / 2 / 4096 * 4096;
}

ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t at) {
    ssize_t (*next)(int, const void *, size_t, off64_t);
    *(void **)&next = real(WRITE);
    if (fails(WRITE)) {
        return plan.error != 0 ? -1 : next(fd, from, cut(bytes), at);
    }
    return next(fd, from, bytes, at);
}

ssize_t pread64(int fd, void *to, size_t bytes, off64_t at) {
    ssize_t (*next)(int, void *, size_t, off64_t);
    *(void **)&next = real(READ);
    if (fails(READ)) {
        return plan.error != 0 ? -1 : next(fd, to, cut(bytes), at);
    }
    return next(fd, to, bytes, at);
}

int ftruncate64(int fd, off64_t bytes) {
    int (*next)(int, off64_t);
    *(void **)&next = real(TRUNCATE);
    return bytes > 0 && fails(TRUNCATE) ? -1 : next(fd, bytes);
}

static void fail(enum call call, long position, int error) {
    has_failed = 0;
    plan.call = call;
    plan.passing = position;
    plan.error = error;
}

static int healthy(void) {
    plan.call = CALLS;
    return has_failed;
}

static int files_left(void) {
    int count = 0;
    DIR *all = opendir(folder);
    CHECK(all != NULL);
    for (struct dirent *entry; (entry = readdir(all)) != NULL;) {
        count += strstr(entry->d_name, ".sleep") != NULL;
    }
    closedir(all);
    return count;
}

static const char *tags[] = {"first", "second"};
static const size_t sizes[3] = {34 * MIB, 1000, 3 * MIB};
static void *blocks[3];

static int all_hold(void) {
    int same = 1;
    for (int i = 0; i < 3; i++) {
        same &= holds(blocks[i], (unsigned char)(i + 1), sizes[i]);
    }
    return same;
}

static hbm_residency_request_t request(void) {
    hbm_residency_request_t both = request_of(tags, 2);
    both.to = HBM_SLEEP_TO_FILE;
    return both;
}

/* How many positions there were. */
static long every_sleep(enum call call, int error, int32_t expected) {
    hbm_residency_request_t both = request();
    for (long position = 0;; position++) {
        fail(call, position, error);
        int32_t status = hbm_sleep(&both, NULL);
        if (!healthy()) {
            CHECK(status == HBM_OK);
            EXPECT(HBM_OK, hbm_wake(&both, NULL));
            CHECK(all_hold() && files_left() == 0 && position > 0);
            return position;
        }
        CHECK(status == expected);
        if (expected != HBM_OK) {
            CHECK(strstr(hbm_last_error(), ".sleep") != NULL && strstr(hbm_last_error(), "sleep_dir") != NULL);
            CHECK(where(0, NULL).file == 0 && files_left() == 0);
        }
        CHECK(host().used == 0);
        EXPECT(HBM_OK, hbm_wake(&both, NULL));
        CHECK(all_hold() && files_left() == 0);
    }
}

static long every_wake(int error, int32_t expected) {
    hbm_residency_request_t both = request();
    for (long position = 0;; position++) {
        EXPECT(HBM_OK, hbm_sleep(&both, NULL));
        uint64_t saved = where(0, NULL).file;
        CHECK(saved >= 37 * MIB && physical_bytes(0) == 0 && files_left() == 2);
        fail(READ, position, error);
        int32_t status = hbm_wake(&both, NULL);
        int failed = healthy();
        CHECK(status == (failed ? expected : HBM_OK));
        if (status != HBM_OK) {
            CHECK(where(0, NULL).file == saved && physical_bytes(0) == 0 && files_left() == 2);
            EXPECT(HBM_OK, hbm_wake(&both, NULL));
        }
        CHECK(all_hold() && files_left() == 0);
        if (!failed) {
            CHECK(position > 0);
            return position;
        }
    }
}

/* What another program writes there is found out: nothing that is not ours is brought back as if it were. */
static void damaged_files(void) {
    hbm_residency_request_t both = request();
    EXPECT(HBM_OK, hbm_sleep(&both, NULL));
    DIR *all = opendir(folder);
    char path[4096];
    int written = 0;
    CHECK(all != NULL);
    for (struct dirent *entry; (entry = readdir(all)) != NULL;) {
        if (strstr(entry->d_name, "second.sleep") != NULL) {
            snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
            int fd = open(path, O_WRONLY);
            CHECK(fd >= 0 && pwrite(fd, "damage", 6, MIB) == 6 && close(fd) == 0);
            written++;
        }
    }
    closedir(all);
    CHECK(written == 1);
    EXPECT(HBM_IO, hbm_wake(&both, NULL));
    CHECK(strstr(hbm_last_error(), "discard") != NULL && physical_bytes(0) == 0);
    /* The other tag's is whole, and that one can be given up. */
    hbm_residency_request_t first = request_of(tags, 1), second = request_of(tags + 1, 1);
    EXPECT(HBM_OK, hbm_wake(&first, NULL));
    CHECK(holds(blocks[0], 1, sizes[0]) && holds(blocks[1], 2, sizes[1]));
    EXPECT(HBM_IO, hbm_wake(&second, NULL));
    EXPECT(HBM_OK, hbm_discard(&second, NULL));
    EXPECT(HBM_OK, hbm_wake(&second, NULL));
    fill(0, blocks[2], 3, sizes[2], NULL);
    CHECK(all_hold() && files_left() == 0);
}

int main(void) {
    char name[] = "files-XXXXXX";
    CHECK(mkdtemp(name) != NULL);
    EXPECT(HBM_OK, hbm_option_set("sleep_dir", name));
    folder = name;
    blocks[0] = block_of(HBM_KIND_VMM, "first", sizes[0], 1);
    blocks[1] = block_of(HBM_KIND_POOL, "first", sizes[1], 2);
    blocks[2] = block_of(HBM_KIND_VMM, "second", sizes[2], 3);

    /* A file system without direct I/O, and one that cannot make room before: it works all the same. */
    CHECK(every_sleep(OPEN, EINVAL, HBM_OK) >= 2);
    CHECK(every_sleep(FALLOCATE, EOPNOTSUPP, HBM_OK) == 2);
    /* Cut short or interrupted: the rest follows. */
    CHECK(every_sleep(WRITE, 0, HBM_OK) >= 3);
    CHECK(every_sleep(WRITE, EINTR, HBM_OK) >= 3);
    CHECK(every_wake(0, HBM_OK) >= 3);
    CHECK(every_wake(EINTR, HBM_OK) >= 3);
    every_sleep(OPEN, EACCES, HBM_IO);
    every_sleep(FALLOCATE, ENOSPC, HBM_IO);
    every_sleep(WRITE, ENOSPC, HBM_IO);
    CHECK(strstr(hbm_last_error(), "more room") != NULL);
    every_sleep(WRITE, EIO, HBM_IO);
    every_wake(EIO, HBM_IO);
    damaged_files();

    for (int i = 0; i < 3; i++) {
        free_block(blocks[i]);
    }
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_OK, hbm_host_buffer_trim(0, NULL));
    CHECK(stats_of(0, -1).reserved == 0 && physical_bytes(0) == 0 && host().pinned == 0);
    CHECK(rmdir(name) == 0 && faults() == 0);
    puts("files: fine");
    return 0;
}
