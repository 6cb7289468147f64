/* Cells: memory that the program takes away and brings back by itself, at addresses that stay; those of
 * the library, and those that the program reserved. */
#include "driver.h"

static hbm_cell_t described(uint64_t address) {
    hbm_cell_t cell;
    memset(&cell, 0xEE, sizeof cell);
    cell.struct_size = sizeof cell;
    EXPECT(HBM_OK, hbm_cell_describe(address, &cell));
    CHECK(cell.address == address);
    return cell;
}

static hbm_cell_stats_t counted(void) {
    hbm_cell_stats_t stats;
    memset(&stats, 0xEE, sizeof stats);
    stats.struct_size = sizeof stats;
    EXPECT(HBM_OK, hbm_cell_stats(&stats));
    return stats;
}

static hbm_cell_t reserved(int device, size_t size) {
    hbm_cell_t cell;
    memset(&cell, 0xEE, sizeof cell);
    cell.struct_size = sizeof cell;
    EXPECT(HBM_OK, hbm_cell_reserve(device, (ptrdiff_t)size, NULL, &cell));
    CHECK(cell.device == device && cell.bytes >= size && cell.bytes % (2 * MIB) == 0);
    CHECK(cell.is_mapped == 0 && cell.is_asleep == 0 && cell.is_callers == 0 && cell.chunk_bytes == 0);
    CHECK(*(uint64_t *)(uintptr_t)cell.handle_address == 0);
    return cell;
}

static uint64_t *handle_of(const hbm_cell_t *cell) {
    return (uint64_t *)(uintptr_t)cell->handle_address;
}

static void map(const hbm_cell_t *cell) {
    EXPECT(HBM_OK, hbm_create_and_map((unsigned long long)cell->device, (ptrdiff_t)cell->bytes,
                                      cell->address, handle_of(cell)));
}

static void unmap(const hbm_cell_t *cell) {
    EXPECT(HBM_OK, hbm_unmap_and_release((unsigned long long)cell->device, (ptrdiff_t)cell->bytes,
                                         cell->address, handle_of(cell)));
}

static void a_cell_loses_its_memory_and_gets_new(void) {
    hbm_cell_stats_t before = counted();
    EXPECT(HBM_OK, hbm_tag_push("weights"));
    hbm_cell_t cell = reserved(1, 3 * MIB);
    EXPECT(HBM_OK, hbm_tag_pop());
    char name[256];
    size_t count = 77;
    CHECK(cell.bytes == 4 * MIB && physical_bytes(1) == 0);
    /* Before it has memory for the first time it is nobody's business but ours. */
    EXPECT(HBM_OK, hbm_cell_list(NULL, 0, &count));
    CHECK(count == 0);
    map(&cell);
    CHECK(described(cell.address).is_mapped == 1 && described(cell.address).serial == cell.serial);
    CHECK(physical_bytes(1) == 4 * MIB && *handle_of(&cell) != 0);
    CHECK(stats_of(1, HBM_KIND_VMM).allocated == 4 * MIB && stats_of(1, -1).limit_used == 4 * MIB);
    EXPECT(HBM_OK, hbm_tag_of((void *)(uintptr_t)cell.address, name, sizeof name));
    CHECK(strcmp(name, "weights") == 0);
    memset((void *)(uintptr_t)cell.address, 1, cell.bytes);
    unmap(&cell);
    CHECK(physical_bytes(1) == 0 && *handle_of(&cell) == 0 && described(cell.address).is_mapped == 0);
    CHECK(stats_of(1, HBM_KIND_VMM).allocated == 0 && stats_of(1, -1).reserved == 0);
    map(&cell);
    memset((void *)(uintptr_t)cell.address, 2, cell.bytes);
    uint64_t first = 0;
    EXPECT(HBM_OK, hbm_cell_list(&first, 1, &count));
    CHECK(count == 1 && first == cell.address);
    EXPECT(HBM_OK, hbm_cell_free(cell.address));
    CHECK(physical_bytes(1) == 0);
    EXPECT(HBM_NOT_OWNED, hbm_cell_free(cell.address));
    EXPECT(HBM_NOT_OWNED, hbm_cell_describe(cell.address, &cell));
    hbm_cell_stats_t after = counted();
    CHECK(after.cells == before.cells && after.mapped == 0 && after.peak_mapped == 4 * MIB);
    CHECK(after.reserves == before.reserves + 1 && after.frees == before.frees + 1);
    CHECK(after.creates == before.creates + 2 && after.unmaps == before.unmaps + 1);
    CHECK(after.failures == before.failures + 1);
}

static void addresses_of_the_program(void) {
    int (*reserve)(unsigned long long *, size_t, size_t, unsigned long long, unsigned long long);
    int (*unreserve)(unsigned long long, size_t);
    look_up("cuMemAddressReserve", &reserve);
    look_up("cuMemAddressFree", &unreserve);
    unsigned long long range = 0;
    uint64_t handles[2] = {0, 0};
    context_push(0);
    CHECK(reserve(&range, 16 * MIB, 0, 0, 0) == 0);
    context_pop();
    EXPECT(HBM_OK, hbm_create_and_map(0, 4 * MIB, range + 2 * MIB, &handles[0]));
    EXPECT(HBM_OK, hbm_create_and_map(0, 2 * MIB, range + 6 * MIB, &handles[1]));
    CHECK(physical_bytes(0) == 6 * MIB && handles[0] != 0 && handles[1] != 0 && handles[0] != handles[1]);
    memset((void *)(uintptr_t)(range + 2 * MIB), 3, 6 * MIB);
    CHECK(described(range + 2 * MIB).is_callers == 1 && described(range + 2 * MIB).handle_address == 0);
    /* Where something is already, inside as at the beginning. */
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 4 * MIB, range + 2 * MIB, &handles[0]));
    EXPECT_ERROR_TEXT("mapped already");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 2 * MIB, range + 4 * MIB, &handles[0]));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 4 * MIB, range, &handles[0]));
    /* A size or an address off the granularity, which the error names. */
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 3 * MIB, range + 8 * MIB, &handles[0]));
    EXPECT_ERROR_TEXT("3145728");
    EXPECT_ERROR_TEXT("granularity, 2097152 bytes");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 2 * MIB, range + 9 * MIB, &handles[0]));
    EXPECT_ERROR_TEXT("granularity, 2097152 bytes");
    EXPECT(HBM_INVALID_ARGUMENT, hbm_unmap_and_release(0, 2 * MIB, range + 2 * MIB, &handles[0]));
    EXPECT(HBM_NOT_OWNED, hbm_unmap_and_release(0, 2 * MIB, range + 8 * MIB, &handles[0]));
    /* Addresses that nobody reserved are the driver's to refuse. */
    CHECK(hbm_create_and_map(0, 2 * MIB, range + 64 * MIB, &handles[0]) != HBM_OK);
    /* Freeing them is the program's business. */
    EXPECT(HBM_NOT_OWNED, hbm_cell_free(range + 2 * MIB));
    EXPECT(HBM_OK, hbm_unmap_and_release(0, 4 * MIB, range + 2 * MIB, &handles[0]));
    CHECK(handles[0] == 0 && physical_bytes(0) == 2 * MIB);
    EXPECT(HBM_OK, hbm_create_and_map(0, 6 * MIB, range, &handles[0]));
    EXPECT(HBM_OK, hbm_unmap_and_release(0, 6 * MIB, range, &handles[0]));
    EXPECT(HBM_OK, hbm_unmap_and_release(0, 2 * MIB, range + 6 * MIB, &handles[1]));
    CHECK(physical_bytes(0) == 0);
    context_push(0);
    CHECK(unreserve(range, 16 * MIB) == 0);
    context_pop();
    CHECK(counted().cells == 0);
}

static void many_at_once(void) {
    enum { CELLS = 4 };
    hbm_cell_t cells[CELLS];
    uint64_t addresses[CELLS], bytes = 77;
    for (int i = 0; i < CELLS; i++) {
        cells[i] = reserved(i % 2, 2 * MIB);
        addresses[i] = cells[i].address;
    }
    map(&cells[0]);
    EXPECT(HBM_OK, hbm_cells_map(addresses, CELLS, &bytes));
    CHECK(bytes == (CELLS - 1) * 2 * MIB && physical_bytes(0) + physical_bytes(1) == CELLS * 2 * MIB);
    unmap(&cells[1]);
    EXPECT(HBM_OK, hbm_cells_discard(addresses, CELLS, &bytes));
    CHECK(bytes == (CELLS - 1) * 2 * MIB && physical_bytes(0) + physical_bytes(1) == 0);
    EXPECT(HBM_OK, hbm_cells_discard(addresses, CELLS, NULL));
    EXPECT(HBM_OK, hbm_cells_map(NULL, 0, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cells_map(NULL, 1, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cells_discard(NULL, 1, NULL));
    /* All or nothing: there is room for one more on the device. */
    EXPECT(HBM_OK, hbm_set_limit(0, 2 * MIB));
    EXPECT(HBM_OUT_OF_MEMORY, hbm_cells_map(addresses, CELLS, NULL));
    CHECK(physical_bytes(0) + physical_bytes(1) == 0);
    EXPECT(HBM_OK, hbm_set_limit(0, 0));
    EXPECT(HBM_OK, hbm_cells_map(addresses, CELLS, NULL));
    for (int i = 0; i < CELLS; i++) {
        EXPECT(HBM_OK, hbm_cell_free(addresses[i]));
    }
    CHECK(physical_bytes(0) + physical_bytes(1) == 0);
    EXPECT(HBM_NOT_OWNED, hbm_cells_map(addresses, 1, NULL));
    EXPECT(HBM_NOT_OWNED, hbm_cells_discard(addresses, 1, NULL));
}

static void the_context_that_is_there_stays(void) {
    void *first = NULL;
    int32_t count = 0;
    EXPECT(HBM_OK, hbm_device_count(&count));
    CHECK(context_current() == NULL);
    EXPECT(HBM_OK, hbm_ensure_context(1));
    first = context_current();
    CHECK(first != NULL);
    EXPECT(HBM_OK, hbm_ensure_context(0));
    CHECK(context_current() == first);
    context_pop();
    EXPECT(HBM_INVALID_ARGUMENT, hbm_ensure_context(99));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_ensure_context(1ull << 40));
}

static void work_is_waited_for(void) {
    hbm_cell_t cell = reserved(0, 2 * MIB);
    map(&cell);
    context_push(0);
    void *stream = stream_create();
    context_pop();
    fill(0, (void *)(uintptr_t)cell.address, 5, 2 * MIB, stream);
    unmap(&cell);
    map(&cell);
    fill(0, (void *)(uintptr_t)cell.address, 6, 2 * MIB, stream);
    EXPECT(HBM_OK, hbm_cell_free(cell.address));
    context_push(0);
    stream_destroy(stream);
    context_pop();
}

static void wrong_arguments(void) {
    uint64_t handle = 0;
    hbm_cell_t cell;
    cell.struct_size = sizeof cell;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_reserve(0, 0, NULL, &cell));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_reserve(0, -1, NULL, &cell));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_reserve(0, PTRDIFF_MAX, NULL, &cell));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_reserve(0, 1, NULL, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_reserve(9, 1, NULL, &cell));
    cell.struct_size = 1;
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_reserve(0, 1, NULL, &cell));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 2 * MIB, 2 * MIB, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 2 * MIB, 2 * MIB, (uint64_t *)((char *)&handle + 1)));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 0, 2 * MIB, &handle));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, -1, 2 * MIB, &handle));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, 2 * MIB, 0, &handle));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_create_and_map(0, PTRDIFF_MAX - MIB + 1, 2 * MIB, &handle));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_unmap_and_release(0, 2 * MIB, 2 * MIB, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_list(NULL, 1, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_list(NULL, 0, NULL));
    EXPECT(HBM_INVALID_ARGUMENT, hbm_cell_stats(NULL));
    CHECK(counted().cells == 0);
}

int main(void) {
    the_context_that_is_there_stays();
    a_cell_loses_its_memory_and_gets_new();
    addresses_of_the_program();
    many_at_once();
    work_is_waited_for();
    wrong_arguments();
    CHECK(faults() == 0);
    puts("cells: fine");
    return 0;
}
