"""vLLM's own class over our native module, on the behaviours that its users rely on. Its file is not
ours to keep: `HBMALLOC_VLLM_CUMEM_PY` names it (vllm/device_allocator/cumem.py of an installed vLLM)."""

import os

import pytest
from conftest import FAKE_TORCH, PYTHON, ROOT, built_library
from vllm_code import CLASS_OF, COMMON, MACHINES

FILE = os.environ.get("HBMALLOC_VLLM_CUMEM_PY")
pytestmark = [
    pytest.mark.skipif(not FILE, reason="HBMALLOC_VLLM_CUMEM_PY names no file of vLLM's class"),
    pytest.mark.skipif(
        not os.path.exists(os.path.join(os.path.dirname(built_library() or ""), "libcumem_allocator.so")),
        reason="the native module is not built beside the library"),
]

OWN = COMMON + "        vllm.install(native_only=True)\n" + CLASS_OF + """
        import vllm.device_allocator.cumem as theirs
        assert theirs.__name__ == "vllm.device_allocator.cumem" and not hasattr(theirs, "PREFIX")
        assert theirs.init_module is sys.modules["vllm.cumem_allocator"].init_module
        from hbmalloc.compat import vllm
"""


@pytest.fixture(params=MACHINES)
def own(request, sim):
    def with_theirs(code, **variables):
        path = os.pathsep.join([PYTHON, FAKE_TORCH, os.path.join(ROOT, "tests", "vllm_stand_in")])
        return sim(code, PYTHONPATH=path, HBMALLOC_VLLM_CUMEM_PY=FILE,
                   **{**MACHINES[request.param], **variables})

    return with_theirs


def test_saved_and_discarded(own):
    own(OWN + """
        before = vllm.counters()
        with allocator.use_memory_pool("weights"):
            weights = filled(4 * MIB, 1)
        with allocator.use_memory_pool("kv_cache"):
            cache = filled(6 * MIB, 2)
        assert allocator.get_current_usage() == 10 * MIB == physical()
        for _ in range(2):
            allocator.sleep(("weights",))
            assert physical() == 0 and allocator.get_current_usage() == 10 * MIB
            allocator.wake_up(["weights"])
            assert physical() == 4 * MIB and holds(weights, 1, 4 * MIB)
            allocator.wake_up(["kv_cache"])
            assert physical() == 10 * MIB
        write(cache, 3, 6 * MIB)
        done = moved(before)
        assert done["creates"] == 6 and done["unmaps"] == 4, done        # our module served
        assert faults()[0] == 0, faults()
    """)


def test_nested_entered_again_and_discard(own):
    own(OWN + """
        with allocator.use_memory_pool("outer"):
            first = filled(2 * MIB, 1)
            with allocator.use_memory_pool("inner"):
                second = filled(2 * MIB, 2)
            third = filled(2 * MIB, 3)
        with allocator.use_memory_pool("inner"):
            fourth = filled(2 * MIB, 4)
        tags = {address: data.tag for address, data in allocator.pointer_to_data.items()}
        assert tags == {first: "outer", second: "inner", third: "outer", fourth: "inner"}
        allocator.discard("inner")
        assert physical() == 4 * MIB
        allocator.sleep("outer")
        assert physical() == 0
        allocator.wake_up()
        assert physical() == 8 * MIB and holds(first, 1, 2 * MIB) and holds(third, 3, 2 * MIB)
    """)


def test_allocation_after_a_driver_error(own):
    own(OWN + """
        with allocator.use_memory_pool("weights"):
            first = filled(2 * MIB, 1)
            for name in (b"cuMemCreate", b"cuMemMap", b"cuMemSetAccess"):
                fail(name, 1, 999, 1000)
                with refused(RuntimeError):
                    allocate(2 * MIB)
                healthy()
                assert list(allocator.pointer_to_data) == [first], name     # nothing of it is left
            second = filled(2 * MIB, 2)
        allocator.sleep("weights")
        allocator.wake_up()
        assert holds(first, 1, 2 * MIB) and holds(second, 2, 2 * MIB) and physical() == 4 * MIB
    """)


def test_free_while_asleep_and_trimmed_segments(own):
    out = own(OWN + """
        with allocator.use_memory_pool("weights"):
            first, dead = filled(2 * MIB, 1), filled(4 * MIB, 2)
            drop(pool("weights"), dead)
        assert physical() == 2 * MIB and set(allocator.pointer_to_data) == {first}
        release(pool("weights"), dead)
        allocator.sleep("weights")
        release(pool("weights"), first)
        assert allocator.pointer_to_data == {} and vllm.counters()["cells"] == 0
        allocator.wake_up()
        assert physical() == 0 and faults()[0] == 0, faults()
    """)
    assert "Error" not in out, out


def test_out_of_memory_on_wake_and_again(own):
    own(OWN + """
        addresses = []
        for byte in (1, 2, 3):
            with allocator.use_memory_pool("weights"):
                addresses.append(filled(16 * MIB, byte))
        allocator.sleep("weights")
        cell, other = _library.Cell(ctypes.sizeof(_library.Cell)), ctypes.c_uint64()
        library = _library.library()
        assert library.hbm_cell_reserve(0, 32 * MIB, None, ctypes.byref(cell)) == 0
        assert library.hbm_create_and_map(0, 32 * MIB, cell.address, ctypes.byref(other)) == 0
        with refused(RuntimeError, "CUDA Error", "out of memory"):
            allocator.wake_up()
        assert library.hbm_cell_free(cell.address) == 0
        allocator.wake_up()
        assert [holds(address, byte, 16 * MIB) for address, byte in zip(addresses, (1, 2, 3))] == [True] * 3
    """, HBMALLOC_SIM="devices=1,memory=64MiB")


def test_graph_pool_and_end(own):
    own(OWN + """
        with allocator.cudagraph_pool() as number:
            with torch.cuda.memory.use_mem_pool(pool("cudagraph")):
                address = filled(2 * MIB, 5)
        allocator.sleep(("cudagraph",))
        allocator.wake_up(["weights"])
        assert holds(address, 5, 2 * MIB)
        allocator.release_pools()
        assert vllm.counters()["cells"] == 0 and physical() == 0 and allocator.pointer_to_data == {}
    """)
