"""Memory of the host on a real driver: pinned to it, copied over seams, shared, grown, refused."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import gpucase
from gpucase import case, check, raises

MIB, GIB = 1 << 20, 1 << 30


def tensor_of(buffer):
    import torch

    return torch.frombuffer(buffer.memoryview(), dtype=torch.uint8)


def round_trip(host):
    """What goes to the card and back over a tensor of the host is the same."""
    import torch

    host.copy_(torch.arange(host.numel(), device="cuda", dtype=torch.int64).to(torch.uint8))
    card = torch.empty_like(host, device="cuda")
    card.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    host.zero_()
    host.copy_(card, non_blocking=True)
    torch.cuda.synchronize()
    wanted = torch.arange(host.numel(), device="cuda", dtype=torch.int64).to(torch.uint8)
    return torch.equal(host.cuda(), wanted)


@case("every kind is pinned to the driver, and copies are right")
def kinds():
    from hbmalloc import host

    node = host.nearest_node("gpu:0") if has_node() else 0
    for name, make in {
        "pinned": lambda: host.pinned(64 * MIB + 5),
        "small": lambda: host.pinned(100),
        "node": lambda: host.pinned(64 * MIB, numa_node=node),
        "interleaved": lambda: host.pinned(64 * MIB, numa_node=[node], policy="interleave"),
        "shared": lambda: host.shared(64 * MIB, "hbmalloc-gpu-%d" % os.getpid()),
    }.items():
        with make() as buffer:
            tensor = tensor_of(buffer)
            check(tensor.is_pinned(), "%s is pinned" % name)
            check(round_trip(tensor), "%s comes back as it was" % name)
            del tensor
    with host.numa(MIB, node) as buffer:
        check(not tensor_of(buffer).is_pinned(), "memory of a node alone is not pinned")
    check(host.blocks()["blocks"] == 0, "nothing is left")


def has_node():
    import hbmalloc
    from hbmalloc import host

    try:
        host.nearest_node(0)
        return True
    except hbmalloc.HbmallocError as error:
        print("   the nearest node is unknown here: %s" % error)
        return False


@case("huge pages that nobody set aside are an error, and the next kernel is not poisoned")
def refused():
    import hbmalloc
    import torch
    from hbmalloc import host

    with raises(hbmalloc.OutOfMemoryError, "huge pages"):
        host.pinned(256 * GIB, huge_pages=True)
    with raises(hbmalloc.OutOfMemoryError, "left"):
        host.pinned(1 << 46)
    with host.pinned(MIB) as buffer:
        library = hbmalloc._library.library()
        # Over the end of it: the driver refuses, and we tell its code.
        places = [(ctypes.c_void_p * 1)(place) for place in (torch.zeros(8, device="cuda").data_ptr(), buffer.address)]
        stream = torch.cuda.current_stream().cuda_stream
        status = library.hbm_memcpy_batch(*places, (ctypes.c_size_t * 1)(1 << 40), 1, 1, 0, stream)
        check(status != 0 and b"driver code" in library.hbm_last_error(), "the driver refuses: %r" % library.hbm_last_error())
    x = torch.ones(1000, device="cuda")
    check(float((x + x).sum()) == 2000, "kernels run after it")


@case("a slab grows in parts, and our copies go over its seams")
def seams():
    import torch

    import hbmalloc
    from hbmalloc import host

    with host.Slab(256 * MIB, initial=64 * MIB, part=64 * MIB) as slab:
        check(slab.wait() == 256 * MIB, "it grows to the end")
        check(slab.seams() == [64 * MIB, 128 * MIB, 192 * MIB, 256 * MIB], "the seams are listed")
        tensor = tensor_of(slab)
        tensor.copy_(torch.arange(256 * MIB, dtype=torch.int32).to(torch.uint8))
        card = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda")
        for to, source, direction in ((card, tensor, 1), (tensor, card, 2)):
            arrays = [(ctypes.c_void_p * 1)(part.data_ptr()) for part in (to, source)]
            sizes = (ctypes.c_size_t * 1)(256 * MIB)
            stream = torch.cuda.current_stream().cuda_stream
            status = hbmalloc._library.library().hbm_memcpy_batch(arrays[0], arrays[1], sizes, 1, direction, 0, stream)
            hbmalloc._library.check(status, "hbm_memcpy_batch")
            torch.cuda.synchronize()
            if direction == 1:
                check(torch.equal(card.cpu(), tensor), "to the card")
                tensor.zero_()
        check(torch.equal(card.cpu(), tensor), "and back")
        driver, inside, over = ctypes.CDLL("libcuda.so.1"), 64 * MIB - 8192, 64 * MIB - 4096
        for offset, is_refused in ((inside, False), (over, True), (64 * MIB, False)):
            code = driver.cuMemcpyHtoD_v2(
                ctypes.c_uint64(card.data_ptr()), ctypes.c_void_p(slab.address + offset), ctypes.c_size_t(8192))
            check((code != 0) == is_refused, "one copy of the driver's from %#x: code %d" % (offset, code))
        check(slab.shrink(100 * MIB) == 128 * MIB and slab.ready == 128 * MIB, "it shrinks")
        slab.grow()
        check(slab.wait() == 256 * MIB, "and grows again")
        check(round_trip(tensor[200 * MIB : 250 * MIB]), "and is pinned again")
        del tensor, to, source
    check(host.blocks()["blocks"] == 0, "nothing is left")


@case("LMCache's example, and objects as pinned tensors")
def objects():
    import torch
    from hbmalloc.host import L1Error, L1MemoryManager, L1MemoryManagerConfig, MemoryLayoutDesc, blocks

    config = L1MemoryManagerConfig(size_in_bytes=64 * (1 << 30), use_lazy=True)
    manager = L1MemoryManager(config)
    layout = MemoryLayoutDesc(shapes=[torch.Size([2, 32, 128])], dtypes=[torch.float16])
    error, objs = manager.allocate(layout, count=10)
    check(error == L1Error.SUCCESS and len(objs) == 10, "ten objects")
    for number, found in enumerate(objs):
        tensor = found.tensor
        check(tensor.is_pinned() and tensor.shape == (2, 32, 128) and tensor.data_ptr() == found.data_ptr, "a pinned tensor")
        tensor.copy_(torch.full((2, 32, 128), number, dtype=torch.float16, device="cuda"), non_blocking=True)
    torch.cuda.synchronize()
    check(all(bool((found.tensor == number).all()) for number, found in enumerate(objs)), "what the card wrote")
    del tensor
    used, total = manager.get_memory_usage()
    check(used == 10 * 16384 and total >= 512 * MIB, "usage")
    check(manager.free(objs) == L1Error.SUCCESS and manager.memcheck(), "freed")
    check(manager.get_memory_usage()[0] == 0, "nothing is used")
    begun = time.perf_counter()
    manager.close()
    print("   closed while growing in %.0f ms" % ((time.perf_counter() - begun) * 1e3))
    check(blocks()["blocks"] == 0, "nothing is left")


ATTACH = """
import sys, torch
from hbmalloc import host
torch.cuda.init()
buffer = host.shared(64 << 20, sys.argv[1], create=False)
tensor = torch.frombuffer(buffer.memoryview(), dtype=torch.uint8)
assert tensor.is_pinned() and bool((tensor.cuda() == 7).all())
tensor.copy_(torch.full((64 << 20,), 9, dtype=torch.uint8, device="cuda"))
torch.cuda.synchronize()
"""

STALE = """
import sys, time
from hbmalloc import host
buffer = host.shared(64 << 20, sys.argv[1])
print("made", flush=True)
time.sleep(60)
"""


@case("two processes on one segment, and one that was killed")
def processes():
    import torch
    from hbmalloc import host

    name = "hbmalloc-gpu-shared-%d" % os.getpid()
    victim = subprocess.Popen([sys.executable, "-c", STALE, name], stdout=subprocess.PIPE)
    check(victim.stdout.readline() == b"made\n", "another process makes it")
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    with host.shared(64 * MIB, name) as buffer:
        tensor = tensor_of(buffer)
        check(not bool(tensor.any()), "what the killed one left is not seen")
        tensor.fill_(7)
        done = subprocess.run([sys.executable, "-c", ATTACH, name], capture_output=True, text=True)
        check(done.returncode == 0, "the other process sees and writes it: %s" % done.stderr[-300:])
        check(bool((tensor == 9).all()), "what it wrote is here")
        torch.cuda.synchronize()
        del tensor


EXIT = """
import torch
from hbmalloc import host
torch.cuda.init()
slab = host.Slab(16 << 30, initial=64 << 20, pace=1 << 30)
manager = host.L1MemoryManager(host.L1MemoryManagerConfig(8 << 30))
error, objects = manager.allocate(host.MemoryLayoutDesc([(1024,)], [torch.float16]), 100)
views = [found.tensor for found in objects]
block = host.pinned(1 << 20)
"""


@case("a process ends while slabs grow and objects are held")
def exits():
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60)
        check(done.returncode == 0 and not done.stderr, "it ends quietly: %s" % done.stderr[-300:])


if __name__ == "__main__":
    # Until then torch calls nothing pinned.
    __import__("torch").cuda.init()
    for run in (kinds, refused, seams, objects, processes, exits):
        run()
    gpucase.finish()
