import contextlib

from . import memory
from .memory import *  # noqa: F403

_initialized = False
_entered = []


def init():
    global _initialized
    _initialized = True


def is_initialized():
    return _initialized


def _is_in_bad_fork():
    return False


class MemPool:
    def __init__(self, allocator=None, use_on_oom=False, no_split=False):
        if memory.current is not None:
            raise RuntimeError("the pluggable allocator does not yet support createOrIncrefPool")
        assert _initialized, "Allocator not initialized for device"
        self.allocator = allocator
        self.id = (0, 1)


@contextlib.contextmanager
def use_mem_pool(pool, device=None):
    _entered.append(pool)
    try:
        yield
    finally:
        assert _entered.pop() is pool
