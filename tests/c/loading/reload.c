/* Closed and opened again, the library is the same one with the same blocks: it is never unloaded, since
 * torch keeps addresses of its functions to the end of the process. */
#include "loading.h"

int main(void) {
    struct library first = load("libhbmalloc.so.0");
    void *block = first.allocate(MIB, 0, NULL);
    CHECK(block != NULL);
    for (int i = 0; i < 100; i++) {
        struct library again = load("libhbmalloc.so.0");
        CHECK(dlclose(again.handle) == 0);
    }
    CHECK(dlclose(first.handle) == 0);
    /* Functions kept from before still work. */
    void *second = first.allocate(MIB, 0, NULL);
    CHECK(second != NULL && second != block);
    first.release(block, MIB, 0, NULL);

    struct library again = load("libhbmalloc.so.0");
    CHECK(again.allocate == first.allocate);
    CHECK(stats_of(&again).allocations == 2 && stats_of(&again).requested == MIB);
    again.release(second, MIB, 0, NULL);
    CHECK(stats_of(&again).requested == 0);
    CHECK(dlclose(again.handle) == 0);
    puts("reload: fine");
    return 0;
}
