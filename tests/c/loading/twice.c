/* Two copies of the library in one process, loaded from the paths given: two libraries that know
 * nothing of each other's blocks. Each that is used after the other was loaded warns of it, once. */
#include "loading.h"

struct heard {
    int warnings;
    const char *other;
};

static void hear(int32_t level, const char *target, const char *message, void *user) {
    struct heard *heard = user;
    (void)target;
    if (level == 2 && strstr(message, "twice") != NULL) {
        CHECK(strstr(message, heard->other) != NULL);
        heard->warnings++;
    }
}

int main(int count, char **paths) {
    CHECK(count == 3);
    struct heard by_first = {0, paths[2]}, by_second = {0, paths[1]};
    struct library first = load(paths[1]);
    CHECK(first.log_set_callback(hear, &by_first) == HBM_OK);
    void *block = first.allocate(MIB, 0, NULL);
    CHECK(block != NULL && by_first.warnings == 0);

    struct library second = load(paths[2]);
    CHECK(second.allocate != first.allocate);
    CHECK(second.log_set_callback(hear, &by_second) == HBM_OK);
    CHECK(by_second.warnings == 0);
    void *other = second.allocate(MIB, 0, NULL);
    CHECK(other != NULL && other != block);
    CHECK(by_second.warnings == 1 && stats_of(&second).warnings >= 1);

    /* A block of one is a stranger to the other, which leaves it alone. */
    second.release(block, MIB, 0, NULL);
    CHECK(stats_of(&second).rejected_frees == 1);
    CHECK(stats_of(&first).requested == MIB && stats_of(&second).requested == MIB);
    first.release(block, MIB, 0, NULL);
    second.release(other, MIB, 0, NULL);
    CHECK(stats_of(&first).requested == 0 && stats_of(&second).requested == 0);
    CHECK(by_first.warnings == 0 && by_second.warnings == 1);
    puts("twice: fine");
    return 0;
}
