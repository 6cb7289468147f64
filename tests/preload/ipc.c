/* Memory that processes share: what is seen of it, in how many pieces, and what is refused. */
#include "others.h"

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

/* Blocks much smaller than the largest get small chunks, which a larger one is then put together of. */
static uint64_t in_several_chunks(other_t *one, size_t bytes) {
    const size_t part = 2 * MIB;
    uint64_t small[12], large = give(one, 200 * MIB);
    for (int i = 0; i < 12; i++) small[i] = give(one, part);
    for (int i = 0; i < 12; i++) OK(BID(one, .what = 'f', .address = small[i]).code);
    uint64_t there = give(one, bytes);
    CHECK(BID(one, .what = 'n', .address = there, .bytes = bytes).value > 1);
    OK(BID(one, .what = 'f', .address = large).code);
    return there;
}

static void blocks_over_several_chunks(void) {
    other_t one = start(), two = start();
    const size_t bytes = 24 * MIB, part = 2 * MIB;
    uint64_t there = in_several_chunks(&one, bytes);
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

static void handles_that_are_none(void) {
    other_t one = start(), two = start();
    uint64_t there = give(&one, MIB);
    ipc_t good = handle_of(&one, there), bad;
    void *here = NULL;
    srand(7);
    for (int i = 0; i < 100; i++) {
        for (size_t at = 0; at < sizeof bad; at++) bad.reserved[at] = (unsigned char)(rand() >> 8);
        CHECK(told(cudaIpcOpenMemHandle(&here, bad, 1)) == INVALID);
    }
    memset(&bad, 0, sizeof bad);
    CHECK(told(cudaIpcOpenMemHandle(&here, bad, 1)) == INVALID);
    CHECK(stand_in_calls("cudaIpcOpenMemHandle") == 101);
    /* The process, its number, the export, the device, the length. */
    for (size_t at = 16; at < 48; at++) {
        bad = good;
        bad.reserved[at] ^= 0x40;
        CHECK(told(cudaIpcOpenMemHandle(&here, bad, 1)) == GONE);
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

/* Whichever call fails, nothing of it is left, and the next try is as good as the first. */
static void calls_that_fail(void) {
    static const char *const names[] = {"cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"};
    int (*fail)(const char *, uint64_t, int, uint64_t);
    void (*clear)(void);
    other_t one = start();
    const size_t bytes = 24 * MIB;
    void *mine, *here = NULL;
    OK(cudaMalloc(&mine, MIB));
    look_up("hbmsim_fail", &fail);
    look_up("hbmsim_fail_clear", &clear);
    uint64_t there = in_several_chunks(&one, bytes), before = physical_bytes(0);
    OK(BID(&one, .what = 'w', .address = there, .bytes = bytes, .byte = 0x29).code);
    ipc_t handle = handle_of(&one, there);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        for (uint64_t nth = 1; nth <= 2; nth++) {
            fail(names[i], nth, 801, 1);
            int code = cudaIpcOpenMemHandle(&here, handle, 1);
            clear();
            CHECK(code != 0 || nth == 2);
            CHECK(code == 0 || here == NULL);
            if (code != 0) OK(cudaIpcOpenMemHandle(&here, handle, 1));
            CHECK(different(here, 0x29, bytes) == 0);
            OK(cudaIpcCloseMemHandle(here));
            CHECK(physical_bytes(0) == before);
            here = NULL;
        }
    }
    /* The exporter's. */
    BID(&one, .what = 'q', .bytes = 2);
    CHECK(told(cudaIpcOpenMemHandle(&here, handle, 1)) == GONE);
    OK(cudaIpcOpenMemHandle(&here, handle, 1));
    CHECK(different(here, 0x29, bytes) == 0);
    OK(cudaIpcCloseMemHandle(here));
    OK(BID(&one, .what = 'f', .address = there).code);
    comes_to(&one, 'h', 0);
    BID(&one, .what = 'q', .bytes = 1);
    there = give(&one, MIB);
    CHECK(BID(&one, .what = 'g', .address = there).code != 0);
    handle_of(&one, there);
    OK(cudaFree(mine));
    end(&one, 0);
}

/* What could not be closed is, by the next call, and then the exporter's alone. */
static void a_close_that_fails(void) {
    static const char *const names[] = {"cuCtxRecordEvent", "cuMemUnmap"};
    int (*fail)(const char *, uint64_t, int, uint64_t);
    other_t one = start();
    void *here = NULL;
    look_up("hbmsim_fail", &fail);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        uint64_t there = give(&one, 4 * MIB), other = give(&one, MIB);
        OK(cudaIpcOpenMemHandle(&here, handle_of(&one, there), 1));
        OK(BID(&one, .what = 'f', .address = there).code);
        OK(fail(names[i], 1, 801, 1));
        CHECK(told(cudaIpcCloseMemHandle(here)) == 801);
        CHECK(told(cudaIpcCloseMemHandle(here)) == INVALID);
        CHECK(BID(&one, .what = 'h').value > MIB);
        OK(cudaIpcOpenMemHandle(&here, handle_of(&one, other), 1));
        comes_to(&one, 'h', MIB);
        OK(cudaIpcCloseMemHandle(here));
        OK(BID(&one, .what = 'f', .address = other).code);
        comes_to(&one, 'h', 0);
        comes_to(&one, 'p', 0);
    }
    end(&one, 0);
}

static void memory_of_the_driver(void) {
    void *block;
    ipc_t handle;
    OK(cudaMalloc(&block, 4 * MIB));
    CHECK(cudaIpcGetMemHandle(&handle, block) == INVALID);
    CHECK(stand_in_calls("cudaIpcGetMemHandle") == 1);
    OK(cudaFree(block));
}

static void part_of_memory_of_the_driver(void) {
    void *block;
    ipc_t handle;
    OK(cudaMalloc(&block, MIB));
    CHECK(cudaIpcGetMemHandle(&handle, block) == 801);
    EXPECT_ERROR_TEXT("vmm");
    CHECK(stand_in_calls("cudaIpcGetMemHandle") == 0);
    OK(cudaFree(block));
}

int main(int argc, char **argv) {
    static const part_t parts[] = {
        {"bytes", bytes_go_both_ways},
        {"chunks", blocks_over_several_chunks},
        {"driver", from_where_the_driver_says},
        {"wrong", handles_that_are_none},
        {"without", an_opener_without_the_library},
        {"device", on_another_device},
        {"threads", by_many_threads},
        {"fails", calls_that_fail},
        {"close", a_close_that_fails},
        {"plain", memory_of_the_driver},
        {"part", part_of_memory_of_the_driver},
    };
    return obey_or_run_part(argc, argv, parts, sizeof parts / sizeof parts[0]);
}
