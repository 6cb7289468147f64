"""Types of elements: torch's and numpy's own, or their names."""

import functools
import math
import sys

from . import _dlpack

#: Those that a memoryview can show as they are; others are shown as integers of their size.
_FORMATS = {
    "bool": "?", "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "uint64": "Q",
    "int64": "q", "float32": "f", "float64": "d",
}
_INTEGERS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_OTHER_NAMES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32",
                "short": "int16"}


@functools.lru_cache(maxsize=256)
def name_of(dtype):
    """The name of a type: "float16" of torch.float16, of numpy's and of "float16"."""
    text = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = text.rpartition(".")[2]
    name = _OTHER_NAMES.get(name, name)
    if name not in _dlpack.ELEMENTS:
        raise ValueError("%r is no type of elements: one of torch's or numpy's, or a name of %s" % (
            dtype, ", ".join(_dlpack.ELEMENTS)))
    return name


def bytes_of(name):
    """Bytes of an element."""
    return _dlpack.ELEMENTS[name][1] // 8


def format_of(name):
    """How a memoryview shows elements, and how many of those each is."""
    size = bytes_of(name)
    if name in _FORMATS:
        return _FORMATS[name], 1
    return (_INTEGERS[size], 1) if size in _INTEGERS else ("d", 2)


def is_torch(dtype):
    """Whether it is one of torch's, which then is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(dtype, torch.dtype)


def count(shape):
    """How many elements a shape has."""
    shape = tuple(shape)
    if not all(isinstance(length, int) and not isinstance(length, bool) and length >= 0 for length in shape):
        raise ValueError("a shape is of numbers of elements, not %r" % (shape,))
    return math.prod(shape)
