"""Putting hbmalloc in LMCache's place.

Others hold LMCache's classes under many names, and ask whether an object is an instance of one. So the classes stay, and
what is made of them from now on is of a class of ours that derives from them. Its functions are looked up on one
object, where ours are put.
"""

import importlib
import inspect
import logging
import sys

from ._address_manager import AddressManager
from ._ownership import KINDS, Ownership

logger = logging.getLogger("hbmalloc")

_CORE = "lmcache.v1.memory_management"
_LAZY = "lmcache.v1.memory_allocators.lazy_memory_allocator"
_MIXED = "lmcache.v1.memory_allocators.mixed_memory_allocator"
_L1 = "lmcache.v1.distributed.memory_manager"
_L1_MODULE = _L1 + ".l1_memory_manager"

#: What LMCache must have, by module: names, and of what is called, its arguments.
_NEEDED = {
    _CORE: {
        "AddressManager": ("size", "align_bytes"), "MemoryFormat": None, "TensorMemoryObj": None,
        "MemoryObjMetadata": ("shape", "dtype", "address", "phy_size", "ref_count", "pin_count", "fmt", "shapes", "dtypes"),
    },
    _LAZY: {"LazyMemoryAllocator": ("init_size", "final_size", "align_bytes", "numa_mapping"), "get_numa_id": None},
    _MIXED: {"MixedMemoryAllocator": ("size",)},
    _L1: {"L1MemoryManager": ("config",), "create_memory_allocator": ("config",)},
    _L1_MODULE: {"L1MemoryManager": ("config",), "create_memory_allocator": ("config",)},
    "lmcache.v1.distributed.error": {"L1Error": None},
    "lmcache.v1.distributed.internal_api": {
        "L1MemoryDesc": ("ptr", "size", "align_bytes", "stable_registration_size")},
}
_FUNCTIONS = ["batched_memcpy"] + ["%s_%s_ptr" % (verb, kind) for verb in ("alloc", "free") for kind in KINDS]

#: What undoes what was done, the last first; None where nothing is installed.
_undo = None
_ownership = Ownership()


def _check():
    """LMCache's modules, or the RuntimeError that names what this version has not got."""
    try:
        lmcache = importlib.import_module("lmcache")
    except ImportError as error:
        raise RuntimeError("hbmalloc.compat.lmcache.install(): LMCache cannot be imported (%s): install it in %s" % (
            error, sys.executable)) from error
    missing, modules = [], {}
    for name, wanted in _NEEDED.items():
        try:
            modules[name] = module = importlib.import_module(name)
        except ImportError as error:
            missing.append("%s (%s)" % (name, error))
            continue
        for attribute, arguments in wanted.items():
            found = getattr(module, attribute, None)
            if found is None:
                missing.append("%s.%s" % (name, attribute))
            elif arguments and not set(arguments) <= set(inspect.signature(found).parameters):
                missing.append("%s.%s(%s)" % (name, attribute, ", ".join(arguments)))
    operations = getattr(lmcache, "device_ops", None)
    if operations is None:
        missing.append("lmcache.device_ops")
    else:
        missing += ["lmcache.device_ops.%s" % name for name in _FUNCTIONS if not hasattr(operations, name)]
    if missing:
        raise RuntimeError(
            "hbmalloc.compat.lmcache.install(): this LMCache, %s, has not got %s; nothing was changed. Known to work: 0.5.6" % (
                getattr(lmcache, "__version__", "of unknown version"), ", ".join(missing)))
    return lmcache, modules


def _put_new(theirs, new):
    # Whoever asks for the class's arguments is told those of its __init__.
    new.__wrapped__ = theirs.__init__
    theirs.__new__ = staticmethod(new)


def _redirect(theirs, ours, takes=lambda *_arguments, **_named: True):
    """From now on `theirs(...)` makes an `ours`, which derives from it, where that takes the arguments."""
    def new(cls, *arguments, **named):
        if cls is theirs and takes(*arguments, **named):
            return object.__new__(ours)
        return object.__new__(cls)

    def plain(cls, *_arguments, **_named):
        return object.__new__(cls)

    _put_new(theirs, new)
    # Not deleted: a class that had a __new__ refuses arguments without one.
    _undo.append(lambda: _put_new(theirs, plain))


def _rebind(name, theirs, ours):
    """Has every module that knows `theirs` by that name know `ours`."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is theirs:
            setattr(module, name, ours)
            _undo.append(lambda module=module: setattr(module, name, theirs))


def _put_functions(operations):
    # What it binds later would cover ours.
    getattr(operations, "ensure_native", lambda: None)()
    before = dict(vars(operations))
    ours = _ownership.functions(lambda name: getattr(operations, name))
    for name, function in ours.items():
        setattr(operations, name, function)

    def take_away():
        for name in ours:
            if name in before:
                setattr(operations, name, before[name])
            else:
                delattr(operations, name)

    _undo.append(take_away)


def _takes_lazy(takes_align):
    def takes(init_size, final_size, align_bytes=AddressManager.ALIGN_BYTES, numa_mapping=None):
        return takes_align(align_bytes)
    return takes


def install():
    """Puts hbmalloc's functions, address manager and first level in place of LMCache's, whose modules it imports.

    Works before LMCache is imported and after; what was made before stays LMCache's. Raises RuntimeError, with
    nothing changed, where LMCache has not got what is replaced. Calling it again does nothing. Makes no driver call.
    """
    global _undo
    if _undo is not None:
        return
    lmcache, modules = _check()
    # These import LMCache's names, which are known to be there only now.
    from . import _cache_allocators, _cache_manager

    addresses = modules[_CORE].AddressManager
    theirs = modules[_L1_MODULE]
    _undo = []
    try:
        _put_functions(lmcache.device_ops)
        _redirect(addresses, type("AddressManager", (AddressManager, addresses), {"__module__": __name__}))
        _redirect(modules[_LAZY].LazyMemoryAllocator, _cache_allocators.GrowingAllocator,
                  _takes_lazy(_cache_allocators.takes_align))
        _redirect(theirs.L1MemoryManager, _cache_manager.CacheManager,
                  lambda config: _cache_allocators.takes_align(config.align_bytes))
        _rebind("create_memory_allocator", _cache_allocators.theirs, _cache_allocators.create_memory_allocator)
    except BaseException:
        _take_back()
        raise


def _take_back():
    global _undo
    while _undo:
        _undo.pop()()
    _undo = None


def uninstall():
    """Puts LMCache's own back; managers and address managers that were made meanwhile stay hbmalloc's. Raises
    RuntimeError while memory of `device_ops` is in use, which LMCache's functions could not free."""
    if _undo is None:
        return
    in_use = _ownership.in_use()
    if in_use:
        raise RuntimeError("hbmalloc.compat.lmcache.uninstall(): %d blocks of lmcache.device_ops are in use: close the allocators "
                           "that have them first" % in_use)
    _take_back()


def is_installed():
    """Whether hbmalloc is in LMCache's place."""
    return _undo is not None
