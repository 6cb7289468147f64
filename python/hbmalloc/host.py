"""Memory of the host: pinned, on a node, from huge pages, or shared under a name.

    buffer = hbmalloc.host.pinned(64 << 30, numa_node=0)
    array = numpy.asarray(buffer)

All of it is zeros at first. No torch or numpy is needed.
"""

import ctypes

from . import _host_nodes, _library
from ._buffer import HostBuffer
from ._host_nodes import nearest_node
from ._l1 import (
    L1Error, L1MemoryManager, L1MemoryManagerConfig, MemoryLayoutDesc, MemoryObj, create_memory_allocator,
)
from ._slab import Slab

__all__ = [
    "HostBuffer", "L1Error", "L1MemoryManager", "L1MemoryManagerConfig", "MemoryLayoutDesc", "MemoryObj", "Slab", "blocks",
    "create_memory_allocator", "nearest_node", "numa", "pinned", "shared",
]


def _size(nbytes):
    if isinstance(nbytes, bool) or not isinstance(nbytes, int) or not 0 < nbytes < 1 << 63:
        raise ValueError("a size is a number of bytes above 0, not %r" % (nbytes,))
    return nbytes


def _make(operation, allocate, free, nbytes, *rest, is_pinned=True):
    address = _library.check_address(allocate(nbytes, *rest), operation)
    return HostBuffer(address, nbytes, lambda address: _library.check(free(address), operation), is_pinned)


def _described(operation, nbytes, descriptor, is_pinned=True):
    library = _library.library()
    return _make(operation, library.hbm_alloc_host_ptr, lambda address: library.hbm_free_host_ptr(address, nbytes),
                 nbytes, ctypes.byref(descriptor), is_pinned=is_pinned)


def pinned(nbytes, numa_node=None, huge_pages=False, policy="bind"):
    """Pinned memory of the host. `numa_node` is a node's number, "gpu:0" for the one nearest to a device, or a list
    of these; `policy` says how it is meant: `bind` to it, `preferred`, or `interleave` over several. `huge_pages`
    (True or "2MiB", "1GiB") takes such as the administrator has set aside. Raises OutOfMemoryError, naming what is
    there, InvalidArgumentError for a node that is not there, or UnsupportedError for a nearest one that is unknown."""
    nbytes, page_bytes = _size(nbytes), _host_nodes.page_bytes(huge_pages)
    if numa_node is not None or page_bytes or policy != "bind":
        kind = _host_nodes.HUGEPAGE if page_bytes else _host_nodes.PINNED_NUMA
        return _described("pinned", nbytes, _host_nodes.describe(kind, numa_node, policy, page_bytes))
    library = _library.library()
    return _make("pinned", library.hbm_alloc_pinned_ptr, library.hbm_free_pinned_ptr, nbytes, 0)


def numa(nbytes, numa_node, policy="bind"):
    """Memory of nodes, named as for `pinned`, not pinned; needs no driver but to find the nearest one."""
    if numa_node is None:
        raise ValueError("numa_node is missing")
    descriptor = _host_nodes.describe(_host_nodes.NUMA, numa_node, policy)
    return _described("numa", _size(nbytes), descriptor, is_pinned=False)


def shared(nbytes, name, create=True):
    """Pinned memory that processes of one user share under a name, as of shm_open: made anew, or, with
    `create=False`, what another process made and still has. Raises BusyError where a process that lives has
    the name."""
    nbytes, library = _size(nbytes), _library.library()
    text = _library.encoded("a name of shared memory", name)
    allocate = library.hbm_alloc_shm_pinned_ptr if create else library.hbm_attach_shm_pinned_ptr
    return _make("shared", allocate, lambda address: library.hbm_free_shm_pinned_ptr(address, nbytes, text), nbytes, text)


def blocks():
    """What is given out: a dict of `blocks` and of bytes, `requested`, `bytes` in whole pages, `pinned`; and
    how many blocks are `unbound`: to be on some nodes, which the system refused."""
    found = _library.HostBlocks(struct_size=ctypes.sizeof(_library.HostBlocks))
    _library.check(_library.library().hbm_host_blocks(ctypes.byref(found)), "blocks")
    return {name: getattr(found, name) for name in ("blocks", "requested", "bytes", "pinned", "unbound")}
