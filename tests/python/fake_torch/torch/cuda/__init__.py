from . import memory
from .memory import *  # noqa: F403
from .memory import MemPool, _entered, use_mem_pool  # noqa: F401

_initialized = False


def init():
    global _initialized
    _initialized = True


def is_initialized():
    return _initialized


def _is_in_bad_fork():
    return False


def synchronize(device=None):
    pass


def mem_get_info(device=None):
    return memory.mem_get_info(device)
