"""CuMemAllocator over our native module: the class that stands in for vLLM's, on a stand-in for torch
whose memory pools hand out whole segments."""

import os

import pytest
from conftest import built_library
from vllm_code import CLASS, MACHINES

pytestmark = pytest.mark.skipif(
    not os.path.exists(os.path.join(os.path.dirname(built_library() or ""), "libcumem_allocator.so")),
    reason="the native module is not built beside the library")


@pytest.fixture(params=MACHINES)
def fake(request, fake):
    return lambda code, **variables: fake(code, **{**MACHINES[request.param], **variables})


def test_record(fake):
    fake(CLASS + """
        with allocator.use_memory_pool():
            first = allocate(3 * MIB)
        with allocator.use_memory_pool(tag="weights"):
            second = allocate(2 * MIB)
        data = allocator.pointer_to_data
        assert set(data) == {first, second}
        assert data[first].tag == "default" and data[second].tag == "weights"
        assert data[first].handle[:3] == (0, 4 * MIB, first) and data[second].handle[:3] == (0, 2 * MIB, second)
        assert not data[first].is_asleep and data[first].cpu_backup_tensor is None
        assert shown(data[first].handle) != 0
        assert allocator.get_current_usage() == 6 * MIB == physical()
        data[first].cpu_backup_tensor = "kept"               # what programs write there stays
        assert allocator.pointer_to_data[first].cpu_backup_tensor == "kept"
        assert hbmalloc.stats_by_tag(0)["vllm.weights"]["allocated"] == 2 * MIB
        with allocator.use_memory_pool("other"):
            pass
        assert allocator.current_tag == "default" and hbmalloc.current_tag() is None
    """)


def test_discard_everything_and_wake(fake):
    fake(CLASS + """
        before = vllm.counters()
        with allocator.use_memory_pool("weights"):
            weights = filled(4 * MIB, 1)
        with allocator.use_memory_pool("kv_cache"):
            cache = filled(6 * MIB, 2)
        allocator.sleep(())                                   # level 2
        assert physical() == 0 and allocator.get_current_usage() == 10 * MIB
        assert all(data.is_asleep for data in allocator.pointer_to_data.values())
        allocator.wake_up()
        assert physical() == 10 * MIB
        write(weights, 3, 4 * MIB)
        write(cache, 4, 6 * MIB)
        assert holds(weights, 3, 4 * MIB) and holds(cache, 4, 6 * MIB)
        done = moved(before)
        assert done["creates"] == 4 and done["unmaps"] == 2, done      # it was our module that served
        assert faults()[0] == 0
    """)


def test_selective_wake_defers_weights_and_cache_only(fake):
    fake(CLASS + """
        sizes = {"weights": 2, "kv_cache": 4, "default": 6, "mine": 8}
        for tag, size in sizes.items():
            with allocator.use_memory_pool(tag):
                allocate(size * MIB)
        awake = lambda: sorted(data.tag for data in allocator.pointer_to_data.values() if not data.is_asleep)
        for tags, expected in ((["weights"], ["default", "mine", "weights"]), (("kv_cache",), ["default", "kv_cache", "mine"]),
                               ("kv_cache", ["default", "kv_cache", "mine"]), ([], ["default", "mine"])):
            allocator.sleep(())
            assert physical() == 0
            allocator.wake_up(tags)
            assert awake() == expected and physical() == sum(sizes[tag] for tag in expected) * MIB, (tags, awake())
        allocator.wake_up()
        assert physical() == 20 * MIB
        allocator.wake_up()                                   # again: nothing to do
        assert physical() == 20 * MIB
    """)


def test_discard_of_tags(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            weights = filled(2 * MIB, 1)
        with allocator.use_memory_pool("kv_cache"):
            allocate(4 * MIB)
        allocator.discard("kv_cache")
        assert physical() == 2 * MIB and holds(weights, 1, 2 * MIB)
        allocator.discard(("kv_cache", "none"))               # asleep already
        allocator.wake_up(["kv_cache"])
        assert physical() == 6 * MIB
    """)


def test_nested_and_entered_again(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("outer"):
            first = allocate(2 * MIB)
            with allocator.use_memory_pool("inner"):
                second = allocate(2 * MIB)
                with allocator.use_memory_pool("outer"):
                    third = allocate(2 * MIB)
            fourth = allocate(2 * MIB)
        with allocator.use_memory_pool("inner"):
            fifth = allocate(2 * MIB)
        tags = {address: data.tag for address, data in allocator.pointer_to_data.items()}
        assert tags == {first: "outer", second: "inner", third: "outer", fourth: "outer", fifth: "inner"}
        assert [len(allocator.allocator_and_pools[tag]) for tag in ("outer", "inner")] == [2, 2]
        pools = {id(entry[0]) for entries in allocator.allocator_and_pools.values() for entry in entries}
        assert len(pools) == 4                                # a new one at every entry
        allocator.sleep(())
        assert physical() == 0
        allocator.wake_up()
        assert physical() == 10 * MIB
    """)


def test_exceptions_restore_the_tag(fake):
    fake(CLASS + """
        with refused(KeyError):
            with allocator.use_memory_pool("weights"):
                raise KeyError("mine")
        assert allocator.current_tag == "default" and hbmalloc.current_tag() is None
        with refused(TypeError):
            with allocator.use_memory_pool(7):
                pass
    """)


def test_segments_without_tensors_are_given_back(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            kept, dead = allocate(2 * MIB), allocate(4 * MIB)
            drop(pool("weights"), dead)
            assert physical() == 6 * MIB                      # the pool may still use it
        assert physical() == 2 * MIB and set(allocator.pointer_to_data) == {kept}
        drop(pool("weights"), kept)                           # after its pool was left
        assert physical() == 2 * MIB
        allocator.sleep(("weights",))                         # nothing lives there that would have to be saved
        assert physical() == 0 and allocator.get_current_usage() == 0
        allocator.wake_up()
        assert physical() == 0
        with allocator.use_memory_pool("weights"):
            again = allocate(2 * MIB)
        release(pool("weights", 0), dead)
        release(pool("weights", 0), kept)
        assert physical() == 2 * MIB and set(allocator.pointer_to_data) == {again} and faults()[0] == 0
        drop(pool("weights"), again)
        with allocator.use_memory_pool("weights"):
            assert physical() == 0                            # older pools of the tag are looked at on entry
    """)


def test_graphs_keep_segments_without_tensors(fake):
    fake(CLASS + """
        with allocator.cudagraph_pool() as number:
            assert allocator.current_tag == "cudagraph" and number == pool("cudagraph").id
            with torch.cuda.memory.use_mem_pool(pool("cudagraph")):
                address = allocate(2 * MIB)
        with allocator.use_cudagraph_pool():
            assert len(allocator.allocator_and_pools["cudagraph"]) == 1
        drop(pool("cudagraph"), address)
        assert allocator.pointer_to_data[address].tag == "cudagraph"
        allocator.sleep(())
        assert physical() == 0
        allocator.wake_up(["weights"])                        # graphs always wake
        assert physical() == 2 * MIB
    """)


def test_free_while_asleep(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            address = allocate(2 * MIB)
        allocator.sleep(())
        release(pool("weights"), address)
        assert allocator.pointer_to_data == {} and vllm.counters()["cells"] == 0
        allocator.wake_up()
        assert physical() == 0 and faults()[0] == 0
    """)


def test_wake_of_discarded_memory_is_all_or_nothing(fake):
    fake(CLASS + """
        addresses = []
        for _ in range(3):
            with allocator.use_memory_pool("kv_cache"):
                addresses.append(allocate(16 * MIB))
        allocator.sleep(())
        other = ctypes.c_uint64()
        cell = _library.Cell(ctypes.sizeof(_library.Cell))
        library = _library.library()
        assert library.hbm_cell_reserve(0, 32 * MIB, None, ctypes.byref(cell)) == 0
        assert library.hbm_create_and_map(0, 32 * MIB, cell.address, ctypes.byref(other)) == 0
        with refused(hbmalloc.OutOfMemoryError, "wake_up", "16777216 bytes"):
            allocator.wake_up()
        assert physical() == 32 * MIB and all(data.is_asleep for data in allocator.pointer_to_data.values())
        assert library.hbm_cell_free(cell.address) == 0
        allocator.wake_up()                                   # tried again
        assert physical() == 48 * MIB
        for address in addresses:
            write(address, 5, 16 * MIB)
    """, HBMALLOC_SIM="devices=1,memory=64MiB")


def test_other_memory_is_left_alone(fake):
    fake(CLASS + """
        mine = hbmalloc.torch.memory_pool("vmm", tag="weights")
        block = mine.allocator.malloc(2 * MIB, 0, None)
        write(block, 9, 2 * MIB)
        with allocator.use_memory_pool("weights"):
            allocate(2 * MIB)
        allocator.sleep(())
        assert physical() == 2 * MIB and holds(block, 9, 2 * MIB)
    """)


def test_handles_by_hand(fake):
    fake(CLASS + """
        from hbmalloc.compat.vllm.cumem import create_and_map, unmap_and_release
        with allocator.use_memory_pool("weights"):
            address = allocate(2 * MIB)
        data = allocator.pointer_to_data[address]
        unmap_and_release(data.handle)
        assert allocator.pointer_to_data[address].is_asleep and physical() == 0
        create_and_map(data.handle)
        assert not allocator.pointer_to_data[address].is_asleep and physical() == 2 * MIB
    """)


def test_expandable_segments_are_off_inside(fake):
    fake(CLASS + """
        torch._C.settings = "max_split_size_mb:512,expandable_segments:True,garbage_collection_threshold:0.8"
        before = torch._C.settings
        with allocator.use_memory_pool("weights"):
            assert "expandable_segments:False" in torch._C.settings
            assert "max_split_size_mb:512" in torch._C.settings and "threshold:0.8" in torch._C.settings
            with allocator.use_memory_pool("kv_cache"):
                assert "expandable_segments:False" in torch._C.settings
            assert "expandable_segments:False" in torch._C.settings
        assert torch._C.settings == before
        # Older releases do not tell, and the environment never changes.
        torch.cuda.memory._snapshot = lambda: {}
        torch._C.settings = "written"
        with allocator.use_memory_pool("weights"):
            assert torch._C.settings == "expandable_segments:False"
            with allocator.use_memory_pool("kv_cache"):
                pass
            assert torch._C.settings == "expandable_segments:False"
        assert torch._C.settings == "expandable_segments:True"
    """, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")


def test_hooks_of_newer_releases(fake):
    fake(CLASS + """
        import types
        seen = []
        package = sys.modules["vllm.device_allocator"] = types.ModuleType("vllm.device_allocator")
        package.run_before_unmap_hooks = lambda data, tags=None: seen.append(("before", len(list(data)), tags, physical()))
        package.run_after_map_hooks = lambda data: seen.append(("after", len(list(data)), physical()))
        with allocator.use_memory_pool("weights"):
            allocate(2 * MIB)
        allocator.sleep(())
        allocator.wake_up()
        allocator.discard("weights")
        assert seen == [("before", 1, None, 2 * MIB), ("after", 1, 2 * MIB), ("before", 1, ("weights",), 2 * MIB)], seen
    """)


def test_release_of_pools(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            allocate(2 * MIB)
        allocator.sleep(())
        with allocator.use_memory_pool("weights"):
            allocate(2 * MIB)
        allocator.release_pools()
        allocator.close()
        assert allocator.allocator_and_pools == {} and vllm.counters()["cells"] == 0 and physical() == 0
        assert CuMemAllocator.get_instance() is allocator
    """)


def test_saved_memory_comes_back(fake):
    fake(CLASS + """
        before = vllm.counters()
        with allocator.use_memory_pool("weights"):
            weights = filled(4 * MIB, 1)
        with allocator.use_memory_pool("kv_cache"):
            cache = filled(6 * MIB, 2)
        with allocator.use_memory_pool():
            other = filled(2 * MIB, 3)
        handle = allocator.pointer_to_data[weights].handle
        for _ in range(2):
            allocator.sleep(("weights",))                     # level 1
            assert physical() == 0 and allocator.get_current_usage() == 12 * MIB
            assert all(data.is_asleep for data in allocator.pointer_to_data.values())
            assert hbmalloc.residency("vllm.weights")["host"] == 4 * MIB
            assert shown(handle) == 0
            allocator.wake_up(["weights"])
            assert physical() == 6 * MIB and holds(weights, 1, 4 * MIB)
            assert allocator.pointer_to_data[weights].handle == handle
            assert shown(handle) != 0       # the handle of the new memory
            allocator.wake_up(["kv_cache"])
            assert physical() == 12 * MIB
        write(cache, 4, 6 * MIB)
        done = moved(before)
        assert done["reserves"] == 3 and done["unmaps"] == 4, done
        assert faults()[0] == 0, faults()
    """)


def test_saved_by_default(fake):
    fake(CLASS + """
        with allocator.use_memory_pool():
            mine = filled(2 * MIB, 1)
        with allocator.use_memory_pool("weights"):
            filled(2 * MIB, 2)
        allocator.sleep()                                     # saves the default tag only
        assert hbmalloc.residency("vllm.default")["host"] == 2 * MIB
        assert hbmalloc.residency("vllm.weights") == dict.fromkeys(hbmalloc.residency(), 0)
        allocator.wake_up()
        assert holds(mine, 1, 2 * MIB) and physical() == 4 * MIB
        allocator.sleep("weights")
        allocator.wake_up()
    """)


def test_what_sleeps_sleeps_on_as_it_does(fake):
    out = fake(CLASS + """
        import logging
        logging.basicConfig(level=logging.INFO)
        with allocator.use_memory_pool("weights"):
            weights = filled(2 * MIB, 1)
        allocator.sleep(("weights",))
        allocator.sleep(())                                   # would discard what is saved
        allocator.discard("weights")
        with allocator.use_memory_pool("weights"):
            later = filled(2 * MIB, 2)
        allocator.discard("weights")                          # the later one alone
        assert physical() == 0
        allocator.sleep("weights")                            # nothing of the later one is there to be saved
        allocator.wake_up()
        assert holds(weights, 1, 2 * MIB) and physical() == 4 * MIB
    """)
    assert out.count("left as they are") == 4 and "discarded" in out, out


def test_out_of_memory_on_wake_and_again(fake):
    fake(CLASS + """
        addresses = {}
        for byte, tag in ((1, "weights"), (2, "weights"), (3, "kv_cache")):
            with allocator.use_memory_pool(tag):
                addresses[filled(16 * MIB, byte)] = byte
        allocator.sleep("weights")
        cell, other = _library.Cell(ctypes.sizeof(_library.Cell)), ctypes.c_uint64()
        library = _library.library()
        for size in (24, 40):                                 # too little for what is saved; for either
            cell = _library.Cell(ctypes.sizeof(_library.Cell))
            assert library.hbm_cell_reserve(0, size * MIB, None, ctypes.byref(cell)) == 0
            assert library.hbm_create_and_map(0, size * MIB, cell.address, ctypes.byref(other)) == 0
            with refused(hbmalloc.OutOfMemoryError, "wake"):
                allocator.wake_up()
            assert physical() == size * MIB                   # all sleep on
            assert all(data.is_asleep for data in allocator.pointer_to_data.values())
            assert library.hbm_cell_free(cell.address) == 0
        allocator.wake_up()
        assert physical() == 48 * MIB
        assert all(holds(address, byte, 16 * MIB) for address, byte in addresses.items() if byte < 3)
    """, HBMALLOC_SIM="devices=1,memory=64MiB")


def test_driver_errors_while_saving_and_waking(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            weights = filled(4 * MIB, 1)
        with allocator.use_memory_pool("kv_cache"):
            cache = filled(2 * MIB, 2)
        for name in (b"cuMemcpyDtoHAsync", b"cuMemUnmap"):
            fail(name, 1, 999, 1000)
            with refused(hbmalloc.HbmallocError):
                allocator.sleep("weights")
            healthy()
            assert physical() == 6 * MIB and holds(weights, 1, 4 * MIB) and holds(cache, 2, 2 * MIB), name
        for name in (b"cuMemcpyHtoDAsync", b"cuMemCreate", b"cuMemMap", b"cuMemSetAccess"):
            allocator.sleep("weights")
            fail(name, 1, 999, 1000)
            with refused(hbmalloc.HbmallocError):
                allocator.wake_up()
            healthy()
            assert physical() == 0, name
            allocator.wake_up()
            assert holds(weights, 1, 4 * MIB) and physical() == 6 * MIB, name
        assert faults()[0] == 0, faults()
    """)


def test_saved_memory_is_not_mapped_by_hand(fake):
    fake(CLASS + """
        from hbmalloc.compat.vllm.cumem import create_and_map, unmap_and_release
        with allocator.use_memory_pool("weights"):
            weights = filled(2 * MIB, 1)
        allocator.sleep("weights")
        handle = allocator.pointer_to_data[weights].handle
        with refused(RuntimeError, "CUDA Error", "contents are saved", "Wake its tag"):
            create_and_map(handle)
        with refused(RuntimeError, "not mapped"):
            unmap_and_release(handle)
        allocator.wake_up()
        assert holds(weights, 1, 2 * MIB)
    """)


def test_sleep_and_wake_of_hbmalloc_itself(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            weights = filled(2 * MIB, 1)
        with allocator.use_memory_pool("kv_cache"):
            allocate(4 * MIB)
        allocator.discard("kv_cache")
        hbmalloc.sleep("vllm.weights")
        assert allocator.pointer_to_data[weights].is_asleep and physical() == 0
        hbmalloc.wake()                                       # what the class discarded is its own to bring back
        assert physical() == 2 * MIB and holds(weights, 1, 2 * MIB)
        allocator.wake_up()
        assert physical() == 6 * MIB
        hbmalloc.sleep("vllm.weights")
        allocator.wake_up(["weights"])
        assert holds(weights, 1, 2 * MIB)
    """)


def test_free_while_saved(fake):
    fake(CLASS + """
        with allocator.use_memory_pool("weights"):
            first, second = filled(2 * MIB, 1), filled(2 * MIB, 2)
        allocator.sleep("weights")
        release(pool("weights"), first)
        assert set(allocator.pointer_to_data) == {second} and hbmalloc.host_buffer()["used"] == 2 * MIB
        allocator.wake_up()
        assert holds(second, 2, 2 * MIB) and physical() == 2 * MIB and faults()[0] == 0
        release(pool("weights"), second)
        assert physical() == 0 and hbmalloc.stats(0)["allocated"] == 0
    """)


def test_by_hand_beside_a_sleep(fake):
    fake(CLASS + """
        from hbmalloc.compat.vllm.cumem import create_and_map, unmap_and_release
        with allocator.use_memory_pool("weights"):
            addresses = [filled(8 * MIB, 1) for _ in range(6)]
        handles = [data.handle for data in allocator.pointer_to_data.values()]
        stop, seen = threading.Event(), set()
        def by_hand():
            while not stop.is_set():
                for handle in handles:
                    for act in (unmap_and_release, create_and_map):
                        try:
                            act(handle)
                            seen.add("done")
                        except RuntimeError as error:
                            seen.add("refused")
                            assert any(word in str(error) for word in ("mapped", "sleeps")), error
        thread = threading.Thread(target=by_hand)
        thread.start()
        for _ in range(30):
            hbmalloc.sleep("vllm.weights")
            hbmalloc.wake("vllm.weights")
        stop.set()
        thread.join()
        allocator.wake_up()
        assert faults()[0] == 0, faults()
        assert "done" in seen and physical() == 48 * MIB, (seen, physical())
    """)


def test_saved_to_a_file(fake, tmp_path):
    fake(CLASS + """
        CuMemAllocator.offload_to = "file"
        with allocator.use_memory_pool("weights"):
            weights = filled(4 * MIB, 1)
        allocator.sleep("weights")
        assert physical() == 0 and hbmalloc.residency("vllm.weights")["file"] == 4 * MIB
        allocator.wake_up()
        assert holds(weights, 1, 4 * MIB)
    """, HBMALLOC_SLEEP_DIR=str(tmp_path))
