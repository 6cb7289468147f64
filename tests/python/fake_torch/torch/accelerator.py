from . import _C


def memory_stats(device=None, /):
    from .cuda.memory import flat

    return flat(_C._accelerator_getDeviceStats(device)) if _C._accelerator_isAllocatorInitialized() else {}


def memory_allocated(device=None, /):
    return memory_stats(device).get("allocated_bytes.all.current", 0)


def reset_peak_memory_stats(device=None, /):
    return _C._accelerator_resetPeakStats(device)


def reset_accumulated_memory_stats(device=None, /):
    return _C._accelerator_resetAccumulatedStats(device)


def get_memory_info(device=None, /):
    return _C._accelerator_getMemoryInfo(device)


def empty_cache():
    if _C._accelerator_isAllocatorInitialized():
        _C._accelerator_emptyCache()


def synchronize(device=None, /):
    pass
