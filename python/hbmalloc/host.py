"""Memory of the host: pinned, on a node, from huge pages, or shared under a name.

    buffer = hbmalloc.host.pinned(64 << 30, numa_node=0)
    array = numpy.asarray(buffer)

All of it is zeros at first. No torch or numpy is needed.
"""

import contextlib
import ctypes
import weakref

from . import _host_nodes, _library
from ._errors import HbmallocError
from ._host_nodes import nearest_node


def _array_of(address, nbytes, owner):
    # Arrays of a subclass can hold attributes.
    array = type("Bytes", (ctypes.c_ubyte * nbytes,), {}).from_address(address)
    array.owner = owner
    return array


class HostBuffer:
    """Memory of the host, from `pinned`, `numa` or `shared`; given back by `close()`, at the end
    of a `with`, or when nobody has it or a view of it any more.

    `numpy.asarray(buffer)` and `torch.from_numpy` of that have its bytes without a copy, as has
    `memoryview()`. While a memoryview is there, and for good once an array was made, `close()` is
    a BufferError: the memory then goes with the last of them.
    """

    def __init__(self, address, nbytes, free, is_pinned):
        self._address, self._nbytes, self._free, self._is_pinned = address, nbytes, free, is_pinned
        self._views, self._is_shown = [], False

    @property
    def address(self):
        """Its first address, aligned to 2 MiB from that length on, else to 4 KiB."""
        self._check_open()
        return self._address

    @property
    def nbytes(self):
        return self._nbytes

    @property
    def is_pinned(self):
        return self._is_pinned

    def memoryview(self):
        """Its bytes, which keep it alive."""
        self._check_open()
        array = _array_of(self._address, self._nbytes, self)
        self._views = [view for view in self._views if view() is not None] + [weakref.ref(array)]
        return memoryview(array).cast("B")

    @property
    def __array_interface__(self):
        self._check_open()
        # Who made an array of this cannot be known to have dropped it.
        self._is_shown = True
        return {"version": 3, "shape": (self._nbytes,), "typestr": "|u1", "data": (self._address, False)}

    def __len__(self):
        return self._nbytes

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
        return False

    def close(self):
        """Gives it back; waits for the devices' work where it is pinned. A second call does nothing."""
        if self._free is None:
            return
        if self._is_shown or any(view() is not None for view in self._views):
            raise BufferError("%r has views: drop them, and it is given back with the last of them" % (self,))
        self._give_back()

    def _give_back(self):
        free, self._free = self._free, None
        if free is None:
            return
        try:
            free(self._address)
        except HbmallocError:
            self._free = free
            raise

    def _check_open(self):
        if self._free is None:
            raise ValueError("the buffer is closed")

    def __del__(self):
        with contextlib.suppress(Exception):
            self._give_back()

    def __repr__(self):
        where = "closed" if self._free is None else "at %#x" % self._address
        return "<hbmalloc host buffer of %d bytes, %s, %s>" % (
            self._nbytes, "pinned" if self._is_pinned else "not pinned", where)


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
    if not isinstance(name, str) or "\0" in name:
        raise ValueError("a name is a text without zeros, not %r" % (name,))
    text = name.encode()
    allocate = library.hbm_alloc_shm_pinned_ptr if create else library.hbm_attach_shm_pinned_ptr
    return _make("shared", allocate, lambda address: library.hbm_free_shm_pinned_ptr(address, nbytes, text), nbytes, text)


def blocks():
    """What is given out: a dict of `blocks` and of bytes, `requested`, `bytes` in whole pages, `pinned`; and
    how many blocks are `unbound`: to be on some nodes, which the system refused."""
    found = _library.HostBlocks(struct_size=ctypes.sizeof(_library.HostBlocks))
    _library.check(_library.library().hbm_host_blocks(ctypes.byref(found)), "blocks")
    return {name: getattr(found, name) for name in ("blocks", "requested", "bytes", "pinned", "unbound")}
