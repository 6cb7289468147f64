/* Memory that processes share: how it ends, by whoever's end, and who is kept out. */
#include "others.h"

#include <sys/file.h>
#include <sys/resource.h>

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

/* Others have the memory, and can come to it, until a reset takes place. */
static void a_reset_that_is_refused(void) {
    other_t one = start(), two = start();
    void *block, *stream, *graph, *here;
    ipc_t ours, theirs = handle_of(&one, give(&one, MIB));
    OK(cudaMalloc(&block, 4 * MIB));
    OK(cudaIpcGetMemHandle(&ours, block));
    OK(cudaIpcOpenMemHandle(&here, theirs, 1));
    OK(BID(&two, .what = 'c', .address = opened(&two, ours)).code);
    OK(cudaStreamCreate(&stream));
    OK(cudaStreamBeginCapture(stream, 2));
    CHECK(cudaDeviceReset() == 900);
    OK(BID(&two, .what = 'c', .address = opened(&two, ours)).code);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaIpcCloseMemHandle(here));
    OK(cudaIpcOpenMemHandle(&here, theirs, 1));
    OK(cudaDeviceReset());
    CHECK(BID(&two, .what = 'o', .handle = ours).code == GONE);
    CHECK(cudaIpcCloseMemHandle(here) == INVALID);
    CHECK(cudaFree(block) != 0 && faults() == 0);
    end(&one, 0);
    end(&two, 0);
}

/* Removes what nobody holds the lock of, as the library does of exporters that are gone. */
static void *clean_up(void *stop) {
    const char *parent = getenv("XDG_RUNTIME_DIR");
    char path[4096], inner[4200];
    while (!*(volatile int *)stop) {
        DIR *folder = opendir(parent);
        for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
            if (entry->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%s", parent, entry->d_name);
            int opened = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (opened >= 0 && flock(opened, LOCK_EX | LOCK_NB) == 0) {
                snprintf(inner, sizeof inner, "%s/socket", path);
                unlink(inner);
                rmdir(path);
            }
            if (opened >= 0) close(opened);
        }
        if (folder != NULL) closedir(folder);
    }
    return NULL;
}

/* Whoever begins while others clean up meets in the same place all the same. */
static void while_others_clean_up(void) {
    pthread_t cleaner;
    char path[4096];
    volatile int stop = 0;
    CHECK(pthread_create(&cleaner, NULL, clean_up, (void *)&stop) == 0);
    for (int i = 0; i < 40; i++) {
        other_t one = start();
        handle_of(&one, give(&one, MIB));
        find_folder(path);
        end(&one, 0);
    }
    stop = 1;
    pthread_join(cleaner, NULL);
}

/* A block that others have open when it is freed is the memory of those who freed it in a stream's order until that is
 * done, too. */
static void freed_in_the_order_of_a_stream(void) {
    other_t two = start();
    void *own, *last, *block, *again[40];
    ipc_t handle;
    OK(cudaStreamCreate(&own));
    OK(cudaStreamCreate(&last));
    OK(cudaMallocAsync(&block, 4 * MIB, own));
    OK(cudaIpcGetMemHandle(&handle, block));
    uint64_t there = opened(&two, handle);
    stream_hold(last);
    OK(cudaMemsetAsync(block, 7, 4 * MIB, last));
    OK(cudaFreeAsync(block, last));
    CHECK(cudaFreeAsync(block, last) == INVALID);
    OK(BID(&two, .what = 'c', .address = there).code);
    for (int i = 0; i < 5000 && stats_of(0, -1).allocated > 0; i++) usleep(1000);
    CHECK(stats_of(0, -1).allocated == 0);
    for (int i = 0; i < 40; i++) {
        OK(cudaMallocAsync(&again[i], 4 * MIB, own));
        CHECK(again[i] != block);
    }
    stream_release(last);
    OK(cudaStreamDestroy(last));
    for (int i = 0; i < 40; i++) OK(cudaFreeAsync(again[i], own));
    OK(cudaStreamSynchronize(own));
    OK(cudaStreamDestroy(own));
    CHECK(faults() == 0);
    end(&two, 0);
}

/* What is exported from where a chunk begins is the blocks that live there: pinned as long as one of them, and open
 * elsewhere no block of it is given back. */
static void freed_in_a_chunk_that_is_open(void) {
    other_t one = start(), two = start();
    for (int round = 0; round < 2; round++) {
        uint64_t first = give(&one, MIB / 2), second = give(&one, MIB / 2), third = give(&one, MIB / 2);
        uint64_t begin = BID(&one, .what = 'b', .address = second).value;
        CHECK(begin != second && begin != third);
        OK(BID(&one, .what = 'f', .address = first).code);
        OK(BID(&one, .what = 'w', .address = second, .bytes = MIB / 2, .byte = 0x35).code);
        ipc_t handle = handle_of(&one, begin);
        CHECK(BID(&one, .what = 'p').value > 0);
        if (round == 0) {
            uint64_t here = opened(&two, handle), blocks = BID(&one, .what = 'h').value;
            OK(BID(&one, .what = 'f', .address = second).code);
            CHECK(BID(&one, .what = 'f', .address = second).code == INVALID);
            CHECK(BID(&one, .what = 'h').value == blocks);
            uint64_t again = give(&one, MIB / 2);
            CHECK(again != second);
            OK(BID(&one, .what = 'f', .address = again).code);
            CHECK(BID(&two, .what = 'r', .address = here + (second - begin), .bytes = MIB / 2, .byte = 0x35).value == 0);
            /* The third is there to be opened. */
            CHECK(opened(&two, handle) == here);
            OK(BID(&two, .what = 'c', .address = here).code);
            OK(BID(&two, .what = 'c', .address = here).code);
            comes_to(&one, 'h', MIB / 2);
            CHECK(BID(&one, .what = 'p').value > 0);
        } else {
            OK(BID(&one, .what = 'f', .address = second).code);
        }
        OK(BID(&one, .what = 'f', .address = third).code);
        comes_to(&one, 'h', 0);
        comes_to(&one, 'p', 0);
        CHECK(BID(&two, .what = 'o', .handle = handle).code == GONE);
    }
    end(&one, 0);
    end(&two, 0);
}

static uint64_t seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec;
}

static void *open_of_stopped(void *handle) {
    void *here = NULL;
    OK(cudaIpcOpenMemHandle(&here, *(ipc_t *)handle, 1));
    OK(cudaIpcCloseMemHandle(here));
    return NULL;
}

/* Who is stopped keeps nobody else waiting: neither an opener that takes nothing, nor an exporter that answers nothing. */
static void others_are_stopped(void) {
    other_t one = start(), two = start();
    uint64_t there = give(&one, MIB);
    ipc_t ours = handle_of(&one, there), theirs;
    char path[4096], request[72] = {1};
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    find_folder(path);
    strcat(path, "/socket");
    CHECK(strlen(path) < sizeof at.sun_path);
    strcpy(at.sun_path, path);
    memcpy(request + 8, &ours, sizeof ours);
    int visitors[8];
    for (int i = 0; i < 8; i++) {
        visitors[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        OK(connect(visitors[i], (struct sockaddr *)&at, sizeof at));
        /* Half of them ask and ask, and read no answer. */
        for (int j = 0; i % 2 == 0 && j < 2000; j++) {
            if (send(visitors[i], request, sizeof request, MSG_NOSIGNAL | MSG_DONTWAIT) < (ssize_t)sizeof request) break;
            if (j % 100 == 99) usleep(1000);
        }
        if (i % 2 == 1) CHECK(send(visitors[i], request, 4, MSG_NOSIGNAL) == 4);
    }
    void *here = NULL;
    uint64_t before = seconds();
    OK(cudaIpcOpenMemHandle(&here, ours, 1));
    OK(cudaIpcCloseMemHandle(here));
    CHECK(seconds() - before < 3);
    for (int i = 0; i < 8; i++) close(visitors[i]);
    theirs = handle_of(&two, give(&two, MIB));
    pthread_t waiting;
    OK(kill(one.pid, SIGSTOP));
    CHECK(pthread_create(&waiting, NULL, open_of_stopped, &ours) == 0);
    usleep(200000);
    before = seconds();
    OK(cudaIpcOpenMemHandle(&here, theirs, 1));
    OK(cudaIpcCloseMemHandle(here));
    CHECK(seconds() - before < 3);
    OK(kill(one.pid, SIGCONT));
    CHECK(pthread_join(waiting, NULL) == 0);
    OK(BID(&one, .what = 'f', .address = there).code);
    comes_to(&one, 'h', 0);
    comes_to(&one, 'p', 0);
    end(&one, 0);
    end(&two, 0);
}

/* A process has many openers; who finds no room hears of it at once, and has it once others are gone. */
static void many_openers(void) {
    enum { FEW = 300, ALL = 1024 };
    struct rlimit files;
    OK(getrlimit(RLIMIT_NOFILE, &files));
    if (files.rlim_max < 2 * ALL) {
        puts("skipped: so many files cannot be had");
        return;
    }
    files.rlim_cur = files.rlim_max;
    OK(setrlimit(RLIMIT_NOFILE, &files));
    other_t one = start();
    ipc_t handle = handle_of(&one, give(&one, MIB));
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char path[4096];
    find_folder(path);
    CHECK(snprintf(at.sun_path, sizeof at.sun_path, "%.90s/socket", path) < (int)sizeof at.sun_path);
    static int visitors[ALL];
    void *here = NULL;
    uint64_t before = seconds();
    for (int i = 0; i < ALL; i++) {
        if (i == FEW) {
            OK(cudaIpcOpenMemHandle(&here, handle, 1));
            OK(cudaIpcCloseMemHandle(here));
            CHECK(seconds() - before < 10);
            usleep(100000);
        }
        visitors[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        OK(connect(visitors[i], (struct sockaddr *)&at, sizeof at));
    }
    for (int i = 0; i < 10; i++) {
        before = seconds();
        CHECK(told(cudaIpcOpenMemHandle(&here, handle, 1)) == GONE);
        EXPECT_ERROR_TEXT("serves no more");
        CHECK(seconds() - before < 10);
    }
    close(visitors[0]);
    int code = GONE;
    for (int i = 0; i < 5000 && code != 0; i++) {
        usleep(1000);
        code = cudaIpcOpenMemHandle(&here, handle, 1);
    }
    OK(code);
    OK(cudaIpcCloseMemHandle(here));
    for (int i = 1; i < ALL; i++) close(visitors[i]);
    end(&one, 0);
}

int main(int argc, char **argv) {
    static const part_t parts[] = {
        {"killed", the_exporter_is_killed},
        {"freed", freed_while_it_is_open},
        {"exit", exit_while_it_is_open},
        {"modes", nobody_else_gets_in},
        {"user", of_another_user},
        {"strange", strange_visitors},
        {"fork", after_a_fork},
        {"again", the_same_address_again},
        {"refused", a_reset_that_is_refused},
        {"cleaned", while_others_clean_up},
        {"ordered", freed_in_the_order_of_a_stream},
        {"chunk", freed_in_a_chunk_that_is_open},
        {"stopped", others_are_stopped},
        {"many", many_openers},
    };
    return obey_or_run_part(argc, argv, parts, sizeof parts / sizeof parts[0]);
}
