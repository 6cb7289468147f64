/* Memory of one process in another: exported, sent over a socket, imported; and what is refused. */
#define _GNU_SOURCE
#include "driver.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static hbm_export_t empty_export(void) {
    hbm_export_t export;
    memset(&export, 0xEE, sizeof export);
    export.struct_size = sizeof export;
    return export;
}

static void read_back(const void *address, void *host, size_t bytes) {
    int (*copy)(void *, unsigned long long, size_t);
    look_up("cuMemcpyDtoH_v2", &copy);
    context_push(0);
    CHECK(copy(host, (unsigned long long)(uintptr_t)address, bytes) == 0);
    context_pop();
}

static void wait_for_device(void) {
    context_push(0);
    stream_wait(NULL);
    context_pop();
}

static void check_filled(const void *address, unsigned char byte, size_t bytes) {
    unsigned char *seen = malloc(bytes);
    CHECK(seen != NULL);
    read_back(address, seen, bytes);
    for (size_t i = 0; i < bytes; i++) {
        if (seen[i] != byte) {
            fprintf(stderr, "byte %zu is %#x, not %#x\n", i, seen[i], byte);
            exit(1);
        }
    }
    free(seen);
}

static void tell(int socket, char word) {
    CHECK(write(socket, &word, 1) == 1);
}

static void hear(int socket, char word) {
    char heard = 0;
    CHECK(read(socket, &heard, 1) == 1);
    CHECK(heard == word);
}

static int open_descriptors(void) {
    int count = 0;
    for (int number = 0; number < 256; number++) {
        count += fcntl(number, F_GETFD) >= 0;
    }
    return count;
}

/* The other process: reads what was written, writes, and still has the memory when the first has freed it. */
static void importer(int socket) {
    alarm(60);
    for (int i = 0; i < 2; i++) {
        hbm_export_t received = empty_export();
        EXPECT(HBM_OK, hbm_export_receive(socket, &received));
        CHECK(received.kind == HBM_EXPORT_FD && received.fd >= 0 && received.device == 0);
        CHECK(received.bytes >= MIB && received.offset + received.bytes == received.chunk_bytes);
        CHECK(fcntl(received.fd, F_GETFD) == FD_CLOEXEC);
        void *here = NULL;
        EXPECT(HBM_OK, hbm_import(&received, 0, &here));
        CHECK(here != NULL && close(received.fd) == 0);
        check_filled(here, 0x21, MIB);
        fill(0, here, 0x42, MIB, NULL);
        check_filled(here, 0x42, MIB);
        tell(socket, 'w');
        hear(socket, 'f');
        check_filled(here, 0x42, MIB);
        hbm_stats_t stats = stats_of(0, -1);
        CHECK(stats.reserved == 0 && stats.allocated == 0 && stats.limit_used == 0);
        vmm_free(here, MIB, 0, NULL);
        CHECK(stats_of(0, -1).rejected_frees == stats.rejected_frees + 1);
        EXPECT(HBM_OK, hbm_import_close(here));
        EXPECT(HBM_NOT_OWNED, hbm_import_close(here));
        tell(socket, 'c');
    }
    CHECK(faults() == 0);
    exit(0);
}

static void exporter(int socket) {
    static const int32_t kinds[] = {HBM_KIND_VMM, HBM_KIND_POOL};
    for (int i = 0; i < 2; i++) {
        hbm_allocator_t *allocator = allocator_of(kinds[i], 0);
        void *block = NULL;
        EXPECT(HBM_OK, hbm_allocator_allocate(allocator, 3 * MIB, 0, NULL, &block));
        char *inside = (char *)block + MIB / 2;
        fill(0, inside, 0x21, MIB, NULL);
        wait_for_device();
        hbm_export_t export = empty_export();
        EXPECT(HBM_OK, hbm_export(inside, &export));
        CHECK(export.reserved == 0 && export.fabric[0] == 0 && export.offset >= MIB / 2);
        hbm_residency_t residency = {.struct_size = sizeof residency};
        EXPECT(HBM_OK, hbm_residency(0, NULL, &residency));
        CHECK(residency.pinned == export.chunk_bytes);
        EXPECT(HBM_OK, hbm_export_send(socket, &export));
        CHECK(close(export.fd) == 0);
        hear(socket, 'w');
        check_filled(inside, 0x42, MIB);
        EXPECT(HBM_OK, hbm_export_close(export.serial));
        EXPECT(HBM_NOT_OWNED, hbm_export_close(export.serial));
        EXPECT(HBM_OK, hbm_allocator_deallocate(allocator, block, NULL));
        EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
        CHECK(stats_of(0, -1).reserved == 0);
        tell(socket, 'f');
        hear(socket, 'c');
        EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    }
}

static void memory_in_two_processes(void) {
    int sockets[2], status = -1;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    /* Before either has used the driver. */
    pid_t child = fork();
    if (child == 0) {
        close(sockets[0]);
        importer(sockets[1]);
    }
    close(sockets[1]);
    exporter(sockets[0]);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(sockets[0]);
}

static void within_one_process(void) {
    char *block = vmm_malloc(2 * MIB, 0, NULL);
    void *first = NULL, *second = NULL;
    hbm_export_t export = empty_export(), again = empty_export();
    EXPECT(HBM_OK, hbm_export(block, &export));
    EXPECT(HBM_OK, hbm_export(block + MIB, &again));
    EXPECT(HBM_OK, hbm_import(&export, 0, &first));
    EXPECT(HBM_OK, hbm_import(&again, 1, &second));
    CHECK(first != second);
    fill(0, block, 7, 2 * MIB, NULL);
    wait_for_device();
    check_filled(first, 7, 2 * MIB);
    check_filled(second, 7, MIB);
    EXPECT(HBM_OK, hbm_import_close(second));
    EXPECT(HBM_OK, hbm_import_close(first));
    EXPECT(HBM_OK, hbm_export_close(export.serial));
    EXPECT(HBM_OK, hbm_export_close(again.serial));
    close(export.fd);
    close(again.fd);
    vmm_free(block, 0, 0, NULL);
}

/* What is exported at an address that was exported before has a pin of its own. */
static void exports_of_one_address(void) {
    hbm_export_t first = empty_export(), second = empty_export();
    hbm_residency_t residency = {.struct_size = sizeof residency};
    char *block = vmm_malloc(2 * MIB, 0, NULL);
    EXPECT(HBM_OK, hbm_export(block, &first));
    close(first.fd);
    vmm_free(block, 0, 0, NULL);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    char *again = vmm_malloc(2 * MIB, 0, NULL);
    CHECK(again == block);
    EXPECT(HBM_OK, hbm_export(again, &second));
    close(second.fd);
    EXPECT(HBM_NOT_OWNED, hbm_export_close(first.serial));
    EXPECT(HBM_OK, hbm_residency(0, NULL, &residency));
    CHECK(residency.pinned == 2 * MIB && first.serial != second.serial);
    EXPECT(HBM_OK, hbm_export_close(second.serial));
    EXPECT(HBM_OK, hbm_residency(0, NULL, &residency));
    CHECK(residency.pinned == 0);
    vmm_free(again, 0, 0, NULL);
}

static void wrong_exports(void) {
    char *block = vmm_malloc(MIB, 0, NULL), *other = device_malloc(MIB, 0, NULL);
    hbm_export_t export = empty_export();
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export(block, NULL));
    for (size_t size = 0; size < sizeof export; size += 8) {
        export.struct_size = size;
        EXPECT(HBM_INVALID_ARGUMENT, hbm_export(block, &export));
    }
    EXPECT_ERROR_TEXT("struct_size");
    /* Nothing was exported or pinned by that. */
    hbm_residency_t residency = {.struct_size = sizeof residency};
    EXPECT(HBM_OK, hbm_residency(0, NULL, &residency));
    CHECK(residency.pinned == 0);
    export.struct_size = sizeof export;
    EXPECT(HBM_UNSUPPORTED, hbm_export(other, &export));
    EXPECT_ERROR_TEXT("vmm");
    EXPECT(HBM_NOT_OWNED, hbm_export(NULL, &export));
    EXPECT(HBM_NOT_OWNED, hbm_export(&export, &export));
    EXPECT(HBM_NOT_OWNED, hbm_export_close(0));
    EXPECT(HBM_NOT_OWNED, hbm_export_close(UINT64_MAX));
    EXPECT(HBM_NOT_OWNED, hbm_import_close(NULL));
    EXPECT(HBM_NOT_OWNED, hbm_import_close(block));
    vmm_free(block, 0, 0, NULL);
    device_free(other, 0, 0, NULL);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_export(block, &export));
}

static void wrong_imports(void) {
    char *block = vmm_malloc(4 * MIB, 0, NULL);
    hbm_export_t good = empty_export(), bad;
    void *address = NULL;
    EXPECT(HBM_OK, hbm_export(block, &good));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_import(NULL, 0, &address));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_import(&good, 0, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_import(&good, -1, &address));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_import(&good, 99, &address));
    int file = open("/dev/null", O_RDWR), closed = dup(file);
    close(closed);
#define IMPORT_WITH(status, change)                                                               \
    do {                                                                                          \
        bad = good;                                                                               \
        change;                                                                                   \
        EXPECT(status, hbm_import(&bad, 0, &address));                                            \
    } while (0)
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.struct_size = 0);
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.struct_size = 8);
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.kind = 0);
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.kind = 3);
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.fd = -1);
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.fd = closed);
    IMPORT_WITH(HBM_DRIVER, bad.fd = file);
    EXPECT_ERROR_TEXT("hbm_export");
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.bytes--);
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.offset = UINT64_MAX);
    IMPORT_WITH(HBM_INVALID_ARGUMENT, (bad.chunk_bytes = 0, bad.bytes = 0));
    IMPORT_WITH(HBM_INVALID_ARGUMENT, (bad.chunk_bytes++, bad.bytes++));
    IMPORT_WITH(HBM_INVALID_ARGUMENT, bad.reserved = 1);
    IMPORT_WITH(HBM_UNSUPPORTED, (bad.chunk_bytes *= 2, bad.bytes *= 2));
    IMPORT_WITH(HBM_UNSUPPORTED, bad.kind = HBM_EXPORT_FABRIC);
    CHECK(address == NULL);
    EXPECT(HBM_OK, hbm_export_close(good.serial));
    close(good.fd);
    close(file);
    vmm_free(block, 0, 0, NULL);
}

/* A message with more than it should have, or something else. */
static void send_raw(int socket, const void *bytes, size_t length, int fd, int count) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    memset(&control, 0, sizeof control);
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        for (int i = 0; i < count; i++) {
            memcpy(CMSG_DATA(&control.header) + (size_t)i * sizeof(int), &fd, sizeof fd);
        }
    }
    CHECK(sendmsg(socket, &message, 0) == (ssize_t)length);
}

static void wrong_messages(void) {
    char *block = vmm_malloc(MIB, 0, NULL), message[512];
    hbm_export_t export = empty_export(), received = empty_export(), bad;
    int sockets[2], pipes[2];
    EXPECT(HBM_OK, hbm_export(block, &export));
    int before = open_descriptors();
    CHECK(pipe(pipes) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export_send(sockets[0], NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export_send(-1, &export));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export_send(pipes[1], &export));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export_receive(-1, &received));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export_receive(pipes[0], &received));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export_receive(sockets[0], NULL));
    bad = export;
    bad.fd = -1;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_export_send(sockets[0], &bad));

    /* What the library sends, read as it is. */
    EXPECT(HBM_OK, hbm_export_send(sockets[0], &export));
    ssize_t length = recv(sockets[1], message, sizeof message, 0);
    CHECK(length > 0 && (size_t)length < sizeof message);
    static const struct {
        int at, descriptors;
    } wrong[] = {{0, 1}, {8, 1}, {12, 1}, {-1, 0}, {-1, 2}, {-1, 4}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char changed[512];
        memcpy(changed, message, (size_t)length);
        if (wrong[i].at >= 0) {
            changed[wrong[i].at] = 99;
        }
        send_raw(sockets[0], changed, (size_t)length, export.fd, wrong[i].descriptors);
        int32_t status = hbm_export_receive(sockets[1], &received);
        CHECK(status == (wrong[i].at == 8 ? HBM_UNSUPPORTED : HBM_IO));
    }
    /* In two parts, which is no error. */
    send_raw(sockets[0], message, 10, export.fd, 1);
    send_raw(sockets[0], message + 10, (size_t)length - 10, -1, 0);
    EXPECT(HBM_OK, hbm_export_receive(sockets[1], &received));
    CHECK(received.chunk_bytes == export.chunk_bytes && close(received.fd) == 0);
    send_raw(sockets[0], message, 10, export.fd, 1);
    close(sockets[0]);
    EXPECT(HBM_IO, hbm_export_receive(sockets[1], &received));
    EXPECT_ERROR_TEXT("10 of");
    EXPECT(HBM_IO, hbm_export_send(sockets[1], &export));
    EXPECT_ERROR_TEXT("closed");

    EXPECT(HBM_OK, hbm_export_close(export.serial));
    close(sockets[1]);
    close(pipes[0]);
    close(pipes[1]);
    CHECK(open_descriptors() == before);
    close(export.fd);
    vmm_free(block, 0, 0, NULL);
}

int main(void) {
    EXPECT(HBM_OK, hbm_option_set("log", "off"));
    memory_in_two_processes();
    within_one_process();
    exports_of_one_address();
    wrong_exports();
    wrong_imports();
    wrong_messages();
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(stats_of(0, -1).reserved == 0 && physical_bytes(0) == 0);
    CHECK(faults() == 0);
    puts("sharing: fine");
    return 0;
}
