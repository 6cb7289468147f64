"""Memory of the host: pinned, on a node, from huge pages, or shared under a name.

    buffer = hbmalloc.host.pinned(64 << 30, numa_node=0)
    array = numpy.asarray(buffer)

All of it is zeros at first. No torch or numpy is needed.
"""

import ctypes
import functools
import threading

from . import _dlpack, _library
from ._errors import HbmallocError


class _Block:
    """Memory, and who holds it."""

    __slots__ = ("address", "free", "holds", "lock")

    def __init__(self, address, free):
        # `free` has the function until somebody takes it, and with it the duty.
        self.address, self.free, self.holds, self.lock = address, [free], set(), threading.RLock()

    def give_back(self):
        try:
            free = self.free.pop()
        except IndexError:
            return
        try:
            free(self.address)
        except HbmallocError:
            self.free.append(free)
            raise


_untrack = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("PyObject_GC_UnTrack", ctypes.pythonapi))


class _Hold:
    """Holds a block while it lives; the last one gives it back.

    The garbage collector does not see it: of a cycle it first finalizes all objects, in any order, and those may
    still use what the cycle holds.
    """

    __slots__ = ("_block",)

    def __init__(self, block):
        _untrack(self)
        self._block = block
        # Single operations of a set, since holds go at any time, on any thread, in the middle of anything.
        block.holds.add(id(self))

    def __del__(self):
        try:
            self._block.holds.discard(id(self))
            if not self._block.holds:
                self._block.give_back()
        except Exception:
            pass  # the process ends, or the driver refuses: nobody is left to be told


@functools.lru_cache(maxsize=64)
def _bytes_type(nbytes):
    # Arrays of a subclass can hold attributes.
    return type("Bytes", (ctypes.c_ubyte * nbytes,), {})


class HostBuffer:
    """Memory of the host, from `pinned`, `numa` or `shared`; given back by `close()`, at the end
    of a `with`, or when nobody has it or a view of it any more.

    `memoryview()`, `numpy.asarray(buffer)`, `numpy.from_dlpack(buffer)` and `torch.from_dlpack(buffer)`
    have its bytes without a copy and keep it alive. While one of them is there, `close()` is a
    BufferError.
    """

    def __init__(self, address, nbytes, free, is_pinned):
        self._nbytes, self._is_pinned = nbytes, is_pinned
        self._block = _Block(address, free)
        self._hold = _Hold(self._block)

    @property
    def address(self):
        """Its first address, aligned to 2 MiB from that length on, else to 4 KiB."""
        self._check_open()
        return self._block.address

    @property
    def nbytes(self):
        return self._nbytes

    @property
    def is_pinned(self):
        return self._is_pinned

    def _view_hold(self):
        with self._block.lock:
            self._check_open()
            return _Hold(self._block)

    def memoryview(self):
        """Its bytes, which keep it alive."""
        hold = self._view_hold()
        array = _bytes_type(self._nbytes).from_address(self._block.address)
        array.hold = hold
        return memoryview(array).cast("B")

    @property
    def __array_interface__(self):
        # A view and not a number, so that the array's end is seen.
        return {"version": 3, "shape": (self._nbytes,), "typestr": "|u1", "data": self.memoryview()}

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return _dlpack.capsule(self.address, (self._nbytes,), _dlpack.ELEMENTS["uint8"], self._view_hold(),
                               stream, max_version, dl_device, copy)

    def __dlpack_device__(self):
        return _dlpack.DEVICE

    def __len__(self):
        return self._nbytes

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
        return False

    def close(self):
        """Gives it back; waits for the devices' work where it is pinned. A second call does nothing."""
        with self._block.lock:
            if self._block.free and self._block.holds != {id(self._hold)}:
                raise BufferError(
                    "%r has views: drop them, and it is given back with the last of them" % (self,))
            self._block.give_back()

    def _check_open(self):
        if not self._block.free:
            raise ValueError("the buffer is closed")

    def __repr__(self):
        where = "at %#x" % self._block.address if self._block.free else "closed"
        return "<hbmalloc host buffer of %d bytes, %s, %s>" % (
            self._nbytes, "pinned" if self._is_pinned else "not pinned", where)


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
