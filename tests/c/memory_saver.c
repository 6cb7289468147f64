/* torch_memory_saver's functions as its Python calls them in torch mode: segments of memory pools, in regions that
 * say where contents go at a pause. What cudaMalloc has to do with it is tests/preload/saver.c. */
#define _GNU_SOURCE
#include "driver.h"

#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

static hbm_residency_t where(int32_t device, const char *tag) {
    hbm_residency_t found;
    memset(&found, 0, sizeof found);
    found.struct_size = sizeof found;
    EXPECT(HBM_OK, hbm_residency(device, tag, &found));
    return found;
}

static void region(const char *tag, int to_host, int to_file) {
    tms_set_current_tag(tag);
    tms_set_interesting_region(1);
    tms_set_enable_cpu_backup((uint8_t)to_host);
    tms_set_enable_disk_backup((uint8_t)to_file);
}

static unsigned char *segment(size_t bytes, unsigned char byte) {
    void *address = tms_torch_malloc((ptrdiff_t)bytes, 0, NULL);
    CHECK(address != NULL);
    fill(0, address, byte, bytes, NULL);
    return address;
}

static void what_was_said_is_told(void) {
    CHECK(!tms_get_interesting_region() && strcmp(tms_get_current_tag(), "default") == 0);
    region("some", 1, 0);
    CHECK(tms_get_interesting_region() && strcmp(tms_get_current_tag(), "some") == 0);
    CHECK(tms_get_enable_cpu_backup() && !tms_get_enable_disk_backup());
    tms_set_interesting_region(0);
    tms_set_cpu_backup_backend("mmap");
    CHECK(strcmp(tms_get_cpu_backup_backend(), "mmap") == 0);
    tms_set_cpu_backup_backend("pinned");
    CHECK(!tms_get_retain_cpu_backup());
    EXPECT(HBM_OK, tms_pause(NULL));
    EXPECT(HBM_OK, tms_resume("nobody"));
    CHECK(hbm_driver_used() == 0);
}

static void segments_pause(void) {
    region("weights", 1, 0);
    unsigned char *weights = segment(6 * MIB, 1);
    region("weights", 0, 0);
    unsigned char *scratch = segment(4 * MIB, 2);
    region("cold", 0, 1);
    unsigned char *cold = segment(2 * MIB, 3);
    tms_set_interesting_region(0);
    unsigned char *plain = segment(2 * MIB, 4);
    uint64_t before = physical_bytes(0);

    /* One tag, saved here and given up there. */
    EXPECT(HBM_OK, tms_pause("weights"));
    CHECK(before - physical_bytes(0) == 10 * MIB);
    CHECK(where(0, "tms.host.weights").host == 6 * MIB && where(0, "tms.none.weights").discarded == 4 * MIB);
    CHECK(where(0, "tms.file.cold").device == 2 * MIB);
    EXPECT(HBM_OK, tms_pause("weights"));
    EXPECT(HBM_OK, tms_pause(NULL));
    CHECK(where(0, "tms.file.cold").file == 2 * MIB && holds(plain, 4, 2 * MIB));
    const uint8_t *saved = tms_get_cpu_backup_pointer(weights + 1, 6 * MIB - 1);
    CHECK(saved != NULL && saved[0] == 1 && saved[6 * MIB - 2] == 1);
    CHECK(tms_get_cpu_backup_pointer(weights, 6 * MIB + 1) == NULL);
    CHECK(tms_get_cpu_backup_pointer(scratch, 1) == NULL && tms_get_cpu_backup_pointer(cold, 1) == NULL);

    EXPECT(HBM_OK, tms_resume(NULL));
    EXPECT(HBM_OK, tms_resume(NULL));
    CHECK(physical_bytes(0) == before);
    CHECK(holds(weights, 1, 6 * MIB) && holds(cold, 3, 2 * MIB));
    CHECK(tms_get_cpu_backup_pointer(weights, 1) == NULL);
    tms_set_retain_cpu_backup(1);
    EXPECT(HBM_OK, tms_pause("weights"));
    EXPECT(HBM_OK, tms_resume("weights"));
    fill(0, weights, 5, 6 * MIB, NULL);
    saved = tms_get_cpu_backup_pointer(weights, 6 * MIB);
    CHECK(saved != NULL && saved[0] == 1 && holds(weights, 5, 6 * MIB));
    tms_set_retain_cpu_backup(0);

    EXPECT(HBM_OK, tms_pause(NULL));
    tms_torch_free(weights, 0, 0, NULL);
    tms_torch_free(cold, 0, 0, NULL);
    EXPECT(HBM_OK, tms_resume(NULL));
    tms_torch_free(scratch, 0, 0, NULL);
    tms_torch_free(plain, 0, 0, NULL);
}

static void failures_are_statuses(void) {
    region("both", 1, 1);
    CHECK(tms_torch_malloc(MIB, 0, NULL) == NULL && hbm_last_status() == HBM_INVALID_ARGUMENT);
    region("margin", 1, 0);
    set_memory_margin_bytes(UINT64_MAX);
    CHECK(tms_torch_malloc(MIB, 0, NULL) == NULL && hbm_last_status() == HBM_OUT_OF_MEMORY);
    set_memory_margin_bytes(0);
    CHECK(tms_torch_malloc(-1, 0, NULL) == NULL && hbm_last_status() == HBM_INVALID_ARGUMENT);
    CHECK(tms_torch_malloc(0, 0, NULL) == NULL);
    unsigned char *kept = segment(4 * MIB, 7);
    /* The host has no room: all stays as it is, and is done once there is. */
    EXPECT(HBM_OK, hbm_host_buffer_trim(0, NULL));
    EXPECT(HBM_OK, hbm_option_set("sleep_host_limit", "1MiB"));
    EXPECT(HBM_OUT_OF_MEMORY, tms_pause("margin"));
    CHECK(holds(kept, 7, 4 * MIB));
    EXPECT(HBM_OK, hbm_option_set("sleep_host_limit", "80%"));
    EXPECT(HBM_OK, tms_pause("margin"));
    EXPECT(HBM_OK, tms_resume("margin"));
    CHECK(holds(kept, 7, 4 * MIB));
    tms_set_disk_backup_dir("/nowhere/at/all");
    region("cold", 0, 1);
    unsigned char *cold = segment(2 * MIB, 8);
    EXPECT(HBM_IO, tms_pause("cold"));
    CHECK(holds(cold, 8, 2 * MIB));
    tms_set_interesting_region(0);
    tms_torch_free(kept, 0, 0, NULL);
    tms_torch_free(cold, 0, 0, NULL);
}

static void in_a_forked_child(void) {
    region("forked", 1, 0);
    unsigned char *kept = segment(2 * MIB, 9);
    EXPECT(HBM_OK, tms_pause("forked"));
    pid_t child = fork();
    if (child == 0) {
        EXPECT(HBM_FORKED, tms_resume("forked"));
        EXPECT(HBM_FORKED, tms_pause(NULL));
        CHECK(tms_get_cpu_backup_pointer(kept, 1) == NULL && tms_torch_malloc(MIB, 0, NULL) == NULL);
        tms_torch_free(kept, 0, 0, NULL);
        tms_set_disk_backup_dir("/tmp");
        _exit(0);
    }
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    EXPECT(HBM_OK, tms_resume("forked"));
    CHECK(holds(kept, 9, 2 * MIB));
    tms_set_interesting_region(0);
    tms_torch_free(kept, 0, 0, NULL);
}

int main(void) {
    what_was_said_is_told();
    segments_pause();
    failures_are_statuses();
    in_a_forked_child();
    return 0;
}
