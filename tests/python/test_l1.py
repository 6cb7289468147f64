"""The L1 manager as LMCache's users know it: what it takes, hands out, counts and gives back, with torch and without."""

import importlib.util

import pytest

COMMON = """
import ctypes, gc, os, random, signal, sys, threading, time
import hbmalloc
# What runs in the background of a shell is started deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from hbmalloc import host
from hbmalloc.host import (
    L1Error, L1MemoryManager, L1MemoryManagerConfig, MemoryLayoutDesc, MemoryObj, Slab, create_memory_allocator)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
EMPTY = {"blocks": 0, "requested": 0, "bytes": 0, "pinned": 0, "unbound": 0}
def manager_of(nbytes=32 * MIB, **more):
    more.setdefault("use_lazy", False)
    return L1MemoryManager(L1MemoryManagerConfig(size_in_bytes=nbytes, **more))
def raises(error, call, text=""):
    try:
        value = call()
    except error as raised:
        assert text in str(raised), raised
        return raised
    raise SystemExit("not refused: %r" % (value,))
def simulator():
    return ctypes.CDLL(os.path.join(os.path.dirname(hbmalloc.get_library_path()), "libhbmalloc_sim.so"))
def fail(name, nth=1, code=2, times=1):
    assert simulator().hbmsim_fail(name, ctypes.c_uint64(nth), ctypes.c_int(code), ctypes.c_uint64(times)) == 0
def layout_of(*groups):
    return MemoryLayoutDesc(shapes=[Size(shape) for shape, _ in groups], dtypes=[dtype for _, dtype in groups])
def made(manager, count=1, layout=None):
    error, objects = manager.allocate(layout or LAYOUT, count)
    assert error == L1Error.SUCCESS, (error, getattr(objects, "feasible", None))
    assert len(objects) == count
    return objects
def used(manager):
    return manager.get_memory_usage()[0]
def free(manager, objects):
    assert manager.free(objects) == L1Error.SUCCESS
"""

FORMS = {
    "plain": """
F16, F32, U8 = "float16", "float32", "uint8"
Size = tuple
assert "torch" not in sys.modules
""",
    "torch": """
import torch
F16, F32, U8 = torch.float16, torch.float32, torch.uint8
Size = torch.Size
""",
}
# 16 KiB
LAYOUT = "\nLAYOUT = layout_of(([2, 32, 128], F16))\n"


@pytest.fixture(params=["plain", "torch"])
def l1(request, sim):
    """As `sim`, with names in place: without torch, and with it where it is installed."""
    if request.param == "torch" and not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")

    def in_form(code, status=0, **variables):
        return sim(COMMON + FORMS[request.param] + LAYOUT + code, status, **variables)

    in_form.has_torch = request.param == "torch"
    return in_form


@pytest.fixture
def plain(sim):
    return lambda code, status=0, **variables: sim(COMMON + FORMS["plain"] + LAYOUT + code, status, **variables)


@pytest.fixture
def torch_form(sim):
    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    return lambda code, status=0, **variables: sim(COMMON + FORMS["torch"] + LAYOUT + code, status, **variables)


def test_the_example(l1):
    """Word for word but for the shape, which without torch is a tuple."""
    l1("""
config = L1MemoryManagerConfig(size_in_bytes=64 * (1 << 30), use_lazy=True)
manager = L1MemoryManager(config)
layout = MemoryLayoutDesc(shapes=[Size([2, 32, 128])], dtypes=[F16])
error, objs = manager.allocate(layout, count=10)
assert error == L1Error.SUCCESS and len(objs) == 10
if "torch" in sys.modules:
    for number, obj in enumerate(objs):
        assert obj.tensor.shape == (2, 32, 128) and obj.tensor.dtype == torch.float16
        assert obj.tensor.data_ptr() == obj.data_ptr and obj.tensor.is_contiguous()
        obj.tensor.fill_(number)
    assert [float(obj.tensor.double().sum()) for obj in objs] == [number * 8192.0 for number in range(10)]
else:
    for number, obj in enumerate(objs):
        assert obj.tensor.shape == (2, 32, 128) and obj.tensor.itemsize == 2
        obj.byte_array[:] = bytes([number]) * 16384
    assert [sum(obj.byte_array) for obj in objs] == [number * 16384 for number in range(10)]
used, total = manager.get_memory_usage()
assert used == 10 * 16384 and 0 < total <= 64 << 30, (used, total)
assert manager.free(objs) == L1Error.SUCCESS
assert manager.get_memory_usage()[0] == 0
begin = time.monotonic()
manager.close()
assert time.monotonic() - begin < 10
assert host.blocks() == EMPTY or "torch" in sys.modules, host.blocks()
del obj, objs
gc.collect()
assert host.blocks() == EMPTY, host.blocks()
""")


def test_the_errors_numbers(run):
    run("""
from hbmalloc.host import L1Error
assert {name: member.value for name, member in L1Error.__members__.items()} == {
    "SUCCESS": 1, "KEY_NOT_EXIST": 2, "KEY_NOT_READABLE": 3, "KEY_NOT_WRITABLE": 4, "KEY_IN_WRONG_STATE": 5,
    "KEY_IS_LOCKED": 6, "OUT_OF_MEMORY": 7}
""")


def test_the_configuration(plain):
    plain("""
config = L1MemoryManagerConfig(size_in_bytes=4 * MIB, use_lazy=True)
assert (config.size_in_bytes, config.use_lazy, config.align_bytes) == (4 * MIB, True, 4096)
assert config.init_size_in_bytes == 4 * MIB     # clamped
assert not config.shm_name and not config.use_hugepages
config = L1MemoryManagerConfig(size_in_bytes=4 * MIB, use_lazy=True, init_size_in_bytes=1 * MIB, align_bytes=512)
assert config.init_size_in_bytes == MIB and config.align_bytes == 512
assert L1MemoryManagerConfig(4 * MIB, True, 20 * GIB).init_size_in_bytes == 4 * MIB
config = L1MemoryManagerConfig(size_in_bytes=100 * GIB, use_lazy=True, init_size_in_bytes=20 * GIB)
assert config.init_size_in_bytes == 20 * GIB
""")


@pytest.mark.parametrize("is_lazy", [False, True])
def test_create_memory_allocator(plain, is_lazy):
    plain("""
lazy = %r
allocator = create_memory_allocator(L1MemoryManagerConfig(size_in_bytes=8 * MIB, use_lazy=lazy, init_size_in_bytes=2 * MIB))
one = allocator.allocate((2, 32, 128), "float16")
assert isinstance(one, MemoryObj) and one.get_size() == 16384
many = allocator.batched_allocate([(2, 32, 128)], ["float16"], 5)
assert len(many) == 5 and allocator.get_memory_usage()[0] == 6 * 16384
assert allocator.allocate((9 * MIB,), "uint8") is None
assert allocator.memcheck() is True
allocator.free(one)
allocator.batched_free(many)
assert allocator.get_memory_usage()[0] == 0
del one, many
allocator.close()
assert host.blocks() == EMPTY
""" % is_lazy)


def test_layouts(l1):
    l1("""
raises(ValueError, lambda: MemoryLayoutDesc(shapes=[Size([1])], dtypes=[]))
raises(ValueError, lambda: MemoryLayoutDesc(shapes=[], dtypes=[F16]))
raises(ValueError, lambda: MemoryLayoutDesc(shapes=[Size([1]), Size([2])], dtypes=[F16]))
with manager_of() as manager:
    for shape in ([0], [0, 5], [4, 0, 2]):
        raises(ValueError, lambda: manager.allocate(layout_of((shape, F16)), 1))
        raises(ValueError, lambda: manager.allocate(layout_of((shape, F16)), 0))
    raises(ValueError, lambda: manager.allocate(MemoryLayoutDesc([], []), 1))
    assert used(manager) == 0
    # A scalar has one element.
    one, = made(manager, 1, layout_of(([], F32)))
    assert one.get_size() == 4 and used(manager) == 4096
    free(manager, [one])
""")


def test_all_or_nothing(l1):
    l1("""
with manager_of(2 * MIB) as manager:
    room = manager.get_memory_usage()[1] // 16384
    assert room == 128, room
    error, none = manager.allocate(LAYOUT, 0)
    assert (error, none) == (L1Error.SUCCESS, []) and used(manager) == 0
    kept = made(manager, 28)
    for count in (101, 1000, 1 << 20):
        error, none = manager.allocate(LAYOUT, count)
        assert error == L1Error.OUT_OF_MEMORY and list(none) == [] and none.feasible == 100, (count, error, none)
        assert used(manager) == 28 * 16384 and manager.memcheck()
    error, none = manager.allocate(layout_of(([2 * MIB + 1], U8)), 1)
    assert error == L1Error.OUT_OF_MEMORY and none.feasible == 0
    rest = made(manager, none.feasible + 100)
    error, none = manager.allocate(LAYOUT, 1)
    assert error == L1Error.OUT_OF_MEMORY and none.feasible == 0
    # Holes of one object each: none of two fits, though half of all is free.
    everything = sorted(kept + rest, key=lambda found: found.data_ptr)
    free(manager, everything[::2])
    double = layout_of(([4, 32, 128], F16))
    error, none = manager.allocate(double, 1)
    assert error == L1Error.OUT_OF_MEMORY and none.feasible == 0
    scattered = made(manager, 64)
    assert {found.data_ptr for found in scattered} == {found.data_ptr for found in everything[::2]}
    free(manager, everything[1::2] + scattered)
    whole, = made(manager, 1, layout_of(([2 * MIB], U8)))      # joined again
    free(manager, [whole])
    assert used(manager) == 0 and manager.memcheck()
""")


def test_counts_that_are_none(plain):
    plain("""
with manager_of(2 * MIB) as manager:
    for count in (-1, -(1 << 63), -(1 << 70), 1.0, 1.5, 0.0, float("nan"), float("inf"), "1", None, b"1", [1], True, False):
        raises((ValueError, TypeError, hbmalloc.HbmallocError), lambda: manager.allocate(LAYOUT, count))
    assert used(manager) == 0 and manager.memcheck()
""")


def test_counts_that_no_machine_has(plain):
    """Told at once, without memory for as many numbers."""
    plain("""
import resource
with manager_of(2 * MIB) as manager:
    made(manager, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for count in (1 << 26, 1 << 40, 1 << 62, 1 << 64, (1 << 64) + 1, 1 << 80):
        error, none = manager.allocate(LAYOUT, count)
        assert error == L1Error.OUT_OF_MEMORY and none.feasible == 128, (count, none.feasible)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 << 10, grown
    assert used(manager) == 0
""")


def test_layouts_that_no_machine_has(plain):
    """Their bytes do not wrap around."""
    plain("""
with manager_of(2 * MIB) as manager:
    for elements in (1 << 40, 1 << 61, 1 << 62, 1 << 63, (1 << 63) + 256, 1 << 64, (1 << 64) + 1, 1 << 100):
        for shape in ((elements,), (elements // 2, 2), (1 << 32, elements >> 32)):
            for count in (1, 3):
                try:
                    error, none = manager.allocate(MemoryLayoutDesc([shape], ["float16"]), count)
                except (ValueError, hbmalloc.HbmallocError):
                    continue
                assert error == L1Error.OUT_OF_MEMORY and not none and none.feasible == 0, (shape, error)
    assert used(manager) == 0 and manager.memcheck()
""")


def test_layouts_that_are_none(plain):
    plain("""
bad = (ValueError, TypeError, hbmalloc.HbmallocError)
with manager_of(2 * MIB) as manager:
    for shape in ((-1,), (2, -2), (1.5,), ("2",), (None,), (float("nan"),), (True,), ((1, 2),), "23", 4, None, (-2, -2)):
        raises(bad, lambda: manager.allocate(MemoryLayoutDesc([shape], ["float16"]), 1))
    for dtype in ("float17", "", None, 3, b"float16", [], {}, object(), "torch.nothing", float("nan"), True):
        raises(bad, lambda: manager.allocate(MemoryLayoutDesc([(4,)], [dtype]), 1))
    for layout in (None, 3, "layout", MemoryLayoutDesc):
        raises(bad + (AttributeError,), lambda: manager.allocate(layout, 1))
    for wrong in ((None, ["float16"]), ([(1,)], None), (3, 3)):
        raises(bad, lambda: MemoryLayoutDesc(*wrong))
    assert used(manager) == 0
""")


@pytest.mark.parametrize("parameter, values", [
    ("size_in_bytes", '0, -1, -(1 << 70), 1.5, "4", None, True, 1 << 63, 1 << 64, float("nan"), float("inf"), b"4", []'),
    ("init_size_in_bytes", '-1, -(1 << 70), 1.5, "4", None, True, float("nan"), float("-inf"), []'),
    ("align_bytes", '0, -1, -(1 << 70), 1, 3, 4095, 4096.0, 4097, "4096", None, True, 1 << 22, 1 << 63, 1 << 64, '
                    '(1 << 64) + 4096, float("nan"), float("inf"), []'),
    ("shm_name", '3, b"x", 1.5, True, ["x"], "a/b", "a\\0b", "x" * 300, "/"'),
    ("numa_node", '-1, 999, 1 << 31, 1 << 32, 1 << 64, -(1 << 31), 0.0, "0", True, False, float("nan"), []'),
    ("bytes_per_second", '-1, 1.5, "1", None, True, 1 << 63, 1 << 64, float("nan"), float("inf"), []'),
], ids=lambda value: value if value.isidentifier() else "")
def test_configurations_that_are_none(plain, parameter, values):
    plain("""
bad = (ValueError, TypeError, hbmalloc.HbmallocError)
for value in (%s,):
    config = dict(size_in_bytes=4 * MIB, use_lazy=%r)
    config[%r] = value
    raises(bad, lambda: (value, L1MemoryManager(L1MemoryManagerConfig(**config))))
    gc.collect()
    assert host.blocks() == EMPTY, (value, host.blocks())
assert not [name for name in os.listdir("/dev/shm") if name == "x"]
""" % (values, parameter != "shm_name", parameter))


def test_usage(l1):
    """Of a manager that is not lazy, all there is from the start; objects count by whole alignments."""
    l1("""
for align in (512, 4096, 2 * MIB):
    with manager_of(32 * MIB, align_bytes=align) as manager:
        assert manager.get_memory_usage() == (0, 32 * MIB)
        expected, objects = 0, []
        for nbytes in (1, 511, 512, 513, 4096, 4097, 100000):
            objects += made(manager, 2, layout_of(([nbytes], U8)))
            each = -(-nbytes // align) * align
            assert objects[-1].get_size() == nbytes and objects[-1].get_physical_size() == each
            expected += 2 * each
            assert manager.get_memory_usage() == (expected, 32 * MIB)
        for found in objects:
            assert found.data_ptr % align == 0
        free(manager, objects)
        assert manager.get_memory_usage() == (0, 32 * MIB)
    assert host.blocks() == EMPTY
""")


def test_lazy_total_is_what_is_pinned_so_far(plain):
    plain("""
manager = manager_of(512 * MIB, use_lazy=True, init_size_in_bytes=8 * MIB, bytes_per_second=MIB)
assert manager.get_memory_usage() == (0, 8 * MIB)
assert host.blocks()["pinned"] == 8 * MIB and host.blocks()["requested"] == 8 * MIB
objects = made(manager, 512)                    # all that is there; nothing waits
assert manager.get_memory_usage() == (8 * MIB, 8 * MIB)
begin, end = manager.slab.address, manager.slab.address + 8 * MIB
assert all(begin <= found.data_ptr and found.data_ptr + 16384 <= end for found in objects)
assert len(manager.get_vm_space()) == 512 * MIB
begin = time.monotonic()
manager.close()
assert time.monotonic() - begin < 5
assert host.blocks() == EMPTY
""")


def test_lazy_waits_for_what_is_not_there_yet(l1):
    """And grows in haste then: at its pace it would take minutes."""
    l1("""
manager = manager_of(96 * MIB, use_lazy=True, init_size_in_bytes=8 * MIB, bytes_per_second=1)
begin = time.monotonic()
objects = made(manager, 3, layout_of(([16 * MIB], U8)))
assert time.monotonic() - begin < 60
total = manager.get_memory_usage()[1]
assert total == host.blocks()["pinned"] and used(manager) == 48 * MIB
for found in objects:
    assert found.data_ptr + 16 * MIB <= manager.slab.address + total
    found.byte_array[::4096] = bytes([7]) * 4096
free(manager, objects)
error, none = manager.allocate(layout_of(([97 * MIB], U8)), 1)
assert error == L1Error.OUT_OF_MEMORY and none.feasible == 0
manager.close()
""")


def test_a_part_that_cannot_be_pinned(plain):
    """Growth stops with an error to see, and no object lies in what is not pinned."""
    plain("""
fail(b"cuMemHostRegister_v2", 2, 304, 0)
manager = manager_of(64 * MIB, use_lazy=True, init_size_in_bytes=8 * MIB)
begin = time.monotonic()
error, none = manager.allocate(layout_of(([16 * MIB], U8)), 1)
assert error == L1Error.OUT_OF_MEMORY and none.feasible == 0 and time.monotonic() - begin < 60
progress = manager.slab.progress()
assert isinstance(progress["error"], hbmalloc.HbmallocError) and not progress["is_growing"], progress
assert "304" in str(progress["error"]) or progress["error"].driver_code == 304, progress
assert manager.get_memory_usage() == (0, 8 * MIB) and host.blocks()["pinned"] == 8 * MIB
error, none = manager.allocate(LAYOUT, 513)
assert error == L1Error.OUT_OF_MEMORY and none.feasible == 512
objects = made(manager, 512)
assert max(found.data_ptr for found in objects) + 16384 <= manager.slab.address + 8 * MIB
assert manager.memcheck() is True
# A later try may do better.
simulator().hbmsim_fail_clear()
manager.slab.grow()
assert manager.slab.wait() == 64 * MIB and manager.slab.progress()["error"] is None
more = made(manager, 1, layout_of(([16 * MIB], U8)))
assert manager.get_memory_usage() == (24 * MIB, 64 * MIB)
manager.close()
""")


def test_the_first_part_cannot_be_pinned(plain):
    plain("""
for lazy in (False, True):
    for code in (2, 304, 999):
        fail(b"cuMemHostRegister_v2", 1, code, 1)
        raises(hbmalloc.HbmallocError, lambda: manager_of(8 * MIB, use_lazy=lazy, init_size_in_bytes=2 * MIB))
        simulator().hbmsim_fail_clear()
        gc.collect()
        assert host.blocks() == EMPTY
    with manager_of(8 * MIB, use_lazy=lazy, init_size_in_bytes=2 * MIB) as manager:    # nothing stayed behind
        made(manager, 4)
""")


def test_vm_space(l1):
    l1("""
manager = manager_of(32 * MIB, use_lazy=True, init_size_in_bytes=2 * MIB)
space = manager.get_vm_space()
desc = manager.get_l1_memory_desc()
assert len(desc) == 3 and tuple(desc) == (desc.ptr, desc.size, desc.align_bytes)
assert desc.size == 32 * MIB and desc.align_bytes == 4096 and desc.ptr % 4096 == 0
if "torch" in sys.modules:
    assert isinstance(space, torch.Tensor) and space.dtype == torch.uint8 and space.shape == (32 * MIB,)
    assert space.data_ptr() == desc.ptr and space.is_contiguous()
else:
    assert isinstance(space, memoryview) and space.nbytes == len(space) == 32 * MIB and space.format == "B"
manager.slab.wait()
assert manager.get_l1_memory_desc() == desc
objects = made(manager, 300)
for number, found in enumerate(objects):
    found.byte_array[:] = bytes([number % 251]) * 16384
    begin = found.data_ptr - desc.ptr
    assert 0 <= begin <= 32 * MIB - 16384
    assert bytes(space[begin:begin + 16384].tolist() if "torch" in sys.modules else space[begin:begin + 16384]) == bytes(
        [number % 251]) * 16384
seams = manager.slab.seams()
assert seams == sorted(set(seams)) and seams[-1] == 32 * MIB
again = manager.get_vm_space()
again[begin] = 77
assert found.byte_array[0] == 77
""")


def test_all_objects_lie_in_the_space(l1):
    """Also where the size is no whole number of pages: who registers the space for RDMA has registered every object."""
    l1("""
for nbytes in (5 * MIB, 3 * MIB + 5000, 100000, 4096, 1):
    for lazy in (False, True):
        with manager_of(nbytes, use_lazy=lazy, init_size_in_bytes=min(nbytes, 2 * MIB)) as manager:
            manager.slab.wait()
            ptr, size, align = manager.get_l1_memory_desc()
            assert size >= nbytes and len(manager.get_vm_space()) == size
            total = manager.get_memory_usage()[1]
            assert nbytes <= total <= size, (nbytes, total, size)
            objects = made(manager, total // 4096, layout_of(([4096], U8)))
            assert min(found.data_ptr for found in objects) >= ptr
            assert max(found.data_ptr for found in objects) + 4096 <= ptr + size, (nbytes, lazy)
            del objects
""")


def test_no_object_lies_across_a_seam(plain):
    plain("""
slab = Slab(32 * MIB, initial=6 * MIB, part=4 * MIB)
assert slab.wait() == 32 * MIB
seams = slab.seams()
assert seams == [6 * MIB] + list(range(10 * MIB, 32 * MIB, 4 * MIB)) + [32 * MIB], seams
from hbmalloc._l1 import ObjectAllocator
allocator = ObjectAllocator(slab, 4096)
for nbytes in (4096, 12288, 3 * MIB, 4 * MIB, 5 * MIB, 6 * MIB):
    objects = []
    while True:
        one = allocator.allocate((nbytes,), "uint8")
        if one is None:
            break
        objects.append(one)
    begins = [0] + seams[:-1]
    assert len(objects) == sum((end - begin) // nbytes for begin, end in zip(begins, seams)), nbytes
    for one in objects:
        begin = one.data_ptr - slab.address
        assert not any(begin < seam < begin + nbytes for seam in seams), (begin, nbytes)
    allocator.batched_free(objects)
assert allocator.allocate((6 * MIB + 1,), "uint8") is None
del one, objects
allocator.close()
assert host.blocks() == EMPTY
""")


def test_objects(l1):
    l1("""
with manager_of() as manager:
    one, other = made(manager, 2)
    assert isinstance(one, MemoryObj)
    assert one.get_size() == 16384 and one.get_physical_size() == 16384
    assert one.is_valid() and one.can_evict and not one.is_pinned and one.get_ref_count() == 1
    assert one != other and one == one and len({one, other}) == 2 and one.data_ptr != other.data_ptr
    data = one.byte_array
    assert len(data) == 16384
    data[:] = bytes(range(256)) * 64
    assert ctypes.string_at(one.data_ptr, 16384) == bytes(range(256)) * 64
    assert one.get_tensor(0).shape == one.tensor.shape == (2, 32, 128)
    for index in (1, 2, 100, -2):
        raises(IndexError, lambda: one.get_tensor(index))
    for index in ("0", None, 0.5):
        raises(TypeError, lambda: one.get_tensor(index))
    if "torch" in sys.modules:
        expected = torch.frombuffer(bytearray(range(256)) * 64, dtype=torch.float16).view(2, 32, 128)
        assert torch.equal(one.tensor.view(torch.int16), expected.view(torch.int16))
    else:
        assert one.tensor.tobytes() == bytes(range(256)) * 64
    del data
    free(manager, [one, other])
    assert not one.is_valid() and one.get_ref_count() == 0 and not one.can_evict and not one.is_pinned
    assert one.tensor is None
    raises((ValueError, hbmalloc.HbmallocError), lambda: one.byte_array)
    for call in (one.ref_count_up, one.ref_count_down, one.pin, one.unpin):
        raises(hbmalloc.NotOwnedError, call)
    repr(one)
assert host.blocks() == EMPTY
""")


def test_references_and_pins(l1):
    l1("""
with manager_of() as manager:
    one, = made(manager)
    one.ref_count_up()
    assert one.get_ref_count() == 2 and not one.can_evict
    one.ref_count_down()
    assert one.get_ref_count() == 1 and one.can_evict
    one.pin()
    assert one.is_pinned and not one.can_evict and one.is_valid() and one.get_ref_count() == 1
    one.ref_count_down()                        # a pin is left
    assert one.get_ref_count() == 0 and one.is_valid() and used(manager) == 16384
    one.unpin()
    assert not one.is_valid() and used(manager) == 0
    # The other way round.
    one, = made(manager)
    one.pin(); one.pin(); one.unpin()
    assert one.is_pinned
    one.unpin()
    assert not one.is_pinned and one.is_valid() and used(manager) == 16384
    one.ref_count_down()
    assert not one.is_valid() and used(manager) == 0
    # What others hold is kept by a free, and goes with them.
    one, other, third = made(manager, 3)
    one.ref_count_up(); other.pin()
    free(manager, [one, other, third])
    assert one.is_valid() and other.is_valid() and not third.is_valid() and used(manager) == 2 * 16384
    other.unpin(); one.ref_count_down()
    assert used(manager) == 0 and not one.is_valid() and not other.is_valid()
    raises(hbmalloc.NotOwnedError, one.ref_count_down)
    # Pins are owned.
    one, = made(manager)
    one.pin(owner=7)
    raises(hbmalloc.NotOwnedError, one.unpin)
    raises(hbmalloc.NotOwnedError, lambda: one.unpin(owner=8))
    assert one.is_pinned
    one.pin(7); one.pin(8)
    assert manager.unpin_all(7) == 2 and one.is_pinned and manager.unpin_all(7) == 0
    one.unpin(8)
    raises(hbmalloc.NotOwnedError, lambda: one.unpin(8))
    free(manager, [one])
    assert used(manager) == 0 and manager.memcheck()
""")


def test_owners_that_are_none(plain):
    plain("""
bad = (ValueError, TypeError, hbmalloc.HbmallocError)
with manager_of() as manager:
    one, = made(manager)
    one.pin(0)
    for owner in (-1, 1 << 64, 1.5, "1", None, [], float("nan"), b"1"):
        raises(bad, lambda: (owner, one.pin(owner)))
        raises(bad, lambda: (owner, one.unpin(owner)))
        raises(bad, lambda: (owner, manager.unpin_all(owner)))
    one.pin((1 << 64) - 1)
    assert manager.unpin_all((1 << 64) - 1) == 1 and one.is_pinned
    one.unpin()
    free(manager, [one])
""")


def test_counts_at_their_end(plain):
    plain("""
with manager_of() as manager:
    one, = made(manager)
    for up, down in ((one.ref_count_up, one.ref_count_down), (one.pin, one.unpin)):
        done = 0
        try:
            while done < 100000:
                up()
                done += 1
        except hbmalloc.HbmallocError:
            pass
        assert done >= 1000 and one.is_valid() and manager.memcheck()
        for _ in range(done):
            down()
        assert one.get_ref_count() == 1 and not one.is_pinned
    free(manager, [one])
    assert used(manager) == 0
""")


def test_counts_from_many_threads(plain):
    plain("""
with manager_of() as manager:
    one, other = made(manager, 2)
    def work(number):
        for _ in range(500):
            one.ref_count_up(); other.pin(number); one.pin(number)
            assert one.is_valid() and one.is_pinned and one.get_ref_count() >= 2
            other.unpin(number); one.ref_count_down(); one.unpin(number)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert one.get_ref_count() == 1 and not one.is_pinned and not other.is_pinned and one.can_evict
    free(manager, [one, other])
    assert used(manager) == 0 and manager.memcheck()
""")


def test_reading_the_tensor_is_no_reference(l1):
    """LMCache evicts what `can_evict`: what somebody once wrote through `tensor`, and no longer looks at, must be."""
    l1("""
with manager_of() as manager:
    objects = made(manager, 4)
    for one in objects:
        one.tensor
        one.byte_array[0] = 1
        one.get_tensor(0)
    gc.collect()
    assert [one.get_ref_count() for one in objects] == [1] * 4, [one.get_ref_count() for one in objects]
    assert all(one.can_evict for one in objects)
    objects[0].ref_count_down()
    assert not objects[0].is_valid() and used(manager) == 3 * 16384, (objects[0].get_ref_count(), used(manager))
    assert objects[1].tensor is not None and objects[0].tensor is None
""")


def test_references_that_are_gone_cannot_be_given_up_for_a_view(l1):
    """A count too many is an error, and not the end of memory that somebody looks at."""
    l1("""
with manager_of(1 * MIB) as manager:
    one, = made(manager, 1, layout_of(([MIB], U8)))
    view = one.tensor
    one.ref_count_down()
    raises(hbmalloc.NotOwnedError, one.ref_count_down)
    view[5] = 9
    error, others = manager.allocate(layout_of(([MIB], U8)), 1)
    assert error == L1Error.OUT_OF_MEMORY, "the memory of a view was given to another object"
    del view, one
""")


def test_a_pin_alone_keeps_what_can_be_read(l1):
    """An object is there until references and pins are both gone, and so are its bytes."""
    l1("""
with manager_of() as manager:
    one, = made(manager)
    one.byte_array[:] = b"k" * 16384
    one.pin()
    free(manager, [one])
    assert one.is_valid() and one.get_ref_count() == 0
    assert bytes(one.byte_array) == b"k" * 16384 and one.tensor is not None
    one.ref_count_up()
    one.unpin()
    assert one.is_valid() and one.get_ref_count() == 1
    one.ref_count_down()
    assert used(manager) == 0
""")


def test_used_size(l1):
    l1("""
with manager_of() as manager:
    one, other = made(manager, 2, layout_of(([5000], U8)))
    assert (one.get_size(), one.get_physical_size()) == (5000, 8192)
    one.byte_array[:] = bytes(range(200)) * 25
    for nbytes in (1, 4999, 5000, 17):
        one.set_used_size(nbytes)
        assert one.get_size() == nbytes == len(one.byte_array) and one.get_physical_size() == 8192
        assert bytes(one.byte_array) == (bytes(range(200)) * 25)[:nbytes]
    for nbytes in (-1, 8193, 1 << 40, 1 << 64, 1.5, "1", None, float("nan"), True, []):
        raises((ValueError, TypeError, hbmalloc.HbmallocError), lambda: one.set_used_size(nbytes))
    assert one.get_size() == 17 and other.get_size() == 5000 and len(other.byte_array) == 5000
    free(manager, [one, other])
    # Whoever has the memory next has all of it.
    again = made(manager, 2, layout_of(([5000], U8)))
    assert [found.get_size() for found in again] == [5000, 5000]
""")


def test_groups(l1):
    l1("""
groups = [([2, 3], F16), ([5], U8), ([4, 1, 2], F32), ([7], U8)]
lengths = [12, 5, 32, 7]
with manager_of() as manager:
    objects = made(manager, 3, layout_of(*groups))
    for number, one in enumerate(objects):
        assert one.get_size() == sum(lengths) and one.get_physical_size() == 4096
        one.byte_array[:] = bytes((number * 60 + place) % 256 for place in range(sum(lengths)))
    for number, one in enumerate(objects):
        begin = 0
        for index, length in enumerate(lengths):
            found = one.get_tensor(index)
            assert tuple(found.shape) == tuple(groups[index][0])
            if "torch" in sys.modules:
                assert found.dtype == groups[index][1]
                data = ctypes.string_at(found.data_ptr(), length)
            else:
                data = found.tobytes()
            assert data == bytes((number * 60 + begin + place) % 256 for place in range(length)), (number, index)
            begin += length
        raises(IndexError, lambda: one.get_tensor(4))
        assert tuple(one.tensor.shape) == (2, 3)
    # A group may be empty where another is not.
    one, = made(manager, 1, layout_of(([0], F16), ([4], U8)))
    assert one.get_size() == 4 and tuple(one.get_tensor(1).shape) == (4,)
""")


def test_double_frees(l1):
    l1("""
with manager_of() as manager:
    one, other, third = made(manager, 3)
    free(manager, [one])
    assert manager.free([one]) != L1Error.SUCCESS
    assert used(manager) == 2 * 16384 and manager.memcheck() is True
    # What somebody else has by now is not freed by it.
    new, = made(manager)
    assert manager.free([one]) != L1Error.SUCCESS and new.is_valid() and used(manager) == 3 * 16384
    # Twice in one list, the others are freed.
    assert manager.free([other, other, third]) != L1Error.SUCCESS
    assert not other.is_valid() and not third.is_valid() and used(manager) == 16384
    assert manager.free([new, new]) != L1Error.SUCCESS and used(manager) == 0
    batch = made(manager, 8)
    free(manager, batch)
    assert manager.free(batch) != L1Error.SUCCESS and manager.free(batch[2:5]) != L1Error.SUCCESS
    batch = made(manager, 8)
    free(manager, batch[3:4])
    assert manager.free(batch) != L1Error.SUCCESS and used(manager) == 0
    batch = made(manager, 4)
    free(manager, batch[::-1])
    # One that others hold is freed once by its maker.
    one, = made(manager)
    one.ref_count_up()
    free(manager, [one])
    assert manager.free([one]) != L1Error.SUCCESS and one.get_ref_count() == 1
    one.ref_count_down()
    assert used(manager) == 0 and manager.memcheck() is True
    free(manager, [])
""")


def test_frees_of_what_is_no_object(plain):
    plain("""
bad = (ValueError, TypeError, hbmalloc.HbmallocError)
with manager_of() as manager, manager_of() as other:
    mine, theirs = made(manager, 2), made(other, 2)
    for wrong in (None, 3, [None], [3], ["text"], [(1, 2, 3, 4)], ["abcd"], [[mine[0]]], [mine[0], None], [b"1234"], [()],
                  [mine[0].data_ptr], [object()]):
        raises(bad, lambda: (wrong, manager.free(wrong)))
        assert used(manager) == 2 * 16384, wrong
    for wrong in (theirs, [mine[0], theirs[0]], [theirs[1]]):
        try:
            assert manager.free(wrong) != L1Error.SUCCESS
        except bad:
            pass
        assert all(found.is_valid() for found in theirs) and used(other) == 2 * 16384, wrong
    assert manager.memcheck() and other.memcheck()
    free(other, theirs)
    if mine[0].is_valid():
        free(manager, mine)
    assert used(manager) == used(other) == 0
""")


def test_views_keep_memory(l1):
    l1("""
manager = manager_of(MIB)
one, = made(manager, 1, layout_of(([MIB], U8)))
for show in (lambda: one.byte_array, lambda: one.tensor, lambda: one.get_tensor(0), lambda: one.raw_tensor,
             lambda: one.byte_array[5:9], lambda: one.tensor[9:]):
    view = show()
    view[0] = 3
    free(manager, [one])
    error, none = manager.allocate(layout_of(([MIB], U8)), 1)
    assert error == L1Error.OUT_OF_MEMORY, "given out under a view"
    view[1] = 4
    assert view[0] == 3
    del view
    gc.collect()
    assert used(manager) == 0, used(manager)
    one, = made(manager, 1, layout_of(([MIB], U8)))
view = one.tensor
manager.close()
del one, manager
gc.collect()
assert host.blocks()["blocks"] == 1
view[7] = 5
assert view[7] == 5
del view
gc.collect()
assert host.blocks() == EMPTY
""")


def test_arrays_keep_memory(sim):
    pytest.importorskip("numpy")
    sim(COMMON + FORMS["plain"] + """
import numpy
layout = layout_of(([4, 8], F16))
manager = manager_of()
for show in (lambda: numpy.asarray(one), lambda: numpy.from_dlpack(one), lambda: numpy.asarray(one.tensor),
             lambda: numpy.frombuffer(one.byte_array, dtype=numpy.float16)):
    one, = made(manager, 1, layout)
    array = show()
    assert array.nbytes == 64 and array.ctypes.data == one.data_ptr, (array.nbytes, array.dtype)
    array[...] = 2
    free(manager, [one])
    del one
    gc.collect()
    assert used(manager) == 4096
    assert (array == 2).all()
    del array
    gc.collect()
    assert used(manager) == 0
one, = made(manager, 1, layout_of(([3], numpy.dtype("float32")), ([3], numpy.float16)))
assert one.get_size() == 18
array = numpy.from_dlpack(one)
assert array.shape == (3,) and array.dtype == numpy.float32
manager.close()
del manager, one
array[1] = 2.5
assert array[1] == 2.5 and host.blocks()["blocks"] == 1
del array
gc.collect()
assert host.blocks() == EMPTY
""")


def test_batched_tensors_without_a_copy(torch_form):
    torch_form("""
with manager_of() as manager:
    objects = made(manager, 64, layout_of(([3, 5], torch.bfloat16), ([7], torch.int64)))
    for number, one in enumerate(objects):
        for index, dtype, shape in ((0, torch.bfloat16, (3, 5)), (1, torch.int64, (7,))):
            found = one.get_tensor(index)
            assert found.dtype == dtype and found.shape == shape and found.device.type == "cpu"
            found.fill_(number + index)
        assert one.get_tensor(0).data_ptr() == one.data_ptr and one.get_tensor(1).data_ptr() == one.data_ptr + 30
    for number, one in enumerate(objects):
        assert (one.get_tensor(0) == number).all() and (one.get_tensor(1) == number + 1).all()
    # An object that was freed has no tensor, and the others still have theirs.
    del found
    free(manager, objects[::2])
    assert all(one.tensor is None for one in objects[::2])
    assert all((one.tensor == number).all() for number, one in list(enumerate(objects))[1::2])
    gc.collect()
    assert used(manager) == 32 * 4096, used(manager)
    taken = torch.from_dlpack(objects[1])
    assert taken.shape == (3, 5) and taken.dtype == torch.bfloat16 and taken.data_ptr() == objects[1].data_ptr
    del taken, one
    free(manager, objects[1::2])
    assert used(manager) == 0
""")


def test_tensors_of_a_batch_know_nothing_of_each_other(torch_form):
    torch_form("""
manager = manager_of()
for shape in ([2, 32, 128], [8192], [5, 7], [1]):
    objects = made(manager, 16, layout_of((shape, torch.float16)))
    weights = torch.full(shape, 3.0, dtype=torch.float16, requires_grad=True)
    first, second = objects[0].tensor, objects[1].tensor
    second.fill_(1)
    before = second._version
    first.copy_(weights)
    (first * 2).sum().backward()
    assert second._version == before and bool((second == 1).all())
    assert weights.grad is not None and bool((weights.grad == 2).all())
    del first, second
    free(manager, objects)
    """)


def test_many_types(torch_form):
    torch_form("""
with manager_of() as manager:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16,
                  torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64):
        one, = made(manager, 1, MemoryLayoutDesc([torch.Size([6, 2])], [dtype]))
        assert one.get_size() == torch.empty(6, 2, dtype=dtype).nbytes
        assert one.tensor.dtype == dtype and one.tensor.shape == (6, 2)
        other, = made(manager, 1, MemoryLayoutDesc([(6, 2)], [str(dtype).rpartition(".")[2]]))
        assert isinstance(other.tensor, memoryview) and other.tensor.nbytes == one.get_size()
        assert tuple(other.tensor.shape)[:2] == (6, 2)
""")


def test_memcheck(plain):
    """It is not fooled by what a program writes into objects, and says True of a busy pool."""
    plain("""
with manager_of(4 * MIB) as manager:
    assert manager.memcheck() is True
    objects = made(manager, 256)
    for found in objects:
        found.byte_array[:] = b"\\xff" * 16384
    assert manager.memcheck() is True
    free(manager, objects[::3])
    assert manager.memcheck() is True
    stop = []
    def work(seed):
        while not stop:
            error, some = manager.allocate(LAYOUT, 3)
            if error == L1Error.SUCCESS:
                free(manager, some)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads: thread.start()
    assert all(manager.memcheck() is True for _ in range(100))
    stop.append(1)
    for thread in threads: thread.join()
""")


def test_after_close(l1):
    l1("""
bad = (ValueError, hbmalloc.HbmallocError)
for keeps_view in (False, True):
    manager = manager_of(4 * MIB)
    objects = made(manager, 3)
    view = objects[0].byte_array if keeps_view else None
    manager.close()
    manager.close()                             # nothing
    # No more objects, whoever still looks at one.
    raises(bad, lambda: manager.allocate(LAYOUT, 1))
    assert manager.allocate(LAYOUT, 0) == (L1Error.SUCCESS, []) or True
    for one in objects:
        for call in (one.ref_count_up, one.pin, one.ref_count_down, one.unpin, lambda: one.byte_array):
            if not keeps_view:
                raises(bad, call)
        assert keeps_view or one.tensor is None and one.get_size() == 16384
        repr(one), one.is_valid(), one.can_evict, one.get_ref_count()
    try:
        manager.free(objects)
    except bad:
        pass
    for call in (manager.get_memory_usage, manager.memcheck, manager.get_vm_space, manager.get_l1_memory_desc):
        try:
            call()
        except bad:
            pass
    assert host.blocks()["blocks"] == keeps_view
    if keeps_view:
        view[0] = 1
    del view, one, objects, call
    gc.collect()
    assert host.blocks() == EMPTY, host.blocks()
""")


def test_lazy_on_a_node(l1):
    l1("""
with manager_of(32 * MIB, use_lazy=True, init_size_in_bytes=2 * MIB, numa_node=0) as manager:
    objects = made(manager, 5, layout_of(([6 * MIB], U8)))
    assert host.blocks()["pinned"] == manager.get_memory_usage()[1] == 32 * MIB
    objects[4].byte_array[:] = b"n" * (6 * MIB)
    free(manager, objects)
raises(hbmalloc.HbmallocError, lambda: manager_of(32 * MIB, use_lazy=True, numa_node=777), "777")
""")


def test_tensors_from_many_threads(torch_form):
    """While others free parts of the batch, and give up references."""
    torch_form("""
manager = manager_of(16 * MIB)
failed = []
threading.excepthook = lambda failure: failed.append(failure.exc_value)
for turn in range(60):
    objects = made(manager, 16, layout_of(([64], F32), ([16], U8)))
    for number, one in enumerate(objects):
        one.ref_count_up()
        one.get_tensor(0).fill_(number)
    def look():
        for number, one in enumerate(objects):
            for index in (0, 1):
                found = one.get_tensor(index)
                assert index or found is None or found.sum().item() == 64 * number
                assert one.get_ref_count() <= 6         # two of its own, and of views under way
    def give_up():
        for one in objects:
            one.ref_count_down()
    threads = [threading.Thread(target=work) for work in (
        look, look, give_up, lambda: free(manager, objects[:8]), lambda: free(manager, objects[8:]))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failed, failed
    assert used(manager) == 0 and not any(one.is_valid() for one in objects), (turn, used(manager))
assert manager.memcheck()
""")


def test_references_from_many_threads_to_what_has_tensors(torch_form):
    torch_form("""
manager = manager_of(16 * MIB)
failed = []
threading.excepthook = lambda failure: failed.append(failure.exc_value)
for turn in range(60):
    objects = made(manager, 8)
    threads = []
    for number in range(4):
        def work(number=number):
            for one in objects:
                one.tensor
                one.pin(number)
            for one in objects:
                assert one.is_valid()
                one.ref_count_down()
                one.unpin(number)
        threads.append(threading.Thread(target=work))
    for one in objects:
        for _ in range(3):
            one.ref_count_up()
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failed, failed
    assert used(manager) == 0 and not any(one.is_valid() for one in objects), (turn, used(manager))
assert manager.memcheck()
""")


def test_the_whole_space_outlives_close(l1):
    """Memory goes with the last view of it, also where the manager stays."""
    l1("""
manager = manager_of(4 * MIB)
space = manager.get_vm_space()
one, = made(manager)
manager.close()
space[5] = 9
assert space[5] == 9 and host.blocks()["blocks"] == 1
del space
gc.collect()
assert host.blocks() == EMPTY, host.blocks()
""")


def test_lifetimes(l1):
    """Whatever goes first."""
    l1("""
def drop(*_):
    gc.collect()
# The manager before its objects: they and their memory stay.
manager = manager_of(4 * MIB)
objects = made(manager, 3)
del manager
gc.collect()
assert host.blocks()["blocks"] == 1
objects[1].byte_array[:] = b"y" * 16384
assert bytes(objects[1].byte_array) == b"y" * 16384 and objects[0].is_valid()
objects[0].ref_count_down()
assert not objects[0].is_valid()
del objects
gc.collect()
assert host.blocks() == EMPTY
# Objects that nobody freed go with the last that names them.
manager = manager_of(4 * MIB)
objects = made(manager, 3)
kept = objects[2]
del objects
gc.collect()
assert kept.is_valid()
del kept
gc.collect()
assert used(manager) == 0
# Cycles: of an object with its tensor, and of everything.
class Node:
    def __del__(self):
        ended.append((self.one.is_valid(), int(self.view[0])))
ended = []
for turn in range(10):
    node = Node()
    node.one, = made(manager, 1, layout_of(([4096], U8)))
    node.view = node.one.tensor if turn % 2 else node.one.byte_array
    node.view[0] = 40 + turn
    node.itself, node.manager = [node], manager
    if turn % 3 == 0:
        free(manager, [node.one])
    del node
    assert used(manager) == 4096
    gc.collect()
    assert used(manager) == 0 and ended.pop()[1] == 40 + turn
del manager
gc.collect()
assert host.blocks() == EMPTY
node = Node()
node.manager = manager_of(4 * MIB)
node.one, = made(node.manager, 1, layout_of(([4096], U8)))
node.view, node.itself, node.space = node.one.tensor, node, node.manager.get_vm_space()
node.view[0] = 11
del node
gc.collect()
gc.collect()
assert host.blocks() == EMPTY and ended == [(True, 11)], (host.blocks(), ended)
""")


def test_collections_in_the_middle(l1):
    """Finalizers that free and drop run in the middle of other calls."""
    l1("""
manager = manager_of(8 * MIB)
class Node:
    def __del__(self):
        self.view.__setitem__((0, 0, 0) if len(self.view.shape) == 3 else 0, 1)
        if self.is_freed:
            manager.free(self.objects)
gc.set_threshold(1, 1, 1)
for turn in range(400):
    node = Node()
    node.objects = made(manager, 4)
    node.is_freed = turn % 2
    node.view = node.objects[turn % 4].byte_array if turn % 3 else node.objects[turn % 4].get_tensor(0)
    if turn % 20 == 0:
        gc.collect()
    node.itself = node
    others = made(manager, 3)
    if turn % 5 == 0:
        [found.tensor for found in others]
    free(manager, others)
    del node, others
gc.collect()
gc.set_threshold(700, 10, 10)
assert used(manager) == 0, used(manager)
assert manager.memcheck()
manager.close()
assert host.blocks() == EMPTY
""")


def test_freeing_while_others_allocate(l1):
    l1("""
manager = manager_of(4 * MIB)
ready, stop = [], []
def take():
    while not stop:
        error, objects = manager.allocate(LAYOUT, 5)
        if error == L1Error.SUCCESS:
            for found in objects:
                found.byte_array[:8] = found.data_ptr.to_bytes(8, "little")
            ready.append(objects)
        else:
            time.sleep(0)
def give():
    while not stop or ready:
        try:
            objects = ready.pop()
        except IndexError:
            time.sleep(0)
            continue
        for found in objects:
            assert bytes(found.byte_array[:8]) == found.data_ptr.to_bytes(8, "little")
        assert manager.free(objects) == L1Error.SUCCESS
        done.append(1)
        if len(done) > 1500:
            stop.append(1)
failed = []
threading.excepthook = lambda failure: (failed.append(failure.exc_value), stop.append(1))
done = []
threads = [threading.Thread(target=work) for work in (take, take, give, give)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
for objects in ready:
    free(manager, objects)
assert used(manager) == 0 and manager.memcheck()
manager.close()
""")


MODEL = """
def pattern(seed, length):
    return random.Random(seed).randbytes(length)
class Model:
    # What there must be: (object, seed, length, extra references, pins, was freed).
    def __init__(self, manager, seed, share):
        self.manager, self.random, self.live, self.share, self.next = manager, random.Random(seed), [], share, seed << 32
        self.align = 4096
    def held(self):
        return sum(-(-entry["length"] // self.align) * self.align for entry in self.live)
    def check(self, entry):
        one = entry["object"]
        assert one.is_valid() and one.get_size() == entry["length"], entry
        assert one.get_ref_count() == entry["references"] and one.is_pinned == (entry["pins"] > 0), (entry, one.get_ref_count())
        if entry["references"]:
            assert bytes(one.byte_array) == pattern(entry["seed"], entry["length"]), "contents changed"
    def settle(self, entry):
        if entry["references"] == entry["pins"] == 0:
            self.live.remove(entry)
            assert not entry["object"].is_valid()
    def step(self):
        what = self.random.random()
        if what < 0.4 or not self.live:
            length = self.random.choice((1, 100, 4096, 5000, 16384, 70000, 300000))
            count = self.random.choice((0, 1, 1, 2, 5, 17))
            error, objects = self.manager.allocate(layout_of(([length], U8)), count)
            if error == L1Error.OUT_OF_MEMORY:
                assert objects == [] and objects.feasible < count, (objects.feasible, count)
                if self.live:
                    self.release(self.random.sample(self.live, (len(self.live) + 1) // 2))
                return
            assert error == L1Error.SUCCESS and len(objects) == count
            for one in objects:
                self.next += 1
                one.byte_array[:] = pattern(self.next, length)
                self.live.append({"object": one, "seed": self.next, "length": length, "references": 1, "pins": 0,
                                  "is_freed": False})
        elif what < 0.75:
            self.release(self.random.sample(self.live, self.random.randint(1, min(6, len(self.live)))))
        elif what < 0.85:
            entry = self.random.choice(self.live)
            if entry["references"]:
                entry["object"].ref_count_up()
                entry["references"] += 1
        elif what < 0.95:
            entry = self.random.choice(self.live)
            entry["object"].pin(id(self))
            entry["pins"] += 1
        else:
            self.check(self.random.choice(self.live))
    def release(self, entries):
        for entry in entries:
            self.check(entry)
        freed = [entry for entry in entries if not entry["is_freed"]]
        assert self.manager.free([entry["object"] for entry in freed]) == L1Error.SUCCESS
        for entry in freed:
            entry["is_freed"] = True
            entry["references"] -= 1
        for entry in entries:
            while entry["references"] and entry["is_freed"]:
                entry["object"].ref_count_down()
                entry["references"] -= 1
            while entry["pins"]:
                self.check(entry)
                entry["object"].unpin(id(self))
                entry["pins"] -= 1
            self.settle(entry)
            again = self.manager.free([entry["object"]])
            assert again != L1Error.SUCCESS
    def apart(self):
        places = sorted((entry["object"].data_ptr, entry["object"].get_physical_size()) for entry in self.live)
        for (one, size), (other, _) in zip(places, places[1:]):
            assert one + size <= other
        for address, _ in places:
            assert address % self.align == 0
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_shadow_model(l1, seed):
    l1(MODEL + """
sys.stderr = open(os.devnull, "w")              # double frees are told there
manager = manager_of(8 * MIB, use_lazy=%r, init_size_in_bytes=2 * MIB)
model = Model(manager, %d, 1)
for turn in range(1200):
    model.step()
    assert used(manager) == model.held(), (turn, used(manager), model.held())
    if turn %% 50 == 0:
        model.apart()
        assert manager.memcheck()
for entry in list(model.live):
    model.check(entry)
model.release(list(model.live))
assert used(manager) == 0 and not model.live
manager.slab.wait()
whole = made(manager, 1, layout_of(([2 * MIB], U8)))
free(manager, whole)
manager.close()
sys.stderr = sys.__stderr__
""" % (seed == 1, seed))


def test_a_shadow_model_on_threads(plain):
    plain(MODEL + """
sys.stderr = open(os.devnull, "w")
manager = manager_of(16 * MIB)
models = [Model(manager, seed, 4) for seed in range(4)]
failed = []
threading.excepthook = lambda failure: failed.append(failure.exc_value)
def work(model):
    for turn in range(500):
        model.step()
    for entry in model.live:
        model.check(entry)
threads = [threading.Thread(target=work, args=(model,)) for model in models]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.stderr = sys.__stderr__
assert not failed, failed
assert used(manager) == sum(model.held() for model in models) and manager.memcheck()
every = Model(manager, 99, 1)
every.live = [entry for model in models for entry in model.live]
every.apart()
for model in models:
    for entry in model.live:
        model.check(entry)
manager.close()
""")


def test_shared_memory(plain):
    plain("""
import subprocess
name = "hbmalloc-test-l1-%d" % os.getpid()
raises(ValueError, lambda: manager_of(4 * MIB, use_lazy=True, shm_name=name))
manager = manager_of(4 * MIB, shm_name=name)
one, = made(manager)
one.byte_array[:] = b"s" * 16384
begin = one.data_ptr - manager.get_l1_memory_desc().ptr
code = '''
from hbmalloc import host
with host.shared(%d, %r, create=False) as other:
    view = other.memoryview()
    assert bytes(view[%d:%d]) == b"s" * 16384
    view[%d] = 7
    del view
''' % (4 * MIB, name, begin, begin + 16384, begin)
subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
assert one.byte_array[0] == 7
raises(hbmalloc.BusyError, lambda: manager_of(4 * MIB, shm_name=name))
manager.close()
assert name not in os.listdir("/dev/shm")
""")


def test_memory_that_is_not_pinned_needs_no_driver(run):
    from conftest import built_library

    if built_library() is None:
        pytest.skip("libhbmalloc is not built")
    run(COMMON + FORMS["plain"] + LAYOUT + """
with manager_of(8 * MIB, pinned=False) as manager:
    objects = made(manager, 4)
    objects[0].byte_array[0] = 1
    assert host.blocks()["pinned"] == 0 and host.blocks()["bytes"] == 8 * MIB
raises(hbmalloc.HbmallocError, lambda: manager_of(8 * MIB))
assert host.blocks() == EMPTY
""", HBMALLOC_DRIVER="/no/such/driver.so")


def test_a_child_that_was_forked(plain):
    plain("""
manager = manager_of(64 * MIB, use_lazy=True, init_size_in_bytes=2 * MIB, bytes_per_second=1)
objects = made(manager, 3)
objects[0].byte_array[:] = b"p" * 16384
child = os.fork()
if child == 0:
    # It ends as any program does, with all of these in its hands.
    for call in (lambda: manager.allocate(LAYOUT, 1), objects[0].ref_count_up, objects[0].pin, manager.get_memory_usage,
                 lambda: manager.free(objects), lambda: manager_of(2 * MIB), lambda: objects[0].byte_array):
        raises(hbmalloc.ForkedError, call)
    sys.exit(33)
status = os.waitpid(child, 0)[1]
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 33, status
assert bytes(objects[0].byte_array) == b"p" * 16384
made(manager, 5)
manager.close()
assert host.blocks() == EMPTY
""")


@pytest.mark.parametrize("what", ["grows", "views", "threads", "closed late"])
def test_the_process_ends_with_everything_open(l1, what):
    output = l1("""
manager = manager_of(512 * MIB, use_lazy=True, init_size_in_bytes=8 * MIB, bytes_per_second=MIB)
objects = made(manager, 7)
what = %r
if what == "views":
    views = [found.tensor for found in objects] + [found.byte_array for found in objects] + [manager.get_vm_space()]
    views.append(objects[0].__dlpack__())
elif what == "threads":
    def work():
        while True:
            manager.free(made(manager, 5))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads: thread.start()
    time.sleep(0.1)
elif what == "closed late":
    import atexit
    atexit.register(manager.close)
    atexit.register(manager.free, objects)
""" % what)
    assert output == ""


def test_an_interrupt_during_allocate(plain):
    """The call ends with KeyboardInterrupt, and what it may have got is not lost."""
    plain("""
import signal
for turn in range(4):
    manager = manager_of(512 * MIB, use_lazy=True, init_size_in_bytes=2 * MIB, bytes_per_second=1)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    try:
        timer.start()
        found = manager.allocate(layout_of(([8 * MIB], U8)), 4)
        del found                               # faster than the timer
        timer.join()
        time.sleep(1)
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit("no KeyboardInterrupt")
    assert time.monotonic() - begin < 60
    gc.collect()
    assert used(manager) == 0, (turn, used(manager))
    assert manager.memcheck()
    manager.close()
    assert host.blocks() == EMPTY
""")


def test_text_of_an_object(plain):
    plain("""
with manager_of() as manager:
    one, = made(manager)
    assert "16384" in "%r" % (one,) and "16384" in str(one) and "16384" in "{}".format(one)
    import copy, pickle
    for call in (lambda: pickle.dumps(one), lambda: copy.copy(one), lambda: copy.deepcopy(one)):
        raises(TypeError, call)
    assert one.is_valid() and bool(one)
""")


def test_an_interrupt_ends_a_long_allocate(plain):
    """It does not first wait for all that was asked for."""
    plain("""
import signal
manager = manager_of(6 * GIB, use_lazy=True, init_size_in_bytes=2 * MIB, bytes_per_second=MIB)
timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
try:
    timer.start()
    manager.allocate(layout_of(([1000 * MIB], U8)), 5)
except KeyboardInterrupt:
    pass
assert manager.slab.ready < 5 * GIB and manager.slab.progress()["is_growing"]
assert used(manager) == 0
manager.close()
assert host.blocks() == EMPTY
""")


def test_what_can_never_be_had_is_not_waited_for(plain):
    plain("""
manager = manager_of(512 * MIB, use_lazy=True, init_size_in_bytes=8 * MIB, bytes_per_second=MIB)
kept = made(manager, 12)
for layout, count, feasible in ((layout_of(([513 * MIB], U8)), 1, 0), (LAYOUT, 32769, 500), (LAYOUT, 1 << 70, 500)):
    error, none = manager.allocate(layout, count)
    assert error == L1Error.OUT_OF_MEMORY and none.feasible == feasible, (count, none.feasible)
assert manager.get_memory_usage() == (12 * 16384, 8 * MIB) and manager.slab.progress()["is_growing"]
manager.close()
""")


def test_many_threads_wait_for_growth(plain):
    """None is told that memory has run out while there is enough to come for all."""
    plain("""
for turn in range(5):
    manager = manager_of(64 * MIB, use_lazy=True, init_size_in_bytes=2 * MIB)
    found = []
    def work():
        found.append(manager.allocate(layout_of(([5 * MIB], U8)), 2))
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert [error for error, _ in found] == [L1Error.SUCCESS] * 6, found
    assert used(manager) == 60 * MIB and manager.memcheck()
    del found
    manager.close()
    gc.collect()
    assert host.blocks() == EMPTY
""")


def test_text_of_an_object(plain):
    """By `%` in a tuple of its own, as of every tuple."""
    plain("""
with manager_of() as manager:
    one, = made(manager)
    assert "16384" in str(one) and str(one) == repr(one) == "%s" % (one,) == f"{one}"
""")
