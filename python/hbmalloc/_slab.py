"""Memory of the host that grows."""

import ctypes
import math
import time

from . import _library
from ._buffer import HostBuffer
from ._errors import HbmallocError
from ._host_nodes import node_of, page_bytes

_ON_NODE, _PAGEABLE, _HUGE_PAGES = 1, 2, 4
#: Milliseconds that one call waits.
_SLICE = 100


def _number(name, value, least=0):
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
        raise ValueError("%s is a number of bytes of at least %d, not %r" % (name, least, value))
    return value


def _end(timeout):
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ValueError("a timeout is a number of seconds from 0 on, or None, not %r" % (timeout,))
    return time.monotonic() + min(timeout, 1 << 60)


class Slab(HostBuffer):
    """Memory of the host that grows: addresses for `nbytes` from the start, `initial` bytes of pinned memory before this
    returns (all of it by default), the rest part by part in the background. `nbytes` is rounded up to whole pages, of
    2 MiB from that length on. `numa_node` is a node's number, or "gpu:0" for the nearest one.

    Views are of all its addresses; what of them is not ready yet is not pinned. `part` is the most that growing
    pins at once, `pace` the bytes a second that it takes on; 0 leaves both to the library. `name` shares it as `shared`
    does; such a slab does not grow. Any thread.
    """

    def __init__(self, nbytes, initial=None, numa_node=None, huge_pages=False, name=None, pinned=True, part=0, pace=0):
        library = _library.library()
        wanted = _library.SlabWanted(
            struct_size=ctypes.sizeof(_library.SlabWanted), bytes=_number("a size", nbytes, 1),
            initial_bytes=0 if initial is None else _number("initial", initial, 1), part_bytes=_number("part", part),
            bytes_per_second=_number("pace", pace), shm_name=None if name is None else _library.encoded("a name of shared memory", name))
        if page_bytes(huge_pages) > 2 << 20:
            raise ValueError("a slab is of huge pages of 2 MiB, not of %r" % (huge_pages,))
        wanted.flags = (0 if pinned else _PAGEABLE) | (_HUGE_PAGES if huge_pages else 0)
        if numa_node is not None:
            wanted.flags |= _ON_NODE
            wanted.numa_node = node_of(numa_node)
        handle = ctypes.c_void_p()
        _library.check(library.hbm_slab_open(wanted, handle), "Slab")
        self._handle = handle.value
        stats = self._stats()
        super().__init__(stats.address, stats.bytes, _closer(library, handle.value), pinned)

    def _stats(self):
        stats = _library.SlabStats(struct_size=ctypes.sizeof(_library.SlabStats))
        _library.check(_library.library().hbm_slab_stats(self._handle, stats), "Slab")
        return stats

    @property
    def handle(self):
        """The hbm_slab_t of the C interface, as a number."""
        self._check_open()
        return self._handle

    @property
    def ready(self):
        """Bytes from its first address on that are there, and pinned."""
        self._check_open()
        return self._stats().ready

    def progress(self):
        """How far it is: a dict of bytes (`ready`, `target`, `nbytes`), `parts`, `is_growing`, and `error`, which says
        what stopped it from growing, or is None."""
        self._check_open()
        stats = self._stats()
        error = None
        if stats.failure:
            try:
                self.wait(stats.target, 0)
            except HbmallocError as failure:
                error = failure
        return {"ready": stats.ready, "target": stats.target, "nbytes": stats.bytes, "parts": stats.parts,
                "is_growing": bool(stats.is_growing), "error": error}

    def seams(self):
        """Where its parts end, in bytes from its first address: one copy of the driver's may not cross from one into the
        next."""
        self._check_open()
        return _library.ask_list("hbm_slab_seams", self._handle, "Slab.seams")

    def wait(self, nbytes=None, timeout=None):
        """Waits until `nbytes` are ready, all of them by default, at most `timeout` seconds, and says how many are.
        Raises what stopped it from growing before."""
        self._check_open()
        nbytes, end = self._nbytes if nbytes is None else _number("a size", nbytes), _end(timeout)
        while True:
            # In slices: between two of them, signals are handled.
            is_growing, left = self._stats().is_growing, end - time.monotonic()
            milliseconds = max(0, math.ceil(min(left * 1000, _SLICE)))
            _library.check(_library.library().hbm_slab_wait(self._handle, nbytes, milliseconds), "Slab.wait")
            ready = self.ready
            if ready >= nbytes or not is_growing or time.monotonic() >= end:
                return ready

    def grow(self, nbytes=None):
        """Grows up to `nbytes`, all of it by default, in the background: after it was shrunk or stopped."""
        self._check_open()
        nbytes = self._nbytes if nbytes is None else _number("a size", nbytes)
        _library.check(_library.library().hbm_slab_grow(self._handle, nbytes), "Slab.grow")

    def shrink(self, least=0):
        """Stops growing and gives parts back from the end, while `least` bytes stay; those without objects where a pool is
        on it, else nobody may use them. How many bytes were given back."""
        self._check_open()
        released = ctypes.c_uint64()
        _library.check(_library.library().hbm_slab_shrink(self._handle, _number("least", least), released), "Slab.shrink")
        return released.value


def _closer(library, handle):
    # No method: the buffer's memory may outlive the buffer.
    return lambda _address: _library.check(library.hbm_slab_close(handle), "Slab.close")
