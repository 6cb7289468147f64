import contextlib
import ctypes

from .. import _C

current = None
_entered = []  # the pools in use, innermost last


class MemPool:
    """Segments of a pool, each handed out whole: what a tensor has it has to itself."""

    def __init__(self, allocator=None, use_on_oom=False, no_split=False):
        from torch import cuda

        if current is not None:
            raise RuntimeError("the pluggable allocator does not yet support createOrIncrefPool")
        assert cuda._initialized, "Allocator not initialized for device"
        self.allocator = allocator
        self.id = (0, 1)
        self.segments = {}  # address: bytes of it, and how many a tensor has

    def snapshot(self):
        return [{"address": address, "total_size": size, "allocated_size": used}
                for address, (size, used) in self.segments.items()]

    def __del__(self):
        for address, (size, _) in getattr(self, "segments", {}).items():
            self.allocator.free(address, size, 0, None)


def allocate(size):
    """A segment of the pool in use, as a tensor has it; torch asks for multiples of 2 MiB."""
    size = -(-size // (2 << 20)) * (2 << 20)
    address = _entered[-1].allocator.malloc(size, 0, None)
    if not address:
        raise RuntimeError("CUDA out of memory")
    _entered[-1].segments[address] = (size, size)
    return address


def drop(pool, address):
    """The tensor is gone; the segment stays with its pool."""
    pool.segments[address] = (pool.segments[address][0], 0)


def release(pool, address):
    """Torch gives a segment back."""
    pool.allocator.free(address, pool.segments.pop(address)[0], 0, None)


@contextlib.contextmanager
def use_mem_pool(pool, device=None):
    _entered.append(pool)
    try:
        yield
    finally:
        assert _entered.pop() is pool


class CUDAPluggableAllocator:
    def __init__(self, path, malloc_name, free_name):
        library = ctypes.CDLL(path)
        self.path, self.names = path, (malloc_name, free_name)
        self._allocator = _C._cuda_customAllocator(
            ctypes.cast(getattr(library, malloc_name), ctypes.c_void_p).value,
            ctypes.cast(getattr(library, free_name), ctypes.c_void_p).value)

    def allocator(self):
        return self._allocator


def change_current_allocator(allocator):
    global current
    from torch import cuda

    if cuda._initialized:
        raise RuntimeError("Can't swap an already initialized allocator")
    current = allocator
    _C.current = allocator._allocator


def get_allocator_backend():
    return "native" if current is None else "pluggable"


def flat(stats, before=""):
    """The nested statistics under dotted names."""
    found = {}
    for key, value in stats.items():
        if isinstance(value, dict):
            found.update(flat(value, before + key + "."))
        else:
            found[before + key] = value
    return found


def memory_stats_as_nested_dict(device=None):
    from torch import cuda

    return _C._cuda_memoryStats(device) if cuda._initialized else {}


def memory_stats(device=None):
    return flat(memory_stats_as_nested_dict(device))


def memory_allocated(device=None):
    return memory_stats(device).get("allocated_bytes.all.current", 0)


def max_memory_allocated(device=None):
    return memory_stats(device).get("allocated_bytes.all.peak", 0)


def memory_reserved(device=None):
    return memory_stats(device).get("reserved_bytes.all.current", 0)


def max_memory_reserved(device=None):
    return memory_stats(device).get("reserved_bytes.all.peak", 0)


def reset_peak_memory_stats(device=None):
    _C._cuda_resetPeakMemoryStats(device)


def reset_accumulated_memory_stats(device=None):
    _C._cuda_resetAccumulatedMemoryStats(device)


def mem_get_info(device=None):
    return _C._cudart.cudaMemGetInfo(device)


def set_per_process_memory_fraction(fraction, device=None):
    _C._cuda_setMemoryFraction(fraction, device)


def get_per_process_memory_fraction(device=None):
    return _C._cuda_getMemoryFraction(device)


def empty_cache():
    if current is not None:
        _C._cuda_emptyCache()


def memory_snapshot():
    if current is None:
        return []
    return _C._cuda_memorySnapshot((0, 0, True))["segments"]


def _snapshot(device=None):
    if current is None:
        return {"allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": _C.settings}, "segments": []}
    return _C._cuda_memorySnapshot(None)


def _record_memory_history(enabled="all"):
    _C._cuda_record_memory_history(enabled, "all", "all", 1, False, False, False, [])
