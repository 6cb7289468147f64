"""Tags: what a thread's blocks are called and where they live, on the simulated driver."""

import pytest

VMM = """
        import ctypes, threading, hbmalloc
        library = ctypes.CDLL(hbmalloc.get_library_path())
        library.vmm_malloc.restype = ctypes.c_void_p
        library.vmm_malloc.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        library.vmm_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        def new_block_tag():
            block = library.vmm_malloc(100, 0, None)
            try:
                return hbmalloc.tag_of(block)
            finally:
                library.vmm_free(block, 100, 0, None)
"""


def test_context_manager_and_decorator(sim):
    sim(VMM + """
        assert hbmalloc.current_tag() is None and new_block_tag() is None
        with hbmalloc.tag("weights") as outer:
            assert outer.name == "weights" and new_block_tag() == "weights"
            with hbmalloc.tag("käse"), hbmalloc.tag("käse"):
                assert new_block_tag() == "käse"
            assert new_block_tag() == "weights"
        assert new_block_tag() is None

        @hbmalloc.tag("cache")
        def grow(depth):
            assert new_block_tag() == "cache"
            if depth:
                grow(depth - 1)
            else:
                raise KeyError
        try:
            grow(3)
        except KeyError:
            assert hbmalloc.current_tag() is None
        else:
            raise SystemExit(5)
    """)


def test_threads_have_the_default(sim):
    sim(VMM + """
        hbmalloc.set_default_tag("rest")
        seen = []
        with hbmalloc.tag("weights"):
            thread = threading.Thread(target=lambda: seen.append(new_block_tag()))
            thread.start()
            thread.join()
            seen.append(new_block_tag())
        assert seen == ["rest", "weights"] and new_block_tag() == "rest"
        hbmalloc.set_default_tag(None)
        assert hbmalloc.current_tag() is None
    """)


def test_no_driver_is_started(sim):
    sim("""
        import hbmalloc
        hbmalloc.set_default_tag("rest")
        with hbmalloc.tag("weights"):
            assert hbmalloc.current_tag() == "weights"
        assert hbmalloc._library.library().hbm_driver_used() == 0
    """, HBMALLOC_DRIVER="/no/such/driver.so")


def test_bad_names(sim):
    sim("""
        import hbmalloc
        def refused(kind, call, *arguments):
            try:
                call(*arguments)
            except kind as error:
                return str(error)
            raise SystemExit("nothing was raised for %r" % (arguments,))
        def enter(name):
            with hbmalloc.tag(name):
                raise SystemExit("inside")
        for call in (enter, hbmalloc.set_default_tag):
            assert "255" in refused(hbmalloc.InvalidArgumentError, call, "x" * 256)
            assert "name" in refused(hbmalloc.InvalidArgumentError, call, "")
            for text in ("a\\0b", "a\\udc80"):
                assert "NUL" in refused(hbmalloc.InvalidArgumentError, call, text)
            refused(TypeError, call, 5)
        refused(TypeError, enter, None)
        assert hbmalloc.current_tag() is None
        refused(hbmalloc.NotOwnedError, hbmalloc.tag_of, 4096)
    """)


def test_in_a_forked_child(sim):
    sim("""
        import hbmalloc, os
        with hbmalloc.tag("weights"):
            hbmalloc.device_count()
            child = os.fork()
            if child == 0:
                with hbmalloc.tag("child"):
                    pass
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


MANAGED = """
        import ctypes, os, hbmalloc
        library = ctypes.CDLL(hbmalloc.get_library_path())
        driver = ctypes.CDLL(os.path.join(os.path.dirname(hbmalloc.get_library_path()), "libhbmalloc_sim.so"))
        library.managed_malloc.restype = library.device_malloc.restype = ctypes.c_void_p
        library.managed_malloc.argtypes = library.device_malloc.argtypes = [
            ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        def preferred():
            block, value = library.managed_malloc(1 << 20, 0, None), ctypes.c_int(77)
            context = ctypes.c_void_p()
            assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
            assert driver.cuCtxSetCurrent(context) == 0
            assert driver.cuMemRangeGetAttribute(
                ctypes.byref(value), ctypes.c_size_t(4), 2, ctypes.c_uint64(block), ctypes.c_size_t(1 << 20)) == 0
            return {0: "device", -1: "host", -2: "nowhere"}[value.value]
"""


@pytest.mark.parametrize("coherent", [0, 1])
def test_placement(sim, coherent):
    sim(MANAGED + """
        assert preferred() == "device"
        with hbmalloc.tag("kv_cache", placement="host"):
            assert preferred() == "host"
            with hbmalloc.tag("scratch", placement="none"):
                assert preferred() == "nowhere"
            with hbmalloc.tag("weights"):              # as the option says
                assert preferred() == "host"
            with hbmalloc.tag("weights", placement="device"):
                assert preferred() == "device"
            assert library.device_malloc(1 << 20, 0, None) is None
            assert "kv_cache" in hbmalloc._library.library().hbm_last_error().decode()
        with hbmalloc.tag("kv_cache"):                 # a tag keeps its place
            assert preferred() == "host"
        assert preferred() == "device"
    """, HBMALLOC_SIM="coherent=%d" % coherent, HBMALLOC_PLACEMENT="weights=host")


POOL = """
        import ctypes, os, hbmalloc
        library = ctypes.CDLL(hbmalloc.get_library_path())
        simulator = ctypes.CDLL(os.path.join(os.path.dirname(hbmalloc.get_library_path()), "libhbmalloc_sim.so"))
        MIB = 1 << 20
        library.pool_malloc.restype, library.pool_malloc.argtypes = ctypes.c_void_p, [
            ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        library.pool_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        library.hbm_torch_set_hooked(1)
        def give(size, stream=None):
            return library.pool_malloc(size, 0, stream)
        def take(*blocks):
            for block in blocks:
                library.pool_free(block, 0, 0, None)
        def on_device():
            now = ctypes.c_uint64()
            assert simulator.hbmsim_physical(0, ctypes.byref(now), None) == 0
            return now.value
        def checked():
            stats = hbmalloc.stats(0)
            assert stats["requested"] <= stats["allocated"] <= stats["reserved"], stats
            assert stats["limit_used"] == on_device(), (stats, on_device())
            return stats
        def told():
            return hbmalloc._library.library().hbm_last_error().decode()
"""


def test_the_pool_places_by_tag(sim):
    """With the variable alone: what a tag names is where it says, by the simulator's own count."""
    sim(POOL + """
        with hbmalloc.tag("kv_cache"):
            cache = [give(size) for size in (1, 4096, 3 * MIB, 300 * MIB)]
        assert all(cache) and on_device() == 0 and checked()["reserved"] >= 303 * MIB
        with hbmalloc.tag("weights"):
            weights = [give(100 * MIB), give(8)]
        other = give(20 * MIB)
        assert all(weights) and other
        assert 122 * MIB <= on_device() < 200 * MIB
        checked()
        by_tag = hbmalloc.stats_by_tag(0)
        assert by_tag["kv_cache"]["reserved"] >= 303 * MIB
        assert by_tag["kv_cache"]["reserved"] + by_tag["weights"]["reserved"] + by_tag[""]["reserved"] \
            == hbmalloc.stats(0)["reserved"], by_tag
        hbmalloc.set_limit(256 * MIB)
        with hbmalloc.tag("kv_cache"):
            more = give(1024 * MIB)
            assert more, told()
        with hbmalloc.tag("weights"):
            assert give(256 * MIB) is None
            assert "limit" in told(), told()
        take(*cache, *weights, other, more)
        assert checked()["allocated"] == 0
        kept = hbmalloc.stats(0)["reserved"]
        assert kept >= 1024 * MIB
        hbmalloc.set_limit(None)
        with hbmalloc.tag("kv_cache"):          # what it kept serves it again, the device's does not
            created = hbmalloc.pool_stats(0)["creates"]
            assert give(1024 * MIB) == more and hbmalloc.pool_stats(0)["creates"] == created
            take(more)
        assert hbmalloc.trim(0) == kept and checked()["reserved"] == 0
    """, HBMALLOC_PLACEMENT="weights=device,kv_cache=host", HBMALLOC_SIM="devices=1,memory=4GiB")


def test_a_place_that_is_said_later(sim):
    """The pool asks once for a tag and a stream."""
    sim(POOL + """
        with hbmalloc.tag("kv_cache"):
            assert give(10 * MIB) and on_device() >= 10 * MIB
        with hbmalloc.tag("kv_cache", placement="host"):
            assert give(200 * MIB) and on_device() >= 210 * MIB
            held = on_device()
            assert give(200 * MIB, 2) and on_device() == held     # another stream: the calling thread's own
        with hbmalloc.tag("other", placement="host"):
            assert give(200 * MIB) and on_device() == held
        with hbmalloc.tag("other", placement="none"):
            assert give(64 * MIB) and on_device() == held
        checked()
    """, HBMALLOC_SIM="devices=1,memory=4GiB")


@pytest.mark.parametrize("machine, source, told", [
    ("devices=1,host_numa=0", "vmm", "NUMA"), ("devices=1,vmm=0", "vmm", "device"), ("devices=1", "device", "device")])
def test_a_pool_that_cannot_place(sim, machine, source, told):
    sim(POOL + """
        with hbmalloc.tag("kv_cache"):
            assert give(MIB) is None
            for word in (%r, "managed"):
                assert word in told(), told()
        assert give(MIB), told()
    """ % told, HBMALLOC_SIM=machine, HBMALLOC_POOL_SOURCE=source, HBMALLOC_PLACEMENT="kv_cache=host")


def test_the_pool_over_pinned_memory(sim):
    """Of the host, at one address for both, and nothing of the device or of its limit."""
    sim(POOL + """
        hbmalloc.set_limit(64 * MIB)
        block = give(256 * MIB)
        assert block and on_device() == 0, told()
        assert checked()["limit_used"] == 0 and hbmalloc.stats(0, "pool")["reserved"] >= 256 * MIB
        context, seen = ctypes.c_void_p(), ctypes.c_uint64()
        assert simulator.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
        assert simulator.cuCtxSetCurrent(context) == 0
        assert simulator.cuMemHostGetDevicePointer_v2(ctypes.byref(seen), ctypes.c_void_p(block), 0) == 0
        assert seen.value == block
        ctypes.memset(block, 7, 256 * MIB)
        take(block)
        kept = hbmalloc.stats(0)["reserved"]
        assert give(256 * MIB) == block and hbmalloc.stats(0)["reserved"] == kept
        take(block)
        assert hbmalloc.trim(0) == kept and hbmalloc.stats(0)["reserved"] == 0
        with hbmalloc.tag("near", placement="device"):
            assert give(MIB) is None and "near" in told(), told()
        with hbmalloc.tag("far", placement="host"):
            assert give(MIB), told()
        library.pinned_malloc.restype = ctypes.c_void_p
        assert library.pinned_malloc(ctypes.c_size_t(5000), 0, None)
        assert hbmalloc.stats(0, "pinned")["requested"] == 5000
    """, HBMALLOC_POOL_SOURCE="pinned", HBMALLOC_SIM="devices=1,memory=4GiB")


def test_what_is_no_placement(sim):
    sim("""
        import hbmalloc
        for bad in ["gpu", "Host", "", 1]:
            try:
                hbmalloc.tag("weights", placement=bad)
            except ValueError as error:
                assert "host" in str(error)
            else:
                raise SystemExit("%r was accepted" % (bad,))
        assert repr(hbmalloc.tag("a", "host")) == "hbmalloc.tag('a', placement='host')"
        try:
            hbmalloc.set_option("placement", "weights=gpu")
        except hbmalloc.OptionError as error:
            assert "weights=gpu" in str(error) and "kv_cache=host" in str(error)
        else:
            raise SystemExit(5)
        assert hbmalloc._library.library().hbm_driver_used() == 0
    """)
