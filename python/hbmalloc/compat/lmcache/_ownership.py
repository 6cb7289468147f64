"""The functions of mem_alloc for a program in which LMCache's own gave memory out before: each address is freed by
whoever gave it out."""

import functools
import threading

from . import _mem_alloc

#: The kinds of memory: `alloc_<kind>_ptr` and `free_<kind>_ptr`.
KINDS = ("pinned", "numa", "pinned_numa", "hugepage_pinned", "hugepage_pinned_numa", "shm_pinned")


class Ownership:
    """Which addresses came from hbmalloc, and how many of them are not freed."""

    def __init__(self):
        self._lock = threading.Lock()
        #: Whether an address is in use now; those that were once stay, so that a second free is told.
        self._addresses = {}

    def in_use(self):
        """How many blocks there are."""
        return sum(self._addresses.values())

    def functions(self, theirs):
        """Our functions by name; `theirs` says LMCache's of a name."""
        made = {"batched_memcpy": _mem_alloc.batched_memcpy}
        for kind in KINDS:
            for verb, function in (("alloc", self._allocating), ("free", self._freeing)):
                name = "%s_%s_ptr" % (verb, kind)
                made[name] = function(getattr(_mem_alloc, name), theirs(name))
        return made

    def _allocating(self, ours, _theirs):
        @functools.wraps(ours)
        def allocate(*arguments, **named):
            address = ours(*arguments, **named)
            with self._lock:
                self._addresses[address] = True
            return address
        return allocate

    def _freeing(self, ours, theirs):
        @functools.wraps(ours)
        def free(ptr, *arguments, **named):
            if ptr not in self._addresses:
                return theirs(ptr, *arguments, **named)
            with self._lock:
                was_in_use, self._addresses[ptr] = self._addresses[ptr], False
            try:
                return ours(ptr, *arguments, **named)
            except BaseException:
                with self._lock:
                    self._addresses[ptr] = was_in_use
                raise
        return free
