"""Memory of the host and who holds it: a buffer, views of it, and what keeps it while they are there."""

import ctypes
import functools
import threading

from . import _dlpack, _library
from ._errors import HbmallocError


class Block:
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


untrack = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("PyObject_GC_UnTrack", ctypes.pythonapi))


class Hold:
    """Holds a block while it lives; the last one gives it back.

    The garbage collector does not see it: of a cycle it first finalizes all objects, in any order, and those may
    still use what the cycle holds.
    """

    __slots__ = ("_block",)

    def __init__(self, block):
        untrack(self)
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
def bytes_type(nbytes):
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
        self._block = Block(address, free)
        self._hold = Hold(self._block)

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

    def seams(self):
        """Where its registrations end, in bytes from its first address: one copy of the driver's may not cross from one
        into the next. One, but for pinned memory above 256 GiB."""
        self._check_open()
        return _library.ask_list("hbm_host_seams", self._block.address, "HostBuffer.seams")

    def _view_hold(self):
        with self._block.lock:
            self._check_open()
            return Hold(self._block)

    def memoryview(self):
        """Its bytes, which keep it alive."""
        hold = self._view_hold()
        array = bytes_type(self._nbytes).from_address(self._block.address)
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

    def let_go(self):
        """As `close()`, but where views are there it is given back with the last of them."""
        with self._block.lock:
            try:
                self.close()
            except BufferError:
                self._hold = None

    def _check_open(self):
        if not self._block.free:
            raise ValueError("the buffer is closed")

    def __repr__(self):
        where = "at %#x" % self._block.address if self._block.free else "closed"
        return "<hbmalloc host buffer of %d bytes, %s, %s>" % (
            self._nbytes, "pinned" if self._is_pinned else "not pinned", where)
