"""The pluggable allocator object, and what torch asks the current allocator, as in PyTorch 2.11."""

import ctypes
import types

MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
SETTERS = [
    "set_init_fn", "set_reset_fn", "set_memory_fraction_fn", "set_base_alloc_fn", "set_record_stream_fn",
    "set_begin_allocate_to_pool", "set_end_allocate_to_pool_fn", "set_release_pool",
]


class CustomAllocator:
    def __init__(self, malloc, free):
        self.malloc, self.free = MALLOC(malloc), FREE(free)
        self.hooks = {}

    def __getattr__(self, name):
        if name not in SETTERS:
            raise AttributeError(name)
        return lambda address: self.hooks.__setitem__(name, int(address))


def _cuda_customAllocator(malloc, free):
    assert isinstance(malloc, int) and isinstance(free, int) and malloc and free
    return CustomAllocator(malloc, free)


current = None  # the allocator object in use; None is torch's own
_cudart = types.SimpleNamespace(cudaMemGetInfo=lambda device: (3 << 30, 4 << 30))


def _ask(function):
    """Torch's own allocator is not played; a pluggable one refuses."""
    assert current is not None, "the stand-in has no allocator of its own"
    raise RuntimeError("CUDAPluggableAllocator does not yet support %s. If you need it, please file an issue" % function)


def _cuda_memoryStats(device):
    _ask("getDeviceStats")


def _cuda_resetAccumulatedMemoryStats(device):
    _ask("resetAccumulatedStats")


def _cuda_resetPeakMemoryStats(device):
    _ask("resetPeakStats")


def _cuda_getMemoryFraction(device):
    _ask("getMemoryFraction")


def _cuda_setMemoryFraction(fraction, device):
    ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.c_int)(current.hooks["set_memory_fraction_fn"])(fraction, device)


def _cuda_emptyCache():
    ctypes.CFUNCTYPE(None)(current.hooks["set_reset_fn"])()


def _cuda_isHistoryEnabled():
    _ask("recordHistory")


def _cuda_memorySnapshot(mempool):
    _ask("snapshot")


def _cuda_record_memory_history(*arguments):
    if arguments[0] not in ("all", "state", None):
        raise RuntimeError("expected state to be 'state', 'all', or None")
    _ask("recordHistory")


def _cuda_record_memory_history_legacy(*arguments):
    _ask("recordHistory")


def _cuda_attach_out_of_memory_observer(observer):
    _ask("attachOutOfMemoryObserver")


def _cuda_getCheckpointState(device, pool):
    _ask("getCheckpointState")


def _cuda_setCheckpointPoolState(device, state, stale, live):
    _ask("setCheckpointPoolState")


def _cuda_checkPoolLiveAllocations(device, pool, live):
    _ask("checkPoolLiveAllocations")


def _cuda_beginAllocateCurrentThreadToPool(device, pool):
    begun.append(pool)


begun = []


settings = ""


def _accelerator_setAllocatorSettings(text):
    global settings
    settings = text


# torch.accelerator keeps asking the native allocator, which is never used here.
def _accelerator_isAllocatorInitialized():
    return False


def _accelerator_emptyCache():
    raise AssertionError("the native allocator was asked")


def _accelerator_getDeviceStats(device):
    raise AssertionError("the native allocator was asked")


def _accelerator_resetAccumulatedStats(device):
    raise AssertionError("the native allocator was asked")


def _accelerator_resetPeakStats(device):
    raise AssertionError("the native allocator was asked")


def _accelerator_getMemoryInfo(device):
    return _cudart.cudaMemGetInfo(device)


class StorageBase:
    def _share_cuda_(self):
        _ask("shareIpcHandle")

    @staticmethod
    def _new_shared_cuda(*arguments):
        _ask("getIpcDevPtr")
