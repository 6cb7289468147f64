"""Objects on a slab, made and freed in batches that cost little.

An object is a tuple underneath, since nothing of it changes but what the library counts: in batches of 256, made in one go
by C code, one took 371 ns from allocate to free where instances of a class with slots took 436 (two busy cores).
"""

import ctypes
import functools
import math
import threading
import weakref
from itertools import repeat
from operator import itemgetter

from . import _dlpack, _elements, _library
from ._buffer import Block, Hold, bytes_type
from ._errors import HbmallocError, InvalidArgumentError, NotOwnedError, OutOfMemoryError

#: Milliseconds that one call waits: between two of them, signals are handled.
_SLICE = 100


@functools.lru_cache(maxsize=64)
def _numbers(count):
    return ctypes.c_uint64 * count


class Layout:
    """Groups of elements, one behind the other: shapes and types, where each begins, and how many bytes all are."""

    __slots__ = ("shapes", "dtypes", "names", "offsets", "nbytes", "is_torch")

    def __init__(self, shapes, dtypes):
        if len(shapes) != len(dtypes):
            raise ValueError("%d shapes and %d types of elements: each group has one of both" % (len(shapes), len(dtypes)))
        # Nobody changes them later; torch.Size is a tuple.
        self.shapes = [shape if isinstance(shape, tuple) else tuple(shape) for shape in shapes]
        self.dtypes = list(dtypes)
        self.names = [_elements.name_of(dtype) for dtype in dtypes]
        self.offsets = [0]
        for shape, name in zip(self.shapes, self.names):
            self.offsets.append(self.offsets[-1] + _elements.count(shape) * _elements.bytes_of(name))
        self.nbytes = self.offsets[-1]
        self.is_torch = bool(dtypes) and all(map(_elements.is_torch, dtypes))


def _owner(value):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError("an owner is a number from 0 on below 2^64, not %r" % (value,))
    return value


class _Batch:
    """What the objects of one `allocate` share. Those that nobody freed are freed with the last of them."""

    __slots__ = ("pool", "layout", "size", "handles", "numbers", "addresses", "fmt", "tensors", "first", "used", "notes", "left", "hold", "__weakref__")

    def __init__(self, pool, layout, size, handles, fmt):
        self.pool, self.layout, self.size, self.fmt = pool, layout, size, fmt
        self.handles, self.numbers, self.addresses = handles, (), ()
        #: A tensor of each object, by group; only while none was freed or said to be used in part.
        self.tensors, self.used = {}, None
        #: Those of the first group.
        self.first = ()
        #: What a class of objects notes of one, by its index.
        self.notes = {}
        #: The handles that were not freed: all, as an array, or a set.
        self.left = [handles]
        self.hold = Hold(Block(0, _dropper(pool.library, pool.handle, self.left)))

    @property
    def is_whole(self):
        """Whether nothing of it was freed."""
        return self.left[0] is self.handles

    def drop_tensors(self):
        """They go once the caller, who has the lock, has let go of it and of what this returns."""
        gone, self.tensors, self.first = (self.tensors, self.first), {}, ()
        return gone

    def note_freed(self, numbers):
        """Those were freed; tensors of the whole batch, which would keep them, go."""
        # None are made meanwhile, to stay behind.
        with self.pool.lock:
            gone = self.drop_tensors()
            if self.left:
                self.left[0] = set(self.left[0]).difference(numbers)
        del gone

    def note_all_freed(self):
        """The same of all of them."""
        if not self.layout.is_torch:
            self.left[0] = ()
            return
        with self.pool.lock:
            gone, self.left[0] = self.drop_tensors(), ()
        del gone


def _dropper(library, pool, left):
    def drop(_address):
        numbers = left.pop() if left else ()
        if len(numbers):
            # None of it is owned any more where the pool is closed.
            library.hbm_objects_free(pool, _numbers(len(numbers))(*numbers), len(numbers))
    return drop


_handle_of = itemgetter(1)


class MemoryObj(tuple):
    """An object: memory of a layout, with counts of who holds it.

    It begins with one reference, and is freed once there are neither references nor pins. Views of it (`tensor`,
    `byte_array`, arrays) keep its memory from others for as long as they are there; a tensor of torch keeps that of its
    whole batch. Any thread.
    """

    __slots__ = ()

    #: The address of its memory.
    data_ptr = property(itemgetter(0))
    #: The library's number of it.
    handle = property(_handle_of)

    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__

    def __repr__(self):
        return "<MemoryObj of %d bytes at %#x>" % (self.get_size(), self[0])

    __str__ = __repr__

    def __reduce__(self):
        raise TypeError("an object is memory of this process: pickle its bytes (byte_array)")

    # Who holds it.

    def _count(self, call, *owner):
        count = ctypes.c_uint()
        pool = self[2].pool
        _library.check(getattr(pool.library, call)(pool.handle, self[1], *owner, count), "MemoryObj")
        return count.value

    def _counts(self):
        references, pins = ctypes.c_uint(), ctypes.c_uint()
        pool = self[2].pool
        if pool.library.hbm_object_counts(pool.handle, self[1], references, pins, None):
            return 0, 0
        return references.value, pins.value

    def ref_count_up(self):
        """One more reference. Raises NotOwnedError if it is freed."""
        self._count("hbm_object_retain")

    def ref_count_down(self):
        """One reference less. Raises NotOwnedError if there is none left."""
        if self._count("hbm_object_release") == 0:
            self[2].note_freed((self[1],))

    def get_ref_count(self):
        """How many references there are; views are none. 0 if it is freed."""
        return self._counts()[0]

    def pin(self, owner=0):
        """Keeps it, until as many `unpin` of the same owner, a number."""
        self._count("hbm_object_pin", _owner(owner))
        return True

    def unpin(self, owner=0):
        """Takes a pin of the owner's away; NotOwnedError if it has none."""
        self._count("hbm_object_unpin", _owner(owner))
        return True

    @property
    def is_pinned(self):
        """Whether a pin is on it. Pinning by the driver is the slab's."""
        return self._counts()[1] > 0

    @property
    def can_evict(self):
        """Whether nobody but its maker holds it."""
        return self._counts() == (1, 0)

    def is_valid(self):
        """Whether it is not freed: there are references or pins."""
        return self._counts() != (0, 0)

    def parent(self):
        """The allocator that made it."""
        return self[2].pool.owner()

    # What it is.

    def get_size(self):
        """Bytes of its layout, or what `set_used_size` said."""
        batch = self[2]
        return batch.layout.nbytes if batch.used is None else batch.used.get(self[3], batch.layout.nbytes)

    def get_physical_size(self):
        """Bytes of its memory: the layout's in whole alignments."""
        return self[2].size

    def set_used_size(self, n):
        """Only the first `n` bytes are used from here on: `get_size()`, `byte_array` and `tensor`, which then is of bytes."""
        batch = self[2]
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= batch.size:
            raise ValueError("%r bytes used of an object of %d" % (n, batch.size))
        with batch.pool.lock:
            if batch.used is None:
                batch.used = {}
            batch.used[self[3]] = n
            gone = batch.drop_tensors()
        del gone

    def get_shape(self):
        return self[2].layout.shapes[0]

    def get_dtype(self):
        return self[2].layout.dtypes[0]

    def get_shapes(self):
        return list(self[2].layout.shapes)

    def get_dtypes(self):
        return list(self[2].layout.dtypes)

    def get_memory_format(self):
        return self[2].fmt

    @property
    def shm_offset(self):
        """Bytes from the slab's first address to it."""
        return self[0] - self[2].pool.base

    @property
    def shm_byte_length(self):
        return self.get_size()

    # Views.

    @property
    def byte_array(self):
        """Its bytes, as a memoryview that keeps it."""
        return self._bytes(0, self.get_size())

    @property
    def tensor(self):
        """Its first group: a tensor where the layout's types are torch's, else a memoryview; without a copy. None if it is
        freed."""
        try:
            return self[2].first[self[3]]
        except IndexError:
            return self.get_tensor(0)

    def get_tensor(self, index):
        """The same of any group."""
        batch = self[2]
        layout = batch.layout
        if not -len(layout.shapes) <= index < len(layout.shapes):
            raise IndexError("group %d of %d" % (index, len(layout.shapes)))
        index %= len(layout.shapes)
        if batch.used is not None and self[3] in batch.used:
            return self._one(0, batch.used[self[3]], None)
        if layout.is_torch and batch.is_whole and batch.used is None:
            tensors = batch.tensors.get(index)
            if tensors is None:
                tensors = batch.pool.tensors(batch, index)
            if tensors is not None:
                return tensors[self[3]]
        return self._one(layout.offsets[index], layout.offsets[index + 1] - layout.offsets[index], index)

    @property
    def raw_tensor(self):
        """All bytes of its memory, as `tensor`."""
        return self._one(0, self[2].size, None)

    def _one(self, begin, length, group):
        try:
            view = self._bytes(begin, length)
        except NotOwnedError:
            return None
        layout = self[2].layout
        if layout.is_torch:
            import torch

            flat = torch.frombuffer(view, dtype=torch.uint8) if length else torch.empty(0, dtype=torch.uint8)
            return flat if group is None else flat.view(layout.dtypes[group]).view(layout.shapes[group])
        if group is None or not length:
            return view
        element, each = _elements.format_of(layout.names[group])
        return view.cast(element, list(layout.shapes[group]) + ([each] if each > 1 else []) or [1])

    def _bytes(self, begin, length):
        array = bytes_type(length).from_address(self[0] + begin)
        array.hold = self._hold()
        return memoryview(array).cast("B")

    def _hold(self):
        return self[2].pool.hold(_numbers(1)(self[1]))

    @property
    def __array_interface__(self):
        return {"version": 3, "shape": (self.get_size(),), "typestr": "|u1", "data": self.byte_array}

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        layout = self[2].layout
        return _dlpack.capsule(self[0], tuple(layout.shapes[0]), _dlpack.ELEMENTS[layout.names[0]], self._hold(),
                               stream, max_version, dl_device, copy)

    def __dlpack_device__(self):
        return _dlpack.DEVICE


class Pool:
    """Objects on a slab, of the class `kind`. `owner` says what a MemoryObj's `parent` is."""

    def __init__(self, slab, align, owner, kind=MemoryObj):
        self.library, self.owner, self.lock, self.kind = _library.library(), owner, threading.RLock(), kind
        if isinstance(align, bool) or not isinstance(align, int) or not 0 < align < 1 << 63:
            raise ValueError("an alignment is a power of two, not %r" % (align,))
        handle = ctypes.c_void_p()
        _library.check(self.library.hbm_objects_open(slab.handle, align, handle), "objects")
        self.handle, self.align, self.base, self.nbytes = handle.value, align, slab.address, slab.nbytes
        self._slab = slab
        #: Batches with tensors.
        self._shown = weakref.WeakSet()
        #: Held by views, so that memory goes after the last of them.
        self._block = Block(slab.address, _closer(self.library, handle.value, slab))
        self._hold = Hold(self._block)

    def allocate(self, layout, count, fmt=None, wait=-1):
        """`count` objects, or the OutOfMemoryError whose `feasible` says how many there could be."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError("a count is a number from 0 on, not %r" % (count,))
        if not count:
            return []
        if self._hold is None:
            raise InvalidArgumentError("the pool of objects is closed")
        nbytes = layout.nbytes
        size = -(-nbytes // self.align) * self.align
        if size * count > self.nbytes:
            # More than there ever is: nothing to wait for, and as few numbers say as well how many there could be.
            nbytes, wait = min(nbytes, self.nbytes + 1), 0
            count = min(count, self.nbytes // nbytes + 1)
        handles, addresses = _numbers(count)(), _numbers(count)()
        # Before there are objects, so that they are freed whatever interrupts what follows.
        batch = _Batch(self, layout, size, handles, fmt)
        self._make(nbytes, count, wait, batch.left, handles, addresses)
        batch.numbers, batch.addresses = handles[:], addresses[:]
        return list(map(tuple.__new__, repeat(self.kind, count), zip(batch.addresses, batch.numbers, repeat(batch), range(count))))

    def _make(self, nbytes, count, wait, left, handles, addresses):
        feasible, may_have_grown = ctypes.c_size_t(), wait < 0
        while True:
            status = self.library.hbm_objects_allocate(
                self.handle, nbytes, count, _SLICE if wait < 0 else wait, handles, addresses, ctypes.byref(feasible))
            if not status:
                return
            left.clear()
            try:
                _library.check(status, "allocate")
            except OutOfMemoryError as error:
                progress = self._slab._stats()
                if not may_have_grown or not progress.is_growing and progress.parts == 1:
                    error.feasible = feasible.value
                    raise
            # It grows, or did while this tried.
            may_have_grown = bool(progress.is_growing)
            left.append(handles)

    def free(self, objects):
        """Drops their makers' references. Raises what was no object, or freed before, after the others."""
        if not isinstance(objects, (list, tuple)) or isinstance(objects, MemoryObj):
            raise TypeError("what is freed is a list of objects, not %r" % (objects,))
        count = len(objects)
        if not count:
            return
        try:
            numbers, batch = list(map(_handle_of, objects)), objects[0][2]
            is_batch = numbers == batch.numbers and batch.pool is self
        except (TypeError, LookupError, AttributeError):
            is_batch = False
        if is_batch:
            batch.note_all_freed()
            handles = batch.handles
        else:
            for found in objects:
                if not isinstance(found, MemoryObj):
                    raise TypeError("%r is no object of hbmalloc: free it where it was made; nothing was freed" % (found,))
            by_batch = {}
            for found in objects:
                by_batch.setdefault(id(found[2]), (found[2], []))[1].append(found[1])
            if any(batch.pool is not self for batch, _ in by_batch.values()):
                raise ValueError("objects of another manager: free them there; nothing was freed")
            for batch, freed in by_batch.values():
                batch.note_freed(freed)
            handles = _numbers(count)(*numbers)
        _library.check(self.library.hbm_objects_free(self.handle, handles, count), "free")

    def hold(self, handles):
        """What a view holds: the memory of objects, and the slab with it."""
        with self.lock:
            if not self._block.free:
                raise NotOwnedError("the pool of objects is closed")
            slab = Hold(self._block)
        _library.check(self.library.hbm_objects_view(self.handle, handles, len(handles)), "view")
        return Hold(Block(0, _view_closer(self.library, self.handle, handles, slab)))

    def tensors(self, batch, group):
        """A tensor of a group for each object of a batch; None where they do not lie side by side."""
        import torch

        first, count, size, layout = batch.addresses[0], len(batch.addresses), batch.size, batch.layout
        # None overlaps another.
        if batch.addresses[-1] - first != (count - 1) * size or batch.addresses != sorted(batch.addresses):
            return None
        element = _elements.bytes_of(layout.names[group])
        begin = layout.offsets[group]
        if begin % element or size % element:
            return None
        with self.lock:
            if not batch.is_whole or batch.used is not None:
                return None
            try:
                hold = self.hold(batch.handles)
            except HbmallocError:
                return None
            array = bytes_type(count * size).from_address(first)
            array.hold = hold
            flat = torch.frombuffer(array, dtype=torch.uint8).view(layout.dtypes[group])
            found = _tensors(flat, tuple(layout.shapes[group]), size // element, begin // element, count)
            batch.tensors[group] = found
            if group == 0:
                batch.first = found
            self._shown.add(batch)
        return found

    def usage(self):
        usage = _library.ObjectsUsage(struct_size=ctypes.sizeof(_library.ObjectsUsage))
        _library.check(self.library.hbm_objects_usage(self.handle, usage), "usage")
        return usage

    def check(self):
        """Raises InternalError with what of the records does not agree."""
        _library.check(self.library.hbm_objects_check(self.handle), "memcheck")

    def unpin_all(self, owner):
        """Takes all pins of an owner away; how many they were."""
        count = ctypes.c_uint()
        _library.check(self.library.hbm_objects_unpin_all(self.handle, _owner(owner), count), "unpin_all")
        return count.value

    def close(self):
        """No more objects; the memory goes once no view is left."""
        with self.lock:
            # Those of a batch are nobody's views but its own.
            gone = [batch.drop_tensors() for batch in self._shown]
            self._shown.clear()
            self._hold = None
        del gone


def _tensors(flat, shape, each, begin, count):
    """`count` tensors of a shape, `each` elements apart, the first of them at `begin`. To autograd they are no views of one:
    what needs a gradient could not be written to such."""
    if shape and math.prod(shape) == each:
        # Half of what unbind costs.
        return flat.view((count * shape[0],) + shape[1:]).unsafe_split_with_sizes([shape[0]] * count)
    strides, step = [], 1
    for length in reversed(shape):
        strides.insert(0, step)
        step *= length
    return [view.data for view in flat.as_strided((count,) + shape, [each] + strides, begin).unbind(0)]


def _closer(library, handle, slab):
    def close(_address):
        status = library.hbm_objects_close(handle)
        slab.let_go()
        _library.check(status, "close")
    return close


def _view_closer(library, handle, handles, slab):
    def close(_address):
        library.hbm_objects_unview(handle, handles, len(handles))
        # Only now may the memory go.
        kept.clear()
    kept = [slab]
    return close
