"""The address manager under LMCache's interface, against a model of it: one byte for each unit of the space."""

import random

import pytest
from conftest import built_library

if built_library() is None:
    pytest.skip("libhbmalloc is not built", allow_module_level=True)

from hbmalloc.compat.lmcache._address_manager import AddressManager


def whole(manager):
    assert manager.total_allocated_size == 0 and manager.check_consistency()
    units = manager.get_heap_size() // manager._align
    if units:
        block = manager.allocate(units * manager._align)
        assert block == (0, units * manager._align)
        manager.free(*block)


@pytest.mark.parametrize("align", [1, 64, 512, 4096, 1 << 21, 3000])
@pytest.mark.parametrize("seed", range(3))
def test_as_the_model(align, seed):
    rng = random.Random(seed * 7919 + align)
    units, odd = 300, min(align - 1, 13)
    manager, used, live = AddressManager(units * align + odd, align), bytearray(units), {}
    for _ in range(1500):
        action = rng.random()
        if action < 0.02 and units < 600:
            manager.sbrk(5 * align)
            units += 5
            used += bytes(5)
            assert manager.get_heap_size() == units * align + odd
        elif action < 0.5:
            size, count = rng.randint(1, 30 * align), rng.choice((1, 1, 2, 5))
            each = -(-size // align)
            room = sum(len(run) // each for run in bytes(used).split(b"\1"))
            if room < count:
                with pytest.raises(RuntimeError):
                    manager.batched_allocate(size, count)
                continue
            made = manager.batched_allocate(size, count) if count > 1 else [manager.allocate(size)]
            assert len(made) == count
            for address, length in made:
                assert address % align == 0 and length == each * align == manager.compute_aligned_size(size)
                first = address // align
                assert first + each <= units and not any(used[first:first + each])
                used[first:first + each] = b"\1" * each
                live[address] = length
        elif live:
            # Neighbours go in one free, as LMCache frees batches.
            address = rng.choice(sorted(live))
            end = address + live.pop(address)
            while end in live and rng.random() < 0.7:
                end += live.pop(end)
            manager.free(address, end - address)
            used[address // align:end // align] = bytes((end - address) // align)
        assert manager.total_allocated_size == sum(used) * align
        assert manager.get_free_size() == manager.get_heap_size() - sum(used) * align
    assert manager.check_consistency()
    for address, length in live.items():
        manager.free(address, length)
    whole(manager)


def test_wrong_frees_change_nothing(caplog):
    manager = AddressManager(1 << 20)
    blocks = manager.batched_allocate(5000, 4)
    assert [address for address, _ in blocks] == [0, 8192, 16384, 24576]
    manager.free(16384, 8192)
    for address, size, text in ((16384, 8192, "freed before"), (0, 4096, "not at 4096"), (0, 12288, "not at 12288"),
                                (4096, 4096, "no block begins"), (0, 24576, "no block begins at 16384"), (0, 0, "free("),
                                (24576, 1 << 20, "no block begins"), (-4096, 4096, "no block begins")):
        for error in (ValueError, RuntimeError):
            with pytest.raises(error, match=text.replace("(", r"\(")):
                manager.free(address, size)
        assert manager.total_allocated_size == 3 * 8192 and manager.check_consistency()
    assert "freed before" in caplog.text
    manager.free(0, 16384)
    manager.free(24576, 8192)
    whole(manager)


def test_what_is_refused():
    for wrong in ((-1, 4096), (4096, 0), (4096, -8)):
        with pytest.raises(ValueError):
            AddressManager(*wrong)
    empty = AddressManager(0)
    with pytest.raises(RuntimeError):
        empty.allocate(1)
    empty.sbrk(1)
    assert empty.allocate(1) == (0, 4096)
    manager = AddressManager(1 << 20)
    for size in (0, -1):
        with pytest.raises(ValueError):
            manager.allocate(size)
        with pytest.raises(ValueError):
            manager.batched_allocate(size, 2)
    with pytest.raises(RuntimeError):
        manager.batched_allocate(4096, -1)
    assert manager.batched_allocate(4096, 0) == []
    # Numbers that no C type holds are neither cut nor wrapped.
    for size in ((1 << 20) + 1, 1 << 64, (1 << 64) + 4096):
        with pytest.raises(RuntimeError, match="free some"):
            manager.allocate(size)
    with pytest.raises(RuntimeError):
        manager.batched_allocate(4096, 1 << 62)
    whole(manager)


@pytest.mark.parametrize("align", [64, 4096])
def test_errors_are_in_the_caller_s_bytes(align):
    """Whatever the library counts in."""
    manager = AddressManager(10 * align, align)
    blocks = manager.batched_allocate(align, 10)
    for address, size in blocks[1:8:2] + blocks[8:]:
        manager.free(address, size)
    for call, count in ((lambda: manager.batched_allocate(2 * align - 1, 2), 2), (lambda: manager.allocate(4 * align), 1)):
        with pytest.raises(RuntimeError) as raised:
            call()
        size = 2 * align - 1 if count == 2 else 4 * align
        assert ("%d blocks of %d bytes: %d of %d bytes are in use, the largest free piece has %d" % (
            count, size, 4 * align, 10 * align, 3 * align)) in str(raised.value)
        assert isinstance(raised.value, MemoryError) and "hbm_" not in str(raised.value)
    assert manager.total_allocated_size == 4 * align and manager.check_consistency()


def test_what_is_refused_changes_nothing():
    most = ((1 << 53) - 1) * 4096
    manager = AddressManager(1 << 20)
    for size in (-1, -4096, most, 1 << 70):
        with pytest.raises(ValueError, match=r"%d (more )?bytes" % size):
            manager.sbrk(size)
    for size in (1.5, 4096.0, "4096", None):
        with pytest.raises(TypeError):
            manager.sbrk(size)
        with pytest.raises(TypeError):
            manager.allocate(size)
        with pytest.raises(TypeError):
            manager.batched_allocate(4096, size)
        with pytest.raises(TypeError):
            AddressManager(size)
        with pytest.raises(TypeError):
            manager.free(0, size)
    with pytest.raises(ValueError, match="%d bytes" % (most + 4096)):
        AddressManager(most + 4096)
    assert manager.get_heap_size() == manager.get_free_size() == 1 << 20
    manager.sbrk(0)
    whole(manager)
    largest = AddressManager(most)
    assert largest.allocate(most) == (0, most)


def test_a_free_that_the_library_refuses_changes_nothing(monkeypatch):
    manager = AddressManager(1 << 20)
    blocks = manager.batched_allocate(4096, 3)

    class Refusing:
        def __getattr__(self, name):
            return (lambda *_: 8) if name == "hbm_objects_free" else getattr(library, name)

    library = manager._library
    monkeypatch.setattr(manager, "_library", Refusing())
    for call in ((0, 4096), (0, 12288)):
        with pytest.raises(RuntimeError):
            manager.free(*call)
        assert manager.total_allocated_size == 12288
    monkeypatch.undo()
    assert manager.check_consistency()
    for block in blocks:
        manager.free(*block)
    whole(manager)


def test_damage_is_seen(caplog):
    manager = AddressManager(1 << 20)
    manager.allocate(4096)
    assert manager.check_consistency()
    manager.total_allocated_size -= 1
    assert not manager.check_consistency()
    manager.total_allocated_size += 1
    address, (handle, size) = next(iter(manager._blocks.items()))
    del manager._blocks[address]
    assert not manager.check_consistency()
    manager._blocks[address] = handle, size
    assert manager.check_consistency()


def test_threads():
    import threading

    manager, failures, count = AddressManager(64 << 20), [], 200

    def work(seed):
        rng, mine = random.Random(seed), []
        try:
            for _ in range(count):
                mine += manager.batched_allocate(rng.randint(1, 20000), rng.randint(1, 8))
                rng.shuffle(mine)
                while len(mine) > 20:
                    manager.free(*mine.pop())
            for block in mine:
                manager.free(*block)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    whole(manager)
