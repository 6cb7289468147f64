"""Putting hbmalloc in LMCache's place.

Others hold LMCache's classes under many names, and ask whether an object is an instance of one. So the classes stay, and
what is made of them from now on is of a class of ours that derives from them. Its functions are looked up on one
object, where ours are put.
"""

import contextlib
import functools
import importlib
import inspect
import sys
import threading

from ._address_manager import AddressManager
from ._ownership import KINDS, Ownership

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
_PACKAGE = __name__.rpartition(".")[0]

_lock = threading.RLock()
#: What undoes what was done; None where nothing is installed.
_installed = None
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


def _redirect(undo, theirs, ours, takes=lambda *_arguments, **_named: True):
    """From now on `theirs(...)` makes an `ours`, which derives from it, where that takes the arguments."""
    def is_for_ours(arguments, named):
        try:
            return takes(*arguments, **named)
        except TypeError:
            # They are not the class's arguments, as its __init__ says.
            return False

    def new(cls, *arguments, **named):
        if cls is theirs and is_for_ours(arguments, named):
            return object.__new__(ours)
        return object.__new__(cls)

    def plain(cls, *_arguments, **_named):
        return object.__new__(cls)

    # Not deleted: a class that had a __new__ refuses arguments without one.
    undo.callback(_put_new, theirs, plain)
    _put_new(theirs, new)


def _rebind(pairs):
    """Has every module that knows the first of a pair, under whatever name, know the second."""
    known = {id(old): new for old, new in pairs}
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if str(names.get("__name__")).startswith(_PACKAGE):
            continue
        for name, value in list(names.items()):
            if id(value) in known:
                setattr(module, name, known[id(value)])


def _put_functions(undo, operations):
    # What it binds later would cover ours.
    getattr(operations, "ensure_native", lambda: None)()
    before, theirs = dict(vars(operations)), {name: getattr(operations, name) for name in _FUNCTIONS}
    ours = _ownership.functions(theirs)

    def take_away():
        for name in ours:
            if name in before:
                setattr(operations, name, before[name])
            else:
                delattr(operations, name)

    undo.callback(_rebind, [(ours[name], theirs[name]) for name in ours])
    undo.callback(take_away)
    for name, function in ours.items():
        setattr(operations, name, function)


def _put_create(undo, ours, theirs):
    @functools.wraps(ours)
    def create(config):
        # Whoever still has it once it is taken back makes LMCache's.
        return (ours if is_installed() else theirs)(config)

    undo.callback(_rebind, [(create, theirs)])
    _rebind([(theirs, create)])


def _takes_lazy(takes_align):
    def takes(init_size, final_size, align_bytes=AddressManager.ALIGN_BYTES, numa_mapping=None):
        return takes_align(align_bytes)
    return takes


def install():
    """Puts hbmalloc's functions, address manager and first level in place of LMCache's, whose modules it imports.

    Works before LMCache is imported and after; what was made before stays LMCache's. Raises RuntimeError, with
    nothing changed, where LMCache has not got what is replaced. Calling it again does nothing. Makes no driver call.
    Any thread.
    """
    global _installed
    if is_installed():
        return
    # Before the lock: who imports a module may wait for another thread that calls this.
    lmcache, modules = _check()
    # These import LMCache's names, which are known to be there only now.
    from . import _cache_allocators, _cache_manager

    addresses = modules[_CORE].AddressManager
    theirs = modules[_L1_MODULE]
    with _lock:
        if is_installed():
            return
        with contextlib.ExitStack() as undo:
            _put_functions(undo, lmcache.device_ops)
            _redirect(undo, addresses, type("AddressManager", (AddressManager, addresses), {"__module__": __name__}))
            _redirect(undo, modules[_LAZY].LazyMemoryAllocator, _cache_allocators.GrowingAllocator,
                      _takes_lazy(_cache_allocators.takes_align))
            _redirect(undo, theirs.L1MemoryManager, _cache_manager.CacheManager,
                      lambda config: _cache_allocators.takes_align(config.align_bytes))
            _put_create(undo, _cache_allocators.create_memory_allocator, _cache_allocators.theirs)
            _ownership.begin()
            _installed = undo.pop_all()


def uninstall():
    """Puts LMCache's own back; managers and address managers that were made meanwhile stay hbmalloc's.

    Names of modules that were bound meanwhile are LMCache's again too. What else keeps our functions (objects, default
    arguments, closures) calls LMCache's through them. Raises RuntimeError while memory of `device_ops` is in use, which
    LMCache's functions could not free.
    """
    global _installed
    with _lock:
        if not is_installed():
            return
        in_use = _ownership.end()
        if in_use:
            raise RuntimeError("hbmalloc.compat.lmcache.uninstall(): %d blocks of lmcache.device_ops are in use: close the "
                               "allocators that have them first" % in_use)
        undo, _installed = _installed, None
        undo.close()


def is_installed():
    """Whether hbmalloc is in LMCache's place."""
    return _installed is not None
