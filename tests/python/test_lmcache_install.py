"""hbmalloc in LMCache's place: LMCache's own code runs on it, and our counters move.

LMCache itself is run where it is installed, with torch, on the simulated driver. What it is
compared with is LMCache before install(), in the same process.
"""

import importlib.util

import pytest

_MISSING = [name for name in ("lmcache", "torch") if importlib.util.find_spec(name) is None]
needs_lmcache = pytest.mark.skipif(bool(_MISSING), reason="not installed here: %s" % " and ".join(_MISSING))

COMMON = """
import gc, random
from hbmalloc import host
from hbmalloc.compat import lmcache as compat
def raises(error, call, *arguments, text=""):
    try:
        call(*arguments)
    except error as raised:
        assert text in str(raised), raised
        return raised
    raise SystemExit("no %s" % error.__name__)
def pinned():
    return host.blocks()["pinned"]
def is_ours(found):
    return type(found).__module__.startswith("hbmalloc.")
"""

NAMES = COMMON + """
import torch, lmcache
from lmcache.v1 import memory_management as core
from lmcache.v1.distributed import memory_manager as l1
from lmcache.v1.distributed.api import L1BackendType, MemoryLayoutDesc
from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.memory_allocators.lazy_memory_allocator import LazyMemoryAllocator
from lmcache.v1.memory_allocators.mixed_memory_allocator import MixedMemoryAllocator
from lmcache.v1.memory_allocators.tensor_memory_allocator import TensorMemoryAllocator
MIB = 1 << 20
LAYOUT = MemoryLayoutDesc(shapes=[torch.Size([2, 32, 128])], dtypes=[torch.float16])
def configured(size, lazy, **more):
    more.setdefault("shm_name", "")
    config = L1MemoryManagerConfig(size_in_bytes=size, use_lazy=lazy, **more)
    # Without a GPU LMCache takes it away.
    config.use_lazy = lazy
    return config
"""

INSTALLED = NAMES + "compat.install()\n"


def test_without_lmcache(run):
    """Needs neither LMCache nor the library."""
    run(COMMON + """
import sys
assert "lmcache" not in sys.modules and "torch" not in sys.modules
sys.modules["lmcache"] = None
raises(RuntimeError, compat.install, text="LMCache cannot be imported")
assert not compat.is_installed()
compat.uninstall()
import importlib.util
from hbmalloc.compat.lmcache import _check
importlib.util.find_spec = lambda name: None
assert _check.check(1 << 24) == 1
""")


@needs_lmcache
def test_what_is_missing_is_named_and_nothing_changed(sim):
    sim(NAMES + """
from lmcache.v1.memory_allocators import lazy_memory_allocator
from lmcache.v1.distributed import internal_api
kept = lazy_memory_allocator.get_numa_id, internal_api.L1MemoryDesc
del lazy_memory_allocator.get_numa_id
class L1MemoryDesc:
    def __init__(self, ptr, size):
        pass
internal_api.L1MemoryDesc = L1MemoryDesc
error = raises(RuntimeError, compat.install, text="nothing was changed")
assert "lazy_memory_allocator.get_numa_id" in str(error), error
assert "internal_api.L1MemoryDesc(ptr, size, align_bytes, stable_registration_size)" in str(error), error
assert "AddressManager" not in str(error) and lmcache.__version__ in str(error)
assert not compat.is_installed() and "alloc_pinned_ptr" not in vars(lmcache.device_ops)
assert type(core.AddressManager(4096)) is core.AddressManager
lazy_memory_allocator.get_numa_id, internal_api.L1MemoryDesc = kept
compat.install()
assert compat.is_installed() and is_ours(core.AddressManager(4096))
""")


@needs_lmcache
@pytest.mark.parametrize("first", ["before", "after"])
def test_install_and_uninstall(sim, first):
    """Before LMCache is imported and after, twice, back, and again; what was made meanwhile works on."""
    start = COMMON + "compat.install()\n" + NAMES if first == "before" else NAMES + """
create = l1.create_memory_allocator
mine = create
"""
    sim(start + """
if not compat.is_installed():
    old_addresses, old_mixed = core.AddressManager(1 << 20), MixedMemoryAllocator(MIB)
    assert not is_ours(old_addresses) and pinned() == 0
    compat.install()
    # Whatever a module calls it.
    assert l1.create_memory_allocator is l1.l1_memory_manager.create_memory_allocator is mine
    assert old_addresses.allocate(1) == (0, 4096)
    # LMCache's memory goes back to LMCache.
    old_mixed.close()
else:
    create = None
compat.install()
functions = dict(vars(lmcache.device_ops))
assert len([name for name in functions if name.endswith("_ptr")]) == 12 and "batched_memcpy" in functions
compat.install()
assert dict(vars(lmcache.device_ops)) == functions
assert is_ours(core.AddressManager(1 << 20)) and isinstance(core.AddressManager(1 << 20), core.AddressManager)
manager = l1.L1MemoryManager(configured(16 * MIB, False))
assert is_ours(manager) and isinstance(manager, l1.L1MemoryManager) and pinned() == 16 * MIB
mixed = MixedMemoryAllocator(MIB)
raises(RuntimeError, compat.uninstall, text="1 blocks")
assert compat.is_installed()
mixed.close()
compat.uninstall()
compat.uninstall()
assert not compat.is_installed() and "alloc_pinned_ptr" not in vars(lmcache.device_ops)
assert create is None or l1.create_memory_allocator is create is mine
assert type(core.AddressManager(1 << 20)) is core.AddressManager
theirs = l1.L1MemoryManager(configured(16 * MIB, False))
assert not is_ours(theirs) and pinned() == 16 * MIB
theirs.close()
error, objects = manager.allocate(LAYOUT, 3)
assert error == L1Error.SUCCESS
manager.free(objects)
del objects
manager.close()
assert pinned() == 0
compat.install()
assert is_ours(core.AddressManager(1 << 20))
""")


@needs_lmcache
def test_names_bound_after_install(sim):
    """Those of modules are LMCache's again after uninstall(); what else has our functions calls LMCache's."""
    sim(NAMES + """
import sys, types
class Before:
    create = staticmethod(l1.create_memory_allocator)
freed, given = [], 0
lmcache.device_ops.alloc_pinned_ptr = lambda size, flags=0: given
lmcache.device_ops.free_pinned_ptr = freed.append
theirs, their_free = lmcache.device_ops.alloc_pinned_ptr, lmcache.device_ops.free_pinned_ptr
compat.install()
module = sys.modules["other"] = types.ModuleType("other")
exec('''
from lmcache import device_ops
from lmcache.v1.distributed.memory_manager import create_memory_allocator as create
from hbmalloc.compat.lmcache import batched_memcpy as own
alloc, free, copy = device_ops.alloc_pinned_ptr, device_ops.free_pinned_ptr, device_ops.batched_memcpy
''', vars(module))
class Keeps:
    create, alloc, free, copy = map(staticmethod, (module.create, module.alloc, module.free, module.copy))
assert is_ours(Keeps.create(configured(MIB, False))) and module.create is not Before.create
gc.collect()
given = Keeps.alloc(MIB, 0)
assert pinned() == MIB and given
Keeps.free(given)
compat.uninstall()
assert module.create is Before.create is l1.create_memory_allocator
assert module.alloc is theirs is lmcache.device_ops.alloc_pinned_ptr
assert module.free is their_free is lmcache.device_ops.free_pinned_ptr
assert module.copy == lmcache.device_ops.batched_memcpy and module.own is compat.batched_memcpy
made = Keeps.create(configured(MIB, False))
assert type(made) is MixedMemoryAllocator and not is_ours(made.pin_allocator.address_manager)
# LMCache may have the same address now.
assert Keeps.alloc(MIB, 0) == given == module.alloc(MIB, 0)
Keeps.free(given)
raises(ValueError, Keeps.copy, [1], [], [1])
compat.install()
lmcache.device_ops.free_pinned_ptr(given)
assert freed == [given] * 2 and pinned() == 0
""")


@needs_lmcache
def test_threads_install_and_uninstall(sim):
    sim(NAMES + """
import threading, time
from hbmalloc.compat.lmcache import _install, _mem_alloc
def at_once(call):
    start, failures = threading.Barrier(8), []
    def work():
        start.wait()
        try:
            call()
        except Exception as error:
            failures.append(error)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failures, failures
put, makes, go = _install._put_functions, threading.Event(), threading.Event()
_install._put_functions = lambda *arguments: (time.sleep(0.1), put(*arguments))
create = l1.create_memory_allocator
for _ in range(3):
    at_once(compat.install)
    assert is_ours(core.AddressManager(4096)) and "alloc_pinned_ptr" in vars(lmcache.device_ops)
    at_once(compat.uninstall)
    assert type(core.AddressManager(4096)) is core.AddressManager and "alloc_pinned_ptr" not in vars(lmcache.device_ops)
    assert create is l1.l1_memory_manager.create_memory_allocator
# A block that is only being made is in use.
alloc = _mem_alloc.alloc_pinned_ptr
_mem_alloc.alloc_pinned_ptr = lambda *arguments: (makes.set(), go.wait(), alloc(*arguments))[2]
compat.install()
found = []
thread = threading.Thread(target=lambda: found.append(lmcache.device_ops.alloc_pinned_ptr(MIB, 0)))
thread.start()
makes.wait()
raises(RuntimeError, compat.uninstall, text="1 blocks")
go.set()
thread.join()
raises(RuntimeError, compat.uninstall, text="1 blocks")
# As a finalizer that comes in the middle of it.
with _install._ownership._lock:
    lmcache.device_ops.free_pinned_ptr(found[0])
compat.uninstall()
""")


@needs_lmcache
def test_wrong_arguments(sim):
    """Are told by the class that was called, as without hbmalloc."""
    sim(NAMES + """
calls = [(l1.L1MemoryManager,), (LazyMemoryAllocator, MIB), (core.AddressManager,), (core.AddressManager, 1, 2, 3)]
before = [str(raises(TypeError, *call)) for call in calls]
compat.install()
now = [str(raises(TypeError, *call)) for call in calls]
assert now == before, (now, before)
""")


@needs_lmcache
def test_functions(sim):
    sim(INSTALLED + """
address = lmcache.device_ops.alloc_pinned_ptr(MIB, 0)
assert pinned() == MIB
raises(RuntimeError, lmcache.device_ops.free_pinned_numa_ptr, address, MIB, text="was given out by")
lmcache.device_ops.free_pinned_ptr(address)
raises(RuntimeError, lmcache.device_ops.free_pinned_ptr, address)
raises(ValueError, lmcache.device_ops.batched_memcpy, [1], [], [1])
assert host.blocks()["blocks"] == 0
raises(RuntimeError, MixedMemoryAllocator, 1 << 46)
""")


@needs_lmcache
def test_the_example(sim):
    """As every user starts: 64 GiB, lazy."""
    sim(COMMON + "compat.install()\n" + """
import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc
from lmcache.v1.distributed.config import L1MemoryManagerConfig
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.distributed.memory_manager import L1MemoryManager
config = L1MemoryManagerConfig(size_in_bytes=64 * (1 << 30), use_lazy=True)
# Without a GPU LMCache takes it away; 20 GiB at first would be simulated with memory of this machine.
config.use_lazy, config.init_size_in_bytes = True, 64 << 20
manager = L1MemoryManager(config)
layout = MemoryLayoutDesc(shapes=[torch.Size([2, 32, 128])], dtypes=[torch.float16])
error, objs = manager.allocate(layout, count=10)
assert error == L1Error.SUCCESS and len(objs) == 10
used, total = manager.get_memory_usage()
assert used == 10 * 16384 and 64 << 20 <= total <= 64 << 30
assert pinned() >= 64 << 20
assert manager.free(objs) == L1Error.SUCCESS
manager.close()
assert manager.get_memory_usage() == (0, 0)
del objs
gc.collect()
assert host.blocks()["blocks"] == 0
""")


@needs_lmcache
@pytest.mark.parametrize("lazy", [True, False])
def test_manager_beside_lmcaches(sim, lazy):
    """The same calls go to LMCache's eager manager and to ours; what both answer is compared."""
    sim(NAMES + """
lazy = %r
theirs = l1.L1MemoryManager(configured(8 * MIB, False))
compat.install()
ours = l1.L1MemoryManager(configured(8 * MIB, lazy, init_size_in_bytes=8 * MIB))
assert is_ours(ours) and not is_ours(theirs) and pinned() == 8 * MIB
assert isinstance(ours._allocator, LazyMemoryAllocator if lazy else MixedMemoryAllocator)
rng, live = random.Random(5), []
layouts = [
    MemoryLayoutDesc([torch.Size(shape) for shape in shapes], list(dtypes)) for shapes, dtypes in (
        ([(2, 32, 128)], [torch.float16]), ([(3, 5)], [torch.float32]), ([(2, 4, 16, 64), (7,)], [torch.bfloat16, torch.uint8]),
        ([(2, 100, 1000)], [torch.int64]))]
def told(found):
    # LMCache's `tensor` is of objects with one group alone.
    metadata, tensor = found.metadata, found.get_tensor(0)
    answers = [metadata.shape, metadata.dtype, metadata.phy_size, metadata.ref_count, metadata.pin_count, metadata.shapes,
               metadata.dtypes, metadata.get_size(), metadata.address %% 4096, found.data_ptr %% 4096, found.shm_byte_length,
               found.get_size(), found.get_physical_size(), found.get_shape(), found.get_dtype(), found.get_shapes(),
               found.get_dtypes(), found.is_valid(), found.is_pinned, found.get_l1_manager(), found.group_prefix_sum,
               tensor.shape, tensor.dtype, len(found.byte_array), found.raw_tensor.numel(), found.raw_data.numel(),
               [found.get_tensor(group).shape for group in range(len(found.get_shapes()))],
               isinstance(found, core.MemoryObj), isinstance(found, core.TensorMemoryObj)]
    if not lazy:
        answers += [metadata.to_dict()["fmt"], found.get_memory_format(), found.get_num_tokens() if len(metadata.shape) > 2 else 0]
    return answers
for step in range(400):
    if rng.random() < 0.55:
        layout, count = rng.choice(layouts), rng.choice((0, 1, 3, 8))
        (error, mine), (their_error, other) = ours.allocate(layout, count), theirs.allocate(layout, count)
        # Where memory is short, ours may still find room, and theirs may.
        if error != their_error:
            (ours.free(mine), theirs.free(other))
            continue
        assert len(mine) == len(other)
        for one, two in zip(mine, other):
            if rng.random() < 0.1:
                assert told(one) == told(two), (told(one), told(two))
            number = rng.randrange(100)
            one.get_tensor(0).fill_(number)
            live.append((one, two, number))
    elif live:
        rng.shuffle(live)
        count = min(len(live), rng.randint(1, 4))
        gone = [live.pop() for _ in range(count)]
        for one, _, number in gone:
            assert bool((one.get_tensor(0) == number).all()) and one.parent() is ours._allocator
        assert ours.free([one for one, _, _ in gone]) == theirs.free([two for _, two, _ in gone]) == L1Error.SUCCESS
        for pair in gone:
            assert [found.is_valid() for found in pair[:2]] == [False, False], (step, pair, [f.get_ref_count() for f in pair[:2]], len(gone))
    gone = one = two = mine = other = None
    assert ours.get_memory_usage() == theirs.get_memory_usage(), step
assert live and ours.memcheck() and theirs.memcheck()
raises(ValueError, ours.allocate, MemoryLayoutDesc([torch.Size([0])], [torch.uint8]), 1)
raises(ValueError, theirs.allocate, MemoryLayoutDesc([torch.Size([0])], [torch.uint8]), 1)
error, none = ours.allocate(layouts[3], 100)
assert error == L1Error.OUT_OF_MEMORY and none == [] and none.feasible < 6
mine, other = ours.get_l1_memory_desc(), theirs.get_l1_memory_desc()
assert type(mine) is type(other) and mine.ptr == ours.slab.address and mine.size == other.size
assert mine.stable_registration_size == other.stable_registration_size == 8 * MIB
assert ours.get_backend_type(live[0][0]) == L1BackendType.DRAM
# All objects are in what is described, which others register.
odd = l1.L1MemoryManager(configured(5 * MIB + 100, lazy, init_size_in_bytes=MIB))
odd.slab.wait()
error, some = odd.allocate(MemoryLayoutDesc([torch.Size([4096])], [torch.uint8]), odd.get_memory_usage()[1] // 4096)
described = odd.get_l1_memory_desc()
assert error == L1Error.SUCCESS and described.size >= 5 * MIB + 100
assert max(one.shm_offset + one.get_physical_size() for one in some) <= described.size == described.stable_registration_size
del some
odd.close()
del live
ours.close()
assert host.blocks()["blocks"] == 0
""" % lazy)


@needs_lmcache
def test_objects(sim):
    """What LMCache writes on an object stays there; counts are owned; a second free is told."""
    sim(INSTALLED + """
import copy
manager = l1.L1MemoryManager(configured(8 * MIB, True, init_size_in_bytes=8 * MIB))
error, objects = manager.allocate(LAYOUT, 4)
one = objects[0]
assert one.metadata.fmt == core.MemoryFormat.UNDEFINED
one.metadata.fmt = core.MemoryFormat.KV_MLA_FMT
one.meta.cached_positions = torch.arange(3)
assert one.get_memory_format() == core.MemoryFormat.KV_MLA_FMT and len(one.metadata.cached_positions) == 3
assert objects[1].metadata.fmt == core.MemoryFormat.UNDEFINED and one.get_num_tokens() == 128
one.ref_count_up()
one.pin()
assert (one.meta.ref_count, one.meta.pin_count, one.is_pinned, one.can_evict) == (2, 1, True, False)
one.ref_count_down()
one.unpin()
assert one.can_evict and objects[1].can_evict
# Two threads that ask for the first time have one record.
import threading
from hbmalloc.compat.lmcache import _cache_object
both, make, records = threading.Barrier(2), _cache_object.MemoryObjMetadata, []
_cache_object.MemoryObjMetadata = lambda **named: (both.wait(), make(**named))[1]
threads = [threading.Thread(target=lambda: records.append(objects[3].metadata)) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
_cache_object.MemoryObjMetadata = make
assert records[0] is records[1] is objects[3].metadata
one.set_l1_manager(7)
one.set_l1_manager(7)
raises(ValueError, one.set_l1_manager, 8, text="belongs to the manager 7")
assert one.get_l1_manager() == 7 and objects[1].get_l1_manager() is None
one.reset_l1_manager()
one.set_l1_manager(8)
# As LMCache's tests of its second level copy an object.
one.tensor.fill_(3)
from lmcache.v1.distributed.l2_adapters.mock_l2_adapter import clone_tensor_memory_obj
clone = clone_tensor_memory_obj(one)
assert torch.equal(clone.tensor, one.tensor) and type(clone) is core.TensorMemoryObj
error, odd = manager.allocate(MemoryLayoutDesc([torch.Size([100])], [torch.uint8]), 1)
odd[0].set_used_size(60)
assert odd[0].get_size() == len(odd[0].byte_array) == 60 and odd[0].get_physical_size() == 4096
odd[0].invalidate()
assert not odd[0].is_valid() and odd[0].tensor is None
# A view keeps its memory, and only its.
kept = objects[1].byte_array
assert manager.free(objects) == L1Error.SUCCESS
assert manager.get_memory_usage()[0] == 16384
assert manager.free(objects) == L1Error.KEY_IN_WRONG_STATE
raises(ValueError, objects[0].ref_count_down)
del kept
assert manager.get_memory_usage()[0] == 0 and manager.memcheck()
other = core.TensorMemoryObj(torch.zeros(4096, dtype=torch.uint8), copy.deepcopy(clone.metadata), None)
raises(TypeError, manager.free, [other], text="free it where it was made")
again = manager.allocate(LAYOUT, 4)[1]
assert again[0].get_l1_manager() is None and again[0].get_memory_format() == core.MemoryFormat.UNDEFINED
""")


@needs_lmcache
@pytest.mark.parametrize("lazy", [True, False])
def test_after_close_and_in_a_forked_child(sim, lazy):
    sim(INSTALLED + """
import os
import hbmalloc
manager = l1.L1MemoryManager(configured(8 * MIB, %r))
error, objects = manager.allocate(LAYOUT, 3)
address = lmcache.device_ops.alloc_pinned_ptr(MIB, 0)
child = os.fork()
if child == 0:
    try:
        raises(hbmalloc.ForkedError, manager.allocate, LAYOUT, 1)
        raises(hbmalloc.ForkedError, manager.free, objects)
        raises(hbmalloc.ForkedError, lmcache.device_ops.alloc_pinned_ptr, MIB, 0)
        raises(hbmalloc.ForkedError, core.AddressManager, 4096)
        manager.close()
    except BaseException as error:
        print("in the child:", error, flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert bool((objects[0].tensor.fill_(1) == 1).all())
manager.close()
manager.close()
raises(RuntimeError, manager.allocate, LAYOUT, 1, text="closed")
assert manager.free(objects) == L1Error.KEY_IN_WRONG_STATE and manager.get_memory_usage() == (0, 0)
assert objects[1].tensor is None and not objects[1].is_valid() and objects[1].metadata.ref_count == 0
lmcache.device_ops.free_pinned_ptr(address)
gc.collect()
assert host.blocks()["blocks"] == 0
""" % lazy)


@needs_lmcache
def test_l1_manager_of_lmcache(sim):
    """LMCache's own store of keys on our manager: writes, reads, fills up, deletes."""
    sim(INSTALLED + """
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l1_manager import L1Manager
import inspect
manager = L1Manager(L1ManagerConfig(memory_config=configured(4 * MIB, True, init_size_in_bytes=4 * MIB)))
assert is_ours(manager._memory_manager) and pinned() == 4 * MIB
keys = [ObjectKey(chunk_hash=bytes([number]) * 4, model_name="model", kv_rank=0) for number in range(200)]
def reserve(some):
    return manager.reserve_write(some, [False] * len(some), LAYOUT, **reserve_more)
reserve_more = {"mode": "new"} if "mode" in inspect.signature(manager.reserve_write).parameters else {}
if "tag" in inspect.signature(manager.reserve_write).parameters:
    reserve_more["tag"] = "writer"
finish_more = {"tag": "writer"} if "tag" in inspect.signature(manager.finish_write).parameters else {}
for number, (error, found) in enumerate(reserve(keys[:100]).values()):
    assert error == L1Error.SUCCESS and found.get_l1_manager() == manager.l1_manager_id
    found.tensor.fill_(number)
del found
assert manager.get_memory_usage()[0] == 100 * 16384
manager.finish_write(keys[:100], **finish_more)
for number, (error, found) in enumerate(manager.reserve_read(keys[:100]).values()):
    assert error == L1Error.SUCCESS and bool((found.tensor == number).all()) and found.raw_tensor.numel() == 16384
del found
manager.finish_read(keys[:100])
# 256 fit, so that of these none does.
more = [ObjectKey(chunk_hash=bytes([number]) * 5, model_name="model", kv_rank=0) for number in range(157)]
assert {error for error, _ in reserve(more).values()} == {L1Error.OUT_OF_MEMORY}
assert manager.get_memory_usage()[0] == 100 * 16384
manager.delete(keys[:50])
assert manager.get_memory_usage()[0] == 50 * 16384
assert {error for error, _ in reserve(more).values()} == {L1Error.SUCCESS}
manager.finish_write(more, **finish_more)
assert manager.memcheck() and manager.report_status()["is_healthy"]
manager.clear(force=True)
assert manager.get_memory_usage()[0] == 0
manager.close()
gc.collect()
assert host.blocks()["blocks"] == 0
""")


@needs_lmcache
def test_shared_memory(sim):
    """Another process finds the objects under the name that LMCache's workers look for."""
    sim(INSTALLED + """
import multiprocessing, os, subprocess, sys
name = "hbmalloc-test-%d" % os.getpid()
manager = l1.L1MemoryManager(configured(4 * MIB, False, shm_name=name))
error, objects = manager.allocate(LAYOUT, 3)
objects[2].tensor.fill_(5)
assert manager.get_l1_memory_desc().stable_registration_size is None and pinned() == 4 * MIB
code = '''
import sys
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None
segment = shared_memory.SharedMemory(name=sys.argv[1], create=False)
assert segment.size == 4 << 20, segment.size
sys.stdout.buffer.write(bytes(segment.buf[int(sys.argv[2]):][:int(sys.argv[3])]))
'''
one = objects[2]
found = subprocess.run([sys.executable, "-c", code, "lmcache_l1_pool_" + name, str(one.shm_offset), str(one.shm_byte_length)],
                       stdout=subprocess.PIPE, check=True).stdout
assert found == bytes(one.byte_array) and one.metadata.address == one.shm_offset == 32768
manager.free(objects)
del objects, one
manager.close()
path = "/dev/shm/lmcache_l1_pool_" + name
assert not os.path.exists(path)
# What LMCache itself leaves when it is killed.
for make in (lambda: l1.L1MemoryManager(configured(4 * MIB, False, shm_name=name)),
             lambda: MixedMemoryAllocator(4 * MIB, shm_name="lmcache_l1_pool_" + name)):
    with open(path, "wb") as file:
        file.write(bytes(100))
    made = make()
    assert pinned() == 4 * MIB and os.stat(path).st_size == 4 * MIB
    made.close()
    assert not os.path.exists(path)
""")


@needs_lmcache
def test_lazy_allocator_itself(sim):
    sim(INSTALLED + """
allocator = LazyMemoryAllocator(64 * MIB, 512 * MIB)
assert is_ours(allocator) and isinstance(allocator, LazyMemoryAllocator) and pinned() >= 64 * MIB
one = allocator.allocate(torch.Size([4, 4]), torch.float32, core.MemoryFormat.KV_2LTD)
assert one.get_memory_format() == core.MemoryFormat.KV_2LTD and one.parent() is allocator
# More than was there at first.
many = allocator.batched_allocate([torch.Size([MIB])], [torch.uint8], 256)
assert len(many) == 256 and pinned() > 256 * MIB
assert allocator.batched_allocate(torch.Size([MIB]), torch.uint8, 1000) is None
assert isinstance(many[0].parent(), LazyMemoryAllocator)
addresses = allocator.get_address_manager()
assert isinstance(addresses, core.AddressManager)
assert addresses.get_heap_size() - addresses.get_free_size() == addresses.total_allocated_size == 256 * MIB + 4096
assert addresses.compute_aligned_size(1) == 4096 and addresses.check_consistency() and allocator.memcheck()
raises(RuntimeError, addresses.allocate, 4096, text="use the allocator")
buffer = allocator.get_underlying_buffer()
assert buffer.numel() == 512 * MIB and buffer.data_ptr() == one.data_ptr - one.meta.address
allocator.free(one)
allocator.batched_free(many)
assert addresses.total_allocated_size == 0
del many, one, addresses
allocator.close()
# What is left of it goes with the last view.
assert pinned() >= 64 * MIB
del buffer
gc.collect()
assert host.blocks()["blocks"] == 0
# What a slab cannot align stays LMCache's, which says what it lacks here.
raises(RuntimeError, LazyMemoryAllocator, 64 * MIB, 64 * MIB, 4 * MIB, text="pinning")
raises(ValueError, LazyMemoryAllocator, 64 * MIB, 64 * MIB, 3000)
small = LazyMemoryAllocator(MIB, MIB)
for shapes, dtypes in ((torch.Size([4]), [torch.uint8]), ([torch.Size([4])], torch.uint8)):
    assert small.allocate(shapes, dtypes).tensor.shape == torch.Size([4])
raises(ValueError, small.allocate, [torch.Size([4])] * 2, [torch.uint8], text="2 shapes and 1 types")
small = LazyMemoryAllocator(MIB, MIB, 64)
one = small.allocate(torch.Size([1]), torch.uint8)
assert one.get_physical_size() == 512 and one.data_ptr % 64 == 0
""")


@needs_lmcache
def test_mixed_allocator_itself(sim):
    """LMCache's own class and objects, on our functions and addresses."""
    sim(INSTALLED + """
allocator = MixedMemoryAllocator(16 * MIB)
addresses = allocator.pin_allocator.address_manager
assert type(allocator) is MixedMemoryAllocator and is_ours(addresses) and pinned() == 16 * MIB
objects = allocator.batched_allocate(torch.Size([2, 4, 16, 64]), torch.bfloat16, 20)
assert type(objects[0]) is core.TensorMemoryObj and addresses.total_allocated_size == 20 * 16384
for number, found in enumerate(objects):
    found.tensor.fill_(number)
for number, found in enumerate(objects):
    assert bool((found.tensor == number).all())
# Neighbours are freed as one.
calls, free = [], addresses.free
addresses.free = lambda address, size: (calls.append(size), free(address, size))
allocator.batched_free(objects[:10] + objects[15:])
assert sorted(calls) == [5 * 16384, 10 * 16384], calls
for found in objects[10:15]:
    found.ref_count_down()
assert addresses.total_allocated_size == 0 and allocator.memcheck()
assert allocator.allocate(torch.Size([17 * MIB]), torch.uint8) is None
whole = allocator.allocate(torch.Size([16 * MIB]), torch.uint8)
assert whole.meta.address == 0
raises(ValueError, addresses.free, 0, 4096)
whole.ref_count_down()
raises(ValueError, addresses.free, 0, 16 * MIB, text="freed before")
assert len(allocator.allocate(torch.Size([100, 0, 0, 0]), None, core.MemoryFormat.BINARY_BUFFER).byte_array) == 100
paged = MixedMemoryAllocator(16 * MIB, use_paging=True, shapes=[torch.Size([2, 4, 16, 64])], dtypes=[torch.bfloat16],
                             fmt=core.MemoryFormat.KV_2LTD)
assert len(paged.batched_allocate(torch.Size([2, 4, 16, 64]), torch.bfloat16, 4)) == 4 and pinned() == 32 * MIB
paged.close()
allocator.close()
allocator.close()
assert host.blocks()["blocks"] == 0
# Any alignment.
for align in (1, 64, 512, 4 * MIB):
    small = TensorMemoryAllocator(torch.zeros(8 * MIB, dtype=torch.uint8), align_bytes=align)
    assert is_ours(small.address_manager)
    found = small.batched_allocate(torch.Size([100]), torch.uint8, 2)
    assert [one.meta.address for one in found] == [0, found[0].meta.phy_size]
    assert found[0].meta.phy_size == -(-100 // align) * align
    small.batched_free(found)
    assert small.memcheck()
from lmcache.v1.distributed.config import GdsL1Config
gds = l1.GDSL1MemoryManager(GdsL1Config("/nowhere", 8 * MIB))
error, found = gds.allocate(LAYOUT, 3)
assert error == L1Error.SUCCESS and is_ours(gds._address_manager) and gds.get_memory_usage() == (3 * 16384, 8 * MIB)
gds.free(found)
""")


@needs_lmcache
def test_local_cpu_backend(sim):
    """Puts, gets, pins and evictions of LMCache's local CPU backend, with our memory below it."""
    sim(INSTALLED + """
import asyncio, threading
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
before = host.blocks()
assert before["blocks"] == 0
config = LMCacheEngineConfig.from_defaults(chunk_size=64, local_cpu=True, max_local_cpu_size=0.0625, lmcache_instance_id="t")
metadata = LMCacheMetadata("model", 1, 1, 0, 0, torch.bfloat16, (4, 2, 64, 8, 64), chunk_size=64)
from lmcache.v1.pin_monitor import PinMonitor
PinMonitor.GetOrCreate(config)
backend = LocalCPUBackend(config, metadata, "cpu")
addresses = backend.memory_allocator.pin_allocator.address_manager
assert host.blocks() == {"blocks": 1, "requested": 64 * MIB, "bytes": 64 * MIB, "pinned": 64 * MIB, "unbound": 0}
assert is_ours(addresses) and backend.calculate_chunk_budget() == 128
shape, each = torch.Size([2, 4, 64, 512]), MIB // 2
def key(number):
    return CacheEngineKey("model", 1, 0, number, torch.bfloat16)
def contents(number):
    return torch.full(shape, number % 97, dtype=torch.bfloat16)
def put(numbers):
    made = backend.batched_allocate(shape, torch.bfloat16, len(numbers), core.MemoryFormat.KV_2LTD)
    for found, number in zip(made, numbers):
        found.tensor.copy_(contents(number))
    backend.batched_submit_put_task([key(number) for number in numbers], made)
    for found in made:
        found.ref_count_down()
def get(number):
    found = backend.get_blocking(key(number))
    assert torch.equal(found.tensor, contents(number)), number
    found.ref_count_down()
for first in range(0, 128, 16):
    put(range(first, first + 16))
assert addresses.total_allocated_size == 64 * MIB and addresses.get_free_size() == 0
for number in range(128):
    get(number)
some = asyncio.run(backend.batched_get_non_blocking("lookup", [key(number) for number in range(40, 50)]))
for number, found in zip(range(40, 50), some):
    assert torch.equal(found.tensor, contents(number))
    found.ref_count_down()
found = some = None
# Full: what is put evicts, and what is pinned stays.
assert backend.contains(key(0), pin=True)
for number in range(128, 400):
    found = backend.allocate(shape, torch.bfloat16, core.MemoryFormat.KV_2LTD)
    found.tensor.copy_(contents(number))
    backend.submit_put_task(key(number), found)
    found.ref_count_down()
    found = None
    assert addresses.total_allocated_size == 64 * MIB
assert len(backend.get_keys()) == 128 and backend.contains(key(0)) and not backend.contains(key(1))
get(0)
for number in range(400 - 127, 400):
    get(number)
backend.unpin(key(0))
# Several at once.
failures = []
def work(seed):
    rng = random.Random(seed)
    try:
        for turn in range(60):
            number = 1000 * seed + turn
            made = backend.allocate(shape, torch.bfloat16, core.MemoryFormat.KV_2LTD)
            made.tensor.copy_(contents(number))
            backend.submit_put_task(key(number), made)
            made.ref_count_down()
            got = backend.get_blocking(key(number - rng.randrange(3)))
            if got is not None:
                assert (got.tensor == got.tensor.flatten()[0]).all()
                got.ref_count_down()
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
assert backend.memory_allocator.memcheck()
backend.remove(key(4059))
assert addresses.get_free_size() == each
backend.clear()
assert addresses.total_allocated_size == 0 and addresses.check_consistency()
put(range(16))
backend.close()
assert host.blocks() == before
""")


@needs_lmcache
def test_check(sim):
    output = sim("""
import subprocess, sys, os
def check(**more):
    done = subprocess.run([sys.executable, "-m", "hbmalloc.compat.lmcache", "check", "--bytes", "16MiB"],
                          env=dict(os.environ, **more), capture_output=True, text=True)
    return done.returncode, done.stdout
status, text = check()
print(text)
assert status == 0 and text.count("PASS") == 3 and "LMCache " in text, text
status, text = check(HBMALLOC_SIM="devices=0")
assert status != 0 and "PASS" not in text and text.count("FAIL") == 3, text
# As where LMCache's own code fails.
from lmcache.v1.distributed.api import MemoryLayoutDesc
from hbmalloc.compat.lmcache import _check
def wrong(_self):
    raise KeyError("in LMCache")
MemoryLayoutDesc.__post_init__ = wrong
assert _check.check(1 << 24) == 1
""")
    assert "bytes pinned by hbmalloc" in output
    assert output.count("FAIL L1MemoryManager") == 2 and "KeyError: 'in LMCache'" in output
