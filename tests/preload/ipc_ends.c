/* Memory that processes share: how it ends, by whoever's end, and who is kept out. */
#include "others.h"

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
    };
    return run_part(argc, argv, parts, sizeof parts / sizeof parts[0]);
}
