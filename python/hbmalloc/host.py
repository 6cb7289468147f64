"""Memory of the host: pinned, on a node, from huge pages, or shared under a name.

    buffer = hbmalloc.host.pinned(64 << 30, numa_node=0)
    array = numpy.asarray(buffer)

All of it is zeros at first. No torch or numpy is needed.
"""

import ctypes

from . import _library
from ._buffer import HostBuffer
from ._l1 import (
    L1Error, L1MemoryManager, L1MemoryManagerConfig, MemoryLayoutDesc, MemoryObj, create_memory_allocator,
)
from ._slab import Slab

__all__ = [
    "HostBuffer", "L1Error", "L1MemoryManager", "L1MemoryManagerConfig", "MemoryLayoutDesc", "MemoryObj", "Slab", "blocks",
    "create_memory_allocator", "numa", "pinned", "shared",
]


def _size(nbytes):
    if isinstance(nbytes, bool) or not isinstance(nbytes, int) or not 0 < nbytes < 1 << 63:
        raise ValueError("a size is a number of bytes above 0, not %r" % (nbytes,))
    return nbytes


def _node(numa_node):
    if isinstance(numa_node, bool) or not isinstance(numa_node, int) or not -1 << 31 <= numa_node < 1 << 31:
        raise ValueError("numa_node is the number of a node, not %r" % (numa_node,))
    return numa_node


def _make(operation, allocate, free, nbytes, *rest, is_pinned=True):
    address = _library.check_address(allocate(nbytes, *rest), operation)
    return HostBuffer(address, nbytes, lambda address: _library.check(free(address), operation), is_pinned)


def pinned(nbytes, numa_node=None, huge_pages=False):
    """Pinned memory of the host, on a node if one is named, from huge pages that the administrator has set
    aside if `huge_pages`. Raises OutOfMemoryError, naming what is there, or InvalidArgumentError for a node
    that is not there."""
    nbytes, library = _size(nbytes), _library.library()
    kind = "hugepage_pinned" if huge_pages else "pinned"
    if numa_node is not None:
        allocate = getattr(library, "hbm_alloc_%s_numa_ptr" % kind)
        give_back = getattr(library, "hbm_free_%s_numa_ptr" % kind)
        return _make("pinned", allocate, lambda address: give_back(address, nbytes), nbytes, _node(numa_node))
    allocate, give_back = getattr(library, "hbm_alloc_%s_ptr" % kind), getattr(library, "hbm_free_%s_ptr" % kind)
    rest = (nbytes,) if huge_pages else ()
    return _make("pinned", allocate, lambda address: give_back(address, *rest), nbytes, 0)


def numa(nbytes, numa_node):
    """Memory of a node, not pinned; needs no driver."""
    nbytes, library = _size(nbytes), _library.library()
    return _make("numa", library.hbm_alloc_numa_ptr, lambda address: library.hbm_free_numa_ptr(address, nbytes),
                 nbytes, _node(numa_node), is_pinned=False)


def shared(nbytes, name, create=True):
    """Pinned memory that processes of one user share under a name, as of shm_open: made anew, or, with
    `create=False`, what another process made and still has. Raises BusyError where a process that lives has
    the name."""
    nbytes, library = _size(nbytes), _library.library()
    if not isinstance(name, str) or "\0" in name:
        raise ValueError("a name is a text without zeros, not %r" % (name,))
    text = name.encode()
    allocate = library.hbm_alloc_shm_pinned_ptr if create else library.hbm_attach_shm_pinned_ptr
    return _make("shared", allocate, lambda address: library.hbm_free_shm_pinned_ptr(address, nbytes, text), nbytes, text)


def blocks():
    """What is given out: a dict of `blocks` and of bytes, `requested`, `bytes` in whole pages, `pinned`."""
    found = _library.HostBlocks(struct_size=ctypes.sizeof(_library.HostBlocks))
    _library.check(_library.library().hbm_host_blocks(ctypes.byref(found)), "blocks")
    return {name: getattr(found, name) for name in ("blocks", "requested", "bytes", "pinned")}
