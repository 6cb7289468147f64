"""What a failure leaves behind in sleep and wake, seen from Python: the next calls work, nothing is lost or
held, and whoever listens is told the truth. On the simulated driver, as CUDA and as HIP."""

import os

import pytest
from conftest import built_library
from vllm_code import CLASS, COMMON, MACHINES

BLOCKS = COMMON + """
        import time
        library = ctypes.CDLL(_library.get_library_path())
        library.vmm_malloc.restype = ctypes.c_void_p
        library.vmm_malloc.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        library.vmm_free.restype = None
        library.vmm_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]

        def block(size, tag="tag", byte=7):
            with hbmalloc.tag(tag):
                address = library.vmm_malloc(size, 0, None)
            assert address
            write(address, byte, size)
            return address
"""

needs_module = pytest.mark.skipif(
    not os.path.exists(os.path.join(os.path.dirname(built_library() or ""), "libcumem_allocator.so")),
    reason="the native module is not built beside the library")


@needs_module
@pytest.mark.parametrize("machine", MACHINES)
def test_cells_whose_memory_was_not_released(fake, machine):
    fake(CLASS + """
        with allocator.use_memory_pool("kv_cache"):
            cache = filled(6 * MIB, 5)
        fail(b"cuMemRelease", 1, 999, 1)
        with refused(hbmalloc.DriverError):
            allocator.sleep(())
        healthy()
        allocator.sleep(())                                 # what was left of it goes
        assert all(data.is_asleep for data in allocator.pointer_to_data.values())
        allocator.wake_up()
        assert physical() == 6 * MIB and not allocator.pointer_to_data[cache].is_asleep
        write(cache, 1, 6 * MIB)
        assert holds(cache, 1, 6 * MIB) and faults()[0] == 0, faults()
        # By hand: what failed half way can be done again.
        from hbmalloc.compat.vllm.cumem import create_and_map, unmap_and_release
        handle = allocator.pointer_to_data[cache].handle
        fail(b"cuMemRelease", 1, 999, 1)
        with refused(RuntimeError, "MemRelease"):
            unmap_and_release(handle)
        healthy()
        unmap_and_release(handle)
        assert physical() == 0 == vllm.counters()["mapped"] == hbmalloc.stats(0)["allocated"]
        with refused(RuntimeError, "not mapped"):
            unmap_and_release(handle)
        create_and_map(handle)
        assert physical() == 6 * MIB == vllm.counters()["mapped"]
        # An address named twice, and one that has nothing.
        from hbmalloc.compat.vllm import _cells
        assert _cells.discard([cache, cache]) == 6 * MIB and _cells.discard([cache]) == 0 == physical()
        assert faults()[0] == 0, faults()
    """, **MACHINES[machine])


@needs_module
def test_cells_that_sleep_in_part(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            weights = filled(6 * MIB, 5)
        data = lambda: allocator.pointer_to_data[weights]
        hbmalloc.pin(weights, 4096)                         # one of three chunks
        allocator.sleep("weights")
        assert hbmalloc.residency("vllm.weights")["host"] == 4 * MIB and data().is_asleep
        hbmalloc.unpin(weights, 4096)
        allocator.wake_up()
        assert not data().is_asleep and holds(weights, 5, 6 * MIB)
        # The second chunk cannot be released, and nothing can be had to bring the first one back.
        fail(b"cuMemRelease", 2, 999, 1)
        fail(b"cuMemCreate", 1, 2, 100)
        with refused(hbmalloc.DriverError, "wake it"):
            allocator.sleep("weights")
        healthy()
        assert data().is_asleep
        allocator.wake_up()
        assert not data().is_asleep and holds(weights, 5, 6 * MIB)
        # What HIP held with the addresses goes once all of it sleeps.
        allocator.sleep("weights")
        assert physical() == 0
        allocator.wake_up()
        assert holds(weights, 5, 6 * MIB) and physical() == 6 * MIB and faults()[0] == 0, faults()
    """, **MACHINES["rocm"])


def test_a_sleep_that_fails_and_does_not_come_back(sim):
    sim(BLOCKS + """
        blocks = [block(2 * MIB, byte=number) for number in range(3)]
        told = []
        hbmalloc.set_residency_callback(lambda *change: told.append(change))
        fail(b"cuMemRelease", 2, 999, 1)
        fail(b"cuMemCreate", 1, 2, 9)
        try:
            hbmalloc.sleep("tag")
        except hbmalloc.DriverError as error:
            assert "wake it" in str(error) and error.report["tags"]["tag"]["moved"] == 6 * MIB, error.report
        else:
            raise SystemExit("nothing was raised")
        healthy()
        assert hbmalloc.residency("tag")["host"] == 6 * MIB
        assert {address for _, address, _, change in told if change == "asleep"} == set(blocks), told
        hbmalloc.wake("tag")
        assert all(holds(address, number, 2 * MIB) for number, address in enumerate(blocks))
    """)


def test_a_callback_that_ends_while_it_is_told(sim):
    sim(BLOCKS + """
        import gc
        for number in range(20):
            block(2 * MIB, "odd" if number % 2 else "even")
        calls = []
        def slow(*change):
            calls.append("told")
            time.sleep(0.02)
        hbmalloc.set_residency_callback(slow)
        thread = threading.Thread(target=lambda: hbmalloc.sleep("odd"))
        thread.start()
        while not calls:
            time.sleep(0.005)
        hbmalloc.set_residency_callback(None)
        gc.collect()
        # These would come to lie where the one before was.
        others = [ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda number: calls.append("other") or 0)
                  for _ in range(50)]
        thread.join()
        assert set(calls) == {"told"}, calls
    """)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_zeros_that_are_still_on_their_way(sim, nth):
    sim(BLOCKS + """
        address = block(6 * MIB)
        fail(b"cuStreamSynchronize", %d, 999, 1)
        try:
            hbmalloc.sleep("tag", guard="zero")
        except hbmalloc.DriverError:
            pass
        healthy()
        hbmalloc.wake("tag")
        assert holds(address, 7, 6 * MIB) and faults()[0] == 0, faults()
        library.vmm_free(address, 0, 0, None)
        hbmalloc.trim(0)
        assert physical() == 0
    """ % nth)


def test_zeros_that_cannot_be_given_back(sim):
    sim(BLOCKS + """
        address = block(64 * MIB)
        hbmalloc.sleep("tag", guard="zero")
        fail(b"cuMemRelease", 1, 999, 2)
        hbmalloc.wake("tag")
        healthy()
        hbmalloc.sleep("tag")                               # tries again
        assert physical() == 0
        hbmalloc.wake("tag")
        assert holds(address, 7, 64 * MIB) and physical() == 64 * MIB
    """)


def test_addresses_that_were_lost_for_a_while(sim):
    sim(BLOCKS + """
        address = block(8 * MIB)
        fail(b"cuMemAddressReserve", 1, 2, 1000)
        with refused(hbmalloc.HbmallocError):
            hbmalloc.sleep("tag")
        healthy()
        assert hbmalloc.residency("tag")["host"] == 8 * MIB
        # Nobody else gets them.
        others = [block(8 * MIB, "others", number) for number in range(3)]
        assert address not in others
        hbmalloc.wake("tag")
        assert holds(address, 7, 8 * MIB) and all(holds(at, number, 8 * MIB) for number, at in enumerate(others))
        assert faults()[0] == 0, faults()
    """, HBMALLOC_SIM="hip=6.4,devices=2,memory=4GiB,hip_stale=1,hip_holds=1", HBMALLOC_ROCM_CHUNK_SIZE="2MiB")


def test_device_numbers_that_cannot_be(sim):
    sim(BLOCKS + """
        block(2 * MIB)
        for device in (1 << 31, 1 << 32, (1 << 32) - 1, -1):
            with refused(ValueError, "there is no device"):
                hbmalloc.sleep(devices=device)
            with refused(ValueError, "there is no device"):
                hbmalloc.residency(device=device)
        assert hbmalloc.residency()["device"] == 2 * MIB
    """)
