/* Programs of CUDA's runtime that share memory: one that has the say, and others, started by exec, that do as it bids
 * over a socket, as exporters and as openers. */
#define _GNU_SOURCE
#include "../c/driver.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct { unsigned char reserved[64]; } ipc_t;

int cudaSetDevice(int);
int cudaMalloc(void **, size_t);
int cudaFree(void *);
int cudaDeviceSynchronize(void);
int cudaMemset(void *, int, size_t);
int cudaMemcpy(void *, const void *, size_t, int);
int cudaMemsetAsync(void *, int, size_t, void *);
int cudaIpcGetMemHandle(ipc_t *, void *);
int cudaIpcOpenMemHandle(void **, ipc_t, unsigned);
int cudaIpcCloseMemHandle(void *);
uint64_t stand_in_calls(const char *);

#define OK(call) CHECK((call) == 0)

enum { INVALID = 1, OWN = 201, GONE = 400 };

/* A process that does as it is bid. */
typedef struct {
    pid_t pid;
    int socket;
} other_t;

typedef struct {
    char what;
    unsigned char byte;
    uint64_t address, bytes;
    ipc_t handle;
} order_t;

typedef struct {
    int code;
    uint64_t value;
    ipc_t handle;
} answer_t;

static const char *program;

static void fill_bytes(void *address, int byte, size_t bytes) {
    OK(cudaMemsetAsync(address, byte, bytes, NULL));
    OK(cudaDeviceSynchronize());
}

/* How many of them are not as they should be. */
static uint64_t different(const void *address, unsigned char byte, size_t bytes) {
    unsigned char *seen = malloc(bytes);
    uint64_t count = 0;
    OK(cudaMemcpy(seen, address, bytes, 4));
    for (size_t i = 0; i < bytes; i++) count += seen[i] != byte;
    free(seen);
    return count;
}

static uint64_t held(void) {
    hbm_stats_t now;
    memset(&now, 0, sizeof now);
    now.struct_size = sizeof now;
    EXPECT(HBM_OK, hbm_stats(0, -1, &now));
    return now.allocated;
}

static uint64_t pinned(void) {
    hbm_residency_t now = {.struct_size = sizeof now};
    EXPECT(HBM_OK, hbm_residency(0, NULL, &now));
    return now.pinned;
}

/* The only folder there; its name goes to `path`. */
static void find_folder(char path[4096]) {
    const char *parent = getenv("XDG_RUNTIME_DIR");
    DIR *folder = opendir(parent);
    int count = 0;
    CHECK(folder != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, 4096, "%s/%s", parent, entry->d_name);
        count++;
    }
    closedir(folder);
    CHECK(count == 1);
}

static void obey(int way) {
    order_t order;
    alarm(60);
    while (read(way, &order, sizeof order) == (ssize_t)sizeof order) {
        answer_t answer = {0};
        void *address = (void *)(uintptr_t)order.address;
        switch (order.what) {
        case 'a': answer.code = cudaMalloc(&address, order.bytes); answer.value = (uintptr_t)address; break;
        case 'f': answer.code = cudaFree(address); break;
        case 'g': answer.code = cudaIpcGetMemHandle(&answer.handle, address); break;
        case 'o': answer.code = cudaIpcOpenMemHandle(&address, order.handle, 1); answer.value = (uintptr_t)address; break;
        case 'c': answer.code = cudaIpcCloseMemHandle(address); break;
        case 'w': fill_bytes(address, order.byte, order.bytes); break;
        case 'r': answer.value = different(address, order.byte, order.bytes); break;
        case 'd': answer.code = cudaSetDevice((int)order.bytes); break;
        case 'h': answer.value = held(); break;
        case 'p': answer.value = pinned(); break;
        case 'v': {
            char request[72] = {1}, path[4096], byte;
            struct sockaddr_un at = {.sun_family = AF_UNIX};
            memcpy(request + 8, &order.handle, sizeof order.handle);
            find_folder(path);
            strcat(path, "/socket");
            CHECK(strlen(path) < sizeof at.sun_path);
            strcpy(at.sun_path, path);
            int visitor = socket(AF_UNIX, SOCK_STREAM, 0);
            OK(connect(visitor, (struct sockaddr *)&at, sizeof at));
            CHECK(send(visitor, request, sizeof request, MSG_NOSIGNAL) == (ssize_t)sizeof request);
            answer.code = recv(visitor, &byte, 1, 0) != 1;
            close(visitor);
            break;
        }
        case 'u': answer.code = setresgid((gid_t)order.bytes, (gid_t)order.bytes, (gid_t)order.bytes) != 0 || setresuid((uid_t)order.bytes, (uid_t)order.bytes, (uid_t)order.bytes) != 0; break;
        case 'n': {
            for (uint64_t at = 0; at < order.bytes; answer.value++) {
                hbm_export_t export = {.struct_size = sizeof export};
                EXPECT(HBM_OK, hbm_export((char *)address + at, &export));
                EXPECT(HBM_OK, hbm_export_close(export.serial));
                at += export.bytes;
                close(export.fd);
            }
            break;
        }
        case 'b': {
            int (*range)(uint64_t *, size_t *, uint64_t);
            look_up("cuMemGetAddressRange_v2", &range);
            answer.code = range(&answer.value, NULL, order.address);
            break;
        }
        case 'k': {
            pid_t child = fork();
            if (child == 0) {
                close(way);
                sleep(100);
                _exit(0);
            }
            answer.value = (uint64_t)child;
            break;
        }
        case 'x': exit(0);
        default: CHECK(!"an order");
        }
        CHECK(write(way, &answer, sizeof answer) == (ssize_t)sizeof answer);
    }
    _exit(0);
}

static other_t start_with(const char *preload) {
    int sockets[2];
    char number[16];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        fcntl(sockets[1], F_SETFD, 0);
        snprintf(number, sizeof number, "%d", sockets[1]);
        setenv("LD_PRELOAD", preload, 1);
        execl(program, program, "obey", number, (char *)NULL);
        _exit(127);
    }
    close(sockets[1]);
    return (other_t){pid, sockets[0]};
}

static other_t start(void) { return start_with(getenv("LD_PRELOAD")); }

static answer_t bid(other_t *other, order_t order) {
    answer_t answer;
    CHECK(write(other->socket, &order, sizeof order) == (ssize_t)sizeof order);
    CHECK(read(other->socket, &answer, sizeof answer) == (ssize_t)sizeof answer);
    return answer;
}

#define BID(other, ...) bid(other, (order_t){__VA_ARGS__})

static void end(other_t *other, int signal) {
    int status = -1;
    order_t order = {.what = 'x'};
    if (signal != 0) {
        CHECK(kill(other->pid, signal) == 0);
    } else {
        CHECK(write(other->socket, &order, sizeof order) == (ssize_t)sizeof order);
    }
    CHECK(waitpid(other->pid, &status, 0) == other->pid);
    CHECK(signal != 0 ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(other->socket);
}

static uint64_t give(other_t *other, size_t bytes) {
    answer_t answer = BID(other, .what = 'a', .bytes = bytes);
    OK(answer.code);
    return answer.value;
}

static ipc_t handle_of(other_t *other, uint64_t address) {
    answer_t answer = BID(other, .what = 'g', .address = address);
    OK(answer.code);
    return answer.handle;
}

static uint64_t opened(other_t *other, ipc_t handle) {
    answer_t answer = BID(other, .what = 'o', .handle = handle);
    OK(answer.code);
    return answer.value;
}

/* What the other end of a connection does comes to be known a moment later. */
static void comes_to(other_t *other, char what, uint64_t wanted) {
    for (int i = 0; i < 5000 && BID(other, .what = what).value != wanted; i++) usleep(1000);
    CHECK(BID(other, .what = what).value == wanted);
}

static void bytes_go_both_ways(void) {
    other_t one = start(), two = start();
    const size_t bytes = 3 * MIB + 4096;
    uint64_t there = give(&one, bytes);
    OK(BID(&one, .what = 'w', .address = there, .bytes = bytes, .byte = 0x21).code);
    ipc_t handle = handle_of(&one, there), again = handle_of(&one, there + 12345);
    CHECK(memcmp(&handle, &again, sizeof handle) == 0);
    CHECK(BID(&one, .what = 'p').value > 0);
    uint64_t here = opened(&two, handle);
    CHECK(opened(&two, handle) == here);
    CHECK(BID(&two, .what = 'r', .address = here, .bytes = bytes, .byte = 0x21).value == 0);
    OK(BID(&two, .what = 'w', .address = here + 4096, .bytes = bytes - 4096, .byte = 0x42).code);
    CHECK(BID(&one, .what = 'r', .address = there, .bytes = 4096, .byte = 0x21).value == 0);
    CHECK(BID(&one, .what = 'r', .address = there + 4096, .bytes = bytes - 4096, .byte = 0x42).value == 0);
    /* Opened twice, closed twice. */
    CHECK(BID(&two, .what = 'f', .address = here).code != 0);
    OK(BID(&two, .what = 'c', .address = here).code);
    CHECK(BID(&two, .what = 'r', .address = here, .bytes = 4096, .byte = 0x21).value == 0);
    OK(BID(&two, .what = 'c', .address = here).code);
    CHECK(BID(&two, .what = 'c', .address = here).code == INVALID);
    /* And once more, after which it is the exporter's alone. */
    here = opened(&two, handle);
    OK(BID(&two, .what = 'c', .address = here).code);
    OK(BID(&one, .what = 'f', .address = there).code);
    comes_to(&one, 'h', 0);
    comes_to(&one, 'p', 0);
    CHECK(BID(&two, .what = 'o', .handle = handle).code == GONE);
    end(&two, 0);
    end(&one, 0);
}

static void blocks_over_several_chunks(void) {
    other_t one = start(), two = start();
    const size_t bytes = 24 * MIB, part = 2 * MIB;
    uint64_t small[12];
    /* Blocks much smaller than the largest get small chunks, which a large one is then put together of. */
    uint64_t large = give(&one, 200 * MIB);
    for (int i = 0; i < 12; i++) small[i] = give(&one, part);
    for (int i = 0; i < 12; i++) OK(BID(&one, .what = 'f', .address = small[i]).code);
    uint64_t there = give(&one, bytes);
    CHECK(BID(&one, .what = 'n', .address = there, .bytes = bytes).value > 1);
    for (size_t at = 0; at < bytes; at += part) {
        OK(BID(&one, .what = 'w', .address = there + at, .bytes = part, .byte = (unsigned char)(at / part + 1)).code);
    }
    uint64_t here = opened(&two, handle_of(&one, there));
    for (size_t at = 0; at < bytes; at += part) {
        CHECK(BID(&two, .what = 'r', .address = here + at, .bytes = part, .byte = (unsigned char)(at / part + 1)).value == 0);
    }
    OK(BID(&two, .what = 'w', .address = here, .bytes = bytes, .byte = 0x77).code);
    CHECK(BID(&one, .what = 'r', .address = there, .bytes = bytes, .byte = 0x77).value == 0);
    OK(BID(&two, .what = 'c', .address = here).code);
    OK(BID(&one, .what = 'f', .address = there).code);
    OK(BID(&one, .what = 'f', .address = large).code);
    comes_to(&one, 'p', 0);
    end(&one, 0);
    end(&two, 0);
}

/* The driver says that memory begins where its chunk does: programs that ask it export from there. */
static void from_where_the_driver_says(void) {
    other_t one = start(), two = start();
    uint64_t first = give(&one, MIB / 2), second = give(&one, MIB / 2);
    uint64_t begin = BID(&one, .what = 'b', .address = second).value;
    CHECK(begin <= second);
    OK(BID(&one, .what = 'w', .address = second, .bytes = MIB / 2, .byte = 0x33).code);
    uint64_t here = opened(&two, handle_of(&one, begin));
    CHECK(BID(&two, .what = 'r', .address = here + (second - begin), .bytes = MIB / 2, .byte = 0x33).value == 0);
    uint64_t block = opened(&two, handle_of(&one, second));
    CHECK(BID(&two, .what = 'r', .address = block, .bytes = MIB / 2, .byte = 0x33).value == 0);
    OK(BID(&two, .what = 'c', .address = here).code);
    OK(BID(&two, .what = 'c', .address = block).code);
    OK(BID(&one, .what = 'f', .address = first).code);
    OK(BID(&one, .what = 'f', .address = second).code);
    end(&one, 0);
    end(&two, 0);
}

static void the_exporter_is_killed(void) {
    other_t one = start(), two = start(), three = start();
    uint64_t there = give(&one, 4 * MIB), other = give(&one, 4 * MIB);
    OK(BID(&one, .what = 'w', .address = there, .bytes = 4 * MIB, .byte = 0x55).code);
    ipc_t handle = handle_of(&one, there), second = handle_of(&one, other);
    uint64_t here = opened(&two, handle);
    /* A child of its must not look like it. */
    pid_t child = (pid_t)BID(&one, .what = 'k').value;
    end(&one, SIGKILL);
    CHECK(BID(&two, .what = 'r', .address = here, .bytes = 4 * MIB, .byte = 0x55).value == 0);
    CHECK(BID(&two, .what = 'o', .handle = second).code == GONE);
    CHECK(BID(&three, .what = 'o', .handle = handle).code == GONE);
    CHECK(opened(&two, handle) == here);
    OK(BID(&two, .what = 'c', .address = here).code);
    OK(BID(&two, .what = 'c', .address = here).code);
    CHECK(BID(&two, .what = 'o', .handle = handle).code == GONE);
    /* The next one cleans up after it. */
    handle_of(&three, give(&three, MIB));
    kill(child, SIGKILL);
    end(&two, 0);
    end(&three, 0);
}

static void freed_while_it_is_open(void) {
    other_t one = start(), two = start(), three = start();
    for (int how = 0; how < 3; how++) {
        uint64_t there = give(&one, 4 * MIB);
        uint64_t blocks = BID(&one, .what = 'h').value;
        OK(BID(&one, .what = 'w', .address = there, .bytes = 4 * MIB, .byte = 0x11).code);
        ipc_t handle = handle_of(&one, there);
        uint64_t here = opened(&two, handle);
        OK(BID(&one, .what = 'f', .address = there).code);
        CHECK(BID(&one, .what = 'f', .address = there).code == INVALID);
        CHECK(BID(&one, .what = 'g', .address = there).code != 0);
        CHECK(BID(&three, .what = 'o', .handle = handle).code == GONE);
        CHECK(BID(&one, .what = 'h').value == blocks);
        /* Nobody else gets the memory. */
        uint64_t again = give(&one, 4 * MIB);
        CHECK(again != there);
        OK(BID(&one, .what = 'w', .address = again, .bytes = 4 * MIB, .byte = 0x99).code);
        CHECK(BID(&two, .what = 'r', .address = here, .bytes = 4 * MIB, .byte = 0x11).value == 0);
        OK(BID(&one, .what = 'f', .address = again).code);
        if (how == 0) {
            OK(BID(&two, .what = 'c', .address = here).code);
        } else if (how == 1) {
            end(&two, SIGKILL);
            two = start();
        } else {
            pid_t child = (pid_t)BID(&two, .what = 'k').value;
            end(&two, 0);
            comes_to(&one, 'h', 0);
            kill(child, SIGKILL);
        }
        comes_to(&one, 'h', 0);
        comes_to(&one, 'p', 0);
    }
    end(&one, 0);
    end(&three, 0);
}

static void exit_while_it_is_open(void) {
    other_t one = start(), two = start();
    uint64_t there = give(&one, 4 * MIB);
    OK(BID(&one, .what = 'w', .address = there, .bytes = 4 * MIB, .byte = 0x61).code);
    uint64_t here = opened(&two, handle_of(&one, there));
    handle_of(&one, give(&one, 4 * MIB));
    end(&one, 0);
    CHECK(BID(&two, .what = 'r', .address = here, .bytes = 4 * MIB, .byte = 0x61).value == 0);
    end(&two, 0);
}

static void handles_that_are_none(void) {
    other_t one = start(), two = start();
    uint64_t there = give(&one, MIB);
    ipc_t good = handle_of(&one, there), bad;
    void *here = NULL;
    srand(7);
    for (int i = 0; i < 100; i++) {
        for (size_t at = 0; at < sizeof bad; at++) bad.reserved[at] = (unsigned char)(rand() >> 8);
        CHECK(cudaIpcOpenMemHandle(&here, bad, 1) == INVALID);
    }
    memset(&bad, 0, sizeof bad);
    CHECK(cudaIpcOpenMemHandle(&here, bad, 1) == INVALID);
    CHECK(stand_in_calls("cudaIpcOpenMemHandle") == 101);
    /* The process, its number, the export, the device, the length. */
    for (size_t at = 16; at < 48; at++) {
        bad = good;
        bad.reserved[at] ^= 0x40;
        CHECK(cudaIpcOpenMemHandle(&here, bad, 1) == GONE);
        EXPECT_ERROR_TEXT("process");
    }
    CHECK(stand_in_calls("cudaIpcOpenMemHandle") == 101);
    CHECK(cudaIpcOpenMemHandle(&here, good, 2) == INVALID);
    CHECK(cudaIpcOpenMemHandle(NULL, good, 1) == INVALID);
    CHECK(BID(&one, .what = 'o', .handle = good).code == OWN);
    CHECK(here == NULL);
    OK(cudaIpcOpenMemHandle(&here, good, 1));
    OK(cudaIpcCloseMemHandle(here));
    CHECK(cudaIpcCloseMemHandle(here) == INVALID);
    CHECK(cudaIpcCloseMemHandle(NULL) == INVALID);
    /* What is no memory of ours is the runtime's to export. */
    CHECK(cudaIpcGetMemHandle(&bad, &here) == INVALID && cudaIpcGetMemHandle(&bad, NULL) == INVALID);
    CHECK(cudaIpcGetMemHandle(NULL, (void *)(uintptr_t)there) == INVALID);
    CHECK(stand_in_calls("cudaIpcGetMemHandle") == 1);
    end(&one, 0);
    end(&two, 0);
}

static void an_opener_without_the_library(void) {
    other_t one = start(), two = start_with("");
    uint64_t there = give(&one, MIB);
    CHECK(BID(&two, .what = 'o', .handle = handle_of(&one, there)).code == GONE);
    end(&one, 0);
    end(&two, 0);
}

static void on_another_device(void) {
    other_t one = start(), two = start();
    OK(BID(&two, .what = 'd', .bytes = 1).code);
    uint64_t there = give(&one, MIB);
    OK(BID(&one, .what = 'w', .address = there, .bytes = MIB, .byte = 0x71).code);
    ipc_t handle = handle_of(&one, there);
    uint64_t here = opened(&two, handle);
    CHECK(BID(&two, .what = 'r', .address = here, .bytes = MIB, .byte = 0x71).value == 0);
    OK(BID(&two, .what = 'w', .address = here, .bytes = MIB, .byte = 0x72).code);
    CHECK(BID(&one, .what = 'r', .address = there, .bytes = MIB, .byte = 0x72).value == 0);
    OK(BID(&two, .what = 'd', .bytes = 0).code);
    CHECK(opened(&two, handle) != here);
    end(&one, 0);
    end(&two, 0);
}

static void nobody_else_gets_in(void) {
    other_t one = start();
    char path[4096];
    struct stat found;
    handle_of(&one, give(&one, MIB));
    find_folder(path);
    OK(stat(path, &found));
    CHECK(S_ISDIR(found.st_mode) && (found.st_mode & 07777) == 0700 && found.st_uid == geteuid());
    strcat(path, "/socket");
    OK(stat(path, &found));
    CHECK(S_ISSOCK(found.st_mode) && (found.st_mode & 07777) == 0600);
    end(&one, 0);
}

static void of_another_user(void) {
    const struct passwd *nobody = getpwnam("nobody");
    char path[4096], byte;
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (geteuid() != 0 || nobody == NULL) {
        puts("skipped: only root can be another user");
        return;
    }
    OK(chmod(getenv("XDG_RUNTIME_DIR"), 01777));
    other_t one = start(), two = start();
    OK(BID(&two, .what = 'u', .bytes = nobody->pw_uid).code);
    ipc_t handle = handle_of(&one, give(&one, MIB));
    CHECK(BID(&two, .what = 'o', .handle = handle).code == GONE);
    end(&one, 0);
    handle = handle_of(&two, give(&two, MIB));
    void *here = NULL;
    CHECK(cudaIpcOpenMemHandle(&here, handle, 1) == GONE);
    /* Root comes to the socket, but is let in no further. */
    find_folder(path);
    strcat(path, "/socket");
    int visitor = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(strlen(path) < sizeof at.sun_path);
    strcpy(at.sun_path, path);
    OK(connect(visitor, (struct sockaddr *)&at, sizeof at));
    char request[72] = {1};
    memcpy(request + 8, &handle, sizeof handle);
    send(visitor, request, sizeof request, MSG_NOSIGNAL);
    CHECK(recv(visitor, &byte, 1, 0) <= 0);
    close(visitor);
    /* As its own user does get an answer. */
    OK(BID(&two, .what = 'v', .handle = handle).code);
    end(&two, 0);
}

/* Whatever is said to an exporter, it goes on. */
static void strange_visitors(void) {
    other_t one = start();
    char path[4096], noise[300];
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    uint64_t there = give(&one, MIB);
    ipc_t handle = handle_of(&one, there);
    find_folder(path);
    strcat(path, "/socket");
    CHECK(strlen(path) < sizeof at.sun_path);
    strcpy(at.sun_path, path);
    for (int i = 0; i < 40; i++) {
        int visitor = socket(AF_UNIX, SOCK_STREAM, 0);
        OK(connect(visitor, (struct sockaddr *)&at, sizeof at));
        for (size_t j = 0; j < sizeof noise; j++) noise[j] = (char)(i % 2 == 0 ? rand() : i);
        if (i % 4 != 0) send(visitor, noise, sizeof noise, MSG_NOSIGNAL);
        close(visitor);
    }
    /* Half a request, and nothing more: others are answered all the same. */
    int slow = socket(AF_UNIX, SOCK_STREAM, 0);
    OK(connect(slow, (struct sockaddr *)&at, sizeof at));
    CHECK(send(slow, "\1\0\0\0", 4, MSG_NOSIGNAL) == 4);
    void *here = NULL;
    time_t before = time(NULL);
    OK(cudaIpcOpenMemHandle(&here, handle, 1));
    CHECK(time(NULL) - before < 10);
    OK(cudaIpcCloseMemHandle(here));
    close(slow);
    OK(BID(&one, .what = 'f', .address = there).code);
    comes_to(&one, 'h', 0);
    end(&one, 0);
}

/* A forked child has no driver, and none of what its parent shares. */
static void after_a_fork(void) {
    other_t one = start();
    void *block, *here;
    ipc_t ours, theirs = handle_of(&one, give(&one, MIB)), again;
    OK(cudaMalloc(&block, MIB));
    OK(cudaIpcGetMemHandle(&ours, block));
    OK(cudaIpcOpenMemHandle(&here, theirs, 1));
    pid_t child = fork();
    if (child == 0) {
        void *there = NULL;
        alarm(20);
        CHECK(cudaIpcGetMemHandle(&again, block) != 0);
        CHECK(cudaIpcOpenMemHandle(&there, theirs, 1) != 0);
        CHECK(cudaIpcOpenMemHandle(&there, ours, 1) != 0);
        CHECK(cudaIpcCloseMemHandle(here) != 0);
        cudaFree(block);
        exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    /* Nor does a program that a child becomes have the sockets. */
    CHECK(system("! ls -l /proc/self/fd | grep socket") == 0);
    other_t two = start();
    uint64_t there = opened(&two, ours);
    OK(BID(&two, .what = 'c', .address = there).code);
    OK(cudaIpcCloseMemHandle(here));
    OK(cudaFree(block));
    end(&one, 0);
    end(&two, 0);
}

static ipc_t shared[8];

static void *open_and_close(void *result) {
    for (int i = 0; i < 200; i++) {
        void *here = NULL;
        int which = (i * 7 + (int)(uintptr_t)result) % 8;
        OK(cudaIpcOpenMemHandle(&here, shared[which], 1));
        CHECK(different(here, (unsigned char)(which + 1), 4096) == 0);
        OK(cudaIpcCloseMemHandle(here));
    }
    return NULL;
}

static void by_many_threads(void) {
    other_t one = start();
    uint64_t there[8];
    pthread_t threads[4];
    for (int i = 0; i < 8; i++) {
        there[i] = give(&one, 3 * MIB);
        OK(BID(&one, .what = 'w', .address = there[i], .bytes = MIB, .byte = (unsigned char)(i + 1)).code);
        shared[i] = handle_of(&one, there[i]);
    }
    for (uintptr_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, open_and_close, (void *)i) == 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 8; i++) OK(BID(&one, .what = 'f', .address = there[i]).code);
    comes_to(&one, 'h', 0);
    comes_to(&one, 'p', 0);
    end(&one, 0);
}

/* A block that comes to be where another one was is not the one that was exported. */
static void the_same_address_again(void) {
    other_t one = start(), two = start();
    uint64_t there = give(&one, 4 * MIB), again = 0;
    ipc_t first = handle_of(&one, there);
    OK(BID(&one, .what = 'f', .address = there).code);
    for (int i = 0; i < 100 && (again = give(&one, 4 * MIB)) != there; i++) {
        OK(BID(&one, .what = 'f', .address = again).code);
    }
    CHECK(again == there);
    ipc_t second = handle_of(&one, there);
    CHECK(memcmp(&first, &second, sizeof first) != 0);
    CHECK(BID(&two, .what = 'o', .handle = first).code == GONE);
    OK(BID(&two, .what = 'c', .address = opened(&two, second)).code);
    end(&one, 0);
    end(&two, 0);
}

int main(int argc, char **argv) {
    program = argv[0];
    if (argc == 3) obey(atoi(argv[2]));
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {
        {"bytes", bytes_go_both_ways},
        {"chunks", blocks_over_several_chunks},
        {"driver", from_where_the_driver_says},
        {"killed", the_exporter_is_killed},
        {"freed", freed_while_it_is_open},
        {"exit", exit_while_it_is_open},
        {"wrong", handles_that_are_none},
        {"without", an_opener_without_the_library},
        {"device", on_another_device},
        {"modes", nobody_else_gets_in},
        {"user", of_another_user},
        {"strange", strange_visitors},
        {"fork", after_a_fork},
        {"threads", by_many_threads},
        {"again", the_same_address_again},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (argc == 2 && strcmp(argv[1], parts[i].name) == 0) {
            parts[i].run();
            return 0;
        }
    }
    fprintf(stderr, "no part %s\n", argv[argc - 1]);
    return 1;
}
