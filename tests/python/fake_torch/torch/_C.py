"""The pluggable allocator object, with the setters of PyTorch 2.11."""

import ctypes

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
