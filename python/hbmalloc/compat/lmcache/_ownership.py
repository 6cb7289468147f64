"""The functions of mem_alloc for a program in which LMCache's own gave memory out before: each address is freed by
whoever gave it out."""

import functools
import threading

from . import _mem_alloc

#: The kinds of memory: `alloc_<kind>_ptr` and `free_<kind>_ptr`.
KINDS = ("pinned", "numa", "pinned_numa", "hugepage_pinned", "hugepage_pinned_numa", "shm_pinned")


class Ownership:
    """Which addresses came from hbmalloc, and how many of them are not freed.

    Between `end` and `begin` the functions hand on to LMCache's, whoever still has them.
    """

    def __init__(self):
        # The garbage collector may free a block of this thread's in the middle of anything.
        self._lock = threading.RLock()
        self._serves, self._under_way = False, 0
        #: Whether an address is in use now; those that were once stay, so that a second free is told.
        self._addresses = {}

    def begin(self):
        """From here on memory is hbmalloc's."""
        with self._lock:
            self._serves = True

    def end(self):
        """From here on memory is LMCache's, unless blocks are in use; how many there are."""
        with self._lock:
            in_use = sum(self._addresses.values()) + self._under_way
            if not in_use:
                self._serves = False
                # LMCache may be given the same ones.
                self._addresses.clear()
            return in_use

    def functions(self, theirs):
        """Our functions by name, from LMCache's."""
        made = {"batched_memcpy": self._copying(_mem_alloc.batched_memcpy, theirs["batched_memcpy"])}
        for kind in KINDS:
            for verb, function in (("alloc", self._allocating), ("free", self._freeing)):
                name = "%s_%s_ptr" % (verb, kind)
                made[name] = function(getattr(_mem_alloc, name), theirs[name])
        return made

    def _copying(self, ours, theirs):
        @functools.wraps(ours)
        def copy(*arguments, **named):
            return (ours if self._serves else theirs)(*arguments, **named)
        return copy

    def _allocating(self, ours, theirs):
        @functools.wraps(ours)
        def allocate(*arguments, **named):
            with self._lock:
                serves = self._serves
                self._under_way += serves
            if not serves:
                return theirs(*arguments, **named)
            try:
                address = ours(*arguments, **named)
                self._addresses[address] = True
                return address
            finally:
                with self._lock:
                    self._under_way -= 1
        return allocate

    def _freeing(self, ours, theirs):
        @functools.wraps(ours)
        def free(ptr, *arguments, **named):
            with self._lock:
                was_in_use = self._addresses.get(ptr)
                if was_in_use is not None:
                    self._addresses[ptr] = False
            if was_in_use is None:
                return theirs(ptr, *arguments, **named)
            try:
                return ours(ptr, *arguments, **named)
            except BaseException:
                with self._lock:
                    self._addresses[ptr] = was_in_use
                raise
        return free
