"""LMCache's L1MemoryManager on the library."""

from lmcache.v1.distributed.error import L1Error
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.memory_manager import L1MemoryManager

from ... import _l1
from ..._errors import NotOwnedError
from ._cache_allocators import create_memory_allocator


class CacheManager(_l1.L1MemoryManager, L1MemoryManager):
    """In place of LMCache's L1MemoryManager, with its configuration, its errors and objects that its code takes."""

    errors = L1Error

    def __init__(self, config):
        self._allocator, self._config = create_memory_allocator(config), config

    def get_memory_usage(self):
        """As LMCache's, whose gauges ask after it is closed too: then nothing."""
        try:
            return super().get_memory_usage()
        except NotOwnedError:
            return 0, 0

    def get_l1_memory_desc(self):
        """LMCache's description of its memory, in whole pages, since objects are in all of them; what may be registered for
        good is what is pinned so far, and nothing of shared memory."""
        slab = self.slab
        stable = None if getattr(self._allocator, "shm_name", None) else slab.ready
        return L1MemoryDesc(ptr=slab.address, size=slab.nbytes, align_bytes=self._config.align_bytes,
                            stable_registration_size=stable)
