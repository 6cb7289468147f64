"""Placement by tag, limits, and captures told of through the C interface, seen from the driver's side.

Needs no torch. With HBMALLOC_DRIVER=sim it runs on the simulated driver.
"""

import ctypes
import os
import sys
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

import gpucase
from gpucase import case, check, raises

MIB = 1 << 20
BLOCK = 64 * MIB
PREFERRED_TYPE, PREFERRED_ID, ACCESSED_BY, LAST_PREFETCH = 5, 6, 3, 4
DEVICE, HOST, HOST_NUMA = 1, 2, 3
CPU, NOBODY = -1, -2
HOST_NUMA_ID, CONCURRENT_MANAGED = 134, 89
#: What the stream-ordered pool may take beyond the limit for a moment, and contexts at any time.
SLACK = 256 * MIB


class Driver:
    """The driver that the library uses, with a context and a stream of its own."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.context, self.stream = c_void_p(), c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), 0)
        self.call("cuCtxSetCurrent", self.context)
        self.call("cuStreamCreate", byref(self.stream), 1)

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        check(code == 0, "%s answered %d" % (name, code))

    def attribute(self, which):
        value = c_int(-99)
        self.call("cuDeviceGetAttribute", byref(value), which, 0)
        return value.value

    def range_attribute(self, block, which):
        value = c_int(-99)
        self.call("cuMemRangeGetAttribute", byref(value), c_size_t(4), which, c_uint64(block), c_size_t(BLOCK))
        return value.value

    def free(self):
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def fill(self, block, byte):
        self.call("cuMemsetD8Async", c_uint64(block), ctypes.c_ubyte(byte), c_size_t(BLOCK), self.stream)

    def check_filled(self, block, byte):
        self.call("cuStreamSynchronize", self.stream)
        seen = (ctypes.c_ubyte * BLOCK)()
        self.call("cuMemcpyDtoH_v2", seen, c_uint64(block), c_size_t(BLOCK))
        check(bytes(seen) == bytes([byte]) * BLOCK, "the block does not hold what was written")


class Entries:
    """The entry points of one backend."""

    def __init__(self, library, backend, stream):
        self.stream = stream
        self.malloc, self.free = library[backend + "_malloc"], library[backend + "_free"]
        self.malloc.restype, self.malloc.argtypes = c_void_p, [c_size_t, c_int, c_void_p]
        self.free.restype, self.free.argtypes = None, [c_void_p, c_size_t, c_int, c_void_p]

    def give(self, size=BLOCK):
        return self.malloc(size, 0, self.stream)

    def take(self, block):
        self.free(block, 0, 0, self.stream)


def last_error(hbmalloc):
    return hbmalloc._library.library().hbm_last_error().decode()


def managed_places(hbmalloc, driver, entry, name):
    node = max(driver.attribute(HOST_NUMA_ID), 0)
    concurrent = driver.attribute(CONCURRENT_MANAGED)
    # A machine with one node tells the host as such, others the node.
    wanted = {
        "device": [(DEVICE, 0)] if concurrent else [(0, NOBODY)],
        "host": [(HOST, CPU), (HOST_NUMA, node), (HOST, 0)],
        "none": [(0, NOBODY), (0, 0)],
    }
    for placement, places in wanted.items():
        with case("%s placed: %s" % (name, placement)), hbmalloc.tag("tag of " + placement, placement=placement):
            block = entry.give()
            check(block, last_error(hbmalloc))
            driver.call("cuStreamSynchronize", driver.stream)
            place = (driver.range_attribute(block, PREFERRED_TYPE), driver.range_attribute(block, PREFERRED_ID))
            by, prefetched = (driver.range_attribute(block, which) for which in (ACCESSED_BY, LAST_PREFETCH))
            print("    %s: preferred %s, accessed by %d, prefetched to %d" % (placement, place, by, prefetched))
            check(place in places, "it prefers %s, not one of %s" % (place, places))
            check(by == {"device": CPU, "host": 0 if concurrent else NOBODY, "none": NOBODY}[placement], by)
            check(prefetched == (0 if placement == "device" and concurrent else NOBODY), prefetched)
            driver.fill(block, 5)
            driver.check_filled(block, 5)
            entry.take(block)


def placements(hbmalloc, driver, entries):
    managed_places(hbmalloc, driver, entries["managed"], "managed memory")
    with case("virtual memory placed on the host"), hbmalloc.tag("tag of host"):
        before = driver.free()
        block = entries["vmm"].give()
        check(block, last_error(hbmalloc))
        check(before - driver.free() < BLOCK, "it takes memory of the device")
        driver.fill(block, 6)
        driver.check_filled(block, 6)
        entries["vmm"].take(block)
    for backend in ("device", "async"):
        with case("%s memory cannot be placed on the host" % backend), hbmalloc.tag("tag of host"):
            check(not entries[backend].give(), "it was allocated")
            for word in ("tag of host", backend, "managed", "vmm"):
                check(word in last_error(hbmalloc), last_error(hbmalloc))


def pool_places(hbmalloc, driver, entry):
    """The pool over virtual memory: each tag's memory is where it is placed, and stays apart from the other's."""
    hbmalloc.trim()
    near, far = hbmalloc.tag("pool near", placement="device"), hbmalloc.tag("pool far", placement="host")
    free, start = driver.free(), hbmalloc.stats(0)
    cache, weights = [], []
    with case("the pool's memory placed on the host"):
        with far:
            cache = [entry.give() for _ in range(4)] + [entry.give(4096), entry.give(3 * MIB)]
        check(all(cache), last_error(hbmalloc))
        print("    the device has %d bytes less" % (free - driver.free()))
        check(free - driver.free() < BLOCK, "it takes memory of the device")
        now = hbmalloc.stats(0)
        check(now["limit_used"] == start["limit_used"], "it counts to the limit: %s" % now)
        check(now["reserved"] - start["reserved"] >= 4 * BLOCK, now)
        check(hbmalloc.stats(0, tag="pool far")["reserved"] >= 4 * BLOCK, hbmalloc.stats_by_tag(0))
    with case("two tags, two places"):
        with near:
            weights = [entry.give() for _ in range(2)]
        check(all(weights), last_error(hbmalloc))
        check(free - driver.free() >= 2 * BLOCK, "the device's takes nothing of it")
        check(hbmalloc.stats(0)["limit_used"] - start["limit_used"] >= 2 * BLOCK, hbmalloc.stats(0))
        for number, block in enumerate(cache[:4] + weights):
            driver.fill(block, 16 + number)
        for number, block in enumerate(cache[:4] + weights):
            driver.check_filled(block, 16 + number)
    with case("the processor reads what the device wrote on the host"):
        driver.call("cuStreamSynchronize", driver.stream)
        check(ctypes.string_at(cache[1] + BLOCK - 64, 64) == bytes([17]) * 64, "it reads something else")
    with case("a freed block on the host serves its tag again"):
        made = hbmalloc.pool_stats(0)["creates"]
        entry.take(cache.pop(0))
        with far:
            cache.append(entry.give())
        check(cache[-1] and hbmalloc.pool_stats(0)["creates"] == made, "memory was made for it")
    with case("a limit of the device leaves the host alone"):
        hbmalloc.set_limit(hbmalloc.stats(0)["limit_used"] + BLOCK // 2, device=0)
        with far:
            cache += [entry.give() for _ in range(4)]
        check(all(cache), last_error(hbmalloc))
        with near:
            check(not entry.give(), "the limit was passed")
        check("limit" in last_error(hbmalloc), last_error(hbmalloc))
        hbmalloc.set_limit(None)
    with case("a place said later holds for streams that are new to the tag"):
        before = driver.free()
        with hbmalloc.tag("pool near", placement="host"):
            weights.append(entry.give())
        check(weights[-1] and before - driver.free() >= BLOCK // 2, "it is on the host, or it is nowhere")
    with case("what was freed goes back by a trim"):
        for block in filter(None, cache + weights):
            entry.take(block)
        driver.call("cuStreamSynchronize", driver.stream)
        hbmalloc.trim()
        now = hbmalloc.stats(0)
        check(now["reserved"] <= start["reserved"], now)
        check(driver.free() >= free - SLACK, "the device has %d bytes less" % (free - driver.free()))
    with case("more than the host has is refused"):
        with far:
            check(not entry.give(1 << 43), "8 TiB were had")
        check("out of memory" in last_error(hbmalloc), last_error(hbmalloc))


def pinned(hbmalloc, driver, entry):
    """The pool over pinned memory of the host."""
    free = driver.free()
    with case("the pool over pinned memory"):
        blocks = [entry.give() for _ in range(4)]
        check(all(blocks), last_error(hbmalloc))
        print("    the device has %d bytes less" % (free - driver.free()))
        check(free - driver.free() < BLOCK, "it takes memory of the device")
        check(hbmalloc.stats(0)["limit_used"] == 0, hbmalloc.stats(0))
        for number, block in enumerate(blocks):
            seen, kind = c_uint64(), c_int()
            driver.call("cuMemHostGetDevicePointer_v2", byref(seen), c_void_p(block), 0)
            check(seen.value == block, "the device knows %#x as %#x" % (block, seen.value))
            driver.call("cuPointerGetAttribute", byref(kind), 2, c_uint64(block))
            check(kind.value == 1, "its memory type is %d, not the host's" % kind.value)
            driver.fill(block, 32 + number)
        driver.call("cuStreamSynchronize", driver.stream)
        for number, block in enumerate(blocks):
            check(ctypes.string_at(block, BLOCK) == bytes([32 + number]) * BLOCK, "the processor reads something else")
            ctypes.memset(block, 64 + number, BLOCK)
            driver.check_filled(block, 64 + number)
    with case("pinned memory counts to no limit"):
        hbmalloc.set_limit(BLOCK, device=0)
        blocks += [entry.give() for _ in range(2)]
        check(all(blocks), last_error(hbmalloc))
        hbmalloc.set_limit(None)
    with case("freed pinned memory is kept, and goes by a trim"):
        made = hbmalloc.pool_stats(0)["creates"]
        entry.take(blocks.pop())
        blocks.append(entry.give())
        check(blocks[-1] and hbmalloc.pool_stats(0)["creates"] == made, "memory was made for it")
        for block in blocks:
            entry.take(block)
        driver.call("cuStreamSynchronize", driver.stream)
        hbmalloc.trim()
        now = hbmalloc.stats(0)
        check(now["reserved"] == 0 and now["warnings"] == 0, now)
    with case("a tag of the device is not served by pinned memory"), hbmalloc.tag("pinned near", placement="device"):
        check(not entry.give(), "it was allocated")
        check("pinned near" in last_error(hbmalloc), last_error(hbmalloc))


def limits(hbmalloc, driver, backend, entry):
    hbmalloc.trim()
    before, held = driver.free(), hbmalloc.stats(0)["reserved"]
    limit = held + 4 * BLOCK
    hbmalloc.set_limit(limit, device=0)
    blocks = []
    while len(blocks) < 8:
        block = entry.give()
        if not block:
            break
        blocks.append(block)
    check(1 <= len(blocks) <= 4, "%d blocks of 64 MiB under a limit of 256" % len(blocks))
    check(str(limit) in last_error(hbmalloc), last_error(hbmalloc))
    check(hbmalloc.stats(0)["reserved"] <= limit, hbmalloc.stats(0))
    check(before - driver.free() <= 4 * BLOCK + SLACK, "the driver gave %d bytes" % (before - driver.free()))
    hbmalloc.set_limit(held + BLOCK, device=0)
    check(not entry.give(), "a lowered limit was passed")
    for block in blocks:
        entry.take(block)
    check(_again(entry), "nothing can be had after all was freed: %s" % last_error(hbmalloc))
    hbmalloc.set_limit(None)
    hbmalloc.trim()
    check(hbmalloc.stats(0)["reserved"] <= held, hbmalloc.stats(0))


def _again(entry):
    block = entry.give(BLOCK // 2)
    if block:
        entry.take(block)
    return block


def captures(hbmalloc, driver, entry):
    library = hbmalloc._library.library()
    pool = (0, c_uint64(77), c_uint64(1))
    before = hbmalloc.stats(0)["reserved"]
    check(library.hbm_graph_begin(*pool) == 0, last_error(hbmalloc))
    driver.call("cuStreamBeginCapture_v2", driver.stream, 0)
    block = entry.give()
    check(block, last_error(hbmalloc))
    driver.fill(block, 7)
    entry.take(block)
    graph, executable = c_void_p(), c_void_p()
    driver.call("cuStreamEndCapture", driver.stream, byref(graph))
    check(library.hbm_graph_end(*pool) == 0, last_error(hbmalloc))
    driver.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
    hbmalloc.trim()
    other = entry.give()
    check(other and other != block, "memory of the graph was given out")
    driver.fill(other, 8)
    driver.call("cuGraphLaunch", executable, driver.stream)
    driver.check_filled(other, 8)
    driver.check_filled(block, 7)
    entry.take(other)
    driver.call("cuGraphExecDestroy", executable)
    driver.call("cuGraphDestroy", graph)
    check(library.hbm_graph_release(*pool) == 0, last_error(hbmalloc))
    check(library.hbm_graph_release(*pool) == 1, "a second release was accepted")
    hbmalloc.trim()
    check(hbmalloc.stats(0)["reserved"] <= before, hbmalloc.stats(0))


def main(over):
    import hbmalloc

    path = "libcuda.so.1"
    if os.environ.get("HBMALLOC_DRIVER") == "sim":
        path = os.path.join(os.path.dirname(hbmalloc.get_library_path()), "libhbmalloc_sim.so")
    try:
        ctypes.CDLL(path)
    except OSError as error:
        gpucase.line("SKIP", "tags and limits", error)
        return
    library = ctypes.CDLL(hbmalloc.get_library_path())
    library.hbm_torch_set_hooked(1)  # so that the entry points behave as under install()
    check(hbmalloc.device_count() > 0, "no device")
    driver = Driver(path)
    if over:  # a pool takes its memory from one source for good
        hbmalloc.set_option("pool_source", over)
    if over == "pinned":
        pinned(hbmalloc, driver, Entries(library, "pool", driver.stream))
        gpucase.finish()
    if over == "managed":
        managed_places(hbmalloc, driver, Entries(library, "pool", driver.stream), "the pool over managed memory")
        gpucase.finish()
    for source in ("managed", "pinned"):
        gpucase.child("over " + source, [os.path.abspath(__file__), source], limit=60)
    entries = {backend: Entries(library, backend, driver.stream) for backend in gpucase.BACKENDS}
    placements(hbmalloc, driver, entries)
    pool_places(hbmalloc, driver, entries["pool"])
    for backend, entry in entries.items():
        with case("a limit, %s" % backend):
            limits(hbmalloc, driver, backend, entry)
    for backend in ("vmm", "pool"):
        with case("a capture told of, %s" % backend):
            captures(hbmalloc, driver, entries[backend])
    with case("a limit beyond reason"), raises(ValueError, "limit"):
        hbmalloc.set_limit(-1)
    with case("nothing left"):
        now = hbmalloc.stats(0)
        check(now["allocated"] == 0 and now["warnings"] == 0, now)
    gpucase.finish()


if __name__ == "__main__":
    main(over=sys.argv[1] if len(sys.argv) > 1 else None)
