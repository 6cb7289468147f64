/* Sleep and wake from C: contents and addresses that come back, where memory is meanwhile, what is pinned
 * on either side, and what becomes of wrong arguments. */
#include "sleeping.h"

enum { SMALL = 700 };

static hbm_residency_report_t no_report(void) {
    hbm_residency_report_t report;
    memset(&report, 0xEE, sizeof report);
    report.struct_size = sizeof report;
    return report;
}

static void before_the_first_device(void) {
    hbm_residency_request_t all = request_of(NULL, 0);
    hbm_residency_report_t report = no_report();
    all.device = -1;
    EXPECT(HBM_OK, hbm_sleep(&all, &report));
    CHECK(report.moved == 0 && report.copied == 0 && report.pinned == 0);
    EXPECT(HBM_OK, hbm_wake(&all, NULL));
    EXPECT(HBM_OK, hbm_discard(&all, NULL));
    CHECK(where(-1, NULL).device == 0);
    CHECK(host().pinned == 0);
    EXPECT(HBM_NOT_OWNED, hbm_pin(&all, 1));
    EXPECT(HBM_NOT_OWNED, hbm_pin(NULL, 1));
    EXPECT(HBM_OK, hbm_host_buffer_trim(0, NULL));
    CHECK(hbm_driver_used() == 0);
}

static void contents_come_back_to_their_addresses(void) {
    const char *weights[] = {"weights"}, *both[] = {"cache", "weights"};
    void *blocks[6] = {
        block_of(HBM_KIND_VMM, "weights", 5 * MIB, 1),   block_of(HBM_KIND_POOL, "weights", SMALL, 2),
        block_of(HBM_KIND_POOL, "weights", 9 * MIB, 3), block_of(HBM_KIND_POOL, "cache", 3 * MIB, 4),
        block_of(HBM_KIND_POOL, NULL, 3 * MIB, 5),      block_of(HBM_KIND_DEVICE, "weights", MIB, 6),
    };
    size_t sizes[6] = {5 * MIB, SMALL, 9 * MIB, 3 * MIB, 3 * MIB, MIB};
    uint64_t before = physical_bytes(0);
    hbm_residency_request_t some = request_of(weights, 1), order = request_of(both, 2);
    hbm_residency_report_t report = no_report();
    CHECK(where(0, "weights").device >= 14 * MIB && where(0, "weights").host == 0);

    EXPECT(HBM_OK, hbm_sleep(&some, &report));
    CHECK(report.struct_size == sizeof report && report.pinned == 0);
    CHECK(report.moved >= 14 * MIB && report.copied >= 14 * MIB && report.copied <= report.moved);
    CHECK(before - physical_bytes(0) == report.moved);
    hbm_residency_t at = where(0, "weights");
    CHECK(at.device == 0 && at.host == report.moved && at.discarded == 0 && at.file == 0);
    CHECK(where(-1, NULL).host == at.host && where(0, "cache").host == 0);
    CHECK(host().used >= report.copied);
    /* What is not asleep can be used. */
    for (int i = 3; i < 6; i++) {
        CHECK(holds(blocks[i], (unsigned char)(i + 1), sizes[i]));
    }
    /* Again, and it sleeps already. */
    EXPECT(HBM_OK, hbm_sleep(&some, &report));
    CHECK(report.moved == 0 && report.copied == 0);

    /* Tag by tag, in their order, as far as there is room. */
    hbm_residency_of_tag_t of_tags[3];
    memset(of_tags, 0xEE, sizeof of_tags);
    order.by_tag = of_tags;
    order.by_tag_capacity = 2;
    EXPECT(HBM_OK, hbm_wake(&order, &report));
    CHECK(report.moved == at.host && report.tag_count == 2);
    CHECK(strcmp(of_tags[0].tag, "cache") == 0 && of_tags[0].moved == 0 && of_tags[0].copied == 0);
    CHECK(strcmp(of_tags[1].tag, "weights") == 0 && of_tags[1].moved == report.moved);
    CHECK(of_tags[1].copied == report.copied && of_tags[1].pinned == 0);
    CHECK((unsigned char)of_tags[2].tag[0] == 0xEE);
    order.by_tag_capacity = 1;
    of_tags[1].moved = 7;
    EXPECT(HBM_OK, hbm_sleep(&order, &report));
    CHECK(report.tag_count == 2 && of_tags[1].moved == 7 && of_tags[0].moved > 0);
    order.by_tag = NULL;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_wake(&order, &report));
    CHECK(report.moved > 0); /* as it was */
    order.by_tag_capacity = 0;
    EXPECT(HBM_OK, hbm_wake(&order, &report));
    EXPECT(HBM_OK, hbm_wake(&order, &report));
    CHECK(report.moved == 0 && report.copied == 0);
    CHECK(physical_bytes(0) == before && where(0, NULL).host == 0);
    for (int i = 0; i < 6; i++) {
        CHECK(holds(blocks[i], (unsigned char)(i + 1), sizes[i]));
    }
    CHECK(host().used == 0);

    /* Everything, the untagged too. */
    hbm_residency_request_t all = request_of(NULL, 0);
    all.device = -1;
    EXPECT(HBM_OK, hbm_sleep(&all, NULL));
    CHECK(where(0, NULL).device == 0 && where(0, NULL).host > at.host);
    EXPECT(HBM_OK, hbm_wake(&all, NULL));
    for (int i = 0; i < 6; i++) {
        CHECK(holds(blocks[i], (unsigned char)(i + 1), sizes[i]));
        free_block(blocks[i]);
    }
}

static void what_is_discarded_is_gone_and_its_address_is_not(void) {
    const char *tags[] = {"scratch"};
    hbm_residency_request_t request = request_of(tags, 1);
    hbm_residency_report_t report = no_report();
    void *block = block_of(HBM_KIND_VMM, "scratch", 4 * MIB, 9);
    /* `to` and `flags` are not looked at. */
    request.to = 77;
    EXPECT(HBM_OK, hbm_discard(&request, &report));
    CHECK(report.moved == 4 * MIB && report.copied == 0);
    CHECK(where(0, "scratch").discarded == 4 * MIB && host().used == 0);
    request.flags = 77;
    EXPECT(HBM_OK, hbm_wake(&request, &report));
    CHECK(report.moved == 4 * MIB && report.copied == 0);
    fill(0, block, 8, 4 * MIB, NULL);
    CHECK(holds(block, 8, 4 * MIB));
    /* What is on the host is given up too. */
    request.to = HBM_SLEEP_TO_HOST;
    request.flags = 0;
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    CHECK(host().used >= 4 * MIB);
    request.to = HBM_SLEEP_TO_NOTHING;
    EXPECT(HBM_OK, hbm_sleep(&request, &report));
    CHECK(report.moved == 0 && host().used == 0 && where(0, "scratch").discarded == 4 * MIB);
    /* Freed where it lies. */
    free_block(block);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(where(0, "scratch").discarded == 0);
}

static void pinned_memory_stays(void) {
    const char *tags[] = {"pins"};
    hbm_residency_request_t request = request_of(tags, 1);
    hbm_residency_report_t report = no_report();
    void *stays = block_of(HBM_KIND_VMM, "pins", 4 * MIB, 1), *goes = block_of(HBM_KIND_VMM, "pins", 2 * MIB, 2);
    EXPECT(HBM_OK, hbm_pin(stays, 4 * MIB));
    EXPECT(HBM_OK, hbm_pin((char *)stays + 5, 1));
    CHECK(where(0, "pins").pinned >= 2 * MIB);
    EXPECT(HBM_OK, hbm_sleep(&request, &report));
    CHECK(report.pinned == 4 * MIB && report.moved == 2 * MIB);
    CHECK(holds(stays, 1, 4 * MIB));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_pin(goes, 1));
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(holds(goes, 2, 2 * MIB));
    EXPECT(HBM_OK, hbm_unpin(stays, 4 * MIB));
    EXPECT(HBM_OK, hbm_unpin((char *)stays + 5, 1));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_unpin(stays, 4 * MIB));
    EXPECT(HBM_OK, hbm_sleep(&request, &report));
    CHECK(report.pinned == 0 && report.moved == 6 * MIB);
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(holds(stays, 1, 4 * MIB));

    EXPECT(HBM_INVALID_ARGUMENT, hbm_pin(stays, 0));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_pin(stays, UINT64_MAX));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_pin(stays, (uint64_t)64 << 30));
    void *other = block_of(HBM_KIND_DEVICE, NULL, MIB, 3);
    EXPECT(HBM_NOT_OWNED, hbm_pin(other, MIB));
    EXPECT(HBM_NOT_OWNED, hbm_unpin(other, MIB));
    EXPECT(HBM_NOT_OWNED, hbm_unpin(NULL, 0));
    free_block(other);
    free_block(goes);
    free_block(stays);
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_pin(stays, 4 * MIB));
    EXPECT(HBM_NOT_OWNED, hbm_unpin(stays, 4 * MIB));
}

static void the_hosts_room_is_had_before_and_given_back_after(void) {
    const char *tags[] = {"room"};
    hbm_residency_request_t request = request_of(tags, 1);
    uint64_t given_back = 77;
    EXPECT(HBM_OK, hbm_host_buffer_trim(0, &given_back));
    CHECK(host().pinned == 0);
    EXPECT(HBM_OK, hbm_host_buffer_prepare(0));
    CHECK(host().pinned == 0);
    EXPECT(HBM_OK, hbm_host_buffer_prepare(5 * MIB));
    CHECK(host().pinned >= 5 * MIB && host().used == 0);
    uint64_t pinned = host().pinned, made = calls("cuMemHostRegister_v2");
    CHECK(made > 0);
    EXPECT(HBM_OK, hbm_host_buffer_prepare(5 * MIB));
    void *block = block_of(HBM_KIND_VMM, "room", 4 * MIB, 1);
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    CHECK(host().pinned == pinned && calls("cuMemHostRegister_v2") == made);
    /* What holds something stays. */
    EXPECT(HBM_OK, hbm_host_buffer_trim(0, &given_back));
    CHECK(given_back == 0 && host().used >= 4 * MIB);
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(holds(block, 1, 4 * MIB));
    EXPECT(HBM_OK, hbm_host_buffer_trim(UINT64_MAX, &given_back));
    CHECK(given_back == 0 && host().pinned == pinned);
    EXPECT(HBM_OK, hbm_host_buffer_trim(0, &given_back));
    CHECK(given_back == pinned && host().pinned == 0);

    EXPECT(HBM_OK, hbm_option_set("sleep_host_limit", "2MiB"));
    EXPECT(HBM_OUT_OF_MEMORY, hbm_host_buffer_prepare(5 * MIB));
    EXPECT_ERROR_TEXT("sleep_host_limit");
    EXPECT(HBM_OUT_OF_MEMORY, hbm_sleep(&request, NULL));
    EXPECT_ERROR_TEXT("sleep_host_limit");
    CHECK(holds(block, 1, 4 * MIB) && where(0, "room").device == 4 * MIB);
    EXPECT(HBM_OK, hbm_discard(&request, NULL));
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    EXPECT(HBM_OK, hbm_option_set("sleep_host_limit", "80%"));
    EXPECT(HBM_OUT_OF_MEMORY, hbm_host_buffer_prepare((uint64_t)1 << 50));
    EXPECT(HBM_OUT_OF_MEMORY, hbm_host_buffer_prepare(UINT64_MAX));
    CHECK(host().pinned == 0);
    free_block(block);
}

static void clean_memory_sleeps_without_a_copy(void) {
    const char *tags[] = {"clean"};
    hbm_residency_request_t request = request_of(tags, 1);
    hbm_residency_report_t report = no_report();
    void *block = block_of(HBM_KIND_VMM, "clean", 4 * MIB, 1);
    EXPECT(HBM_OK, hbm_option_set("keep_host", "64MiB"));
    request.flags = HBM_SLEEP_CLEAN;
    EXPECT(HBM_OK, hbm_sleep(&request, &report));
    CHECK(report.copied == 4 * MIB);
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(host().used >= 4 * MIB);
    EXPECT(HBM_OK, hbm_sleep(&request, &report));
    CHECK(report.moved == 4 * MIB && report.copied == 0);
    EXPECT(HBM_OK, hbm_wake(&request, &report));
    CHECK(report.copied == 4 * MIB && holds(block, 1, 4 * MIB));
    fill(0, block, 2, 4 * MIB, NULL);
    request.flags = 0;
    EXPECT(HBM_OK, hbm_sleep(&request, &report));
    CHECK(report.copied == 4 * MIB);
    EXPECT(HBM_OK, hbm_option_set("keep_host", "0"));
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(holds(block, 2, 4 * MIB) && host().used == 0);
    free_block(block);
}

static void segments_need_not_be_saved_whole(void) {
    const char *tags[] = {"segments"};
    hbm_residency_request_t request = request_of(tags, 1);
    hbm_residency_report_t report = no_report();
    void *(*segment)(size_t, int, void *);
    void (*segment_free)(void *, size_t, int, void *);
    void *allocate = NULL, *release = NULL;
    EXPECT(HBM_OK, hbm_torch_segment_functions(HBM_KIND_VMM, "segments", &allocate, &release));
    memcpy(&segment, &allocate, sizeof segment);
    memcpy(&segment_free, &release, sizeof segment_free);
    char *first = segment(20 * MIB, 0, NULL);
    CHECK(first != NULL);
    fill(0, first, 7, 20 * MIB, NULL);
    /* Nested, out of order, beyond the segment, of no length, and in nothing of ours. */
    hbm_range_t dead[] = {
        {first + 18 * MIB, 64 * MIB}, {first + 2 * MIB, 4 * MIB}, {first + 3 * MIB, MIB},
        {first + 10 * MIB, 0},        {NULL, 1},
    };
    request.dead = dead;
    request.dead_count = sizeof dead / sizeof dead[0];
    EXPECT(HBM_OK, hbm_sleep(&request, &report));
    CHECK(report.moved == 20 * MIB && report.copied == 14 * MIB);
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(holds(first, 7, 2 * MIB) && holds(first + 6 * MIB, 7, 12 * MIB));

    /* A stretch that goes beyond all addresses is a mistake, and nothing has changed then. */
    hbm_range_t endless = {first, UINT64_MAX};
    request.dead = &endless;
    request.dead_count = 1;
    fill(0, first, 7, 20 * MIB, NULL);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_sleep(&request, NULL));
    CHECK(where(0, "segments").device == 20 * MIB && holds(first, 7, 20 * MIB));
    request.dead = NULL;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_sleep(&request, NULL));
    segment_free(first, 20 * MIB, 0, NULL);
}

static void a_capture_refuses_both(void) {
    hbm_residency_request_t request = request_of(NULL, 0);
    int (*begin)(void *, int), (*end)(void *, void **), (*destroy)(void *);
    void *block = block_of(HBM_KIND_POOL, "captures", 4 * MIB, 1), *graph = NULL;
    look_up("cuStreamBeginCapture_v2", &begin);
    look_up("cuStreamEndCapture", &end);
    look_up("cuGraphDestroy", &destroy);
    context_push(0);
    void *stream = stream_create();
    EXPECT(HBM_OK, hbm_graph_begin(0, 8, 1));
    CHECK(begin(stream, 0) == 0);
    EXPECT(HBM_CAPTURING, hbm_sleep(&request, NULL));
    EXPECT(HBM_CAPTURING, hbm_wake(&request, NULL));
    EXPECT(HBM_CAPTURING, hbm_discard(&request, NULL));
    CHECK(end(stream, &graph) == 0 && destroy(graph) == 0);
    EXPECT(HBM_OK, hbm_graph_end(0, 8, 1));
    EXPECT(HBM_OK, hbm_graph_release(0, 8, 1));
    context_pop();
    CHECK(where(0, NULL).device > 0 && where(0, NULL).host == 0);
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(holds(block, 1, 4 * MIB));
    free_block(block);
}

typedef int32_t operation(const hbm_residency_request_t *, hbm_residency_report_t *);

/* What `call` refuses, with nothing changed. */
static void refuses(operation *call) {
    const char *known[] = {"wrong"}, *unknown[] = {"wrong", "nobody's"}, *null[] = {"wrong", NULL};
    const char *not_text[] = {"\xff\xfe"};
    hbm_residency_request_t request = request_of(known, 1);
    EXPECT(HBM_INVALID_ARGUMENT, call(NULL, NULL));
    request.struct_size = 0;
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request.struct_size = sizeof request - 1;
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    EXPECT_ERROR_TEXT("struct_size");
    request.struct_size = SIZE_MAX;
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request = request_of(unknown, 2);
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    EXPECT_ERROR_TEXT("nobody's");
    EXPECT_ERROR_TEXT("wrong");
    request = request_of(null, 2);
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request = request_of(not_text, 1);
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request = request_of(NULL, 1);
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request = request_of(known, 1);
    request.reserved = 1;
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request = request_of(known, 1);
    request.dead_count = 1;
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request = request_of(known, 1);
    request.device = -2;
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    request.device = 99;
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, NULL));
    /* No tags are no tags, not all of them. */
    request = request_of(known, 0);
    EXPECT(HBM_OK, call(&request, NULL));
    /* A report that cannot be written: that is found before anything is done. */
    hbm_residency_report_t report = no_report();
    report.struct_size = 0;
    request = request_of(known, 1);
    EXPECT(HBM_INVALID_ARGUMENT, call(&request, &report));
}

static void wrong_arguments(void) {
    void *block = block_of(HBM_KIND_VMM, "wrong", 2 * MIB, 1);
    const char *known[] = {"wrong"};
    hbm_residency_request_t request = request_of(known, 1);
    hbm_residency_t found = {.struct_size = 0};
    hbm_host_buffer_t buffer = {.struct_size = 0};
    operation *const operations[] = {hbm_sleep, hbm_wake, hbm_discard};
    for (int i = 0; i < 3; i++) {
        refuses(operations[i]);
        CHECK(where(0, "wrong").device == 2 * MIB && holds(block, 1, 2 * MIB));
    }
    static const int32_t places[] = {-1, 3, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        request.to = places[i];
        EXPECT(HBM_INVALID_ARGUMENT, hbm_sleep(&request, NULL));
    }
    request.to = HBM_SLEEP_TO_HOST;
    request.flags = 4;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_sleep(&request, NULL));
    request.flags = UINT32_MAX;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_sleep(&request, NULL));
    CHECK(where(0, "wrong").device == 2 * MIB && holds(block, 1, 2 * MIB));

    EXPECT(HBM_INVALID_ARGUMENT, hbm_residency(0, NULL, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_residency(0, NULL, &found));
    found.struct_size = sizeof found;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_residency(0, "nobody's", &found));
    EXPECT(HBM_OK, hbm_residency(0, "", &found));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_residency(-2, NULL, &found));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_residency(99, NULL, &found));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_residency(0, "\xff\xfe", &found));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_host_buffer(NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_host_buffer(&buffer));
    free_block(block);
}

struct told {
    int asleep, remapped;
    uint64_t bytes;
};

static void note(int32_t device, void *address, uint64_t bytes, int32_t change, void *data) {
    struct told *told = data;
    CHECK(device == 0 && address != NULL);
    told->asleep += change == HBM_RESIDENCY_ASLEEP;
    told->remapped += change == HBM_RESIDENCY_REMAPPED;
    told->bytes += bytes;
}

static void whoever_registered_memory_is_told(void) {
    const char *tags[] = {"told"};
    hbm_residency_request_t request = request_of(tags, 1);
    struct told told = {0, 0, 0};
    void *block = block_of(HBM_KIND_VMM, "told", 4 * MIB, 5);
    EXPECT(HBM_OK, hbm_residency_callback(note, &told));
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    CHECK(told.asleep == 1 && told.remapped == 0 && told.bytes == 4 * MIB);
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    CHECK(told.asleep == 1);
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(told.asleep == 1 && told.remapped == 1 && told.bytes == 8 * MIB);
    EXPECT(HBM_OK, hbm_residency_callback(NULL, NULL));
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(told.asleep == 1 && told.remapped == 1 && holds(block, 5, 4 * MIB));
    free_block(block);
}

static void zeros_are_read_meanwhile(void) {
    const char *tags[] = {"guarded"};
    hbm_residency_request_t request = request_of(tags, 1);
    void *block = block_of(HBM_KIND_VMM, "guarded", 70 * MIB, 6);
    request.flags = HBM_SLEEP_GUARD_ZERO;
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    CHECK(holds(block, 0, 70 * MIB) && where(0, "guarded").host == 70 * MIB);
    /* After a wake that failed too. */
    EXPECT(HBM_OK, hbm_set_limit(0, MIB));
    EXPECT(HBM_OUT_OF_MEMORY, hbm_wake(&request, NULL));
    EXPECT(HBM_OK, hbm_set_limit(0, 0));
    CHECK(holds(block, 0, 70 * MIB) && where(0, "guarded").host == 70 * MIB);
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(holds(block, 6, 70 * MIB));
    EXPECT(HBM_OK, hbm_discard(&request, NULL));
    CHECK(holds(block, 0, 70 * MIB));
    free_block(block);
}

static void files_hold_it(void) {
    const char *tags[] = {"filed"};
    hbm_residency_request_t request = request_of(tags, 1);
    void *block = block_of(HBM_KIND_VMM, "filed", 70 * MIB, 7);
    void *small = block_of(HBM_KIND_POOL, "filed", 1000, 8);
    request.to = HBM_SLEEP_TO_FILE;
    EXPECT(HBM_OK, hbm_option_set("sleep_dir", "/nowhere/at/all"));
    EXPECT(HBM_IO, hbm_sleep(&request, NULL));
    CHECK(strstr(hbm_last_error(), "/nowhere/at/all") != NULL && strstr(hbm_last_error(), "sleep_dir") != NULL);
    CHECK(where(0, "filed").file == 0 && holds(block, 7, 70 * MIB) && holds(small, 8, 1000));
    EXPECT(HBM_OK, hbm_option_set("sleep_dir", ""));
    EXPECT(HBM_OK, hbm_sleep(&request, NULL));
    CHECK(where(0, "filed").file >= 72 * MIB && where(0, "filed").device == 0 && host().used == 0);
    EXPECT(HBM_OK, hbm_wake(&request, NULL));
    CHECK(where(0, "filed").file == 0 && holds(block, 7, 70 * MIB) && holds(small, 8, 1000));
    free_block(block);
    free_block(small);
}

int main(void) {
    before_the_first_device();
    contents_come_back_to_their_addresses();
    what_is_discarded_is_gone_and_its_address_is_not();
    pinned_memory_stays();
    the_hosts_room_is_had_before_and_given_back_after();
    clean_memory_sleeps_without_a_copy();
    segments_need_not_be_saved_whole();
    a_capture_refuses_both();
    whoever_registered_memory_is_told();
    zeros_are_read_meanwhile();
    files_hold_it();
    wrong_arguments();
    EXPECT(HBM_OK, hbm_trim(0, 0, NULL));
    CHECK(where(-1, NULL).device == 0 && where(-1, NULL).host == 0 && where(-1, NULL).discarded == 0);
    CHECK(stats_of(0, -1).reserved == 0);
    EXPECT(HBM_OK, hbm_host_buffer_trim(0, NULL));
    CHECK(host().pinned == 0 && host().used == 0);
    CHECK(faults() == 0);
    puts("residency: fine");
    return 0;
}
