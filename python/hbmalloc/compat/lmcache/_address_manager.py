"""An address space under LMCache's AddressManager interface: numbers from 0 on, with no memory behind them.

The library counts in units of its own, one for each alignment, so any alignment will do. It does not know addresses
that were freed, so what a free names is looked up here.
"""

import ctypes
import logging
import threading
import weakref
from operator import index

from ... import _library
from ..._errors import HbmallocError, InternalError, InvalidArgumentError, NotOwnedError, OutOfMemoryError

logger = logging.getLogger("hbmalloc")

#: Bytes that the library takes for one unit.
_UNIT = 512
#: The library's addresses end below 2^62.
_MOST_UNITS = (1 << 62) // _UNIT - 1
_ONE = ctypes.c_uint64 * 1


class AddressManager:
    """Blocks of an address space that grows. Any thread.

    Blocks that lie side by side may be freed as one. Freeing what is no block, was freed, or has another size is an
    error that changes nothing.
    """

    ALIGN_BYTES = 4096

    def __init__(self, size, align_bytes=ALIGN_BYTES):
        size, align_bytes = index(size), index(align_bytes)
        if align_bytes <= 0 or not 0 <= size // align_bytes <= _MOST_UNITS:
            raise ValueError("an address space of %d bytes, aligned to %d: from 0 to %d alignments, each above 0" % (
                size, align_bytes, _MOST_UNITS))
        self._library = _library.library()
        handle = ctypes.c_void_p()
        _library.check(self._library.hbm_objects_open(None, _UNIT, handle), "AddressManager")
        self._handle = handle.value
        # At exit there may be no library to call, and nothing to give back.
        weakref.finalize(self, self._library.hbm_objects_close, self._handle).atexit = False
        self._size, self._align, self._units = 0, align_bytes, 0
        #: Each block's handle and size, by its address.
        self._blocks = {}
        #: Bytes of all blocks.
        self.total_allocated_size = 0
        # The garbage collector may free a block of this thread's in the middle of anything.
        self._lock = threading.RLock()
        self._grow(size)

    def _grow(self, size):
        units = size // self._align
        if units > self._units:
            _library.check(self._library.hbm_objects_extend(self._handle, (units - self._units) * _UNIT), "AddressManager")
        self._size, self._units = size, units

    def compute_aligned_size(self, raw_size):
        """`raw_size` in whole alignments."""
        return -(-raw_size // self._align) * self._align

    def allocate(self, size):
        """The address and the size of a block of at least `size` bytes. Raises ValueError for a size of 0, a RuntimeError
        where there is no room."""
        units = -(-index(size) // self._align)
        if not 0 < units <= self._units:
            return self.batched_allocate(size, 1)[0]
        # As a batch of one, without its lists: this is what each object of LMCache's own costs.
        handles, places, bytes_each = _ONE(), _ONE(), units * self._align
        with self._lock:
            status = self._library.hbm_objects_allocate(self._handle, units * _UNIT, 1, 0, handles, places, None)
            if status:
                raise self._failure(status, size, 1)
            address = places[0] // _UNIT * self._align
            self._blocks[address] = handles[0], bytes_each
            self.total_allocated_size += bytes_each
        return address, bytes_each

    def batched_allocate(self, size, batch_size):
        """As many, all or none; side by side where there is room for that."""
        size, batch_size = index(size), index(batch_size)
        if size <= 0:
            raise ValueError("a block of %d bytes: at least 1" % size)
        if batch_size < 0:
            raise InvalidArgumentError("%d blocks: at least 0" % batch_size)
        if batch_size == 0:
            return []
        units = -(-size // self._align)
        # Also keeps numbers from the library that no C type holds.
        if units * batch_size > self._units:
            raise self._shortage(size, batch_size)
        numbers = ctypes.c_uint64 * batch_size
        handles, places = numbers(), numbers()
        align, bytes_each = self._align, units * self._align
        with self._lock:
            status = self._library.hbm_objects_allocate(self._handle, units * _UNIT, batch_size, 0, handles, places, None)
            if status:
                raise self._failure(status, size, batch_size)
            made = [(place // _UNIT * align, bytes_each) for place in places]
            for (address, _), handle in zip(made, handles):
                self._blocks[address] = handle, bytes_each
            self.total_allocated_size += bytes_each * batch_size
        return made

    def _failure(self, status, size, count):
        try:
            _library.check(status, "AddressManager.allocate")
        except OutOfMemoryError:
            # The library's text counts in units.
            return self._shortage(size, count)
        except HbmallocError as error:
            return error

    def _shortage(self, size, count):
        largest = self._usage().largest_free // _UNIT * self._align
        return OutOfMemoryError(
            "AddressManager.allocate: %d blocks of %d bytes: %d of %d bytes are in use, the largest free piece has %d: free "
            "some, or make it larger" % (count, size, self.total_allocated_size, self._size, largest))

    def _usage(self):
        usage = _library.ObjectsUsage(struct_size=ctypes.sizeof(_library.ObjectsUsage))
        _library.check(self._library.hbm_objects_usage(self._handle, usage), "AddressManager")
        return usage

    def free(self, address, size):
        """Frees the block of that address and size, or the blocks that fill it."""
        with self._lock:
            one = self._blocks.get(address)
            if one is not None and one[1] == size:
                del self._blocks[address]
                gone, handles = ((address, one),), _ONE(one[0])
            else:
                gone = self._take_neighbours(index(address), index(size))
                handles = (ctypes.c_uint64 * len(gone))(*[handle for _, (handle, _) in gone])
            self.total_allocated_size -= size
            status = self._library.hbm_objects_free(self._handle, handles, len(handles))
            if status:
                self._blocks.update(gone)
                self.total_allocated_size += size
                _library.check(status, "AddressManager.free")

    def _take_neighbours(self, address, size):
        """The blocks that fill a range, which are not known any more then."""
        found, at, end = [], address, address + size
        while at < end and at in self._blocks:
            found.append(at)
            at += self._blocks[at][1]
        if at != end or not found:
            raise self._refusal(address, size, at)
        return [(at, self._blocks.pop(at)) for at in found]

    def _refusal(self, address, size, at):
        if at > address + size or size <= 0:
            error = InvalidArgumentError("free(%d, %d): blocks end at %d, not at %d; nothing was freed: free what "
                                         "allocate returned, with its size" % (address, size, at, address + size))
        else:
            error = NotOwnedError("free(%d, %d): no block begins at %d: it was freed before, or never given out; nothing was "
                                  "freed" % (address, size, at))
        logger.error("hbmalloc: %s", error)
        return error

    def sbrk(self, size):
        """Adds `size` bytes, in whole alignments, behind the last."""
        more = self.compute_aligned_size(index(size))
        with self._lock:
            if size < 0 or (self._size + more) // self._align > _MOST_UNITS:
                raise ValueError("%d more bytes behind %d, aligned to %d: at least 0, and at most %d alignments in all" % (
                    size, self._size, self._align, _MOST_UNITS))
            self._grow(self._size + more)

    def get_heap_size(self):
        """Bytes of the address space."""
        return self._size

    def get_free_size(self):
        """Those of them that no block is in."""
        return self._size - self.total_allocated_size

    def check_consistency(self):
        """Whether all that is known of the blocks agrees; what does not is logged."""
        with self._lock:
            try:
                _library.check(self._library.hbm_objects_check(self._handle), "AddressManager.check_consistency")
            except InternalError as error:
                logger.error("hbmalloc: %s (%d bytes there are %d here)", error, _UNIT, self._align)
                return False
            usage = self._usage()
            known = sum(size for _, size in self._blocks.values())
            return (known == self.total_allocated_size == usage.used // _UNIT * self._align
                    and usage.objects == len(self._blocks))
