"""Two processes, one GPU: tensors of one are read and written by the other, by torch in both.

Chunks go over a Unix socket as file descriptors, or as fabric handles where the driver makes those.
"""

import contextlib
import os
import socket
import subprocess
import sys

import gpucase
from gpucase import case, check, raises

COUNT = 64 << 20  # of float32: 256 MiB


def bytes_of(memory):
    import torch

    return torch.as_tensor(memory, device="cuda")


def floats(memory, count):
    import torch

    return bytes_of(memory)[: 4 * count].view(torch.float32)


def pieces(hbmalloc, tensor):
    """Exports of all chunks of a tensor, with the number of elements in each."""
    address, left = tensor.data_ptr(), tensor.numel()
    while left > 0:
        export = hbmalloc.export_memory(address)
        count = min(left, export.nbytes // 4)
        yield export, count
        address, left = address + 4 * count, left - count


def driver_free():
    import torch

    return torch.cuda.mem_get_info()[0]


def importing(number):
    """The other process: for each message a count and an export; it reads, doubles and answers with the sum."""
    import torch

    import hbmalloc

    with socket.socket(fileno=number) as there:
        torch.zeros(1, device="cuda")
        while True:
            count = int.from_bytes(there.recv(8), "little")
            if count == 0:
                break
            before = driver_free()
            with hbmalloc.receive_export(there) as export:
                memory = hbmalloc.import_memory(export)
            # Contexts and page tables take a little.
            check(before - driver_free() < max(export.chunk_bytes // 2, 64 << 20), "it takes memory of the device")
            held = hbmalloc.stats(0)
            check(held["reserved"] == held["allocated"] == held["limit_used"] == 0, held)
            tensor = floats(memory, count)
            total = float(tensor.double().sum())
            tensor.mul_(2)
            torch.cuda.synchronize()
            there.send(repr(total).encode().ljust(64))
            # The tensor keeps the mapping until it goes; the exporter may have freed its own by then.
            check(there.recv(1) == b"f", "the exporter has gone")
            check(float(tensor.double().sum()) == 2 * total, "the contents have changed")
            del tensor, memory
            there.send(b"c")


def shared(hbmalloc, here, tensor):
    """Lets the other process double a tensor, chunk by chunk."""
    import torch

    expected = tensor.double()
    at = 0
    for export, count in pieces(hbmalloc, tensor):
        with export:
            here.send(count.to_bytes(8, "little"))
            torch.cuda.synchronize()
            export.send(here)
            total = float(here.recv(64))
            check(total == float(expected[at:at + count].sum()), "it saw other contents: %r" % total)
        here.send(b"f")
        check(here.recv(1) == b"c", "the other process has gone")
        at += count
    check(torch.equal(tensor.double(), 2 * expected), "what it wrote is not here")


def exporting(backend):
    import torch

    gpucase.install("install", backend)
    import hbmalloc

    here, there = socket.socketpair()
    here.settimeout(60)
    # Its torch may have its own allocator: what is imported is no business of it.
    other = subprocess.Popen([sys.executable, "-u", os.path.abspath(__file__), "importing", str(there.fileno())],
                             pass_fds=[there.fileno()])
    there.close()
    try:
        with case("%s: a tensor is read and written by another process" % backend):
            tensor = torch.arange(COUNT, device="cuda", dtype=torch.float32).remainder_(1000)
            shared(hbmalloc, here, tensor)
        with case("%s: a view into it" % backend):
            shared(hbmalloc, here, tensor[1000:2000])
        with case("%s: exported memory does not sleep" % backend):
            with hbmalloc.export_memory(tensor.data_ptr()) as export:
                hbmalloc.sleep()
                check(hbmalloc.residency()["pinned"] >= export.chunk_bytes, hbmalloc.residency())
                hbmalloc.wake()
        with case("%s: freed and trimmed while it is exported" % backend):
            address, export = tensor.data_ptr(), hbmalloc.export_memory(tensor.data_ptr())
            reserved = hbmalloc.stats(0)["reserved"]
            with hbmalloc.import_memory(export) as memory:
                before = bytes_of(memory)[:4096].clone()
                del tensor
                torch.cuda.synchronize()
                hbmalloc.trim()
                now = hbmalloc.stats(0)["reserved"]
                if backend == "pool":
                    check(now >= export.chunk_bytes, "%d bytes of %d at %#x are left" % (now, reserved, address))
                check(torch.equal(bytes_of(memory)[:4096], before), "the contents have changed")
                torch.cuda.synchronize()
            del before
            export.close()
            hbmalloc.trim()
            check(hbmalloc.stats(0)["reserved"] < reserved, hbmalloc.stats(0))
    finally:
        with contextlib.suppress(OSError):
            here.send((0).to_bytes(8, "little"))
        here.close()
        check(other.wait(60) == 0, "the other process ended with %s" % other.returncode)


def refusals():
    import torch

    gpucase.install("install", "device")
    import hbmalloc

    with case("memory that cannot be shared"), raises(hbmalloc.NotOwnedError, "another allocator"):
        hbmalloc.export_memory(torch.zeros(1 << 20, device="cuda").data_ptr())


def main():
    import torch

    if not torch.cuda.is_available():
        gpucase.line("SKIP", "sharing", "needs a GPU")
        return
    gpucase.children([dict(label="two processes", arguments=[__file__, "exporting", backend], limit=150)
                      for backend in ("pool", "vmm")] +
                     [dict(label="refusals", arguments=[__file__, "refusals"], limit=60)], parallel=1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["importing"]:
        importing(int(sys.argv[2]))
    elif sys.argv[1:2] == ["exporting"]:
        exporting(sys.argv[2])
    elif sys.argv[1:2] == ["refusals"]:
        refusals()
    else:
        main()
    gpucase.finish()
