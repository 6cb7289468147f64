/* What belongs to the process: versions, names of statuses, errors of each thread, options, the log;
 * and that none of it opens the driver. */
#include "check.h"

#include <pthread.h>

static void versions(void) {
    char text[32];
    CHECK(hbm_version() == HBM_VERSION);
    snprintf(text, sizeof text, "%d.%d.%d", HBM_VERSION_MAJOR, HBM_VERSION_MINOR, HBM_VERSION_PATCH);
    CHECK(strcmp(hbm_version_string(), text) == 0);
}

static void names_of_statuses(void) {
    for (int32_t status = HBM_OK; status <= HBM_IO; status++) {
        CHECK(strcmp(hbm_status_name(status), "unknown status") != 0);
        for (int32_t other = HBM_OK; other < status; other++) {
            CHECK(strcmp(hbm_status_name(status), hbm_status_name(other)) != 0);
        }
    }
    CHECK(strcmp(hbm_status_name(HBM_OK), "ok") == 0);
    CHECK(strcmp(hbm_status_name(HBM_OUT_OF_MEMORY), "out of memory") == 0);
    const int32_t none[] = {-1, HBM_IO + 1, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        CHECK(strcmp(hbm_status_name(none[i]), "unknown status") == 0);
    }
}

static void *other_thread(void *unused) {
    (void)unused;
    CHECK(strcmp(hbm_last_error(), "") == 0 && hbm_last_driver_code() == 0);
    EXPECT(HBM_BAD_OPTION, hbm_option_set("no_such_thing", "1"));
    EXPECT_ERROR_TEXT("no_such_thing");
    return NULL;
}

static void each_thread_has_its_own_last_error(void) {
    CHECK(strcmp(hbm_last_error(), "") == 0);
    EXPECT(HBM_BAD_OPTION, hbm_option_set("bakend", "vmm"));
    EXPECT_ERROR_TEXT("backend");
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, other_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    /* A success leaves the error alone. */
    EXPECT(HBM_OK, hbm_option_set("backend", "vmm"));
    EXPECT_ERROR_TEXT("bakend");
    CHECK(hbm_last_driver_code() == 0);
}

static void options(void) {
    char value[64];
    size_t needed = 0;
    EXPECT(HBM_OK, hbm_option_get("backend", value, sizeof value, &needed));
    CHECK(strcmp(value, "vmm") == 0 && needed == 4);
    EXPECT(HBM_OK, hbm_option_set("HBMALLOC_BACKEND", "managed"));
    EXPECT(HBM_OK, hbm_option_get("HBMALLOC_BACKEND", value, 4, &needed));
    CHECK(strcmp(value, "man") == 0 && needed == 8);
    EXPECT(HBM_OK, hbm_option_get("backend", NULL, 0, &needed));
    EXPECT(HBM_OK, hbm_option_get("backend", NULL, 0, NULL));
    memset(value, 'x', sizeof value);
    EXPECT(HBM_OK, hbm_option_get("backend", value, 0, NULL));
    CHECK(value[0] == 'x');

    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_set(NULL, "vmm"));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_set("backend", NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_set("backend", "\xff"));
    EXPECT(HBM_BAD_OPTION, hbm_option_set("backend", "vram"));
    EXPECT_ERROR_TEXT("vram");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_get(NULL, value, sizeof value, NULL));
    EXPECT(HBM_BAD_OPTION, hbm_option_get("no_such_thing", value, sizeof value, NULL));

    EXPECT(HBM_OK, hbm_option_validate("backend", "device"));
    EXPECT(HBM_BAD_OPTION, hbm_option_validate("backend", "vram"));
    EXPECT(HBM_BAD_OPTION, hbm_option_validate("no_such_thing", "1"));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_validate(NULL, "vmm"));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_validate("backend", NULL));
    EXPECT(HBM_OK, hbm_option_get("backend", value, sizeof value, NULL));
    CHECK(strcmp(value, "managed") == 0);

    size_t count = hbm_option_count();
    int seen = 0;
    CHECK(count > 5);
    for (size_t i = 0; i < count; i++) {
        hbm_option_t option;
        memset(&option, 0, sizeof option);
        option.struct_size = sizeof option;
        EXPECT(HBM_OK, hbm_option_describe(i, &option));
        CHECK(strlen(option.name) > 0 && strlen(option.help) > 0 && strlen(option.accepted) > 0);
        EXPECT(HBM_OK, hbm_option_get(option.name, value, sizeof value, NULL));
        CHECK(strncmp(value, option.value, sizeof value - 1) == 0);
        if (strcmp(option.name, "backend") == 0) {
            CHECK(strcmp(option.value, "managed") == 0 && strcmp(option.origin, "call") == 0);
            CHECK(strcmp(option.default_value, "pool") == 0);
            seen++;
        }
        if (strcmp(option.name, "driver") == 0) {
            CHECK(strstr(option.origin, "HBMALLOC_DRIVER") != NULL);
            seen++;
        }
    }
    CHECK(seen == 2);
    hbm_option_t option;
    option.struct_size = sizeof option;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_describe(count, &option));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_describe(SIZE_MAX, &option));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_describe(0, NULL));
    option.struct_size = 0;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_option_describe(0, &option));
    CHECK(hbm_driver_used() == 0);
}

struct heard {
    int lines;
    int greeting;
    int rejected;
};

static void hear(int32_t level, const char *target, const char *message, void *user) {
    struct heard *heard = user;
    CHECK(level >= 1 && level <= 5 && strlen(target) > 0);
    heard->lines++;
    heard->greeting += strstr(message, hbm_version_string()) != NULL;
    heard->rejected += level == 2 && strstr(message, "not the address of a live block") != NULL;
}

static void log_callback(void) {
    struct heard heard = {0, 0, 0};
    int32_t count = 0;
    EXPECT(HBM_BAD_OPTION, hbm_option_set("log", "loud"));
    EXPECT(HBM_OK, hbm_option_set("log", "info"));
    EXPECT(HBM_OK, hbm_log_set_callback(hear, &heard));
    CHECK(hbm_driver_used() == 0 && heard.lines == 0);
    EXPECT(HBM_OK, hbm_device_count(&count));
    CHECK(count == 2 && hbm_driver_used() == 1 && heard.greeting == 1);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_device_count(NULL));
    EXPECT(HBM_BUSY, hbm_option_set("driver", "cuda"));
    EXPECT(HBM_BUSY, hbm_option_validate("driver", "cuda"));
    EXPECT(HBM_OK, hbm_option_set("driver", "sim"));

    hbm_allocator_t *allocator = allocator_of(HBM_KIND_ASYNC, 0);
    uint64_t warnings = stats_of(0, -1).warnings;
    for (int i = 0; i < 3; i++) {
        EXPECT(HBM_NOT_OWNED, hbm_allocator_deallocate(allocator, &heard, NULL));
    }
    /* Each kind of warning is told once and counted always. */
    CHECK(heard.rejected == 1);
    CHECK(stats_of(0, -1).warnings == warnings + 3);
    EXPECT(HBM_OK, hbm_log_set_callback(NULL, NULL));
    int lines = heard.lines;
    EXPECT(HBM_OK, hbm_option_set("log", "trace"));
    EXPECT(HBM_OK, hbm_allocator_destroy(allocator));
    CHECK(heard.lines == lines);
}

int main(void) {
    versions();
    names_of_statuses();
    each_thread_has_its_own_last_error();
    options();
    log_callback();
    CHECK(hbm_forked() == 0);
    puts("process: fine");
    return 0;
}
