"""Memory of the host as DLPack tensors, for `__dlpack__` of whatever owns some.

The capsule and what ends it are made by the library: a callback of ctypes may not run while
an exception is under way, and that is when temporaries go.
"""

import ctypes

from . import _library

#: What `__dlpack_device__` returns: kDLCPU, and the only one.
DEVICE = (1, 0)

#: DLPack's code and the bits of elements, by the names that torch and numpy have for them.
ELEMENTS = {
    "bool": (6, 8), "uint8": (1, 8), "int8": (0, 8), "uint16": (1, 16), "int16": (0, 16), "uint32": (1, 32),
    "int32": (0, 32), "uint64": (1, 64), "int64": (0, 64), "float16": (2, 16), "bfloat16": (4, 16),
    "float32": (2, 32), "float64": (2, 64), "complex64": (5, 64), "complex128": (5, 128),
    "float8_e4m3fn": (10, 8), "float8_e4m3fnuz": (11, 8), "float8_e5m2": (12, 8), "float8_e5m2fnuz": (13, 8),
}

_make = None


def _function():
    # The only one that is called with Python's lock held.
    global _make
    if _make is None:
        handle = ctypes.PyDLL(_library.get_library_path(), handle=_library.library()._handle)
        make = handle.hbm_python_tensor
        make.argtypes, make.restype = [ctypes.POINTER(_library.PythonTensor)], ctypes.py_object
        _make = make
    return _make


def capsule(address, shape, element, owner, stream=None, max_version=None, dl_device=None, copy=None, read_only=False):
    """A capsule of the elements from `address` on, in C's order; `element` is one of `ELEMENTS`' values. `owner`
    is held until the tensor, or the capsule that nobody took, is gone. `stream` to `copy` are `__dlpack__`'s."""
    if stream is not None:
        raise ValueError("memory of the host is of no stream: stream is None, not %r" % (stream,))
    if dl_device is not None and tuple(dl_device) != DEVICE:
        raise BufferError("the memory is of the host, %r, and is not copied to %r" % (DEVICE, tuple(dl_device)))
    if copy:
        raise BufferError("the memory is shown, and not copied: copy the array that is made of it")
    lengths = (ctypes.c_int64 * len(shape))(*shape)
    code, bits = element
    is_versioned = max_version is not None and max_version[0] >= 1
    if read_only and not is_versioned:
        raise BufferError("only a consumer of DLPack 1.0 can be told that memory is read only")
    wanted = _library.PythonTensor(
        struct_size=ctypes.sizeof(_library.PythonTensor), data=address, owner=id(owner),
        shape=ctypes.cast(lengths, ctypes.c_void_p), dimensions=len(shape), code=code, bits=bits, lanes=1,
        is_versioned=is_versioned, is_read_only=read_only)
    make = _function()
    try:
        return make(ctypes.byref(wanted))
    except ValueError:  # NULL, to ctypes
        _library.check(_library.library().hbm_last_status(), "__dlpack__")
        raise
