import ctypes

from .. import _C

current = None


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
    _C._cuda_emptyCache()


def memory_snapshot():
    return _C._cuda_memorySnapshot((0, 0, True))["segments"]


def _snapshot(device=None):
    return _C._cuda_memorySnapshot(None)


def _record_memory_history(enabled="all"):
    _C._cuda_record_memory_history(enabled, "all", "all", 1, False, False, False, [])
