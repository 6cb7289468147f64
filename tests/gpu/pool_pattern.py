"""Every block of the pool is written on the device when it is had, and looked at on the device before it is freed.

Four threads and four streams share the blocks; many are looked at on another stream than their own, which is
told of, and freed before that work has run. A limit little above what is live forces memory to be moved. A
kernel writes each word's own value, another compares and counts in a device counter, so that nothing waits. Runs for
HBMALLOC_CHECK_SECONDS (default 120); HBMALLOC_TEST_SEED repeats the threads' decisions. Needs no torch.

With HBMALLOC_DRIVER=sim, which has no kernels, blocks are filled with one value and their ends copied to the
host, to be looked at later.
"""

import ctypes
import os
import random
import threading
import time
from ctypes import byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p

import gpucase
from gpucase import case, check

MIB = 1 << 20
SIMULATED = os.environ.get("HBMALLOC_DRIVER") == "sim"
SECONDS = float(os.environ.get("HBMALLOC_CHECK_SECONDS") or (5 if SIMULATED else 120))
SEED = int(os.environ.get("HBMALLOC_TEST_SEED") or time.time_ns())
THREADS, STREAMS = 4, 4
LARGEST = 64 * MIB
LIMIT = (256 if SIMULATED else 2048) * MIB
#: the part of the limit that is live, so that what is free lies in pieces
LIVE = LIMIT * 3 // 4
TAGS = ("pattern one", "pattern two")
END = 64  # bytes looked at on the host
ROUNDS = 256  # blocks a thread takes between waits, so that its queues stay short

PTX = b"""
.version 6.0
.target sm_60
.address_size 64

.visible .entry put(.param .u64 block, .param .u64 words, .param .u32 seed)
{
    .reg .pred %p;
    .reg .b32 %r<6>;
    .reg .b64 %d<6>;
    ld.param.u64 %d0, [block];
    ld.param.u64 %d1, [words];
    ld.param.u32 %r0, [seed];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mov.u32 %r4, %nctaid.x;
    mul.wide.u32 %d2, %r1, %r2;
    cvt.u64.u32 %d3, %r3;
    add.u64 %d2, %d2, %d3;
    mul.wide.u32 %d3, %r4, %r2;
again:
    setp.ge.u64 %p, %d2, %d1;
    @%p bra done;
    shl.b64 %d4, %d2, 2;
    add.u64 %d4, %d0, %d4;
    cvt.u32.u64 %r5, %d2;
    xor.b32 %r5, %r5, %r0;
    st.global.u32 [%d4], %r5;
    add.u64 %d2, %d2, %d3;
    bra again;
done:
    ret;
}

.visible .entry look(.param .u64 block, .param .u64 words, .param .u32 seed, .param .u64 counters)
{
    .reg .pred %p;
    .reg .b32 %r<7>;
    .reg .b64 %d<8>;
    ld.param.u64 %d0, [block];
    ld.param.u64 %d1, [words];
    ld.param.u32 %r0, [seed];
    ld.param.u64 %d5, [counters];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mov.u32 %r4, %nctaid.x;
    mul.wide.u32 %d2, %r1, %r2;
    cvt.u64.u32 %d3, %r3;
    add.u64 %d2, %d2, %d3;
    // The first thread counts the block, so that it is known that it was looked at.
    setp.ne.u64 %p, %d2, 0;
    @%p bra counted;
    atom.global.add.u64 %d6, [%d5+8], 1;
counted:
    mul.wide.u32 %d3, %r4, %r2;
again:
    setp.ge.u64 %p, %d2, %d1;
    @%p bra done;
    shl.b64 %d4, %d2, 2;
    add.u64 %d4, %d0, %d4;
    ld.global.u32 %r6, [%d4];
    cvt.u32.u64 %r5, %d2;
    xor.b32 %r5, %r5, %r0;
    setp.eq.u32 %p, %r6, %r5;
    @%p bra next;
    atom.global.add.u64 %d6, [%d5], 1;
next:
    add.u64 %d2, %d2, %d3;
    bra again;
done:
    ret;
}
"""


class Driver:
    """The driver that the library uses."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.context = c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), 0)
        self.enter()
        self.streams = [self.made("cuStreamCreate", 1) for _ in range(STREAMS)]

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        check(code == 0, "%s answered %d" % (name, code))

    def made(self, name, *arguments):
        handle = c_void_p()
        self.call(name, byref(handle), *arguments)
        return handle

    def enter(self):
        self.call("cuCtxSetCurrent", self.context)

    def wait(self):
        self.call("cuCtxSynchronize")


class Kernels:
    """Writes and looks on the device; the counters are words there: mismatches, and blocks looked at."""

    def __init__(self, driver):
        self.driver = driver
        module = driver.made("cuModuleLoadData", ctypes.c_char_p(PTX))
        self.put, self.look = (driver.made("cuModuleGetFunction", module, name) for name in (b"put", b"look"))
        self.counters = c_uint64()
        driver.call("cuMemAlloc_v2", byref(self.counters), c_size_t(16))
        driver.call("cuMemsetD8_v2", self.counters, ctypes.c_ubyte(0), c_size_t(16))

    def launch(self, function, stream, size, *values):
        pointers = (c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        blocks = max(1, min(1024, size // 4096))
        self.driver.call("cuLaunchKernel", function, blocks, 1, 1, 256, 1, 1, 0, stream, pointers, None)

    def write(self, block, stream):
        self.launch(self.put, stream, block.size, c_uint64(block.address), c_uint64(block.size // 4), c_uint32(block.seed))

    def compare(self, block, stream):
        self.launch(self.look, stream, block.size, c_uint64(block.address), c_uint64(block.size // 4),
                    c_uint32(block.seed), self.counters)

    def collect(self):
        pass

    def counted(self):
        self.driver.wait()
        seen = (c_uint64 * 2)()
        self.driver.call("cuMemcpyDtoH_v2", seen, self.counters, c_size_t(16))
        return seen[0], seen[1]


class Host:
    """The same without kernels. Copies land in buffers that are looked at once all work is done."""

    def __init__(self, driver):
        self.driver, self.lock = driver, threading.Lock()
        self.copies, self.bad, self.looked = [], 0, 0

    def write(self, block, stream):
        self.driver.call("cuMemsetD32Async", c_uint64(block.address), c_uint32(block.seed), c_size_t(block.size // 4), stream)

    def compare(self, block, stream):
        for place in (block.address, block.address + block.size - END):
            seen = (c_uint32 * (END // 4))()
            self.driver.call("cuMemcpyDtoHAsync_v2", seen, c_uint64(place), c_size_t(END), stream)
            with self.lock:
                self.copies.append((seen, block.seed))
        with self.lock:
            self.looked += 1

    def collect(self):
        with self.lock:
            copies, self.copies = self.copies, []
        self.driver.wait()
        bad = sum(word != seed for seen, seed in copies for word in seen)
        with self.lock:
            self.bad += bad

    def counted(self):
        self.collect()
        return self.bad, self.looked


class Block:
    def __init__(self, address, size, stream, seed):
        self.address, self.size, self.stream, self.seed = address, size, stream, seed


class Pool:
    """The library's entry points as torch calls them."""

    def __init__(self, library):
        self.malloc, self.free, self.record = library.pool_malloc, library.pool_free, library.hbm_torch_record_stream
        self.malloc.restype, self.malloc.argtypes = c_void_p, [c_size_t, c_int, c_void_p]
        self.free.restype, self.free.argtypes = None, [c_void_p, c_size_t, c_int, c_void_p]
        self.record.restype, self.record.argtypes = None, [c_void_p, c_void_p]


class Run:
    """What the threads share: any of them frees what any has taken."""

    def __init__(self, driver, work, pool):
        self.driver, self.work, self.pool = driver, work, pool
        self.lock = threading.Lock()
        self.blocks, self.live = [], 0
        self.given = self.refused = self.elsewhere = self.foreign = 0
        self.errors = []

    def take(self, chance, owner):
        shift = chance.choice((9, 12, 16, 20, 21, 22, 23, 24, 25, 26))
        size = min(LARGEST, chance.randrange(1 << shift, (2 << shift) - 1)) // 512 * 512
        stream = chance.choice(self.driver.streams)
        address = self.pool.malloc(size, 0, stream)
        with self.lock:
            if not address:
                self.refused += 1
                return False
            self.given += 1
            self.live += size
        block = Block(address, size, stream, chance.getrandbits(32))
        block.owner = owner
        self.work.write(block, stream)
        with self.lock:
            self.blocks.append(block)
        return True

    def give(self, chance, thread):
        with self.lock:
            if not self.blocks:
                return
            at = chance.randrange(len(self.blocks))
            self.blocks[at], self.blocks[-1] = self.blocks[-1], self.blocks[at]
            block = self.blocks.pop()
            self.foreign += block.owner != thread
        other = chance.choice(self.driver.streams)
        if other is not block.stream:
            event = self.driver.made("cuEventCreate", 2)
            self.driver.call("cuEventRecord", event, block.stream)
            self.driver.call("cuStreamWaitEvent", other, event, 0)
            self.driver.call("cuEventDestroy_v2", event)
            self.pool.record(block.address, other)
        self.work.compare(block, other)
        self.pool.free(block.address, 0, 0, block.stream)
        with self.lock:
            self.live -= block.size
            self.elsewhere += other is not block.stream

    def thread(self, thread, end):
        import hbmalloc

        try:
            self.driver.enter()
            chance = random.Random(SEED + thread)
            while time.monotonic() < end and not self.errors:
                with hbmalloc.tag(TAGS[chance.randrange(2)]):
                    for _ in range(ROUNDS):
                        if self.live > LIVE or chance.random() < 0.45 or not self.take(chance, thread):
                            self.give(chance, thread)
                self.work.collect()
        except BaseException as error:
            self.errors.append(error)

    def empty(self):
        chance = random.Random(SEED)
        while self.blocks:
            self.give(chance, -1)


def pattern(hbmalloc, driver, work, run):
    hbmalloc.set_limit(LIMIT, device=0)
    before = hbmalloc.pool_stats(0)["stitches"]
    end = time.monotonic() + SECONDS
    threads = [threading.Thread(target=run.thread, args=(number, end)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in run.errors:
        raise error
    run.empty()
    bad, looked = work.counted()
    stitches = hbmalloc.pool_stats(0)["stitches"] - before
    print("    %d blocks, %d looked at, %d on another stream, %d freed by another thread, %d refused, %d chunks moved, "
          "%d words wrong; HBMALLOC_TEST_SEED=%d" % (run.given, looked, run.elsewhere, run.foreign, run.refused,
                                                      stitches, bad, SEED), flush=True)
    check(bad == 0, "%d words were not what was written; HBMALLOC_TEST_SEED=%d" % (bad, SEED))
    check(looked == run.given > 0, "%d blocks of %d were looked at" % (looked, run.given))
    check(stitches > 0, "the limit has moved no memory")
    check(run.elsewhere > 0 and run.foreign > 0, "no block went to another stream, or thread")
    check(hbmalloc.stats(0)["reserved"] <= LIMIT, hbmalloc.stats(0))


def planted(driver, work, run):
    """What was written over is counted, or the check could not fail."""
    before, _ = work.counted()
    check(run.take(random.Random(1), 0), "no block could be had")
    block = run.blocks[-1]
    driver.call("cuMemsetD32Async", c_uint64(block.address), c_uint32(block.seed ^ 5), c_size_t(1), block.stream)
    run.empty()
    bad, _ = work.counted()
    check(bad - before == 1, "%d words were counted, not one" % (bad - before))


def main():
    import hbmalloc

    path = "libcuda.so.1"
    if SIMULATED:
        path = os.path.join(os.path.dirname(hbmalloc.get_library_path()), "libhbmalloc_sim.so")
    try:
        ctypes.CDLL(path)
    except OSError as error:
        gpucase.line("SKIP", "pattern", error)
        return
    library = ctypes.CDLL(hbmalloc.get_library_path())
    library.hbm_torch_set_hooked(1)
    check(hbmalloc.device_count() > 0, "no device")
    driver = Driver(path)
    work = Host(driver) if SIMULATED else Kernels(driver)
    run = Run(driver, work, Pool(library))
    with case("a pattern in every block, for %g s" % SECONDS):
        pattern(hbmalloc, driver, work, run)
    with case("a word that is written over is counted"):
        planted(driver, work, run)
    with case("nothing left"):
        driver.wait()
        hbmalloc.trim()
        now = hbmalloc.stats(0)
        check(now["allocated"] == 0 and now["reserved"] == 0 and now["warnings"] == 0, now)
    gpucase.finish()


if __name__ == "__main__":
    main()
