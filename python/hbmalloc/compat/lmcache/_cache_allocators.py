"""LMCache's lazy and eager allocators on slabs of the library: their memory, addresses and objects are ours.

They derive from LMCache's classes for the sake of its tests of what an allocator is, and take nothing from them.
"""

import torch
from lmcache.v1.distributed.memory_manager.l1_memory_manager import create_memory_allocator as theirs
from lmcache.v1.memory_allocators import lazy_memory_allocator as _lazy
from lmcache.v1.memory_allocators.mixed_memory_allocator import MixedMemoryAllocator
from lmcache.v1.memory_management import AddressManager, MemoryFormat

from ..._l1 import ObjectAllocator
from ..._slab import Slab
from . import _left_names
from ._cache_object import CacheObject

#: The alignments that a slab's objects have.
_LEAST_ALIGN, _MOST_ALIGN = 512, 2 << 20


def takes_align(align_bytes):
    """Whether objects of a slab can be aligned so."""
    return isinstance(align_bytes, int) and 0 < align_bytes <= _MOST_ALIGN and align_bytes & (align_bytes - 1) == 0


class _SlabAddresses(AddressManager):
    """How much of a slab is in use. Its addresses are given out with objects alone."""

    def __init__(self, allocator):
        self._allocator, self._align = allocator, allocator.pool.align

    @property
    def total_allocated_size(self):
        return self._allocator.pool.usage().used

    def get_heap_size(self):
        return self._allocator.pool.usage().total

    def get_free_size(self):
        usage = self._allocator.pool.usage()
        return usage.total - usage.used

    def check_consistency(self):
        return self._allocator.memcheck()

    def _refuse(self, *_arguments):
        raise RuntimeError("addresses of a slab are given out with objects: use the allocator's allocate and free")

    allocate = batched_allocate = free = sbrk = _refuse


class _CacheAllocator(ObjectAllocator):
    """What both have in common."""

    kind = CacheObject

    def __init__(self, slab, align_bytes):
        self.align_bytes = align_bytes
        super().__init__(slab, max(align_bytes, _LEAST_ALIGN))

    def batched_allocate(self, shapes, dtypes, batch_size, fmt=None, allocator_type=None):
        # As LMCache has it: either may be a single one.
        shapes = [shapes] if isinstance(shapes, torch.Size) else shapes
        dtypes = [dtypes] if isinstance(dtypes, torch.dtype) else dtypes
        return super().batched_allocate(shapes, dtypes, batch_size, self.fmt if fmt is None else fmt)

    @property
    def buffer(self):
        """All its addresses, as a tensor that keeps them; made anew each time."""
        return torch.frombuffer(self.slab.memoryview(), dtype=torch.uint8)

    @property
    def address_manager(self):
        return _SlabAddresses(self)


class GrowingAllocator(_CacheAllocator, _lazy.LazyMemoryAllocator):
    """In place of LazyMemoryAllocator: `init_size` bytes are pinned when it is made, up to `final_size` behind it.
    Where memory has run out while it grows, an allocation waits for it."""

    fmt = MemoryFormat.UNDEFINED

    def __init__(self, init_size, final_size, align_bytes=AddressManager.ALIGN_BYTES, numa_mapping=None):
        node = None if numa_mapping is None else _lazy.get_numa_id(numa_mapping)
        slab = Slab(final_size, initial=max(1, min(init_size, final_size)), numa_node=node)
        super().__init__(slab, align_bytes)

    def get_underlying_buffer(self):
        return self.buffer

    def get_address_manager(self):
        return self.address_manager


class PinnedAllocator(_CacheAllocator, MixedMemoryAllocator):
    """In place of the MixedMemoryAllocator of a first level: all memory is pinned when it is made."""

    fmt = MemoryFormat.KV_2LTD

    def __init__(self, size, align_bytes=AddressManager.ALIGN_BYTES, shm_name=None, use_hugepages=False):
        self.size, self.shm_name, self.use_hugepages, self.numa_mapping = size, shm_name, use_hugepages, None
        super().__init__(Slab(size, huge_pages=use_hugepages, name=shm_name), align_bytes)

    @property
    def pin_allocator(self):
        return self


def create_memory_allocator(config):
    """In place of LMCache's: the allocator of that configuration, lazy or not."""
    if not takes_align(config.align_bytes):
        return theirs(config)
    if config.use_lazy:
        return GrowingAllocator(config.init_size_in_bytes, config.size_in_bytes, config.align_bytes)
    name = config.shm_name
    if name:
        if not name.lstrip("/").startswith(_left_names.PREFIX):
            # As its workers know it.
            name = _left_names.PREFIX + name.lstrip("/")
        _left_names.remove_left(name)
    return PinnedAllocator(config.size_in_bytes, config.align_bytes, name or None, config.use_hugepages)
