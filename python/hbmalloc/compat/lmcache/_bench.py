"""Objects and addresses of LMCache's and of hbmalloc's, measured in turn in one process."""

import gc
import os
import platform
import statistics
import time

from .._checking import installed_version
from ._install import install

_BATCH, _ROUNDS = 256, 100
_HOLES = (0, 1000, 10000)


def _manager():
    from lmcache.v1.distributed.config import L1MemoryManagerConfig
    from lmcache.v1.distributed.memory_manager import L1MemoryManager

    return L1MemoryManager(L1MemoryManagerConfig(size_in_bytes=64 << 20, use_lazy=False, shm_name=""))


def _batch(manager, layout, names):
    """Nanoseconds an object of a batch that is allocated, read and freed."""
    begin = time.perf_counter_ns()
    _, objects = manager.allocate(layout, _BATCH)
    for name in names:
        for found in objects:
            getattr(found, name)
    manager.free(objects)
    return (time.perf_counter_ns() - begin) / _BATCH


def _pair(addresses):
    """Nanoseconds of an allocation that fits in no hole, and its free."""
    begin = time.perf_counter_ns()
    addresses.free(*addresses.allocate(16384))
    return time.perf_counter_ns() - begin


def _medians(both, measure):
    """One after the other in each round, so that a busy machine is busy for both."""
    found = [[], []]
    for turn in range(_ROUNDS + 10):
        for place, one in enumerate(both):
            took = measure(one)
            if turn >= 10:
                found[place].append(took)
    return [statistics.median(times) for times in found]


def _line(text, medians):
    print("| %s | %.2f | %.2f | %.1f |" % (text, medians[0] / 1e3, medians[1] / 1e3, medians[0] / medians[1]), flush=True)


def bench():
    """Prints both's times; 1 where there is no LMCache."""
    version = installed_version("LMCache", "lmcache")
    if version is None:
        return 1
    import torch
    from lmcache.v1.distributed.api import MemoryLayoutDesc
    from lmcache.v1.memory_management import AddressManager

    layout = MemoryLayoutDesc(shapes=[torch.Size([2, 32, 128])], dtypes=[torch.float16])
    managers, spaces = [_manager()], [AddressManager(1 << 36)]
    install()
    managers.append(_manager())
    spaces.append(AddressManager(1 << 36))
    print("LMCache %s, Python %s, torch %s, %d cores, load %.1f" % (
        version, platform.python_version(), torch.__version__, os.cpu_count(), os.getloadavg()[0]))
    print("\n| us, medians of %d | LMCache | hbmalloc | times |\n| --- | --- | --- | --- |" % _ROUNDS)
    gc.disable()
    for text, names in (("", ()), (", `data_ptr` read", ("data_ptr",)), (", `data_ptr` and `tensor` read", ("data_ptr", "tensor"))):
        _line("an object of a batch of %d, allocated and freed%s" % (_BATCH, text),
              _medians(managers, lambda manager: _batch(manager, layout, names)))
    made = 0
    for holes in _HOLES:
        for space in spaces:
            blocks = space.batched_allocate(4096, 2 * (holes - made))
            for block in blocks[::2]:
                space.free(*block)
        made = holes
        _line("an address, allocated and freed among %d holes" % holes, _medians(spaces, _pair))
    for manager in managers:
        manager.close()
    return 0
