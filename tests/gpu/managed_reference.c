/* What the managed source must equal, in plain driver calls: for each size, allocate, advise,
 * prefetch below the threshold, and print what the driver reads back.
 *
 * usage: managed_reference THRESHOLD SIZE...      prints one line a size:
 *   size preferred_type preferred_id accessed_by last_prefetch_type last_prefetch_id
 *
 * One block is live at a time. libcuda is opened at run time, so a plain C compiler is enough.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int status;
typedef unsigned long long address;
typedef struct { int type; int id; } location;
enum { LOCATION_DEVICE = 1, LOCATION_HOST = 2 };
enum { ATTACH_GLOBAL = 1, ADVISE_PREFERRED = 3, ADVISE_ACCESSED_BY = 5 };
enum { RANGE_ACCESSED_BY = 3, RANGE_PREFERRED_TYPE = 5, RANGE_PREFERRED_ID = 6, RANGE_PREFETCH_TYPE = 7, RANGE_PREFETCH_ID = 8 };

static void *driver;

static void *find(const char *name) {
    void *found = dlsym(driver, name);
    if (!found) {
        fprintf(stderr, "libcuda has no %s\n", name);
        exit(3);
    }
    return found;
}

static void must(status code, const char *what) {
    if (code != 0) {
        fprintf(stderr, "%s: driver code %d\n", what, code);
        exit(1);
    }
}

static int attribute(address block, size_t size, int which) {
    status (*get)(void *, size_t, int, address, size_t) =
        (status (*)(void *, size_t, int, address, size_t))find("cuMemRangeGetAttribute");
    int value = -99;
    must(get(&value, sizeof value, which, block, size), "cuMemRangeGetAttribute");
    return value;
}

int main(int count, char **arguments) {
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver || count < 3) {
        fprintf(stderr, "%s\n", driver ? "usage: managed_reference THRESHOLD SIZE..." : "no libcuda.so.1");
        return 3;
    }
    void *context = NULL, *stream = NULL;
    must(((status (*)(unsigned))find("cuInit"))(0), "cuInit");
    must(((status (*)(void **, int))find("cuDevicePrimaryCtxRetain"))(&context, 0), "cuDevicePrimaryCtxRetain");
    must(((status (*)(void *))find("cuCtxSetCurrent"))(context), "cuCtxSetCurrent");
    must(((status (*)(void **, unsigned))find("cuStreamCreate"))(&stream, 1), "cuStreamCreate");

    status (*allocate)(address *, size_t, unsigned) = (status (*)(address *, size_t, unsigned))find("cuMemAllocManaged");
    status (*release)(address) = (status (*)(address))find("cuMemFree_v2");
    status (*advise)(address, size_t, int, location) = (status (*)(address, size_t, int, location))find("cuMemAdvise_v2");
    status (*prefetch)(address, size_t, location, unsigned, void *) =
        (status (*)(address, size_t, location, unsigned, void *))find("cuMemPrefetchAsync_v2");
    status (*synchronize)(void *) = (status (*)(void *))find("cuStreamSynchronize");

    const location device = {LOCATION_DEVICE, 0}, host = {LOCATION_HOST, 0};
    const size_t threshold = strtoull(arguments[1], NULL, 10);
    for (int i = 2; i < count; i++) {
        const size_t size = strtoull(arguments[i], NULL, 10);
        address block = 0;
        must(allocate(&block, size, ATTACH_GLOBAL), "cuMemAllocManaged");
        must(advise(block, size, ADVISE_PREFERRED, device), "cuMemAdvise_v2, preferred location");
        must(advise(block, size, ADVISE_ACCESSED_BY, host), "cuMemAdvise_v2, accessed by");
        if (size < threshold)
            must(prefetch(block, size, device, 0, stream), "cuMemPrefetchAsync_v2");
        must(synchronize(stream), "cuStreamSynchronize");
        printf("%zu %d %d %d %d %d\n", size, attribute(block, size, RANGE_PREFERRED_TYPE), attribute(block, size, RANGE_PREFERRED_ID),
               attribute(block, size, RANGE_ACCESSED_BY), attribute(block, size, RANGE_PREFETCH_TYPE),
               attribute(block, size, RANGE_PREFETCH_ID));
        fflush(stdout);
        must(release(block), "cuMemFree_v2");
    }
    return 0;
}
