"""Memory of the host, side by side with what others have for it; needs a GPU and torch.

    python -m hbmalloc.bench_host                     # tables; every row is a process of its own
    python -m hbmalloc.bench_host --only hbmalloc,cudaHostAlloc --sizes 4 --json
    python -m hbmalloc.bench_host --only objects      # needs neither

Ready to copy is the time of the call that returns pinned memory, as GB/s. A row first gets and frees its memory
once: on a virtual machine the first touch of the host's pages is far slower, and is told beside it. LMCache's functions are those of
the file that HBMALLOC_LMCACHE_OPS names (cuda_ops.*.so of its wheel), or of the package.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time

GIB, MIB = 1 << 30, 1 << 20

ROWS = {
    "hbmalloc": "hbmalloc",
    "hbmalloc-node": "hbmalloc, on node 0",
    "cudaHostAlloc": "cudaHostAlloc",
    "torch": "torch, pin_memory",
    "lmcache": "LMCache, alloc_pinned_ptr",
    "lmcache-node": "LMCache, alloc_pinned_numa_ptr",
    "slab": "hbmalloc, a slab of 64 GiB that grows",
    "objects": "objects from Python",
}
PINNED = [row for row in ROWS if row not in ("slab", "objects")]


class Unfit(Exception):
    """This row cannot be measured here; the text says why."""


def _lmcache():
    named = os.environ.get("HBMALLOC_LMCACHE_OPS")
    if not named:
        try:
            from lmcache import cuda_ops

            return cuda_ops
        except ImportError as error:
            raise Unfit("LMCache is not installed, or not for this machine: %s" % error) from None
    spec = importlib.util.spec_from_file_location("cuda_ops", named)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise Unfit(str(error)) from None
    return module


def _functions(row):
    """Gets memory, frees it, and its address."""
    if row.startswith("hbmalloc"):
        from hbmalloc import host

        node = {"numa_node": 0} if row.endswith("node") else {}
        return lambda size: host.pinned(size, **node), lambda block, size: block.close(), lambda block: block.address
    if row == "torch":
        import torch

        def free(tensor, _size):
            tensor.set_()
            torch._C._host_emptyCache()

        return lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True), free, lambda tensor: tensor.data_ptr()
    if row == "cudaHostAlloc":
        runtime = ctypes.CDLL(_runtime())
        runtime.cudaHostAlloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_uint]
        runtime.cudaFreeHost.argtypes = [ctypes.c_void_p]

        def allocate(size):
            block = ctypes.c_void_p()
            if runtime.cudaHostAlloc(block, size, 0):
                raise MemoryError("cudaHostAlloc")
            return block.value

        return allocate, lambda block, size: runtime.cudaFreeHost(block), lambda block: block
    ops = _lmcache()
    if row.endswith("node"):
        return lambda size: ops.alloc_pinned_numa_ptr(size, 0), ops.free_pinned_numa_ptr, lambda block: block
    return lambda size: ops.alloc_pinned_ptr(size, 0), lambda block, size: ops.free_pinned_ptr(block), lambda block: block


def _runtime():
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "libcudart.so" in line:
                return line.split()[-1]
    raise Unfit("libcudart is not in this process")


def _copies(address, size):
    """GB/s to the device and back."""
    import torch

    size = min(size, 4 * GIB)
    host = torch.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype=torch.uint8)
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    found = []
    for to, source in ((device, host), (host, device)):
        for repeat in range(3):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            to.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
        found.append(size / seconds / 1e9)
    return found


def pinned(row, sizes, repeats):
    import torch

    if not torch.cuda.is_available():
        raise Unfit("there is no GPU")
    torch.empty(1, device="cuda")
    allocate, free, address = _functions(row)
    found = {}
    for size in sizes:
        rates, frees, copies = [], [], None
        for repeat in range(repeats + 1):
            begun = time.perf_counter()
            block = allocate(size * GIB)
            rates.append(size * GIB / (time.perf_counter() - begun) / 1e9)
            if repeat == repeats:
                copies = _copies(address(block), size * GIB)
            begun = time.perf_counter()
            free(block, size * GIB)
            frees.append(time.perf_counter() - begun)
        found["%d GiB" % size] = {
            "first": rates[0], "ready": rates[1:], "free_ms": statistics.median(frees[1:]) * 1e3,
            "to_device": copies[0], "to_host": copies[1]}
    return found


class _Copying:
    """Copies from pinned memory to the card, one after the other, on a thread of its own."""

    def __init__(self):
        import torch

        from hbmalloc import host

        self.torch, self.buffer = torch, host.pinned(GIB)
        self.host = torch.frombuffer(self.buffer.memoryview(), dtype=torch.uint8)
        self.device = torch.empty(GIB, dtype=torch.uint8, device="cuda")
        self.ends, self.stop = [], False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        time.sleep(0.3)

    def run(self):
        stream, under_way = self.torch.cuda.Stream(), []
        with self.torch.cuda.stream(stream):
            while not self.stop:
                for part in range(8):
                    at = slice(part * GIB // 8, (part + 1) * GIB // 8)
                    self.device[at].copy_(self.host[at], non_blocking=True)
                under_way.append(stream.record_event())
                # The next GiB is given before the last is done, as by who keeps the link busy.
                if len(under_way) == 2:
                    under_way.pop(0).synchronize()
                    self.ends.append(time.perf_counter())
            stream.synchronize()

    def rate(self, begun, ended):
        inside = [end for end in self.ends if begun <= end <= ended]
        return (len(inside) - 1) * GIB / (inside[-1] - inside[0]) / 1e9 if len(inside) > 2 else 0.0

    def end(self):
        self.stop = True
        self.thread.join()


def slab(pace, part):
    """A slab of 64 GiB, 512 MiB at first: the time to the first object; and while it grows, seconds, copies that run
    in GB/s and as a share of those alone, and then milliseconds to close."""
    import torch

    from hbmalloc import host

    if not torch.cuda.is_available():
        raise Unfit("there is no GPU")
    torch.empty(1, device="cuda")
    layout = host.MemoryLayoutDesc([(2, 32, 128)], [torch.float16])
    found = {"first_object_ms": [], "close_ms": []}
    for repeat in range(4):
        begun = time.perf_counter()
        manager = host.L1MemoryManager(host.L1MemoryManagerConfig(64 * GIB, bytes_per_second=pace))
        _, objects = manager.allocate(layout, 1)
        found["first_object_ms"].append((time.perf_counter() - begun) * 1e3)
        if repeat == 3:
            break
        begun = time.perf_counter()
        manager.close()
        found["close_ms"].append((time.perf_counter() - begun) * 1e3)
    manager.close()
    copying = _Copying()
    time.sleep(1)
    found["copies_alone"] = copying.rate(copying.ends[0], time.perf_counter())
    for touch in ("first_touch", "again"):
        begun = time.perf_counter()
        grown = host.Slab(64 * GIB, initial=512 * MIB, part=part, pace=pace)
        while grown.progress()["is_growing"]:
            time.sleep(0.01)
        ended = time.perf_counter()
        copies = copying.rate(begun, ended)
        found[touch] = [ended - begun, copies, copies / found["copies_alone"]]
        found[touch + "_error"] = str(grown.progress()["error"])
        begun = time.perf_counter()
        grown.close()
        found[touch].append((time.perf_counter() - begun) * 1e3)
    copying.end()
    return found


def _batches(manager, layout, reads_tensor, count=256, rounds=40):
    """Nanoseconds an object: allocate, read, free."""
    best = []
    for repeat in range(7):
        begun = time.perf_counter()
        for _ in range(rounds):
            _, objects = manager.allocate(layout, count)
            if reads_tensor:
                for found in objects:
                    found.data_ptr
                    found.tensor
            else:
                for found in objects:
                    found.data_ptr
            # The name would keep the last tensor.
            found = None
            manager.free(objects)
        best.append((time.perf_counter() - begun) / rounds / count * 1e9)
    return best


def objects():
    """Batches of 256 objects of 16 KiB from Python."""
    from hbmalloc import host

    found = {}
    try:
        import torch
    except ImportError:
        torch = None
    dtype = torch.float16 if torch else "float16"
    shape = torch.Size([2, 32, 128]) if torch else (2, 32, 128)
    layout = host.MemoryLayoutDesc([shape], [dtype])
    with host.L1MemoryManager(host.L1MemoryManagerConfig(GIB, use_lazy=False, pinned=False)) as manager:
        found["hbmalloc, data_ptr"] = _batches(manager, layout, False)
        if torch:
            found["hbmalloc, data_ptr and tensor"] = _batches(manager, layout, True)
    try:
        from lmcache.v1.distributed.api import MemoryLayoutDesc
        from lmcache.v1.distributed.config import L1MemoryManagerConfig
        from lmcache.v1.distributed.memory_manager import L1MemoryManager
    except ImportError as error:
        found["LMCache"] = "not installed: %s" % error
        return found
    theirs = L1MemoryManager(L1MemoryManagerConfig(size_in_bytes=GIB, use_lazy=False, shm_name=""))
    layout = MemoryLayoutDesc(shapes=[shape], dtypes=[dtype])
    found["LMCache, data_ptr"] = _batches(theirs, layout, False, rounds=8)
    found["LMCache, data_ptr and tensor"] = _batches(theirs, layout, True, rounds=8)
    theirs.close()
    return found


def _child(arguments):
    try:
        if arguments.row == "slab":
            found = slab(int(arguments.pace * GIB), int(arguments.part * MIB))
        elif arguments.row == "objects":
            found = objects()
        else:
            found = pinned(arguments.row, arguments.sizes, arguments.repeats)
    except Unfit as error:
        found = {"unfit": str(error)}
    print(json.dumps(found))


def _run(row, arguments):
    command = [sys.executable, "-m", "hbmalloc.bench_host", "--row", row, "--repeats", str(arguments.repeats),
               "--pace", str(arguments.pace), "--part", str(arguments.part), "--sizes", ",".join(map(str, arguments.sizes))]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"unfit": "ended with %d: %s" % (done.returncode, done.stderr.strip()[-300:])}


def _show(row, found):
    if "unfit" in found:
        print("%-40s %s" % (ROWS[row], found["unfit"]))
    elif row in PINNED:
        for size, figures in found.items():
            print("%-32s %-7s ready %5.1f GB/s (%s), first touch %4.1f; free %5.0f ms; copies %.1f to the card, %.1f back" % (
                ROWS[row], size, statistics.median(figures["ready"]), " ".join("%.1f" % rate for rate in figures["ready"]),
                figures["first"], figures["free_ms"], figures["to_device"], figures["to_host"]))
    elif row == "slab":
        print(ROWS[row])
        for name, figure in found.items():
            text = " ".join("%.3g" % one for one in figure) if isinstance(figure, list) else figure
            print("  %-24s %s" % (name, "%.3f" % figure if isinstance(figure, float) else text))
    else:
        for name, figures in found.items():
            text = figures if isinstance(figures, str) else "%4.0f ns an object (%s)" % (
                min(figures), " ".join("%.0f" % one for one in figures))
            print("%-32s %s" % (name, text))
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(prog="python -m hbmalloc.bench_host", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="rows, of " + ", ".join(ROWS))
    parser.add_argument("--sizes", default="4,32", type=lambda text: [int(part) for part in text.split(",")],
                        help="GiB to get at once")
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--pace", default=0, type=float, help="GiB a second that the slab grows by; 0 for the default")
    parser.add_argument("--part", default=0, type=float, help="MiB that the slab registers at once; 0 for the default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        return _child(arguments)
    rows = arguments.only.split(",") if arguments.only else list(ROWS)
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        parser.error("no row %s: there are %s" % (", ".join(unknown), ", ".join(ROWS)))
    results = {}
    for row in rows:
        results[row] = _run(row, arguments)
        if not arguments.json:
            _show(row, results[row])
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
