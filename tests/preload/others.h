/* Programs of CUDA's runtime that share memory: one that has the say, and others, started by exec, that do as it bids
 * over a socket, as exporters and as openers. */
#define _GNU_SOURCE
#include "runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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

/* What a function answered; what the runtime remembers of a failure is no other code. */
static int told(int code) {
    int last = cudaGetLastError();
    CHECK(last == 0 || last == code);
    return code;
}

static void fill_bytes(void *address, int byte, size_t bytes) {
    OK(cudaMemsetAsync(address, byte, bytes, NULL));
    OK(cudaDeviceSynchronize());
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
        case 'a': answer.code = told(cudaMalloc(&address, order.bytes)); answer.value = (uintptr_t)address; break;
        case 'f': answer.code = told(cudaFree(address)); break;
        case 'g': answer.code = told(cudaIpcGetMemHandle(&answer.handle, address)); break;
        case 'o': answer.code = told(cudaIpcOpenMemHandle(&address, order.handle, 1)); answer.value = (uintptr_t)address; break;
        case 'c': answer.code = told(cudaIpcCloseMemHandle(address)); break;
        case 'w': fill_bytes(address, order.byte, order.bytes); break;
        case 'r': answer.value = different(address, order.byte, order.bytes); break;
        case 'd': answer.code = cudaSetDevice((int)order.bytes); break;
        case 'h': answer.value = stats_of(0, -1).allocated; break;
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
        case 'q': {
            int (*fail)(const char *, uint64_t, int, uint64_t);
            look_up("hbmsim_fail", &fail);
            answer.code = fail("cuMemExportToShareableHandle", order.bytes, 304, 1);
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

/* What a program was started for: to obey, or for the part of the test that it is told. */
static int obey_or_run_part(int argc, char **argv, const part_t *parts, size_t count) {
    program = argv[0];
    if (argc == 3) obey(atoi(argv[2]));
    return run_part(argc, argv, parts, count);
}
