/* Many copies in one call: on the host without a driver, in order where they overlap; to a device and back, behind
 * what the stream has to do; what is refused, and by which piece. And what Python is shown, where there is no Python. */
#include "driver.h"

#include <stdint.h>

enum { PIECES = 64 };

static unsigned char *memory(size_t size) {
    unsigned char *bytes = malloc(size);
    CHECK(bytes != NULL);
    return bytes;
}

static void write_pattern(unsigned char *bytes, size_t size, unsigned seed) {
    for (size_t i = 0; i < size; i++) bytes[i] = (unsigned char)((i * 31 + seed) >> 3);
}

static int on_host(void *const *to, const void *const *from, const size_t *sizes, size_t count) {
    return hbm_memcpy_batch(to, from, sizes, count, HBM_COPY_ON_HOST, -1, NULL);
}

/* Pieces of `size` bytes and some that are empty; as one after another, and so by memcpy. */
static void on_the_host(size_t size) {
    unsigned char *source = memory(PIECES * size), *target = memory(PIECES * size);
    void *to[PIECES];
    const void *from[PIECES];
    size_t sizes[PIECES];
    write_pattern(source, PIECES * size, 5);
    memset(target, 0, PIECES * size);
    for (size_t i = 0; i < PIECES; i++) {
        to[i] = target + (PIECES - 1 - i) * size;
        from[i] = source + i * size;
        sizes[i] = i % 5 == 4 ? 0 : size - i % 2;
    }
    to[4] = NULL;
    from[9] = NULL;
    EXPECT(HBM_OK, on_host(to, from, sizes, PIECES));
    for (size_t i = 0; i < PIECES; i++) {
        unsigned char *at = target + (PIECES - 1 - i) * size;
        CHECK(memcmp(at, source + i * size, sizes[i]) == 0);
        for (size_t j = sizes[i]; j < size; j++) CHECK(at[j] == 0);
    }
    free(source);
    free(target);
}

static void overlapping(void) {
    const size_t size = 24 * MIB;
    unsigned char *bytes = memory(size + 2), *expected = memory(size + 2);
    write_pattern(bytes, size + 2, 9);
    memcpy(expected, bytes, size + 2);
    void *to[] = {bytes + 1, bytes};
    const void *from[] = {bytes, bytes + 2};
    const size_t sizes[] = {size, size};
    EXPECT(HBM_OK, on_host(to, from, sizes, 2));
    memmove(expected + 1, expected, size);
    memmove(expected, expected + 2, size);
    CHECK(memcmp(bytes, expected, size + 2) == 0);
    free(bytes);
    free(expected);
}

static void wrong_arguments(void) {
    char here[8] = "before", there[8] = "after";
    void *to[] = {here, NULL};
    const void *from[] = {there, there};
    size_t sizes[] = {8, 8};
    EXPECT(HBM_OK, on_host(NULL, NULL, NULL, 0));
    EXPECT(HBM_INVALID_ARGUMENT, on_host(to, from, sizes, 2));
    EXPECT_ERROR_TEXT("piece 1 of 2");
    to[1] = here;
    sizes[1] = SIZE_MAX;
    EXPECT(HBM_INVALID_ARGUMENT, on_host(to, from, sizes, 2));
    EXPECT(HBM_INVALID_ARGUMENT, on_host(NULL, from, sizes, 1));
    EXPECT(HBM_INVALID_ARGUMENT, on_host(to, NULL, sizes, 1));
    EXPECT(HBM_INVALID_ARGUMENT, on_host(to, from, NULL, 1));
    EXPECT(HBM_INVALID_ARGUMENT, on_host(to, from, sizes, SIZE_MAX));
    EXPECT_ERROR_TEXT("is no array of");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_memcpy_batch(to, from, sizes, 1, 3, 0, NULL));
    EXPECT_ERROR_TEXT("direction 3");
    CHECK(strcmp(here, "before") == 0);
    CHECK(hbm_driver_used() == 0);
    EXPECT(HBM_INVALID_ARGUMENT, hbm_memcpy_batch(to, from, sizes, 1, HBM_COPY_TO_DEVICE, 99, NULL));
    CHECK(hbm_driver_used() == 1);
}

static void to_a_device_and_back(int device) {
    const size_t size = 100000;
    unsigned char *pinned = (unsigned char *)hbm_alloc_pinned_ptr(2 * PIECES * size, 0);
    unsigned char *block = device_malloc(PIECES * size, device, NULL);
    CHECK(pinned != NULL && block != NULL);
    void *context = context_push(device), *stream = stream_create();
    context_pop();
    unsigned char *back = pinned + PIECES * size;
    void *to[PIECES], *to_back[PIECES];
    const void *from[PIECES], *from_block[PIECES];
    size_t sizes[PIECES];
    write_pattern(pinned, PIECES * size, 77);
    for (size_t i = 0; i < PIECES; i++) {
        size_t at = (i * 7 % PIECES) * size;
        from[i] = pinned + i * size;
        to[i] = block + at;
        from_block[i] = block + at;
        to_back[i] = back + i * size;
        sizes[i] = i == 3 ? 0 : size;
    }
    stream_hold(stream);
    EXPECT(HBM_OK, hbm_memcpy_batch(to, from, sizes, PIECES, HBM_COPY_TO_DEVICE, device, stream));
    EXPECT(HBM_OK, hbm_memcpy_batch(to_back, from_block, sizes, PIECES, HBM_COPY_TO_HOST, device, stream));
    CHECK(context_current() != context);
    for (size_t i = 0; i < PIECES * size; i += 97) CHECK(back[i] == 0);
    stream_release(stream);
    stream_wait(stream);
    for (size_t i = 0; i < PIECES; i++) {
        if (i == 3) continue;
        CHECK(memcmp(back + i * size, pinned + i * size, size) == 0);
    }
    CHECK(faults() == 0);
    stream_destroy(stream);
    device_free(block, PIECES * size, device, NULL);
    EXPECT(HBM_OK, hbm_free_pinned_ptr((size_t)pinned));
}

static void a_driver_that_refuses(void) {
    int (*arm)(const char *, uint64_t, int, uint64_t);
    unsigned char *pinned = (unsigned char *)hbm_alloc_pinned_ptr(3 * MIB, 0);
    unsigned char *block = device_malloc(3 * MIB, 0, NULL);
    CHECK(pinned != NULL && block != NULL);
    memset(pinned, 6, 3 * MIB);
    fill(0, block, 1, 3 * MIB, NULL);
    void *to[] = {block, NULL, block + MIB, block + 2 * MIB};
    const void *from[] = {pinned, NULL, pinned + MIB, pinned + 2 * MIB};
    const size_t sizes[] = {MIB, 0, MIB, MIB};
    look_up("hbmsim_fail", &arm);
    CHECK(arm("cuMemcpyHtoDAsync_v2", 2, 700, 1) == 0);
    EXPECT(HBM_DRIVER, hbm_memcpy_batch(to, from, sizes, 4, HBM_COPY_TO_DEVICE, 0, NULL));
    CHECK(hbm_last_driver_code() == 700);
    EXPECT_ERROR_TEXT("piece 2 of 4");
    EXPECT_ERROR_TEXT("those before it are under way");
    CHECK(holds(block, 6, MIB) && holds(block + MIB, 1, 2 * MIB));
    EXPECT(HBM_OK, hbm_memcpy_batch(to, from, sizes, 4, HBM_COPY_TO_DEVICE, 0, NULL));
    CHECK(holds(block, 6, 3 * MIB));
    /* Beyond the block's end, which the driver sees. */
    to[2] = block + 2 * MIB + 1;
    EXPECT(HBM_DRIVER, hbm_memcpy_batch(to, from, sizes, 4, HBM_COPY_TO_DEVICE, 0, NULL));
    EXPECT_ERROR_TEXT("piece 2 of 4");
    device_free(block, 3 * MIB, 0, NULL);
    EXPECT(HBM_OK, hbm_free_pinned_ptr((size_t)pinned));
}

static void for_python(void) {
    int64_t shape = 8;
    hbm_python_tensor_t tensor;
    memset(&tensor, 0, sizeof tensor);
    CHECK(hbm_python_tensor(NULL) == NULL && hbm_last_status() == HBM_INVALID_ARGUMENT);
    CHECK(hbm_python_tensor(&tensor) == NULL && hbm_last_status() == HBM_INVALID_ARGUMENT);
    tensor.struct_size = sizeof tensor;
    CHECK(hbm_python_tensor(&tensor) == NULL && hbm_last_status() == HBM_INVALID_ARGUMENT);
    tensor.owner = &tensor;
    tensor.dimensions = 1;
    CHECK(hbm_python_tensor(&tensor) == NULL && hbm_last_status() == HBM_INVALID_ARGUMENT);
    tensor.shape = &shape;
    tensor.dimensions = 65;
    CHECK(hbm_python_tensor(&tensor) == NULL && hbm_last_status() == HBM_INVALID_ARGUMENT);
    tensor.dimensions = 1;
    CHECK(hbm_python_tensor(&tensor) == NULL && hbm_last_status() == HBM_UNSUPPORTED);
    EXPECT_ERROR_TEXT("no Python");
}

int main(void) {
    on_the_host(3);
    on_the_host(5000);
    on_the_host(300000);
    overlapping();
    wrong_arguments();
    to_a_device_and_back(0);
    to_a_device_and_back(1);
    a_driver_that_refuses();
    for_python();
    return 0;
}
