"""Whether vLLM's sleep mode works over hbmalloc on this machine: memory sleeps and wakes, without a model.

Each way of being installed is tried in a process of its own, since it is once a process.
"""

import importlib
import os

from .._checking import fails_apart, installed_version, require
from . import _native, counters, install

#: What is tried, and whether vLLM keeps its own class.
WAYS = {"hbmalloc's class": False, "vLLM's own class over hbmalloc's native module": True}
_SLACK = 64 << 20


def check(size):
    """Tries every way with `size` bytes; 0 if all is well, else 1."""
    version = installed_version("vLLM", "vllm")
    if version is None:
        return 1
    print("vLLM %s, native module %s" % (version, _native.path()))
    failures = 0
    for name, native_only in WAYS.items():
        print("%s:" % name, flush=True)
        arguments = ["hbmalloc.compat.vllm", "try", "--bytes", str(size)] + ["--native-only"] * native_only
        # What runs here installs by itself.
        failures += fails_apart(arguments, dict(os.environ, HBMALLOC_VLLM="0"))
    return 1 if failures else 0


def try_once(size, native_only):
    """Sleeps and wakes `size` bytes through the class in place, and says which native module served."""
    install(native_only=native_only)
    import torch
    from vllm.device_allocator.cumem import CuMemAllocator

    require(torch.cuda.is_available(), "PyTorch finds no GPU: run the check on the machine that vLLM is to run on")
    served = importlib.import_module("vllm.cumem_allocator").__file__
    before = counters()
    allocator = CuMemAllocator.get_instance()
    with allocator.use_memory_pool("weights"):
        kept = torch.arange(size // 8, dtype=torch.int64, device="cuda")
    with allocator.use_memory_pool("kv_cache"):
        lost = torch.zeros(size // 8, dtype=torch.int64, device="cuda")
    wanted = torch.arange(size // 8, dtype=torch.int64)
    torch.cuda.synchronize()
    address, usage = kept.data_ptr(), allocator.get_current_usage()
    awake = torch.cuda.mem_get_info()[0]
    allocator.sleep(("weights",))
    asleep = torch.cuda.mem_get_info()[0]
    # The driver may have taken some for itself meanwhile.
    require(asleep - awake >= 2 * size - _SLACK, "asleep, the device has only %d bytes more free, not %d" % (
        asleep - awake, 2 * size))
    allocator.wake_up(["weights"])
    require(kept.data_ptr() == address and torch.equal(kept.cpu(), wanted), "what was saved came back changed")
    allocator.wake_up(["kv_cache"])
    lost.fill_(7)
    require(int(lost.sum()) == 7 * (size // 8), "memory that was discarded cannot be used")
    done = {name: counters()[name] - before[name] for name in ("reserves", "creates", "unmaps")}
    require(done["reserves"] >= 2, "hbmalloc's native module was not called: %s served" % served)
    print("  %d bytes slept and woke at the same addresses: %.2f GiB of the device free meanwhile, contents whole" % (
        usage, (asleep - awake) / 1024 ** 3))
    print("  served by %s: %s" % (served, ", ".join("%d %s" % (count, name) for name, count in done.items())))
    print("  PASS", flush=True)
