"""Memory of cuda:0 read by a stream of cuda:1: across_devices.py BACKEND, started by `distributed.py`.

torch's own copies between devices run on the source's stream, so the driver is called directly for one
that the other device's stream makes, late, after the tensor was freed and others were written over
whatever memory was free by then.
"""

import ctypes
import sys

import gpucase
from gpucase import case, check

BYTES = 64 << 20
CYCLES = 200_000_000  # a tenth of a second, in which cuda:0 frees, allocates and writes
ROUNDS = 10


def copy(torch, to, block, stream):
    """Copies on `stream` of cuda:1, which must be current, once it has slept."""
    torch.cuda._sleep(CYCLES)
    driver = ctypes.CDLL("libcuda.so.1")
    arguments = [ctypes.c_uint64(to.data_ptr()), ctypes.c_uint64(block.data_ptr()), ctypes.c_size_t(BYTES)]
    code = driver.cuMemcpyAsync(*arguments, ctypes.c_void_p(stream.cuda_stream))
    check(code == 0, "cuMemcpyAsync answered %d" % code)


def round_trip(torch, own, other, number, is_held):
    with torch.cuda.device(1), torch.cuda.stream(other):
        target = torch.zeros(BYTES, device="cuda:1", dtype=torch.uint8)
    with torch.cuda.device(0), torch.cuda.stream(own):
        block = torch.full((BYTES,), number, device="cuda:0", dtype=torch.uint8)
    torch.cuda.synchronize(0)
    torch.cuda.synchronize(1)
    with torch.cuda.device(1), torch.cuda.stream(other):
        copy(torch, target, block, other)
    block.record_stream(other)
    was = block.data_ptr()
    del block
    with torch.cuda.device(0), torch.cuda.stream(own):
        others = [torch.full((BYTES,), 255, device="cuda:0", dtype=torch.uint8) for _ in range(3)]
    torch.cuda.synchronize(0)
    if is_held:
        check(not other.query(), "cuda:1 was done before cuda:0 had written: nothing is shown")
        check(was not in [each.data_ptr() for each in others], "given out again under the copy")
    torch.cuda.synchronize(1)
    wrong = int((target != number).sum())
    check(wrong == 0, "round %d: %d of %d bytes are not what they were" % (number, wrong, BYTES))


def main(backend):
    import torch

    if backend != "native":
        gpucase.install("install", backend)
    own = torch.cuda.Stream("cuda:0")
    # The driver's pool has the stream wait for the copy, and may then give the memory out. With the native
    # allocator cuda:1 was seen done by then, for a reason not known: only contents are compared.
    is_held = backend not in ("async", "native")
    for name, other in (("a stream", torch.cuda.Stream("cuda:1")), ("the default stream", torch.cuda.default_stream(1))):
        with case("freed and written over while %s of cuda:1 copies it" % name):
            for number in range(1, ROUNDS + 1):
                round_trip(torch, own, other, number, is_held)
    if backend != "native":
        with case("the memory comes back"):
            import hbmalloc

            torch.cuda.synchronize(0)
            torch.cuda.synchronize(1)
            hbmalloc.trim(0)
            stats = hbmalloc.stats(0)
            check(stats["pending_frees"] == 0 and stats["reserved"] < BYTES, "it is kept: %r" % stats)


if __name__ == "__main__":
    main(sys.argv[1])
    gpucase.finish()
