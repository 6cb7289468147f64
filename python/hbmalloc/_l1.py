"""The first level of a cache of keys and values: objects on pinned memory of the host, under LMCache's names.

    config = L1MemoryManagerConfig(size_in_bytes=64 << 30, use_lazy=True)
    manager = L1MemoryManager(config)
    error, objects = manager.allocate(MemoryLayoutDesc([(2, 32, 128)], ["float16"]), count=10)

Neither LMCache nor torch is needed. Where a layout's types are torch's, objects are torch's tensors.
"""

import collections
import dataclasses
import enum
import logging
import sys
import weakref
from typing import Optional

from . import _elements, _objects
from ._errors import HbmallocError, InternalError, NotOwnedError, OutOfMemoryError
from ._objects import MemoryObj
from ._slab import Slab

logger = logging.getLogger("hbmalloc")

__all__ = [
    "L1Error", "L1MemoryDesc", "L1MemoryManager", "L1MemoryManagerConfig", "MemoryLayoutDesc", "MemoryObj", "ObjectAllocator",
    "create_memory_allocator",
]


class L1Error(enum.Enum):
    """What became of a call; the numbers are LMCache's."""

    SUCCESS = 1
    KEY_NOT_EXIST = 2
    KEY_NOT_READABLE = 3
    KEY_NOT_WRITABLE = 4
    KEY_IN_WRONG_STATE = 5
    KEY_IS_LOCKED = 6
    OUT_OF_MEMORY = 7


@dataclasses.dataclass
class L1MemoryManagerConfig:
    """How much memory a manager has, and of what kind.

    Lazy memory is there and pinned up to `init_size_in_bytes` when the manager is made, and grows to `size_in_bytes`
    behind it; an allocation that needs more than is there yet waits for it. Otherwise all of it is there at once.
    """

    size_in_bytes: int
    use_lazy: bool = True
    #: LMCache's is 20 GiB; less makes a manager ready earlier.
    init_size_in_bytes: int = 512 << 20
    #: What addresses and sizes of objects are multiples of: a power of two from 512 to 2 MiB.
    align_bytes: int = 4096
    #: A name as of `hbmalloc.host.shared`, of memory that is not lazy.
    shm_name: str = ""
    use_hugepages: bool = False
    #: The node of memory that it is to be on.
    numa_node: Optional[int] = None
    #: Whether the driver pins it; memory that it does not needs no driver.
    pinned: bool = True
    #: Bytes a second that lazy memory grows by while nobody waits; 0 for the library's choice.
    bytes_per_second: int = 0

    def __post_init__(self):
        if self.size_in_bytes <= 0:
            raise ValueError("size_in_bytes is a number of bytes above 0, not %r" % (self.size_in_bytes,))
        self.init_size_in_bytes = min(self.init_size_in_bytes, self.size_in_bytes)
        if self.use_hugepages and (self.shm_name or self.use_lazy):
            raise ValueError("use_hugepages takes memory that is neither shared nor lazy")


@dataclasses.dataclass
class MemoryLayoutDesc:
    """What an object holds: groups, each with a shape and a type of elements, torch's, numpy's or its name."""

    shapes: list
    dtypes: list

    def __post_init__(self):
        if len(self.shapes) != len(self.dtypes):
            raise ValueError("%d shapes and %d dtypes: each group has one of both" % (len(self.shapes), len(self.dtypes)))


#: Memory for others to register: its first address, its length, what objects are aligned to.
L1MemoryDesc = collections.namedtuple("L1MemoryDesc", "ptr size align_bytes")


class _Shortage(list):
    """No objects, and in `feasible` how many there could have been."""

    feasible = 0


class ObjectAllocator:
    """Objects on a slab of its own, by shapes and types of elements."""

    #: The class of its objects, and what their format is where nobody says.
    kind, fmt = MemoryObj, None

    def __init__(self, slab, align_bytes):
        self.slab = slab
        try:
            self.pool = _objects.Pool(slab, align_bytes, weakref.ref(self), self.kind)
        except (HbmallocError, ValueError):
            slab.close()
            raise
        self._layouts = {}

    def layout(self, shapes, dtypes):
        """The same layout for the same shapes and types."""
        key = (tuple(map(tuple, shapes)), tuple(map(type, shapes)), tuple(dtypes))
        found = self._layouts.get(key)
        if found is None:
            found = _objects.Layout(shapes, dtypes)
            if found.nbytes == 0:
                raise ValueError("a layout of 0 bytes: shapes %r" % (shapes,))
            if len(self._layouts) >= 256:
                self._layouts.clear()
            self._layouts[key] = found
        return found

    def allocate(self, shapes, dtypes, fmt=None, allocator_type=None):
        """One object, or None where memory has run out. A single shape and type stand for a list of one."""
        made = self.batched_allocate(shapes, dtypes, 1, fmt)
        return made[0] if made else None

    def batched_allocate(self, shapes, dtypes, batch_size, fmt=None, allocator_type=None):
        """As many objects, all or, as None, none."""
        if not isinstance(dtypes, (list, tuple)):
            shapes, dtypes = [shapes], [dtypes]
        try:
            return self.pool.allocate(self.layout(shapes, dtypes), batch_size, fmt)
        except OutOfMemoryError:
            return None

    def free(self, memory_obj, allocator_type=None):
        self.pool.free([memory_obj])

    def batched_free(self, memory_objs, allocator_type=None, update_stats=True):
        self.pool.free(memory_objs)

    def memcheck(self):
        """Whether all that is known of objects and memory agrees."""
        try:
            self.pool.check()
        except InternalError as error:
            logger.error("hbmalloc: %s", error)
            return False
        return True

    def get_memory_usage(self):
        """Bytes of objects, and bytes that there are so far."""
        usage = self.pool.usage()
        return usage.used, usage.total

    def close(self):
        """No more objects; memory is given back, where views are left with the last of them."""
        self.pool.close()


def create_memory_allocator(config):
    """What a manager of that configuration allocates from, lazy or not."""
    lazy = config.use_lazy
    if lazy and config.shm_name:
        raise ValueError("shared memory (shm_name) does not grow: set use_lazy=False")
    slab = Slab(
        config.size_in_bytes, initial=config.init_size_in_bytes if lazy else None,
        numa_node=getattr(config, "numa_node", None), huge_pages=config.use_hugepages, name=config.shm_name or None,
        pinned=getattr(config, "pinned", True), pace=getattr(config, "bytes_per_second", 0))
    return ObjectAllocator(slab, config.align_bytes)


class L1MemoryManager:
    """Batches of objects on one range of memory. Any thread; calls release Python's lock while they work."""

    errors = L1Error

    def __init__(self, config):
        self._allocator = create_memory_allocator(config)
        self._config = config

    def allocate(self, layout_desc, count):
        """(SUCCESS, `count` objects), or (OUT_OF_MEMORY, an empty list whose `feasible` says how many there could be).
        Raises ValueError for a layout of no bytes."""
        allocator = self._allocator
        layout = allocator.layout(layout_desc.shapes, layout_desc.dtypes)
        try:
            return self.errors.SUCCESS, allocator.pool.allocate(layout, count, allocator.fmt)
        except OutOfMemoryError as error:
            shortage = _Shortage()
            shortage.feasible = error.feasible
            return self.errors.OUT_OF_MEMORY, shortage

    def free(self, mem_objs):
        """SUCCESS, or KEY_IN_WRONG_STATE where one of them was freed before; the others are freed then too. What others
        refer to, pin or view is free memory once they do not."""
        try:
            self._allocator.pool.free(mem_objs)
        except NotOwnedError as error:
            logger.error("hbmalloc: %s", error)
            return self.errors.KEY_IN_WRONG_STATE
        return self.errors.SUCCESS

    def get_memory_usage(self):
        """Bytes of objects, and bytes that there are: of lazy memory, so far."""
        return self._allocator.get_memory_usage()

    def get_vm_space(self):
        """All its addresses, for registering: a flat tensor of bytes where torch is imported, else a memoryview. Neither moves
        nor changes while the manager lives; `slab.seams()` says where parts that are pinned meet."""
        view = self._allocator.slab.memoryview()
        torch = sys.modules.get("torch")
        return view if torch is None else torch.frombuffer(view, dtype=torch.uint8)

    def get_l1_memory_desc(self):
        """Its first address, length and alignment."""
        slab = self._allocator.slab
        return L1MemoryDesc(slab.address, slab.nbytes, self._config.align_bytes)

    @property
    def slab(self):
        """The memory itself: `progress()`, `wait()`, `seams()`, `shrink()`."""
        return self._allocator.slab

    def unpin_all(self, owner):
        """Takes all pins of an owner away, one that is gone, say; how many they were."""
        return self._allocator.pool.unpin_all(owner)

    def memcheck(self):
        """Whether all that is known of objects and memory agrees; what does not is logged."""
        return self._allocator.memcheck()

    def close(self):
        """Gives the memory back: at once, where views are left with the last of them."""
        self._allocator.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
        return False
