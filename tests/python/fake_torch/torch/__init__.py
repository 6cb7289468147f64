"""A stand-in for PyTorch's allocator interface, so that hbmalloc.torch is tested without PyTorch.

The names, the argument orders and the refusals are those of PyTorch 2.11; the functions
whose addresses it is given are really called, so memory comes from the library under
test. `FAKE_TORCH_VERSION` and `FAKE_TORCH_CUDA` (empty: built without) change what it is.
"""

import ctypes

from . import _C, accelerator, cuda, version

__version__ = version.__version__
UntypedStorage = type("UntypedStorage", (_C.StorageBase,), {})
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
uint8 = "uint8"


class empty:
    """Memory of the host."""

    def __init__(self, size, dtype=uint8, device="cpu", pin_memory=False):
        assert dtype == uint8 and device == "cpu"
        self._memory = (ctypes.c_ubyte * size)()

    def data_ptr(self):
        return ctypes.addressof(self._memory)

    def numel(self):
        return len(self._memory)

    def element_size(self):
        return 1
