#!/usr/bin/env python3
"""What a driver answers, one line a case: run it on a card and on the simulator, and compare.

    python3 compare.py libcuda.so.1 > card.txt
    python3 compare.py target/debug/libhbmalloc_sim.so > sim.txt
    diff card.txt sim.txt

Each group runs in a process of its own, so one that crashes or breaks its context spoils no other.
Only the standard library is used.
"""
import ctypes as C
import os
import sys
import tempfile
import threading
import time

LIB = sys.argv[1] if len(sys.argv) > 1 else "libcuda.so.1"
MIB = 1 << 20
G = 2 * MIB
u64, size_t = C.c_uint64, C.c_size_t


class Prop(C.Structure):
    _fields_ = [("kind", C.c_int), ("handles", C.c_uint), ("lkind", C.c_int), ("lid", C.c_int), ("win", C.c_void_p),
                ("comp", C.c_ubyte), ("rdma", C.c_ubyte), ("usage", C.c_ushort), ("rest", C.c_ubyte * 4)]


class Access(C.Structure):
    _fields_ = [("lkind", C.c_int), ("lid", C.c_int), ("flags", C.c_int)]


class Location(C.Structure):
    _fields_ = [("kind", C.c_int), ("id", C.c_int)]


class PoolProps(C.Structure):
    _fields_ = [("kind", C.c_int), ("handles", C.c_uint), ("lkind", C.c_int), ("lid", C.c_int), ("win", C.c_void_p),
                ("max", size_t), ("usage", C.c_ushort), ("rest", C.c_ubyte * 54)]


class Driver:
    """Calls by name; integers are passed as 64 bits, and pointers by byref."""

    def __init__(self):
        self.lib = C.CDLL(LIB)

    def __getattr__(self, name):
        f = getattr(self.lib, name)

        def call(*args):
            return f(*[u64(a) if isinstance(a, int) else a for a in args])
        return call


def new(f, *args):
    out = u64()
    code = f(C.byref(out), *args)
    if code:
        raise RuntimeError(f"set-up failed: {code}")
    return out.value


def say(name, *values):
    print(name + ":", *values, flush=True)


def start(context=True):
    d = Driver()
    d.cuInit(0)
    if context:
        d.cuCtxSetCurrent(new(d.cuDevicePrimaryCtxRetain, 0))
    return d


def device_prop(**more):
    fields = dict(kind=1, lkind=1, lid=0)
    fields.update(more)
    return C.byref(Prop(**fields))


def reserve(d, size):
    return new(d.cuMemAddressReserve, size, 0, 0, 0)


def create(d, size, **more):
    return new(d.cuMemCreate, size, device_prop(**more), 0)


def access(d, address, size, flags=3, lkind=1, lid=0):
    return d.cuMemSetAccess(address, size, C.byref(Access(lkind, lid, flags)), 1)


def mapped(d, size=G, give=True):
    base = reserve(d, size)
    handle = create(d, size)
    assert d.cuMemMap(base, size, 0, handle, 0) == 0
    if give:
        assert access(d, base, size) == 0
    return base, handle


SLEEPER = C.CFUNCTYPE(None, C.c_void_p)(lambda _: time.sleep(0.12))


def busy(d, stream):
    assert d.cuLaunchHostFunc(stream, SLEEPER, None) == 0


def reserve_and_create():
    d = start(context=False)
    out = u64()
    o = C.byref(out)
    say("before a context: create", d.cuMemCreate(o, G, device_prop(), 0), "reserve", d.cuMemAddressReserve(o, G, 0, 0, 0))
    for size in (0, 4096, 65536, G + 4096, 3 * G):
        say(f"reserve size {size}", d.cuMemAddressReserve(o, size, 0, 0, 0))
    for align in (1, 3, 4096, G, 1 << 30):
        code = d.cuMemAddressReserve(o, G, align, 0, 0)
        say(f"reserve align {align}", code, "aligned" if align and code == 0 and out.value % align == 0 else "")
    say("reserve flags 1", d.cuMemAddressReserve(o, G, 0, 0, 1))
    say("reserve 2^46", d.cuMemAddressReserve(o, 1 << 46, 0, 0, 0))
    for size in (0, 4096, G + 4096, 3 * G):
        say(f"create size {size}", d.cuMemCreate(o, size, device_prop(), 0))
    for name, prop in {
        "device 99": dict(lid=99), "device -1": dict(lid=-1), "kind 0": dict(kind=0), "kind 2": dict(kind=2), "location 0": dict(lkind=0),
        "location host": dict(lkind=2), "numa 0": dict(lkind=3), "numa 99": dict(lkind=3, lid=99), "numa -1": dict(lkind=3, lid=-1),
        "numa current": dict(lkind=4), "fd": dict(handles=1), "win32": dict(handles=2), "fabric": dict(handles=8),
        "fd+fabric": dict(handles=9), "handle 64": dict(handles=64), "rdma": dict(rdma=1), "comp 1": dict(comp=1),
    }.items():
        say("create", name, d.cuMemCreate(o, G, device_prop(**prop), 0))
    say("create flags 1", d.cuMemCreate(o, G, device_prop(), 1))
    say("create 1 PiB", d.cuMemCreate(o, 1 << 50, device_prop(), 0))
    for option in (0, 1, 2):
        code = d.cuMemGetAllocationGranularity(o, device_prop(), option)
        say("granularity", option, code, out.value if code == 0 else "")
    say("granularity numa", d.cuMemGetAllocationGranularity(o, device_prop(lkind=3), 0), out.value)
    say("granularity device 99", d.cuMemGetAllocationGranularity(o, device_prop(lid=99), 0))


def map_and_access():
    d = start()
    base = reserve(d, 16 * G)
    one, two, big = create(d, G), create(d, G), create(d, 4 * G)
    say("map offset", d.cuMemMap(base, G, G, big, 0), "part", d.cuMemMap(base, G, 0, big, 0), "more", d.cuMemMap(base, 2 * G, 0, one, 0))
    say("map unaligned", d.cuMemMap(base + 4096, G, 0, one, 0), "flags", d.cuMemMap(base, G, 0, one, 1), "size 0", d.cuMemMap(base, 0, 0, one, 0))
    say("map outside", d.cuMemMap(1 << 40, G, 0, one, 0), "past the end", d.cuMemMap(base + 14 * G, 4 * G, 0, big, 0))
    say("map", d.cuMemMap(base, G, 0, one, 0), "again", d.cuMemMap(base, G, 0, two, 0), "alias", d.cuMemMap(base + 2 * G, G, 0, one, 0))
    say("map big", d.cuMemMap(base + 4 * G, 4 * G, 0, big, 0), "overlap", d.cuMemMap(base + 3 * G, 4 * G, 0, create(d, 4 * G), 0))
    say("access part", access(d, base + 4 * G, G), "past", access(d, base + 4 * G, 5 * G), "unmapped", access(d, base + 12 * G, G))
    say("access over a gap", access(d, base, 3 * G), "two adjacent", d.cuMemMap(base + G, G, 0, two, 0), access(d, base, 3 * G))
    say("access device 99", access(d, base, G, lid=99), "flags 2", access(d, base, G, flags=2), "host", access(d, base, G, lkind=2), "numa", access(d, base, G, lkind=3))
    say("access count 0", d.cuMemSetAccess(base, G, C.byref(Access(1, 0, 3)), 0), "null", d.cuMemSetAccess(base, G, None, 1))
    say("access read", access(d, base, G, flags=1), "none", access(d, base, G, flags=0), "both", access(d, base, G))
    flags = u64(9)
    say("get access", d.cuMemGetAccess(C.byref(flags), C.byref(Location(1, 0)), base), flags.value,
        "unmapped", d.cuMemGetAccess(C.byref(flags), C.byref(Location(1, 0)), base + 12 * G))
    say("address free mapped", d.cuMemAddressFree(base, 16 * G))
    say("unmap part", d.cuMemUnmap(base + 4 * G, G), "tail", d.cuMemUnmap(base + 5 * G, 3 * G), "with a gap", d.cuMemUnmap(base, 4 * G + 4 * G), "nothing", d.cuMemUnmap(base + 12 * G, G))
    say("unmap unaligned", d.cuMemUnmap(base + 4096, G), "size 0", d.cuMemUnmap(base, 0), "three", d.cuMemUnmap(base, 3 * G), "again", d.cuMemUnmap(base, 3 * G))
    say("unmap big", d.cuMemUnmap(base + 4 * G, 4 * G))
    say("address free part", d.cuMemAddressFree(base, 8 * G), "inside", d.cuMemAddressFree(base + G, G), "more", d.cuMemAddressFree(base, 32 * G))
    say("address free", d.cuMemAddressFree(base, 16 * G), "again", d.cuMemAddressFree(base, 16 * G))
    say("release", d.cuMemRelease(one))


def two_reservations():
    d = start()
    base = reserve(d, 8 * G)
    d.cuMemAddressFree(base, 8 * G)
    out = u64()
    d.cuMemAddressReserve(C.byref(out), 4 * G, 0, base, 0)
    first = out.value
    d.cuMemAddressReserve(C.byref(out), 4 * G, 0, base + 4 * G, 0)
    second = out.value
    say("hint taken", first == base, second == base + 4 * G)
    handle = create(d, 2 * G)
    if second == first + 4 * G:
        say("map over two reservations", d.cuMemMap(first + 3 * G, 2 * G, 0, handle, 0))


def free_memory(d):
    free, total = u64(), u64()
    d.cuMemGetInfo_v2(C.byref(free), C.byref(total))
    return free.value


def lifetimes():
    d = start()
    free = lambda: free_memory(d)
    base = reserve(d, 1024 * MIB)
    before = free()
    handle = create(d, 512 * MIB)
    say("free after create", (before - free()) >> 20)
    assert d.cuMemMap(base, 512 * MIB, 0, handle, 0) == 0
    assert d.cuMemRelease(handle) == 0
    say("free after release of a mapped handle", (before - free()) >> 20)
    out = u64()
    say("retain by address", d.cuMemRetainAllocationHandle(C.byref(out), base + 4096), "release", d.cuMemRelease(out.value))
    say("retain unmapped", d.cuMemRetainAllocationHandle(C.byref(out), base + 512 * MIB))
    say("unmap", d.cuMemUnmap(base, 512 * MIB))
    say("free after unmap", (before - free()) >> 20)
    one = new(d.cuMemAlloc_v2, 1)
    say("alloc 1 byte takes MiB", (before - free()) >> 20, "alignment 512", one % 512)
    size = u64()
    say("range of 1 byte", d.cuMemGetAddressRange_v2(C.byref(out), C.byref(size), one), out.value == one, size.value)
    big = new(d.cuMemAlloc_v2, 3 * MIB)
    say("alloc 3 MiB takes MiB", (before - free()) >> 20, "2 MiB aligned", big % G == 0)
    say("free middle", d.cuMemFree_v2(big + 512), "null", d.cuMemFree_v2(0), "ok", d.cuMemFree_v2(big), "again", d.cuMemFree_v2(big))
    say("alloc 0", d.cuMemAlloc_v2(C.byref(out), 0), "1 PiB", d.cuMemAlloc_v2(C.byref(out), 1 << 50), "managed 0", d.cuMemAllocManaged(C.byref(out), 0, 1), "flags 0", d.cuMemAllocManaged(C.byref(out), G, 0), "flags 3", d.cuMemAllocManaged(C.byref(out), G, 3), "flags 4", d.cuMemAllocManaged(C.byref(out), G, 4))
    say("host alloc 0", d.cuMemHostAlloc(C.byref(out), 0, 0), "flags 64", d.cuMemHostAlloc(C.byref(out), 4096, 64))
    say("free of a VMM address", d.cuMemFree_v2(base))
    wrong = new(d.cuMemHostAlloc, 4096, 0)
    say("cuMemFree of pinned", d.cuMemFree_v2(wrong), "cuMemFreeHost of device", d.cuMemFreeHost(one), "ok", d.cuMemFreeHost(wrong), "again", d.cuMemFreeHost(wrong))
    managed = new(d.cuMemAllocManaged, G, 1)
    say("cuMemFreeHost of managed", d.cuMemFreeHost(managed))
    say("address range of mapped", d.cuMemGetAddressRange_v2(C.byref(out), C.byref(size), base))


def double_release():
    d = start()
    handle = create(d, G)
    say("release", d.cuMemRelease(handle), "again", d.cuMemRelease(handle))


def released_handle():
    d = start()
    handle = create(d, G)
    d.cuMemRelease(handle)
    say("map a released handle", d.cuMemMap(reserve(d, G), G, 0, handle, 0))


def without_context():
    d = start()
    stream = new(d.cuStreamCreate, 1)
    event = new(d.cuEventCreate, 2)
    d.cuEventRecord(event, stream)
    d.cuStreamSynchronize(stream)
    plain = new(d.cuMemAlloc_v2, G)
    managed = new(d.cuMemAllocManaged, G, 1)
    pinned = new(d.cuMemHostAlloc, G, 0)
    pooled = new(d.cuMemAllocAsync, G, stream)
    base, handle = mapped(d)
    d.cuCtxSetCurrent(0)
    out = u64()
    o = C.byref(out)
    words = (C.c_int * 1)()
    cases = {
        "cuCtxGetDevice": lambda: d.cuCtxGetDevice(o), "cuCtxSynchronize": lambda: d.cuCtxSynchronize(), "cuCtxGetId": lambda: d.cuCtxGetId(0, o),
        "cuCtxPopCurrent": lambda: d.cuCtxPopCurrent_v2(o),
        "cuMemAlloc": lambda: d.cuMemAlloc_v2(o, G), "cuMemGetInfo": lambda: d.cuMemGetInfo_v2(o, C.byref(u64())),
        "cuMemAllocManaged": lambda: d.cuMemAllocManaged(o, G, 1), "cuMemHostAlloc": lambda: d.cuMemHostAlloc(o, G, 0),
        "cuMemAllocAsync stream": lambda: d.cuMemAllocAsync(o, G, stream), "cuMemAllocAsync 0": lambda: d.cuMemAllocAsync(o, G, 0),
        "cuMemFreeAsync": lambda: d.cuMemFreeAsync(pooled, stream),
        "cuEventRecord": lambda: d.cuEventRecord(event, stream), "cuEventQuery": lambda: d.cuEventQuery(event), "cuEventSynchronize": lambda: d.cuEventSynchronize(event),
        "cuEventCreate": lambda: d.cuEventCreate(o, 2), "cuStreamCreate": lambda: d.cuStreamCreate(o, 1),
        "cuStreamQuery": lambda: d.cuStreamQuery(stream), "cuStreamQuery 0": lambda: d.cuStreamQuery(0), "cuStreamSynchronize": lambda: d.cuStreamSynchronize(stream),
        "cuStreamWaitEvent": lambda: d.cuStreamWaitEvent(stream, event, 0), "cuStreamIsCapturing": lambda: d.cuStreamIsCapturing(stream, o), "cuStreamIsCapturing 0": lambda: d.cuStreamIsCapturing(0, o),
        "cuStreamGetId": lambda: d.cuStreamGetId(stream, o), "cuStreamGetId 0": lambda: d.cuStreamGetId(0, o), "cuStreamGetCtx": lambda: d.cuStreamGetCtx(stream, o),
        "cuMemsetD8Async": lambda: d.cuMemsetD8Async(plain, 1, 16, stream), "cuMemcpyDtoHAsync": lambda: d.cuMemcpyDtoHAsync_v2(pinned, plain, 16, stream),
        "cuMemcpyDtoH": lambda: d.cuMemcpyDtoH_v2(pinned, plain, 16), "cuLaunchHostFunc": lambda: d.cuLaunchHostFunc(stream, SLEEPER, None),
        "cuMemAdvise_v2": lambda: d.cuMemAdvise_v2(managed, G, 3, Location(1, 0)), "cuMemPrefetchAsync_v2": lambda: d.cuMemPrefetchAsync_v2(managed, G, Location(1, 0), 0, stream),
        "cuMemRangeGetAttribute": lambda: d.cuMemRangeGetAttribute(words, 4, 1, managed, G),
        "cuPointerGetAttribute": lambda: d.cuPointerGetAttribute(o, 2, plain), "cuMemGetAddressRange": lambda: d.cuMemGetAddressRange_v2(o, o, plain),
        "cuMemSetAccess": lambda: access(d, base, G), "cuMemUnmap": lambda: d.cuMemUnmap(base, G), "cuMemRelease": lambda: d.cuMemRelease(handle),
        "cuMemHostRegister": lambda: d.cuMemHostRegister_v2(pinned, 4096, 0), "cuMemFreeHost": lambda: d.cuMemFreeHost(pinned),
        "cuMemFree": lambda: d.cuMemFree_v2(plain), "cuMemFree managed": lambda: d.cuMemFree_v2(managed),
        "cuEventDestroy": lambda: d.cuEventDestroy_v2(event), "cuStreamDestroy": lambda: d.cuStreamDestroy_v2(stream),
        "cuThreadExchange": lambda: d.cuThreadExchangeStreamCaptureMode(C.byref(C.c_int(0))),
        "cuDeviceGetDefaultMemPool": lambda: d.cuDeviceGetDefaultMemPool(o, 0),
        "cuCtxSetCurrent 0": lambda: d.cuCtxSetCurrent(0),
    }
    for name, case in cases.items():
        say("no context:", name, case())


CAPTURE_CALLS = [
    "cuMemAlloc", "cuMemFree", "cuMemAllocManaged", "cuMemFree managed", "cuMemHostAlloc", "cuMemFreeHost", "register", "unregister",
    "cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease", "cuMemAddressFree",
    "cuEventCreate", "cuEventDestroy", "cuEventRecord other", "cuEventQuery other", "cuEventQuery never", "cuEventSynchronize other", "cuEventQuery captured",
    "cuEventSynchronize captured", "cuStreamWaitEvent other", "wait outside event", "wait never recorded",
    "cuStreamCreate", "cuStreamDestroy", "cuStreamQuery other", "cuStreamSynchronize other", "cuStreamQuery own", "cuStreamSynchronize own",
    "cuStreamQuery legacy", "cuStreamSynchronize legacy", "cuEventRecord legacy", "cuMemsetD8Async legacy", "cuStreamIsCapturing legacy", "cuCtxSynchronize", "cuMemGetInfo", "cuCtxRecordEvent", "cuCtxWaitEvent",
    "cuMemAdvise", "cuMemPrefetch own", "cuMemPrefetch other", "cuMemAllocAsync own", "cuMemAllocAsync other", "cuMemFreeAsync other", "cuMemFreeAsync own outside", "pool trim", "pool create", "pool attribute", "pool set attribute", "pool set access", "default pool",
    "cuPointerGetAttribute", "cuMemGetAddressRange", "cuMemcpyHtoD", "cuMemcpyDtoD", "cuMemsetD8", "cuMemcpyHtoDAsync pageable own", "cuMemcpyHtoDAsync pageable other", "cuMemsetD8Async own", "cuMemsetD8Async other",
    "cuLaunchHostFunc own", "cuLaunchHostFunc other", "begin again", "cuMemRangeGetAttribute", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuEventElapsed other", "cuMemExport",
]


def capture(mode, exchange=None, other_thread=False):
    d = start()
    blocking = 0
    own, other = new(d.cuStreamCreate, 1), new(d.cuStreamCreate, 1)
    tag = f"capture {mode}" + (f" exchanged {exchange}" if exchange is not None else "") + (" by another thread" if other_thread else "")
    out = u64()
    o = C.byref(out)
    page = C.create_string_buffer(1 << 16)
    for name in CAPTURE_CALLS:
        if name.endswith("legacy"):
            blocking = new(d.cuStreamCreate, 0)
        stream = blocking if name.endswith("legacy") else own
        plain, managed, pinned = new(d.cuMemAlloc_v2, G), new(d.cuMemAllocManaged, G, 1), new(d.cuMemHostAlloc, G, 0)
        event, never, mine, timed = new(d.cuEventCreate, 2), new(d.cuEventCreate, 2), new(d.cuEventCreate, 2), new(d.cuEventCreate, 0)
        d.cuEventRecord(event, other)
        d.cuEventRecord(timed, other)
        pooled = new(d.cuMemAllocAsync, 4096, other)
        d.cuStreamSynchronize(other)
        spare = new(d.cuStreamCreate, 1)
        base = reserve(d, 4 * G)
        one, two = create(d, G), create(d, G, handles=1)
        d.cuMemMap(base, G, 0, one, 0)
        empty = reserve(d, G)
        malloced = C.create_string_buffer(1 << 20)
        if name == "unregister":
            d.cuMemHostRegister_v2(C.cast(malloced, C.c_void_p), 1 << 20, 0)
        pool = u64()
        d.cuDeviceGetDefaultMemPool(C.byref(pool), 0)
        context = u64()
        d.cuCtxGetCurrent(C.byref(context))
        words = (C.c_int * 1)()
        calls = {
            "cuMemAlloc": lambda: d.cuMemAlloc_v2(o, G), "cuMemFree": lambda: d.cuMemFree_v2(plain), "cuMemAllocManaged": lambda: d.cuMemAllocManaged(o, G, 1),
            "cuMemFree managed": lambda: d.cuMemFree_v2(managed), "cuMemHostAlloc": lambda: d.cuMemHostAlloc(o, G, 0), "cuMemFreeHost": lambda: d.cuMemFreeHost(pinned),
            "register": lambda: d.cuMemHostRegister_v2(C.cast(malloced, C.c_void_p), 1 << 20, 0), "unregister": lambda: d.cuMemHostUnregister(C.cast(malloced, C.c_void_p)),
            "cuMemAddressReserve": lambda: d.cuMemAddressReserve(o, G, 0, 0, 0), "cuMemCreate": lambda: d.cuMemCreate(o, G, device_prop(), 0),
            "cuMemMap": lambda: d.cuMemMap(base + G, G, 0, two, 0), "cuMemSetAccess": lambda: access(d, base, G), "cuMemUnmap": lambda: d.cuMemUnmap(base, G),
            "cuMemRelease": lambda: d.cuMemRelease(two), "cuMemAddressFree": lambda: d.cuMemAddressFree(empty, G),
            "cuEventCreate": lambda: d.cuEventCreate(o, 2), "cuEventDestroy": lambda: d.cuEventDestroy_v2(event), "cuEventRecord other": lambda: d.cuEventRecord(event, other),
            "cuEventQuery other": lambda: d.cuEventQuery(event), "cuEventQuery never": lambda: d.cuEventQuery(never), "cuEventSynchronize other": lambda: d.cuEventSynchronize(event),
            "cuEventQuery captured": lambda: d.cuEventQuery(mine), "cuEventSynchronize captured": lambda: d.cuEventSynchronize(mine),
            "cuStreamWaitEvent other": lambda: d.cuStreamWaitEvent(other, event, 0), "wait outside event": lambda: d.cuStreamWaitEvent(own, event, 0), "wait never recorded": lambda: d.cuStreamWaitEvent(own, never, 0),
            "cuStreamCreate": lambda: d.cuStreamCreate(o, 1), "cuStreamDestroy": lambda: d.cuStreamDestroy_v2(spare), "cuStreamQuery other": lambda: d.cuStreamQuery(other),
            "cuStreamSynchronize other": lambda: d.cuStreamSynchronize(other), "cuStreamQuery own": lambda: d.cuStreamQuery(own), "cuStreamSynchronize own": lambda: d.cuStreamSynchronize(own),
            "cuStreamQuery legacy": lambda: d.cuStreamQuery(0), "cuStreamSynchronize legacy": lambda: d.cuStreamSynchronize(0), "cuEventRecord legacy": lambda: d.cuEventRecord(event, 0),
            "cuMemsetD8Async legacy": lambda: d.cuMemsetD8Async(plain, 0, 16, 0), "cuStreamIsCapturing legacy": lambda: d.cuStreamIsCapturing(0, o),
            "cuCtxSynchronize": lambda: d.cuCtxSynchronize(), "cuMemGetInfo": lambda: d.cuMemGetInfo_v2(o, C.byref(u64())), "cuCtxRecordEvent": lambda: d.cuCtxRecordEvent(context.value, never), "cuCtxWaitEvent": lambda: d.cuCtxWaitEvent(context.value, event),
            "cuMemAdvise": lambda: d.cuMemAdvise_v2(managed, G, 3, Location(1, 0)), "cuMemPrefetch own": lambda: d.cuMemPrefetchAsync_v2(managed, G, Location(1, 0), 0, own), "cuMemPrefetch other": lambda: d.cuMemPrefetchAsync_v2(managed, G, Location(1, 0), 0, other),
            "cuMemAllocAsync own": lambda: d.cuMemAllocAsync(o, G, own), "cuMemAllocAsync other": lambda: d.cuMemAllocAsync(o, G, other), "cuMemFreeAsync other": lambda: d.cuMemFreeAsync(pooled, other), "cuMemFreeAsync own outside": lambda: d.cuMemFreeAsync(pooled, own),
            "pool trim": lambda: d.cuMemPoolTrimTo(pool.value, 0), "pool create": lambda: d.cuMemPoolCreate(o, C.byref(PoolProps(kind=1, lkind=1))),
            "pool attribute": lambda: d.cuMemPoolGetAttribute(pool.value, 5, o), "pool set attribute": lambda: d.cuMemPoolSetAttribute(pool.value, 4, C.byref(u64(0))),
            "pool set access": lambda: d.cuMemPoolSetAccess(pool.value, C.byref(Access(1, 0, 3)), 1), "default pool": lambda: d.cuDeviceGetDefaultMemPool(o, 0),
            "cuPointerGetAttribute": lambda: d.cuPointerGetAttribute(o, 2, plain), "cuMemGetAddressRange": lambda: d.cuMemGetAddressRange_v2(o, C.byref(u64()), plain),
            "cuMemcpyHtoD": lambda: d.cuMemcpyHtoD_v2(plain, page, 64), "cuMemcpyDtoD": lambda: d.cuMemcpyDtoD_v2(plain, plain + 4096, 64), "cuMemsetD8": lambda: d.cuMemsetD8_v2(plain, 0, 64),
            "cuMemcpyHtoDAsync pageable own": lambda: d.cuMemcpyHtoDAsync_v2(plain, page, 64, own), "cuMemcpyHtoDAsync pageable other": lambda: d.cuMemcpyHtoDAsync_v2(plain, page, 64, other),
            "cuMemsetD8Async own": lambda: d.cuMemsetD8Async(plain, 0, 64, own), "cuMemsetD8Async other": lambda: d.cuMemsetD8Async(plain, 0, 64, other),
            "cuLaunchHostFunc own": lambda: d.cuLaunchHostFunc(own, SLEEPER, None), "cuLaunchHostFunc other": lambda: d.cuLaunchHostFunc(other, SLEEPER, None),
            "begin again": lambda: d.cuStreamBeginCapture_v2(own, mode), "cuMemRangeGetAttribute": lambda: d.cuMemRangeGetAttribute(words, 4, 1, managed, G),
            "cuDevicePrimaryCtxRetain": lambda: d.cuDevicePrimaryCtxRetain(o, 0), "cuCtxSetCurrent": lambda: d.cuCtxSetCurrent(context.value),
            "cuEventElapsed other": lambda: d.cuEventElapsedTime(C.byref(C.c_float()), timed, timed), "cuMemExport": lambda: d.cuMemExportToShareableHandle(o, two, 1, 0),
        }
        begun = d.cuStreamBeginCapture_v2(stream, mode)
        d.cuEventRecord(mine, stream)
        answer = []

        def act():
            d.cuCtxSetCurrent(context.value)
            was = C.c_int(exchange if exchange is not None else 0)
            d.cuThreadExchangeStreamCaptureMode(C.byref(was))
            answer.append(calls[name]())
            d.cuThreadExchangeStreamCaptureMode(C.byref(was))
        if other_thread:
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
        else:
            act()
        status = C.c_int(-1)
        d.cuStreamIsCapturing(stream, C.byref(status))
        graph = u64()
        end = d.cuStreamEndCapture(stream, C.byref(graph))
        say(tag, name, "begin", begun, "code", answer[0], "status", status.value, "end", end)
        if graph.value:
            d.cuGraphDestroy(graph.value)
        d.cuStreamSynchronize(other)
        for h in (plain, managed):
            d.cuMemFree_v2(h)
        d.cuMemFreeHost(pinned)
        for e in (event, never, mine, timed):
            if not (name == "cuEventDestroy" and e == event):
                d.cuEventDestroy_v2(e)
        if name != "cuMemFreeAsync other" and name != "cuMemFreeAsync own outside":
            d.cuMemFreeAsync(pooled, other)
        if name != "cuMemRelease":
            d.cuMemRelease(two)
        if name == "register" or name == "unregister":
            d.cuMemHostUnregister(C.cast(malloced, C.c_void_p))
        if blocking:
            d.cuStreamDestroy_v2(blocking)
            blocking = 0


def graphs():
    d = start()
    a, b = new(d.cuStreamCreate, 1), new(d.cuStreamCreate, 1)
    plain = new(d.cuMemAlloc_v2, G)
    event, back = new(d.cuEventCreate, 2), new(d.cuEventCreate, 2)
    graph, out, count = u64(), u64(), u64()
    d.cuStreamBeginCapture_v2(a, 0)
    d.cuMemsetD8Async(plain, 1, 64, a)
    d.cuMemAllocAsync(C.byref(out), 4096, a)
    d.cuMemcpyDtoDAsync_v2(plain, plain + 4096, 64, a)
    d.cuLaunchHostFunc(a, SLEEPER, None)
    say("free async in capture", d.cuMemFreeAsync(out.value, a))
    d.cuEventRecord(event, a)
    say("join", d.cuStreamWaitEvent(b, event, 0))
    status = C.c_int()
    d.cuStreamIsCapturing(b, C.byref(status))
    say("joined stream captures", status.value, "ended there", d.cuStreamEndCapture(b, C.byref(graph)))
    say("end", d.cuStreamEndCapture(a, C.byref(graph)))
    d.cuStreamBeginCapture_v2(a, 0)
    for f in (lambda: d.cuMemsetD8Async(plain, 1, 64, a), lambda: d.cuMemAllocAsync(C.byref(out), 4096, a), lambda: d.cuMemcpyDtoDAsync_v2(plain, plain + 4096, 64, a), lambda: d.cuLaunchHostFunc(a, SLEEPER, None), lambda: d.cuMemFreeAsync(out.value, a)):
        f()
    say("end", d.cuStreamEndCapture(a, C.byref(graph)))
    nodes = (u64 * 16)()
    count.value = 0
    d.cuGraphGetNodes(graph.value, None, C.byref(count))
    say("nodes", count.value)
    count.value = 16
    d.cuGraphGetNodes(graph.value, nodes, C.byref(count))
    kinds = []
    for at in range(count.value):
        kind = C.c_int()
        d.cuGraphNodeGetType(nodes[at], C.byref(kind))
        kinds.append(kind.value)
    say("kinds", sorted(kinds))
    execution = u64()
    say("instantiate", d.cuGraphInstantiateWithFlags(C.byref(execution), graph.value, 0), "launch", d.cuGraphLaunch(execution.value, a), d.cuStreamSynchronize(a))
    d.cuStreamBeginCapture_v2(a, 0)
    d.cuEventRecord(event, a)
    d.cuStreamWaitEvent(b, event, 0)
    say("fork without work, end", d.cuStreamEndCapture(a, C.byref(graph)))
    d.cuStreamBeginCapture_v2(a, 0)
    d.cuEventRecord(event, a)
    d.cuStreamWaitEvent(b, event, 0)
    d.cuMemsetD8Async(plain, 1, 64, b)
    say("fork with work, end", d.cuStreamEndCapture(a, C.byref(graph)), "graph", bool(graph.value))
    d.cuStreamBeginCapture_v2(a, 0)
    d.cuEventRecord(event, a)
    d.cuStreamWaitEvent(b, event, 0)
    d.cuMemsetD8Async(plain, 1, 64, b)
    d.cuEventRecord(back, b)
    d.cuStreamWaitEvent(a, back, 0)
    say("fork and join, end", d.cuStreamEndCapture(a, C.byref(graph)))
    say("query of an event captured before", d.cuEventQuery(event), "synchronize", d.cuEventSynchronize(event), "wait", d.cuStreamWaitEvent(a, event, 0))
    say("end without begin", d.cuStreamEndCapture(a, C.byref(graph)), "begin mode 7", d.cuStreamBeginCapture_v2(a, 7), "begin legacy", d.cuStreamBeginCapture_v2(0, 0), "begin per thread", d.cuStreamBeginCapture_v2(2, 2))
    d.cuStreamEndCapture(2, C.byref(graph))
    d.cuStreamBeginCapture_v2(a, 0)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(d.cuStreamEndCapture(a, C.byref(graph))))
    thread.start()
    thread.join()
    say("end by another thread", codes[0], "then", d.cuStreamEndCapture(a, C.byref(graph)))


def waits():
    d = start()
    for name in ("cuMemFree", "cuMemFree other context's order", "cuMemFree managed", "cuMemFreeHost", "unregister", "cuMemUnmap", "cuMemRelease", "cuMemHostAlloc", "cuMemAlloc", "cuMemAllocManaged", "register", "cuStreamDestroy", "cuEventDestroy", "trim", "pool destroy", "cuMemFree pooled", "cuMemcpyHtoD small", "cuMemcpyHtoDAsync pageable small", "cuMemcpyHtoDAsync pageable 1 MiB", "cuMemcpyDtoHAsync pageable", "cuMemsetD8", "cuMemcpyDtoD", "cuStreamCreate", "advise", "cuStreamQuery legacy"):
        stream = new(d.cuStreamCreate, 1)
        plain, managed, pinned = new(d.cuMemAlloc_v2, G), new(d.cuMemAllocManaged, G, 1), new(d.cuMemHostAlloc, G, 0)
        malloced = C.create_string_buffer(1 << 20)
        at = C.cast(malloced, C.c_void_p)
        if name == "unregister":
            d.cuMemHostRegister_v2(at, 1 << 20, 0)
        base, handle = mapped(d)
        pool = new(d.cuMemPoolCreate, C.byref(PoolProps(kind=1, lkind=1)))
        pooled = new(d.cuMemAllocFromPoolAsync, 4096, pool, stream)
        event = new(d.cuEventCreate, 2)
        d.cuCtxSynchronize()
        out = u64()
        o = C.byref(out)
        calls = {
            "cuMemFree": lambda: d.cuMemFree_v2(plain), "cuMemFree other context's order": lambda: d.cuMemFree_v2(plain), "cuMemFree managed": lambda: d.cuMemFree_v2(managed), "cuMemFreeHost": lambda: d.cuMemFreeHost(pinned), "unregister": lambda: d.cuMemHostUnregister(at),
            "cuMemUnmap": lambda: d.cuMemUnmap(base, G), "cuMemRelease": lambda: d.cuMemRelease(handle), "cuMemHostAlloc": lambda: d.cuMemHostAlloc(o, G, 0), "cuMemAlloc": lambda: d.cuMemAlloc_v2(o, G), "cuMemAllocManaged": lambda: d.cuMemAllocManaged(o, G, 1),
            "register": lambda: d.cuMemHostRegister_v2(at, 1 << 20, 0), "cuStreamDestroy": lambda: d.cuStreamDestroy_v2(stream), "cuEventDestroy": lambda: d.cuEventDestroy_v2(event), "trim": lambda: d.cuMemPoolTrimTo(pool, 0), "pool destroy": lambda: d.cuMemPoolDestroy(pool),
            "cuMemFree pooled": lambda: d.cuMemFree_v2(pooled), "cuMemcpyHtoD small": lambda: d.cuMemcpyHtoD_v2(plain, malloced, 64), "cuMemcpyHtoDAsync pageable small": lambda: d.cuMemcpyHtoDAsync_v2(plain, malloced, 64, stream), "cuMemcpyHtoDAsync pageable 1 MiB": lambda: d.cuMemcpyHtoDAsync_v2(plain, malloced, 1 << 20, stream),
            "cuMemcpyDtoHAsync pageable": lambda: d.cuMemcpyDtoHAsync_v2(malloced, plain, 1 << 20, stream), "cuMemsetD8": lambda: d.cuMemsetD8_v2(plain, 0, 64), "cuMemcpyDtoD": lambda: d.cuMemcpyDtoD_v2(plain, plain + 4096, 64), "cuStreamCreate": lambda: d.cuStreamCreate(o, 1),
            "advise": lambda: d.cuMemAdvise_v2(managed, G, 3, Location(1, 0)), "cuStreamQuery legacy": lambda: d.cuStreamQuery(0),
        }
        busy(d, stream)
        begun = time.time()
        code = calls[name]()
        took = time.time() - begun
        say("with work in flight:", name, code, "waits" if took > 0.06 else "does not wait")
        d.cuCtxSynchronize()


def bad_addresses():
    d = start()
    stream = new(d.cuStreamCreate, 1)
    plain = new(d.cuMemAlloc_v2, 4 * MIB)
    small = new(d.cuMemAlloc_v2, 4096)
    pinned = new(d.cuMemHostAlloc, 1 << 20, 0)
    base, _ = mapped(d, give=False)
    bare = reserve(d, G)
    page = C.create_string_buffer(1 << 16)
    gone = new(d.cuMemAlloc_v2, 64 * MIB)
    d.cuMemFree_v2(gone)
    for name, address in {"no access": base, "bare": bare, "freed": gone}.items():
        say("to", name, "HtoDAsync", d.cuMemcpyHtoDAsync_v2(address, pinned, 64, stream), "DtoDAsync", d.cuMemcpyDtoDAsync_v2(address, plain, 64, stream), "DtoHAsync", d.cuMemcpyDtoHAsync_v2(pinned, address, 64, stream), "memset", d.cuMemsetD8Async(address, 1, 64, stream), "sync", d.cuStreamSynchronize(stream))
    say("past the end", d.cuMemcpyHtoDAsync_v2(plain + 4 * MIB - 32, pinned, 64, stream), d.cuMemsetD8Async(plain + 4 * MIB - 32, 1, 64, stream), "small", d.cuMemsetD8Async(small, 1, 8192, stream), "sync", d.cuStreamSynchronize(stream))
    say("memset of pinned", d.cuMemsetD8Async(pinned, 1, 64, stream), "odd", d.cuMemsetD32Async(plain + 2, 1, 4, stream), "count 0", d.cuMemsetD8Async(plain, 1, 0, stream), "copy 0", d.cuMemcpyDtoDAsync_v2(0, 0, 0, stream))
    say("memset of pageable", d.cuMemsetD8Async(page, 1, 64, stream), "sync", d.cuStreamSynchronize(stream))
    say("DtoD of pinned", d.cuMemcpyDtoDAsync_v2(plain, pinned, 64, stream), "HtoD of device", d.cuMemcpyHtoDAsync_v2(plain, small, 64, stream))
    say("DtoD of pageable", d.cuMemcpyDtoDAsync_v2(plain, page, 64, stream), "DtoH to device", d.cuMemcpyDtoHAsync_v2(plain, small, 64, stream), "sync", d.cuStreamSynchronize(stream))
    big = C.create_string_buffer(4 << 20)
    at = (C.addressof(big) + 4095) & ~4095
    say("register", d.cuMemHostRegister_v2(at, 1 << 20, 0), "next", d.cuMemHostRegister_v2(at + (1 << 20), 1 << 20, 0), "overlap", d.cuMemHostRegister_v2(at + 4096, 4096, 0))
    say("copy over two registrations", d.cuMemcpyHtoDAsync_v2(plain, at + (1 << 20) - 4096, 8192, stream), "past one", d.cuMemcpyHtoDAsync_v2(plain, at + (2 << 20) - 4096, 8192, stream), "into one", d.cuMemcpyHtoDAsync_v2(plain, at - 2048, 4096, stream))
    out = u64()
    say("device pointer", d.cuMemHostGetDevicePointer_v2(C.byref(out), at + 64, 0), out.value == at + 64, "pageable", d.cuMemHostGetDevicePointer_v2(C.byref(out), C.cast(page, C.c_void_p), 0))
    say("unregister middle", d.cuMemHostUnregister(at + 4096), "ok", d.cuMemHostUnregister(at), "again", d.cuMemHostUnregister(at), "second", d.cuMemHostUnregister(at + (1 << 20)))
    say("register unmapped", d.cuMemHostRegister_v2(1 << 20, 4096, 0), "size 0", d.cuMemHostRegister_v2(at, 0, 0), "pinned", d.cuMemHostRegister_v2(pinned, 4096, 0))


def managed():
    d = start()
    base = new(d.cuMemAllocManaged, 8 * MIB, 1)
    stream = new(d.cuStreamCreate, 1)
    out = u64()

    def attributes(where, size, tag):
        values = []
        for which in range(1, 9):
            words = (C.c_int * 3)(9, 9, 9)
            code = d.cuMemRangeGetAttribute(words, 12 if which == 3 else 4, which, where, size)
            values.append((which, code, list(words) if which == 3 else words[0]))
        say("attributes", tag, values)
    attributes(base, 8 * MIB, "fresh")
    dev = Location(1, 0)
    say("prefer device", d.cuMemAdvise_v2(base, 4 * MIB, 3, dev), "accessed by host", d.cuMemAdvise_v2(base, 8 * MIB, 5, Location(2, 0)), "by device", d.cuMemAdvise_v2(base, 8 * MIB, 5, dev), "read mostly", d.cuMemAdvise_v2(base, 2 * MIB, 1, dev))
    attributes(base, 2 * MIB, "first 2 MiB")
    attributes(base, 8 * MIB, "all")
    attributes(base + 4 * MIB, 4 * MIB, "tail")
    say("prefetch", d.cuMemPrefetchAsync_v2(base, 4 * MIB, dev, 0, stream), d.cuStreamSynchronize(stream))
    attributes(base, 4 * MIB, "prefetched")
    say("prefetch host", d.cuMemPrefetchAsync_v2(base, 4 * MIB, Location(2, 0), 0, stream), d.cuStreamSynchronize(stream))
    attributes(base, 4 * MIB, "prefetched to host")
    say("prefetch numa", d.cuMemPrefetchAsync_v2(base, 4 * MIB, Location(3, 0), 0, stream), d.cuStreamSynchronize(stream))
    attributes(base, 4 * MIB, "prefetched to a node")
    say("prefer host", d.cuMemAdvise_v2(base, 8 * MIB, 3, Location(2, 0)), "numa", d.cuMemAdvise_v2(base, 4 * MIB, 3, Location(3, 0)), "current", d.cuMemAdvise_v2(base, 4 * MIB, 3, Location(4, 0)))
    attributes(base, 8 * MIB, "preferred on host and node")
    attributes(base + 4 * MIB, 4 * MIB, "preferred on host")
    say("unset", d.cuMemAdvise_v2(base, 8 * MIB, 4, Location(0, 0)), d.cuMemAdvise_v2(base, 8 * MIB, 2, Location(0, 0)), d.cuMemAdvise_v2(base, 8 * MIB, 6, dev))
    attributes(base, 8 * MIB, "unset")
    say("advise device 99", d.cuMemAdvise_v2(base, G, 3, Location(1, 99)), "kind 0", d.cuMemAdvise_v2(base, G, 3, Location(0, 0)), "by numa", d.cuMemAdvise_v2(base, G, 5, Location(3, 0)), "numa 99", d.cuMemAdvise_v2(base, G, 3, Location(3, 99)), "advice 0", d.cuMemAdvise_v2(base, G, 0, dev), "advice 9", d.cuMemAdvise_v2(base, G, 9, dev))
    say("advise count 0", d.cuMemAdvise_v2(base, 0, 3, dev), "past the end", d.cuMemAdvise_v2(base, 16 * MIB, 3, dev), "prefetch past", d.cuMemPrefetchAsync_v2(base, 16 * MIB, dev, 0, stream), "count 0", d.cuMemPrefetchAsync_v2(base, 0, dev, 0, stream), "device 99", d.cuMemPrefetchAsync_v2(base, G, Location(1, 99), 0, stream), "flags", d.cuMemPrefetchAsync_v2(base, G, dev, 1, stream))
    say("advise unaligned", d.cuMemAdvise_v2(base + 100, 1000, 3, dev))
    attributes(base, 4096, "page of an unaligned advice")
    plain = new(d.cuMemAlloc_v2, G)
    page = C.create_string_buffer(1 << 16)
    say("advise plain", d.cuMemAdvise_v2(plain, G, 3, dev), "pageable", d.cuMemAdvise_v2(page, 4096, 3, dev), "prefetch plain", d.cuMemPrefetchAsync_v2(plain, G, dev, 0, stream))
    words = (C.c_int * 4)()
    say("attribute size 8", d.cuMemRangeGetAttribute(words, 8, 1, base, G), "size 0", d.cuMemRangeGetAttribute(words, 0, 1, base, G), "which 0", d.cuMemRangeGetAttribute(words, 4, 0, base, G), "which 99", d.cuMemRangeGetAttribute(words, 4, 99, base, G), "past", d.cuMemRangeGetAttribute(words, 4, 1, base, 16 * MIB), "plain", d.cuMemRangeGetAttribute(words, 4, 1, plain, G), "size 3", d.cuMemRangeGetAttribute(words, 3, 3, base, G))
    say("old: prefer 0", d.cuMemAdvise(base, G, 3, 0), "cpu", d.cuMemAdvise(base, G, 3, C.c_int(-1)), "-2", d.cuMemAdvise(base, G, 3, C.c_int(-2)), "prefetch", d.cuMemPrefetchAsync(base, G, C.c_int(-1), stream), "99", d.cuMemPrefetchAsync(base, G, C.c_int(99), stream))
    for size in (1, 4096, 65536, 3 * MIB):
        at = new(d.cuMemAllocManaged, size, 1)
        n = u64()
        d.cuMemGetAddressRange_v2(C.byref(out), C.byref(n), at)
        say("managed", size, "range", n.value, "aligned 2 MiB", at % G == 0, "4 KiB", at % 4096 == 0, "advise all", d.cuMemAdvise_v2(at, size, 3, dev))


def pointers():
    d = start()
    stream = new(d.cuStreamCreate, 1)
    base, _ = mapped(d, 4 * MIB)
    page = C.create_string_buffer(1 << 16)
    malloced = C.create_string_buffer(1 << 20)
    at = (C.addressof(malloced) + 4095) & ~4095
    d.cuMemHostRegister_v2(at, 65536, 0)
    things = {"plain": new(d.cuMemAlloc_v2, 1000), "managed": new(d.cuMemAllocManaged, 10000, 1), "pinned": new(d.cuMemHostAlloc, 10000, 0), "pooled": new(d.cuMemAllocAsync, 1000, stream),
              "mapped": base, "no access": mapped(d, give=False)[0], "bare": reserve(d, G), "registered": at, "pageable": C.addressof(page), "numa": 0}
    numa = reserve(d, G)
    handle = new(d.cuMemCreate, G, device_prop(lkind=3), 0)
    if d.cuMemMap(numa, G, 0, handle, 0) == 0:
        access(d, numa, G)
        things["numa"] = numa
    context = u64()
    d.cuCtxGetCurrent(C.byref(context))
    for name, start_at in things.items():
        found = []
        for which in (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17):
            out = u64(0)
            code = d.cuPointerGetAttribute(C.byref(out), which, start_at + 16)
            value = out.value
            if which == 1:
                value = value == context.value
            elif which in (3, 4, 11):
                value = value - start_at if value else "null"
            elif which == 17:
                value = value != 0
            found.append((which, code, value if code == 0 else ""))
        many = (C.c_int * 2)(2, 9)
        a, b = C.c_uint(7), C.c_int(7)
        to = (C.c_void_p * 2)(C.addressof(a), C.addressof(b))
        code = d.cuPointerGetAttributes(C.c_uint(2), many, to, start_at + 16)
        say("pointer", name, found, "many", code, a.value, b.value)


def pools():
    d = start()
    a, b = new(d.cuStreamCreate, 1), new(d.cuStreamCreate, 1)
    pool = new(d.cuDeviceGetDefaultMemPool, 0)
    out = u64()

    def state(tag, pool=pool):
        values = []
        for which in (5, 6, 7, 8):
            v = u64()
            d.cuMemPoolGetAttribute(pool, which, C.byref(v))
            values.append(v.value)
        say("pool", tag, "reserved", values[0], "high", values[1], "used", values[2], "high", values[3])
    state("fresh")
    policies = []
    for which in (1, 2, 3):
        v = C.c_int()
        d.cuMemPoolGetAttribute(pool, which, C.byref(v))
        policies.append(v.value)
    say("policies", policies, "attribute 0", d.cuMemPoolGetAttribute(pool, 0, C.byref(u64())), "99", d.cuMemPoolGetAttribute(pool, 99, C.byref(u64())))
    x = new(d.cuMemAllocAsync, 1000, a)
    state("1000 bytes")
    y = new(d.cuMemAllocAsync, 33 * MIB, a)
    state("and 33 MiB")
    d.cuMemFreeAsync(x, a)
    state("first freed")
    d.cuMemFreeAsync(y, a)
    state("both freed")
    d.cuStreamSynchronize(a)
    state("synchronised")
    d.cuMemPoolSetAttribute(pool, 4, C.byref(u64((1 << 64) - 1)))
    z = new(d.cuMemAllocAsync, 1 << 30, a)
    state("1 GiB, threshold max")
    d.cuMemFreeAsync(z, a)
    d.cuCtxSynchronize()
    state("kept")
    w = new(d.cuMemAllocAsync, 100 * MIB, b)
    say("reuse after a synchronise", w == z)
    d.cuMemFreeAsync(w, b)
    d.cuStreamSynchronize(b)
    say("trim", d.cuMemPoolTrimTo(pool, 0))
    state("trimmed")
    w = new(d.cuMemAllocAsync, 100 * MIB, a)
    busy(d, a)
    d.cuMemFreeAsync(w, a)
    again = new(d.cuMemAllocAsync, 100 * MIB, a)
    say("same stream reuses", again == w)
    d.cuMemFreeAsync(again, a)
    say("trim while busy", d.cuMemPoolTrimTo(pool, 0))
    state("trimmed while busy")
    foreign = new(d.cuMemAllocAsync, 100 * MIB, b)
    say("other stream reuses", foreign == w)
    d.cuCtxSynchronize()
    say("reset high water", d.cuMemPoolSetAttribute(pool, 6, C.byref(u64(0))), "to 5", d.cuMemPoolSetAttribute(pool, 6, C.byref(u64(5))), "set reserved", d.cuMemPoolSetAttribute(pool, 5, C.byref(u64(0))))
    say("free async of plain", d.cuMemFreeAsync(new(d.cuMemAlloc_v2, G), a), "null", d.cuMemFreeAsync(0, a), "middle", d.cuMemFreeAsync(foreign + 512, a), "size 0", d.cuMemAllocAsync(C.byref(out), 0, a), "1 PiB", d.cuMemAllocAsync(C.byref(out), 1 << 50, a))
    say("cuMemFree of pooled", d.cuMemFree_v2(foreign))
    limited = new(d.cuMemPoolCreate, C.byref(PoolProps(kind=1, lkind=1, max=64 * MIB)))
    say("limited pool", d.cuMemAllocFromPoolAsync(C.byref(out), 128 * MIB, limited, a), d.cuMemAllocFromPoolAsync(C.byref(out), 16 * MIB, limited, a))
    state("limited", limited)
    say("destroy with a live block", d.cuMemPoolDestroy(limited), "free after", d.cuMemFreeAsync(out.value, a), d.cuStreamSynchronize(a))
    say("destroy default", d.cuMemPoolDestroy(pool), "props kind 0", d.cuMemPoolCreate(C.byref(out), C.byref(PoolProps(kind=0, lkind=1))), "device 99", d.cuMemPoolCreate(C.byref(out), C.byref(PoolProps(kind=1, lkind=1, lid=99))), "host", d.cuMemPoolCreate(C.byref(out), C.byref(PoolProps(kind=1, lkind=2))), "numa", d.cuMemPoolCreate(C.byref(out), C.byref(PoolProps(kind=1, lkind=3))))
    flags = C.c_int(9)
    say("pool access", d.cuMemPoolGetAccess(C.byref(flags), pool, C.byref(Location(1, 0))), flags.value)
    say("set pool", d.cuDeviceSetMemPool(0, pool), "alignment", new(d.cuMemAllocAsync, 1, a) % 512)


def double_free_async():
    d = start()
    a = new(d.cuStreamCreate, 1)
    x = new(d.cuMemAllocAsync, 4096, a)
    say("free async", d.cuMemFreeAsync(x, a), "again", d.cuMemFreeAsync(x, a))


def events():
    d = start()
    a = new(d.cuStreamCreate, 1)
    event, timed = new(d.cuEventCreate, 2), new(d.cuEventCreate, 0)
    ms = C.c_float()
    say("never recorded: query", d.cuEventQuery(event), "synchronize", d.cuEventSynchronize(event), "wait", d.cuStreamWaitEvent(a, event, 0), "elapsed", d.cuEventElapsedTime(C.byref(ms), timed, timed))
    busy(d, a)
    d.cuEventRecord(event, a)
    d.cuEventRecord(timed, a)
    say("pending: query", d.cuEventQuery(event), "stream", d.cuStreamQuery(a), "elapsed", d.cuEventElapsedTime(C.byref(ms), timed, timed), "untimed", d.cuEventElapsedTime(C.byref(ms), event, event))
    say("destroy pending", d.cuEventDestroy_v2(event), d.cuStreamDestroy_v2(a), d.cuCtxSynchronize())
    say("event flags 8", d.cuEventCreate(C.byref(u64()), 8), "stream flags 2", d.cuStreamCreate(C.byref(u64()), 2), "wait flags 2", d.cuStreamWaitEvent(0, timed, 2))
    b = new(d.cuStreamCreate, 1)
    out = u64()
    d.cuStreamGetId(b, C.byref(out))
    first = out.value
    d.cuStreamDestroy_v2(b)
    c = new(d.cuStreamCreate, 1)
    d.cuStreamGetId(c, C.byref(out))
    say("handle used again", c == b, "id too", out.value == first)
    ids = []
    for handle in (0, 1, 2):
        d.cuStreamGetId(handle, C.byref(out))
        ids.append(out.value)
    say("ids of 0 and 1 alike", ids[0] == ids[1], "2 differs", ids[2] != ids[0], "id of the legacy stream", ids[0], "of the thread's", ids[2])
    context = u64()
    say("second context", d.cuCtxCreate_v2(C.byref(context), 0, 0))
    foreign = new(d.cuEventCreate, 2)
    say("record in another context", d.cuEventRecord(foreign, c), "wait", d.cuStreamWaitEvent(c, foreign, 0), "own event there", d.cuEventRecord(timed, 0))
    say("destroy context", d.cuCtxDestroy_v2(context.value), "current", d.cuCtxGetCurrent(C.byref(out)), out.value == 0)
    say("release twice", d.cuDevicePrimaryCtxRelease_v2(0), d.cuDevicePrimaryCtxRelease_v2(0), "alloc then", d.cuMemAlloc_v2(C.byref(out), G), "device", d.cuCtxGetDevice(C.byref(out)))
    code = d.cuDevicePrimaryCtxRetain(C.byref(context), 0)
    d.cuCtxGetCurrent(C.byref(out))
    say("retain again", code, "same handle", context.value == out.value)


def fork():
    d = start()
    pid = os.fork()
    if pid == 0:
        out = u64()
        say("child: init", d.cuInit(0), "alloc", d.cuMemAlloc_v2(C.byref(out), G), "current", d.cuCtxGetCurrent(C.byref(out)), "version", d.cuDriverGetVersion(C.byref(out)), "create", d.cuMemCreate(C.byref(out), G, device_prop(), 0), "query", d.cuStreamQuery(0), "name", d.cuGetErrorName(1, C.byref(out)), "count", d.cuDeviceGetCount(C.byref(out)))
        os._exit(0)
    os.waitpid(pid, 0)


def before_init():
    d = Driver()
    out = u64()
    o = C.byref(out)
    say("before init: alloc", d.cuMemAlloc_v2(o, G), "current", d.cuCtxGetCurrent(o), "version", d.cuDriverGetVersion(o), "count", d.cuDeviceGetCount(o), "create", d.cuMemCreate(o, G, device_prop(), 0), "name", d.cuGetErrorName(1, o), "free", d.cuMemFree_v2(0), "init flags 1", d.cuInit(1))


def attributes():
    d = start()
    values = []
    for which in range(1, 146):
        v = C.c_int()
        code = d.cuDeviceGetAttribute(C.byref(v), which, 0)
        values.append(f"{which}={v.value if code == 0 else 'error %d' % code}")
    say("attributes", *values)
    v = C.c_int()
    say("attribute 0", d.cuDeviceGetAttribute(C.byref(v), 0, 0), "999", d.cuDeviceGetAttribute(C.byref(v), 999, 0), "device 99", d.cuDeviceGetAttribute(C.byref(v), 1, 99))
    name = C.create_string_buffer(4)
    say("short name", d.cuDeviceGetName(name, 4, 0), name.raw)
    p, s = u64(), C.c_int()
    for symbol in ("cuMemAlloc", "cuMemAlloc_v2", "cuMemAdvise", "cuMemAdvise_v2", "cuMemPrefetchAsync", "cuCtxRecordEvent", "cuNothing"):
        for version in (11020, 12020, 13000):
            code = d.cuGetProcAddress_v2(symbol.encode(), C.byref(p), C.c_int(version), 0, C.byref(s))
            which = [n for n in (symbol, symbol + "_v2") if p.value and hasattr(d.lib, n) and C.cast(getattr(d.lib, n), C.c_void_p).value == p.value]
            say("proc", symbol, version, code, "status", s.value, bool(p.value), which)


def illegal():
    """A fault breaks the context: what each call answers then."""
    d = start()
    if not hasattr(d.lib, "cuModuleLoadData") and not hasattr(d.lib, "hbmsim_spin"):
        return
    a, other = new(d.cuStreamCreate, 1), new(d.cuStreamCreate, 1)
    event = new(d.cuEventCreate, 2)
    d.cuEventRecord(event, other)
    plain, pinned = new(d.cuMemAlloc_v2, G), new(d.cuMemHostAlloc, G, 0)
    base, handle = mapped(d)
    pooled = new(d.cuMemAllocAsync, 4096, other)
    d.cuStreamSynchronize(other)
    if hasattr(d.lib, "hbmsim_spin"):
        d.hbmsim_spin(a, base, G)
        d.cuMemUnmap(base, G)
    else:
        ptx = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry poke(.param .u64 p) { .reg .u64 %a; .reg .u32 %v; ld.param.u64 %a, [p]; mov.u32 %v, 1; st.global.u32 [%a], %v; ret; }
\0"""
        module, f = u64(), u64()
        say("load", d.cuModuleLoadData(C.byref(module), ptx), d.cuModuleGetFunction(C.byref(f), module.value, b"poke"))
        d.cuMemUnmap(base, G)
        arg = u64(base)
        params = (C.c_void_p * 1)(C.addressof(arg))
        one = C.c_uint(1)
        say("launch", d.cuLaunchKernel(f.value, one, one, one, one, one, one, C.c_uint(0), a, params, None))
        time.sleep(0.5)
    out = u64()
    o = C.byref(out)
    say("broken: stream synchronize", d.cuStreamSynchronize(a), "query", d.cuStreamQuery(a), "other stream", d.cuStreamQuery(other), "context", d.cuCtxSynchronize(), "event query", d.cuEventQuery(event), "record", d.cuEventRecord(event, other))
    say("broken: alloc", d.cuMemAlloc_v2(o, G), "free", d.cuMemFree_v2(plain), "host alloc", d.cuMemHostAlloc(o, 4096, 0), "free host", d.cuMemFreeHost(pinned), "alloc async", d.cuMemAllocAsync(o, 4096, other), "free async", d.cuMemFreeAsync(pooled, other))
    say("broken: create", d.cuMemCreate(o, G, device_prop(), 0), "reserve", d.cuMemAddressReserve(o, G, 0, 0, 0), "map", d.cuMemMap(base, G, 0, handle, 0), "access", access(d, base, G), "unmap", d.cuMemUnmap(base, G), "release", d.cuMemRelease(handle), "address free", d.cuMemAddressFree(base, G))
    say("broken: info", d.cuMemGetInfo_v2(o, C.byref(u64())), "stream create", d.cuStreamCreate(o, 1), "event create", d.cuEventCreate(o, 2), "event destroy", d.cuEventDestroy_v2(event), "stream destroy", d.cuStreamDestroy_v2(a), "current", d.cuCtxGetCurrent(o), "capturing", d.cuStreamIsCapturing(other, o), "pointer", d.cuPointerGetAttribute(o, 2, plain), "device", d.cuCtxGetDevice(o), "managed", d.cuMemAllocManaged(o, G, 1))


GROUPS = [before_init, attributes, reserve_and_create, map_and_access, two_reservations, lifetimes, double_release, released_handle, without_context,
          events, graphs, waits, bad_addresses, managed, pointers, pools, double_free_async, fork, illegal]
GROUPS += [lambda m=m: capture(m) for m in (0, 1, 2)]
GROUPS += [lambda: capture(0, exchange=2), lambda: capture(0, exchange=1), lambda: capture(0, other_thread=True), lambda: capture(1, other_thread=True)]

def run(group, out):
    """Runs a group in a child that writes to a file; the child's number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.dup2(out.fileno(), 1)
        try:
            group()
        except BaseException as error:
            say("GROUP FAILED", repr(error))
        sys.stdout.flush()
        os._exit(0)
    return pid


def main():
    wanted = sys.argv[2:]
    named = [g for g in GROUPS if not wanted or g.__name__ in wanted or ("capture" in wanted and "lambda" in g.__name__)]
    # A card is asked one group at a time, since some groups look at the time and the free memory.
    width = 1 if "libcuda" in LIB else len(named)
    for first in range(0, len(named), width):
        running = []
        for group in named[first:first + width]:
            out = tempfile.TemporaryFile()
            running.append((group, out, run(group, out)))
        for group, out, pid in running:
            _, status = os.waitpid(pid, 0)
            out.seek(0)
            sys.stdout.write(out.read().decode())
            if status:
                say("GROUP ENDED", group.__name__, status)


if __name__ == "__main__":
    main()
