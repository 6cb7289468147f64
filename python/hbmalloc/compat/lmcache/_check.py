"""Whether LMCache's host memory is hbmalloc's on this machine: allocated and freed through LMCache's own names."""

from ... import get_library_path, host
from .._checking import installed_version
from ._install import install


def _require(condition, text):
    if not condition:
        raise AssertionError(text)


def _fill(objects):
    for number, found in enumerate(objects):
        found.tensor.fill_(number)
    for number, found in enumerate(objects):
        _require(bool((found.tensor == number).all()), "what was written to object %d has changed" % number)


def _try_manager(size, lazy):
    """A first level of the cache by LMCache's names; which class served."""
    import torch
    from lmcache.v1.distributed.api import MemoryLayoutDesc
    from lmcache.v1.distributed.config import L1MemoryManagerConfig
    from lmcache.v1.distributed.error import L1Error
    from lmcache.v1.distributed.memory_manager import L1MemoryManager

    config = L1MemoryManagerConfig(size_in_bytes=size, use_lazy=lazy, init_size_in_bytes=size // 4, shm_name="")
    # Without a GPU LMCache's configuration takes it away; this memory does not need LMCache's way of pinning.
    config.use_lazy = lazy
    before = host.blocks()
    manager = L1MemoryManager(config)
    layout = MemoryLayoutDesc(shapes=[torch.Size([2, 32, 128])], dtypes=[torch.float16])
    error, objects = manager.allocate(layout, count=10)
    _require(error == L1Error.SUCCESS and len(objects) == 10, "10 objects were asked for: %s" % error)
    _fill(objects)
    now, (used, _) = host.blocks(), manager.get_memory_usage()
    _require(now["blocks"] == before["blocks"] + 1 and now["pinned"] > before["pinned"],
             "no memory of hbmalloc's was pinned for %s" % type(manager))
    _require(used >= 10 * objects[0].get_size(), "10 objects are in use, and %d bytes" % used)
    _require(manager.memcheck(), "memcheck() finds damage")
    manager.free(objects)
    _require(manager.get_memory_usage()[0] == 0, "bytes are in use after all was freed")
    del objects
    manager.close()
    _require(host.blocks() == before, "memory stayed after close()")
    return type(manager), now["pinned"] - before["pinned"]


def _try_mixed(size):
    """An allocator of LMCache's own on our functions; which address manager served."""
    import torch
    from lmcache.v1.memory_allocators.mixed_memory_allocator import MixedMemoryAllocator

    before = host.blocks()
    allocator = MixedMemoryAllocator(size)
    addresses = allocator.pin_allocator.address_manager
    objects = allocator.batched_allocate(torch.Size([2, 4, 16, 64]), torch.bfloat16, 8)
    _require(objects is not None, "8 objects were asked for, there are none")
    _fill(objects)
    now = host.blocks()
    _require(now["pinned"] - before["pinned"] >= size, "no memory of hbmalloc's was pinned for MixedMemoryAllocator")
    _require(addresses.total_allocated_size == 8 * objects[0].get_physical_size() and allocator.memcheck(),
             "addresses do not agree: %d bytes in use" % addresses.total_allocated_size)
    allocator.batched_free(objects)
    _require(addresses.total_allocated_size == 0, "addresses are in use after all was freed")
    allocator.close()
    _require(host.blocks() == before, "memory stayed after close()")
    return type(addresses), now["pinned"] - before["pinned"]


def _name(served):
    return "%s.%s" % (served.__module__, served.__qualname__)


def check(size):
    """Allocates and frees `size` bytes in every way; 0 if hbmalloc serves all of them, else 1."""
    version = installed_version("LMCache", "lmcache")
    if version is None:
        return 1
    try:
        install()
    except RuntimeError as error:
        print("LMCache %s: %s" % (version, error))
        return 1
    import lmcache

    print("LMCache %s, device %s, %s" % (version, lmcache.torch_device_type, get_library_path()))
    failed = 0
    for text, attempt in (
        ("L1MemoryManager, lazy", lambda: _try_manager(size, True)),
        ("L1MemoryManager, eager", lambda: _try_manager(size, False)),
        ("MixedMemoryAllocator, its functions and addresses", lambda: _try_mixed(size)),
    ):
        try:
            served, pinned = attempt()
            _require(served.__module__.startswith("hbmalloc."), "%s served" % _name(served))
            print("  PASS %s: %s, %d bytes pinned by hbmalloc" % (text, _name(served), pinned))
        # Whatever it is, the next one is tried: LMCache's own code may fail too.
        except Exception as error:
            failed += 1
            print("  FAIL %s: %s: %s" % (text, type(error).__name__, error))
    return 1 if failed else 0
