"""The functions of LMCache's mem_alloc: addresses are integers, what fails is a RuntimeError.

All exceptions of the library are RuntimeErrors (`hbmalloc.HbmallocError`), so they pass as they are. What
is no number, or none of the C type, is a TypeError, as of any native function. ctypes holds no lock of
Python's during a call.
"""

import operator
from array import array

from ... import _library
from . import _left_names

_ON_HOST = 0


def _number(name, value, least, most):
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError("%s is a whole number, not %r" % (name, value)) from None
    if not least <= number <= most:
        raise TypeError("%s is a number from %d to %d, not %d" % (name, least, most, number))
    return number


def _size(size):
    return _number("size", size, 0, (1 << 64) - 1)


def _address(ptr):
    return _number("ptr", ptr, 0, (1 << 64) - 1)


def _flags(flags):
    return _number("flags", flags, 0, (1 << 32) - 1)


def _node(node):
    return _number("numa_id", node, -1 << 31, (1 << 31) - 1)


def _name(name):
    if not isinstance(name, str):
        raise TypeError("shm_name is a text, not %r" % (name,))
    return _library.encoded("shm_name", name)


def _allocate(operation, kind, *arguments):
    allocate = getattr(_library.library(), "hbm_alloc_%s_ptr" % kind)
    return _library.check_address(allocate(*arguments), operation)


def _free(operation, kind, *arguments):
    free = getattr(_library.library(), "hbm_free_%s_ptr" % kind)
    _library.check(free(*arguments), operation)


def alloc_pinned_ptr(size, flags=0):
    """Pinned memory; `flags` are cudaHostAlloc's. The address."""
    return _allocate("alloc_pinned_ptr", "pinned", _size(size), _flags(flags))


def free_pinned_ptr(ptr):
    _free("free_pinned_ptr", "pinned", _address(ptr))


def alloc_numa_ptr(size, numa_id):
    """Memory of a node, not pinned."""
    return _allocate("alloc_numa_ptr", "numa", _size(size), _node(numa_id))


def free_numa_ptr(ptr, size):
    _free("free_numa_ptr", "numa", _address(ptr), _size(size))


def alloc_pinned_numa_ptr(size, numa_id):
    """Pinned memory of a node."""
    return _allocate("alloc_pinned_numa_ptr", "pinned_numa", _size(size), _node(numa_id))


def free_pinned_numa_ptr(ptr, size):
    _free("free_pinned_numa_ptr", "pinned_numa", _address(ptr), _size(size))


def alloc_hugepage_pinned_ptr(size, flags=0):
    """Pinned memory from huge pages of 2 MiB that were set aside."""
    return _allocate("alloc_hugepage_pinned_ptr", "hugepage_pinned", _size(size), _flags(flags))


def free_hugepage_pinned_ptr(ptr, size):
    _free("free_hugepage_pinned_ptr", "hugepage_pinned", _address(ptr), _size(size))


def alloc_hugepage_pinned_numa_ptr(size, numa_id):
    """The same on a node."""
    return _allocate("alloc_hugepage_pinned_numa_ptr", "hugepage_pinned_numa", _size(size), _node(numa_id))


def free_hugepage_pinned_numa_ptr(ptr, size):
    _free("free_hugepage_pinned_numa_ptr", "hugepage_pinned_numa", _address(ptr), _size(size))


def alloc_shm_pinned_ptr(size, shm_name):
    """Pinned memory that other processes have under the name; a file of LMCache's that was left there goes."""
    size, name = _size(size), _name(shm_name)
    _left_names.remove_left(shm_name)
    return _allocate("alloc_shm_pinned_ptr", "shm_pinned", size, name)


def free_shm_pinned_ptr(ptr, size, shm_name):
    _free("free_shm_pinned_ptr", "shm_pinned", _address(ptr), _size(size), _name(shm_name))


def _numbers(name, values):
    try:
        return array("Q", values)
    except (TypeError, OverflowError) as error:
        raise TypeError("batched_memcpy: %s are whole numbers from 0 on: %s" % (name, error)) from None


def batched_memcpy(src_ptrs, dst_ptrs, sizes):
    """Copies `sizes[i]` bytes from `src_ptrs[i]` to `dst_ptrs[i]`, as if one piece after another; by several
    threads where there is much of it. ValueError where there are not as many of each."""
    sources, targets = _numbers("src_ptrs", src_ptrs), _numbers("dst_ptrs", dst_ptrs)
    lengths = _numbers("sizes", sizes)
    count = len(lengths)
    if len(sources) != count or len(targets) != count:
        raise ValueError("batched_memcpy: %d src_ptrs, %d dst_ptrs and %d sizes: there must be as many of each" % (
            len(sources), len(targets), count))
    status = _library.library().hbm_memcpy_batch(
        targets.buffer_info()[0], sources.buffer_info()[0], lengths.buffer_info()[0], count, _ON_HOST, 0, None)
    _library.check(status, "batched_memcpy")
