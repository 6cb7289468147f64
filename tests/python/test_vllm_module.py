"""The native module cumem_allocator: its C functions as torch calls them, its Python functions as
vLLM's class does."""

import os

import pytest
from conftest import built_library
from vllm_code import MODULE

pytestmark = pytest.mark.skipif(
    not os.path.exists(os.path.join(os.path.dirname(built_library() or ""), "libcumem_allocator.so")),
    reason="the native module is not built beside the library")


def test_memory_goes_and_comes_at_the_same_address(sim):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        before = vllm.counters()
        address = malloc(3 * MIB)
        handle = known[address]
        device, size, d_mem, cell = handle
        assert (device, size, d_mem) == (0, 4 * MIB, address)          # rounded up to the granularity
        assert physical() == 4 * MIB and shown(handle) != 0
        assert hbmalloc.stats(0, "vmm")["allocated"] == hbmalloc.stats(0)["reserved"] == 4 * MIB
        assert module.python_unmap_and_release(*handle) == handle
        assert physical() == 0 and shown(handle) == 0
        assert hbmalloc.stats(0, "vmm")["allocated"] == hbmalloc.stats(0)["reserved"] == 0
        assert module.python_create_and_map(*handle) == handle
        assert physical() == 4 * MIB and shown(handle) != 0
        write(address, 7, size)
        assert holds(address, 7, size)
        free(address)
        assert physical() == 0 and known == {} and faults()[0] == 0, faults()
        assert moved(before) == {"peak_mapped": 4 * MIB, "reserves": 1, "frees": 1, "creates": 2, "unmaps": 1}
    """)


def test_names_and_file(sim):
    sim(MODULE + """
        assert module.__name__ == "vllm.cumem_allocator"
        assert module.py_init_module.__doc__ == module.init_module.__doc__
        for name in ("my_malloc", "my_free", "ensure_context", "create_and_map", "unmap_and_release"):
            getattr(so, name)
        # vLLM's class looks for its file so.
        with open("/proc/self/maps") as maps:
            files = {line.split("/")[-1].strip() for line in maps if "cumem_allocator" in line}
        assert files == {"cumem_allocator.abi3.so"}, files
        assert _native.load() is module
    """)


def test_wrong_arguments(sim):
    sim(MODULE + """
        for arguments in ((1, 2), (None, 3), (len,), (len, None, None)):
            with refused(TypeError, "Both arguments must be callables"):
                module.init_module(*arguments)
        module.init_module(on_malloc, on_free)
        handle = known[malloc(2 * MIB)]
        for function in (module.python_create_and_map, module.python_unmap_and_release):
            for arguments in ((), (1, 2, 3), (1, 2, 3, 4, 5), (handle,)):
                with refused(TypeError, "Expected a tuple of size 4"):
                    function(*arguments)
            for chunks in ([1, 2], [(1, 2, 3)], [[1, 2]]):
                with refused(TypeError, "Expected a list of (cell, size)"):
                    function(*handle[:3], chunks)
            with refused(TypeError):
                function(*handle[:3], [(1, None)])
            with refused(OverflowError):
                function(*handle[:3], [(-1, 2 * MIB)])
            for chunks in ([], [(handle[3], MIB)], [(handle[3], MIB)] * 3, [(handle[3], (1 << 64) - 1)] * 2):
                with refused(RuntimeError, "CUDA Error: ", "do not come to 2097152 bytes"):
                    function(*handle[:3], chunks)
            with refused(OverflowError):
                function(-1, 2 * MIB, handle[2], handle[3])
            with refused(RuntimeError, "CUDA Error: ", "cell of 2097152 bytes"):
                function(0, 4 * MIB, handle[2], handle[3])
            with refused(RuntimeError, "CUDA Error: ", "NULL"):
                function(*handle[:3], 0)
        with refused(RuntimeError, "mapped already"):
            module.python_create_and_map(*handle)
        with refused(RuntimeError, "there is no device 9"):
            module.python_create_and_map(9, 2 * MIB, handle[2], handle[3])
        module.python_unmap_and_release(*handle)
        with refused(RuntimeError, "not mapped"):
            module.python_unmap_and_release(*handle)
        free(handle[2])
        with refused(RuntimeError, "not the address of a live block"):
            module.python_unmap_and_release(0, 2 * MIB, 1 << 40, handle[2])
    """)


@pytest.mark.parametrize("arguments", ["", "None, None"])
def test_without_callbacks_the_record_is_the_librarys(sim, arguments):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        module.init_module(%s)
        address = malloc(2 * MIB)
        assert known == {} and vllm.counters()["cells"] == 1
        from hbmalloc.compat.vllm import _cells
        handle = _cells.known()[address].handle
        module.python_unmap_and_release(*handle)
        free(address)
        assert vllm.counters()["cells"] == 0 and physical() == 0 and faults()[0] == 0
        assert malloc(0) is None and malloc(-5) is None
        free(None)
        free(12345)
        assert hbmalloc.stats(0)["rejected_frees"] == 1
    """ % arguments)


def test_callback_comes_before_the_memory(sim):
    sim(MODULE + """
        seen = []
        module.init_module(lambda handle: seen.append((handle, physical())), lambda address: (0, 0, address, 0))
        address = malloc(2 * MIB)
        assert seen[0][1] == 0 and physical() == 2 * MIB
        free(address)
    """)


def test_allocation_after_driver_errors(sim):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        for name in (b"cuMemAddressReserve", b"cuMemCreate", b"cuMemMap", b"cuMemSetAccess"):
            for code in (2, 999):
                kept = malloc(2 * MIB)                  # the probes are done
                fail(name, 1, code, 1000)
                assert malloc(2 * MIB) is None, name
                healthy()
                assert list(known) == [kept], (name, known)         # the record has nothing of it
                assert vllm.counters()["cells"] == 1 and physical() == 2 * MIB, name
                again = malloc(2 * MIB)
                assert again and physical() == 4 * MIB
                free(again)
                free(kept)
                assert physical() == 0 and known == {}
        assert faults()[0] == 0, faults()
    """)


def test_wake_after_driver_errors(sim):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        address = malloc(4 * MIB)
        handle = known[address]
        for name in (b"cuMemCreate", b"cuMemMap", b"cuMemSetAccess"):
            module.python_unmap_and_release(*handle)
            fail(name, 1, 999, 1000)
            with refused(RuntimeError, "CUDA Error", "999"):
                module.python_create_and_map(*handle)
            healthy()
            assert physical() == 0, name
            module.python_create_and_map(*handle)
            assert physical() == 4 * MIB and shown(handle) != 0
        for name in (b"cuMemUnmap", b"cuMemRelease"):
            fail(name, 1, 999, 1)
            with refused(RuntimeError, "CUDA Error", "999"):
                module.python_unmap_and_release(*handle)
            healthy()
            try:
                module.python_unmap_and_release(*handle)
            except RuntimeError as error:
                assert "not mapped" in str(error)          # the release was made up for before
            assert physical() == 0, name
            module.python_create_and_map(*handle)
        free(address)
        assert physical() == 0 and faults()[0] == 0, faults()
    """)


def test_out_of_memory(sim):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        first = malloc(40 * MIB)
        assert malloc(40 * MIB) is None and list(known) == [first] and physical() == 40 * MIB
        handle = known[first]
        module.python_unmap_and_release(*handle)
        second = malloc(40 * MIB)
        with refused(RuntimeError, "CUDA Error", "out of memory", "41943040 bytes"):
            module.python_create_and_map(*handle)
        free(second)
        module.python_create_and_map(*handle)
        assert physical() == 40 * MIB
        free(first)
        assert physical() == 0
    """, HBMALLOC_SIM="devices=1,memory=64MiB")


def test_our_caches_make_room(sim):
    sim(MODULE + """
        pool = _library.library()
        pool.pool_malloc.restype = ctypes.c_void_p
        block = pool.pool_malloc(ctypes.c_size_t(40 * MIB), 0, None)
        pool.pool_free(ctypes.c_void_p(block), ctypes.c_size_t(0), 0, None)
        assert physical() >= 40 * MIB
        assert malloc(40 * MIB)
    """, HBMALLOC_SIM="devices=1,memory=64MiB")


def test_raising_callbacks(sim):
    out = sim(MODULE + """
        def raising(argument):
            raise ValueError("mine")
        module.init_module(raising, on_free)
        assert malloc(2 * MIB) is None
        assert vllm.counters()["cells"] == 0 and physical() == 0
        module.init_module(on_malloc, raising)
        address = malloc(2 * MIB)
        free(address)
        assert vllm.counters()["cells"] == 0 and physical() == 0
        for answer in ("text", (1, 2), None):
            module.init_module(on_malloc, lambda address: answer)
            free(malloc(2 * MIB))
            assert vllm.counters()["cells"] == 0 and physical() == 0
        # Python's lock was given back each time: another thread gets it.
        ran = []
        thread = threading.Thread(target=lambda: ran.append(malloc(2 * MIB)))
        thread.start()
        thread.join(20)
        assert ran and ran[0]
        print("done")
    """)
    assert out.count("ValueError: mine") == 2 and out.count("Expected a tuple of size 4") == 3
    assert out.count("done") == 1


def test_free_while_asleep(sim):
    out = sim(MODULE + """
        module.init_module(on_malloc, on_free)
        address = malloc(2 * MIB)
        module.python_unmap_and_release(*known[address])
        free(address)
        assert known == {} and vllm.counters()["cells"] == 0 and physical() == 0
        # vLLM's class forgets what it trims, and torch frees it later.
        address = malloc(2 * MIB)
        module.python_unmap_and_release(*on_free(address))
        free(address)
        assert vllm.counters()["cells"] == 0 and faults()[0] == 0, faults()
    """)
    assert "KeyError" not in out


def test_the_lock_is_taken_only_for_callbacks(sim):
    sim(MODULE + """
        # A thread of C that frees while this one holds Python's lock and waits for it: my_free
        # looks at its first argument alone, which is what such a thread gets.
        address = malloc(2 * MIB)
        holding = ctypes.PyDLL(None)
        number, entry = ctypes.c_ulong(), ctypes.cast(so.my_free, ctypes.c_void_p)
        assert holding.pthread_create(ctypes.byref(number), None, entry, ctypes.c_void_p(address)) == 0
        assert holding.pthread_join(number, None) == 0
        assert vllm.counters()["frees"] == 1 and physical() == 0
    """)


def test_memory_waits_for_work(sim):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        address = malloc(2 * MIB)
        stream, context = ctypes.c_void_p(), ctypes.c_void_p()
        sim = driver()
        assert so.ensure_context(ctypes.c_ulonglong(0)) == 0
        assert sim.cuStreamCreate(ctypes.byref(stream), 1) == 0
        assert sim.cuMemsetD8Async(ctypes.c_uint64(address), ctypes.c_ubyte(1), ctypes.c_size_t(2 * MIB), stream) == 0
        module.python_unmap_and_release(*known[address])
        module.python_create_and_map(*known[address])
        assert sim.cuMemsetD8Async(ctypes.c_uint64(address), ctypes.c_ubyte(1), ctypes.c_size_t(2 * MIB), stream) == 0
        free(address)
        assert faults()[0] == 0, faults()
    """)


def test_many_threads(sim):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        errors = []
        def work(number):
            try:
                for round_ in range(20):
                    address = malloc(2 * MIB)
                    write(address, number, 4096)
                    if round_ % 2:
                        module.python_unmap_and_release(*known[address])
                        module.python_create_and_map(*known[address])
                        write(address, number, 4096)
                    assert holds(address, number, 4096)
                    free(address)
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not errors and known == {} and physical() == 0 and faults()[0] == 0, (errors, faults())
    """)


def test_forked_children_and_exit(sim):
    sim(MODULE + """
        module.init_module(on_malloc, on_free)
        address = malloc(2 * MIB)
        child = os.fork()
        if child == 0:
            status = 5
            try:
                assert malloc(2 * MIB) is None
                free(address)
                with refused(RuntimeError, "fork"):
                    module.python_create_and_map(0, 2 * MIB, address, known.get(address, (0,) * 4)[3] or 8)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        # torch frees what is left once Python is gone: exit must be clean.
        import atexit
        libc = ctypes.CDLL(None)
        class Late: pass
        late = Late()
        late.__class__.__del__ = lambda self, free=so.my_free, address=address: free(address, 0, 0, None)
        sys.modules["late"] = late
    """)


def test_import_without_the_library(run):
    path = os.path.join(os.path.dirname(built_library()), "libcumem_allocator.so")
    code = """
        import importlib.util, sys
        sys.modules["hbmalloc"] = None
        spec = importlib.util.spec_from_file_location("cumem_allocator", %r)
        try:
            importlib.util.module_from_spec(spec)
        except ImportError as error:
            assert "import hbmalloc first" in str(error), error
        else:
            raise SystemExit(5)
    """ % path
    run(code)


def test_plain_import_finds_the_librarys_package(sim):
    path = os.path.join(os.path.dirname(built_library()), "libcumem_allocator.so")
    sim("""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("cumem_allocator", %r)
        module = importlib.util.module_from_spec(spec)
        import hbmalloc
        assert "hbmalloc._library" in sys.modules and module.__version__ == hbmalloc.__version__
    """ % path)


ROCM = MODULE + """
        MIB = 1 << 20
        hbmalloc.set_option("rocm_chunk_size", "8MiB")
        handles = lambda handle: [ctypes.c_uint64.from_address(cell).value for cell, _ in handle[3]]
"""


@pytest.mark.parametrize("quirk", ["", ",hip_holds=1", ",hip_stale=1", ",hip_whole=1", ",hip_access_fails=1"])
def test_a_list_of_chunks_on_rocm(sim, quirk):
    sim(ROCM + """
        module.init_module(on_malloc, on_free)
        address = malloc(19 * MIB)
        handle = known[address]
        assert handle[:3] == (0, 20 * MIB, address), handle
        assert [size for _, size in handle[3]] == [8 * MIB, 8 * MIB, 4 * MIB], handle
        assert len(set(handles(handle))) == 3 and 0 not in handles(handle)
        assert vllm.counters()["mapped"] == physical() == 20 * MIB
        write(address, 7, 20 * MIB)
        assert holds(address, 7, 20 * MIB)
        for _ in range(3):
            assert module.python_unmap_and_release(*handle) == handle
            assert physical() == 0 and handles(handle) == [0, 0, 0]
            with refused(RuntimeError, "not mapped"):
                module.python_unmap_and_release(*handle)
            assert module.python_create_and_map(*handle) == handle
            assert physical() == 20 * MIB and 0 not in handles(handle)
            write(address, 9, 20 * MIB)
            assert holds(address, 9, 20 * MIB)
        # Freed as it sleeps, when vLLM's class answers with an empty list.
        module.python_unmap_and_release(*handle)
        module.init_module(on_malloc, lambda address: known.pop(address)[:3] + ([],))
        free(address)
        assert known == {} and physical() == 0 and faults()[0] == 0, faults()
    """, HBMALLOC_SIM="hip=6.4,devices=2,memory=4GiB" + quirk)


def test_a_chunk_that_cannot_be_had_on_rocm(sim):
    sim(ROCM + """
        module.init_module(on_malloc, on_free)
        free(malloc(2 * MIB))                       # what the device can do is known then
        fail(b"cuMemCreate", nth=2)
        address = malloc(20 * MIB)                  # had at the second attempt, once all is trimmed
        handle = known[address]
        healthy()
        module.python_unmap_and_release(*handle)
        fail(b"cuMemMap", nth=3, code=999)
        with refused(RuntimeError, "CUDA Error: ", "hipMemMap"):
            module.python_create_and_map(*handle)
        healthy()
        assert physical() == 0 and handles(handle) == [0, 0, 0]
        fail(b"cuMemUnmap", nth=2, code=999)
        module.python_create_and_map(*handle)
        with refused(RuntimeError, "CUDA Error: ", "hipMemUnmap"):
            module.python_unmap_and_release(*handle)
        healthy()
        module.python_unmap_and_release(*handle)
        assert physical() == 0 and handles(handle) == [0, 0, 0]
        free(address)
        assert physical() == 0 and faults()[0] == 0, faults()
    """, HBMALLOC_SIM="hip=6.4,devices=2,memory=4GiB")


def test_addresses_of_the_callers_own_on_rocm(sim):
    sim(ROCM + """
        library = driver()
        base = ctypes.c_uint64()
        assert so.ensure_context(ctypes.c_ulonglong(0)) == 0
        assert library.cuMemAddressReserve(ctypes.byref(base), ctypes.c_size_t(16 * MIB), ctypes.c_size_t(0),
                                           ctypes.c_uint64(0), ctypes.c_uint64(0)) == 0
        cells = (ctypes.c_uint64 * 3)()
        at = ctypes.addressof(cells)
        handle = (0, 14 * MIB, base.value, [(at, 4 * MIB), (at + 8, 4 * MIB), (at + 16, 6 * MIB)])
        assert module.python_create_and_map(*handle) == handle
        assert physical() == 14 * MIB and 0 not in list(cells)
        write(base.value, 3, 14 * MIB)
        assert module.python_unmap_and_release(*handle) == handle
        assert physical() == 0 and list(cells) == [0, 0, 0]
        fail(b"cuMemCreate", nth=3, code=999)
        with refused(RuntimeError, "CUDA Error: ", "hipMemCreate"):
            module.python_create_and_map(*handle)
        healthy()
        assert physical() == 0 and list(cells) == [0, 0, 0]
        assert module.python_create_and_map(*handle) == handle
        fail(b"cuMemUnmap", nth=2, code=999)
        with refused(RuntimeError, "CUDA Error: ", "hipMemUnmap"):
            module.python_unmap_and_release(*handle)
        healthy()
        assert module.python_unmap_and_release(*handle) == handle       # the one that is left
        assert physical() == 0 and list(cells) == [0, 0, 0]
        with refused(RuntimeError, "not the address of a live block"):
            module.python_unmap_and_release(*handle)
        assert faults()[0] == 0, faults()
    """, HBMALLOC_SIM="hip=6.4,devices=2,memory=4GiB")
