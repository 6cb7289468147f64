"""A stand-in for PyTorch's allocator interface, so that hbmalloc.torch is tested without PyTorch.

The names, the argument orders and the refusals are those of PyTorch 2.11; the functions
whose addresses it is given are really called, so memory comes from the library under
test. `FAKE_TORCH_VERSION` and `FAKE_TORCH_CUDA` (empty: built without) change what it is.
"""


from . import _C, accelerator, cuda, version

__version__ = version.__version__
UntypedStorage = type("UntypedStorage", (_C.StorageBase,), {})
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
