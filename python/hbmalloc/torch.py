"""PyTorch on hbmalloc: as the allocator of every CUDA tensor, or of one MemPool.

    hbmalloc.torch.install()                             # before torch first uses CUDA
    with hbmalloc.torch.memory_pool(tag="kv"):           # beside torch's own allocator
        cache = torch.empty(...)

Nothing here starts CUDA but `memory_pool`, since a pool belongs to a device. What is
wrong with a call is said before anything changed.
"""

import ctypes
import os
import re
import threading
import warnings

from . import _library, _torch_refusals, _torch_statistics
from ._options import get_option, set_options

#: The torch releases this version was tested with; another one warns once.
TESTED = ("2.11",)

#: torch's setter: our function. All are needed; torch ignores record_stream, and so
#: hands memory out too early, where its hook is missing.
HOOKS = {
    "set_init_fn": "hbm_torch_init",
    "set_reset_fn": "hbm_torch_reset",
    "set_memory_fraction_fn": "hbm_torch_memory_fraction",
    "set_base_alloc_fn": "hbm_torch_base_alloc",
    "set_record_stream_fn": "hbm_torch_record_stream",
    "set_begin_allocate_to_pool": "hbm_torch_begin_allocate_to_pool",
    "set_end_allocate_to_pool_fn": "hbm_torch_end_allocate_to_pool",
    "set_release_pool": "hbm_torch_release_pool",
}

_lock = threading.RLock()
_installed = None  # (backend, pid of the process that installed, the allocator object)
_pool_allocators = {}  # (backend, tag): torch's allocator object; torch keeps raw pointers to it
_pool_class = None
_warned_version = False


def _torch():
    """torch, if it is one that we can serve."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeError("hbmalloc.torch needs PyTorch, which cannot be imported: %s" % error) from error
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        raise RuntimeError(
            "this PyTorch (%s) was built without CUDA: install a CUDA build of it, "
            "or use hbmalloc through its C interface" % torch.__version__)
    return torch


def _warn_untested(torch):
    global _warned_version
    match = re.match(r"\d+\.\d+", torch.__version__)
    if _warned_version or (match and match.group() in TESTED):
        return
    _warned_version = True
    warnings.warn(
        "hbmalloc was tested with PyTorch %s, not with %s; if something fails, "
        "try HBMALLOC_LOG=info and report both versions" % (" and ".join(TESTED), torch.__version__),
        RuntimeWarning, stacklevel=3)


def _refuse_fork(torch, what):
    """Raises in a child that was forked after CUDA was, or may have been, in use."""
    forked = _installed is not None and _installed[1] != os.getpid()
    if not forked:
        bad_fork = getattr(torch.cuda, "_is_in_bad_fork", None)
        forked = bool(bad_fork and bad_fork())
    if not forked:
        forked = bool(_library.library().hbm_forked())
    if forked:
        raise RuntimeError(
            "%s in a child forked after hbmalloc was installed or CUDA was used: CUDA does not survive a fork. "
            "Start the process with multiprocessing's 'spawn' or 'forkserver' method and call it there; "
            "forked DataLoader workers need no call as long as they touch no CUDA tensor" % what)


def _backend(backend):
    """The name of `backend`, checked; None is the option's."""
    _library.backend_number(backend)
    return backend if backend is not None else get_option("backend")


def _set_hooks(torch, allocator):
    missing = [setter for setter in HOOKS if not hasattr(allocator, setter)]
    if missing:
        raise RuntimeError(
            "PyTorch %s has no %s on its pluggable allocator, without which memory would be reused too early: "
            "use PyTorch %s or newer" % (torch.__version__, ", ".join(missing), TESTED[0]))
    for setter, function in HOOKS.items():
        getattr(allocator, setter)(_library.address(function))


def _hooked_allocator(torch, backend):
    """Torch's allocator object over our entry points, with all hooks; changes nothing by itself."""
    _library.library()  # opened and checked by us first, so that an error speaks of us
    prefix = backend or "hbm"
    made = torch.cuda.memory.CUDAPluggableAllocator(
        _library.get_library_path(), prefix + "_malloc", prefix + "_free")
    _set_hooks(torch, made._allocator)
    return made


def allocator(backend=None):
    """A `torch.cuda.memory.CUDAPluggableAllocator` on `backend`, with every hook of torch's set.

    For programs that call `torch.cuda.memory.change_current_allocator` themselves;
    `install` does it for the others. `backend` is "pool", "device", "managed", "async",
    "vmm", "pinned", or None for what the option `backend` names when memory is allocated.
    """
    torch = _torch()
    _library.backend_number(backend)
    _warn_untested(torch)
    made = _hooked_allocator(torch, backend)
    _library.library().hbm_torch_set_hooked(1)
    return made


def install(backend=None, **options):
    """Makes hbmalloc the allocator of every CUDA tensor of this process, from here on.

    Call it before torch first uses CUDA. `backend` is None for what the option `backend`
    names, which is the caching pool where nobody set it, or one of those that `allocator`
    takes. `options` are rows of the options table
    (`install("managed", prefetch_threshold="64MiB")`); a bad one raises and nothing is
    changed. Calling it again with the same backend does nothing. Torch's questions about
    memory (`torch.cuda.memory_stats` and its like) are then answered from hbmalloc's counts.
    """
    global _installed
    with _lock:
        torch = _torch()
        if backend is not None:
            _library.backend_number(backend)
            options = dict(options, backend=backend)
        _refuse_fork(torch, "hbmalloc.torch.install()")
        if _installed is not None:
            wanted = _backend(backend)
            if wanted != _installed[0]:
                raise RuntimeError(
                    "hbmalloc.torch.install(%r): %r is installed already and PyTorch's allocator cannot change "
                    "again; start another process for another backend" % (wanted, _installed[0]))
            set_options(options)
            return
        _refuse_used(torch)
        _warn_untested(torch)
        name = _backend(backend)
        made = _hooked_allocator(torch, name)
        set_options(options)
        _library.library().hbm_torch_set_hooked(1)
        torch.cuda.memory.change_current_allocator(made)
        _installed = (name, os.getpid(), made)
        _library.library().hbm_torch_serve_cache_info()  # where it cannot, the library warns
        _torch_statistics.serve(torch)
        _torch_refusals.refuse(torch)


def _refuse_used(torch):
    """Raises where torch has an allocator in use that cannot be swapped out."""
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "hbmalloc.torch.install() after PyTorch has used CUDA: its allocator can be chosen only before. "
            "Call install() right after `import torch`, before the first CUDA tensor, "
            "or keep PyTorch's allocator and use hbmalloc.torch.memory_pool()")
    if torch.cuda.memory.get_allocator_backend() == "pluggable":
        raise RuntimeError(
            "hbmalloc.torch.install(): another pluggable allocator is installed already. "
            "Remove that call, or keep that allocator and leave hbmalloc out")


def is_installed():
    """Whether `install` has made hbmalloc this process's allocator."""
    return _installed is not None and _installed[1] == os.getpid()


def memory_pool(backend=None, tag=None):
    """A `torch.cuda.MemPool` whose segments come from hbmalloc, for programs that keep torch's allocator.

    Use it as a context manager, or with `torch.cuda.use_mem_pool`. Torch caches on top,
    so its statistics, snapshots and graphs work as ever. `backend` is None for what the
    option `backend` names; where that is the caching pool, for what the pool is over, since
    what torch gives back could not go to its own allocator from there. `tag` names the
    memory in hbmalloc's records. Starts CUDA.
    """
    torch = _torch()
    with _lock:
        _refuse_fork(torch, "hbmalloc.torch.memory_pool()")
        if torch.cuda.memory.get_allocator_backend() == "pluggable":
            raise RuntimeError(
                "hbmalloc.torch.memory_pool() under a pluggable allocator, where PyTorch has no memory pools: "
                "%s" % ("after install() every tensor comes from hbmalloc already" if is_installed()
                        else "remove that allocator"))
        _warn_untested(torch)
        if not hasattr(torch.cuda, "MemPool"):
            raise RuntimeError("PyTorch %s has no torch.cuda.MemPool: use %s" % (torch.__version__, TESTED[0]))
        name = _backend(backend)
        if backend is None and name == "pool":
            name = get_option("pool_source")
        key = (name, tag)
        if key not in _pool_allocators:
            _pool_allocators[key] = _segment_allocator(torch, *key)
        torch.cuda.init()
        return _make_pool_class(torch)(_pool_allocators[key])


def _segment_allocator(torch, backend, tag):
    """Torch's allocator object over functions bound to `tag`, one a (backend, tag)."""
    malloc, free = ctypes.c_void_p(), ctypes.c_void_p()
    _library.check(
        _library.library().hbm_torch_segment_functions(
            _library.backend_number(backend), None if tag is None else _library.encoded("a tag's name", tag),
            ctypes.byref(malloc), ctypes.byref(free)),
        "memory_pool")
    return torch._C._cuda_customAllocator(malloc.value, free.value)


def _make_pool_class(torch):
    global _pool_class
    if _pool_class is None:

        class MemoryPool(torch.cuda.MemPool):
            """A torch.cuda.MemPool that is its own context manager, one thread at a time."""

            def __init__(self, allocator):
                super().__init__(allocator)
                self._entered = []

            def __enter__(self):
                use = torch.cuda.use_mem_pool(self)
                use.__enter__()
                self._entered.append(use)
                return self

            def __exit__(self, *exception):
                return self._entered.pop().__exit__(*exception)

        _pool_class = MemoryPool
    return _pool_class
