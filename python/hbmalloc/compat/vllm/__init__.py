"""vLLM's sleep mode over hbmalloc: its native module, and its Python class.

`install()` puts both in place of vLLM's; vLLM does so by itself in every process that it
starts when `HBMALLOC_VLLM=1`. `python -m hbmalloc.compat.vllm check` shows that it works.
"""

import importlib.abc
import importlib.machinery
import os
import sys

from . import _native
from ._cells import counters

__all__ = ["counters", "install", "is_installed", "plugin"]

_NATIVE = _native.NAME
_CLASS = "vllm.device_allocator.cumem"

#: What vLLM's module keeps of the native one.
_NATIVE_NAMES = ("init_module", "python_create_and_map", "python_unmap_and_release")
#: What others take from vLLM's module.
_CLASS_NAMES = _NATIVE_NAMES + (
    "CuMemAllocator", "create_and_map", "unmap_and_release", "get_pluggable_allocator",
    "use_memory_pool_with_allocator", "lib_name", "cumem_available")


def _refuse_late(theirs, native, native_only):
    """Raises where memory was given out that our modules would know nothing of."""
    if getattr(getattr(theirs, "CuMemAllocator", None), "instance", None) is not None:
        raise RuntimeError(
            "hbmalloc.compat.vllm.install() after vLLM's CuMemAllocator was made: memory may be in use that hbmalloc "
            "does not know. Call it before the engine is made, or start vLLM with HBMALLOC_VLLM=1")
    loaded = sys.modules.get(_NATIVE)
    if native_only and theirs is None and loaded not in (None, native):
        raise RuntimeError(
            "hbmalloc.compat.vllm.install(native_only=True) after vllm.cumem_allocator was imported: vLLM's class takes "
            "the first such file in the process. Call it before vLLM is imported, or start vLLM with HBMALLOC_VLLM=1")


class _InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers imports of vLLM's names with our modules, the packages around them being vLLM's still."""

    modules = {}

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=self.modules[name].__file__)

    def create_module(self, spec):
        module = self.modules[spec.name]
        # The import system is about to write its own here.
        self._spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec


_finder = _InPlace()


def _put(name, module):
    """Has `name` mean `module`, from now on if its package is there, else when it is imported."""
    _finder.modules[name] = module
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        sys.modules[name] = module
        setattr(sys.modules[parent], child, module)
    else:
        sys.modules.pop(name, None)


def install(native_only=False):
    """Puts hbmalloc's `vllm.cumem_allocator` and `vllm.device_allocator.cumem` in place of vLLM's.

    Works before vLLM is imported and after, until its allocator is made; then it raises.
    With `native_only` vLLM keeps its own class, over hbmalloc's native module. Calling it
    again does nothing. Needs libhbmalloc, and makes no driver call.
    """
    native = _native.load()
    theirs = sys.modules.get(_CLASS)
    is_native = _finder.modules.get(_NATIVE) is native
    if native_only:
        if is_installed():
            raise RuntimeError("hbmalloc.compat.vllm.install(native_only=True): hbmalloc's class is installed already")
        if is_native and (theirs is None or theirs.init_module is native.init_module):
            return
        _refuse_late(theirs, native, True)
        _put(_NATIVE, native)
        if theirs is not None:
            for name in _NATIVE_NAMES:
                setattr(theirs, name, getattr(native, name))
            theirs.lib_name, theirs.cumem_available = native.__file__, True
        return
    from . import cumem

    if is_native and is_installed():
        return
    if theirs is not cumem:
        _refuse_late(theirs, native, False)
    _put(_NATIVE, native)
    _put(_CLASS, cumem)
    if theirs not in (None, cumem):
        # Whoever took the class from there keeps it, and asks it for the instance.
        if hasattr(theirs, "CuMemAllocator"):
            theirs.CuMemAllocator.get_instance = staticmethod(cumem.CuMemAllocator.get_instance)
        for name in _CLASS_NAMES:
            setattr(theirs, name, getattr(cumem, name))


def is_installed():
    """Whether hbmalloc's class is in place of vLLM's."""
    return _CLASS in _finder.modules


def plugin():
    """What vLLM runs in each of its processes: installs where `HBMALLOC_VLLM` is 1, or native."""
    wanted = os.environ.get("HBMALLOC_VLLM", "")
    if wanted in ("", "0"):
        return
    if wanted not in ("1", "native"):
        raise ValueError("HBMALLOC_VLLM is %r: 1 for hbmalloc's native module and class, native for the module "
                         "alone, 0 for neither" % wanted)
    install(native_only=wanted == "native")
