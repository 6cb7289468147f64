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


def get_allocator_backend():
    return "native" if current is None else "pluggable"
