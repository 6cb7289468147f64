"""The objects of the first level of a cache, as LMCache's code takes them.

They are no instances of LMCache's classes, whose attributes would make each cost ten times as much; its code takes
them as such because they are registered there. What it writes on one is kept beside the object's batch.
"""

import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from ..._objects import MemoryObj


class _Note:
    """What LMCache wrote on an object."""

    __slots__ = ("metadata", "l1_manager")

    def __init__(self):
        self.metadata = self.l1_manager = None


class CacheObject(MemoryObj):
    """An object that LMCache's code takes for one of its own."""

    __slots__ = ()

    def _note(self):
        # One operation, since two threads may come at once.
        return self[2].notes.setdefault(self[3], _Note())

    @property
    def metadata(self):
        """LMCache's record of it. What is written to its format and positions stays; its counts are those of this moment."""
        note = self._note()
        if note.metadata is None:
            batch = self[2]
            layout = batch.layout
            made = MemoryObjMetadata(
                shape=torch.Size(layout.shapes[0]), dtype=layout.dtypes[0], address=self.shm_offset, phy_size=batch.size,
                ref_count=0, fmt=MemoryFormat.UNDEFINED if batch.fmt is None else batch.fmt,
                shapes=layout.shapes, dtypes=layout.dtypes)
            with batch.pool.lock:
                # What another thread made first may have been written to.
                note.metadata = note.metadata or made
        note.metadata.ref_count, note.metadata.pin_count = self._counts()
        return note.metadata

    meta = metadata

    def get_memory_format(self):
        return self.metadata.fmt

    def get_num_tokens(self):
        metadata = self.metadata
        return metadata.shape[metadata.fmt.token_dim()]

    @property
    def raw_data(self):
        return self.raw_tensor

    @property
    def group_prefix_sum(self):
        return self[2].layout.offsets

    @property
    def parent_allocator(self):
        return self.parent()

    def invalidate(self):
        """Frees it, as its allocator's `free` does."""
        self[2].pool.free([self])

    def set_l1_manager(self, owner_tag):
        """Says which manager it belongs to. Raises ValueError if it belongs to another."""
        note = self._note()
        if note.l1_manager not in (None, owner_tag):
            raise ValueError("%r belongs to the manager %r, not to %r: free it and allocate another" % (
                self, note.l1_manager, owner_tag))
        note.l1_manager = owner_tag

    def get_l1_manager(self):
        return self._note().l1_manager

    def reset_l1_manager(self):
        self._note().l1_manager = None


TensorMemoryObj.register(CacheObject)
