"""Statistics, trim, devices, errors and the log, on the simulated driver."""


def test_devices_of_the_simulator(sim):
    sim("""
        import hbmalloc
        assert hbmalloc.device_count() == 2
        assert hbmalloc._library.library().hbm_driver_used() == 1
    """)


ENTRY_POINTS = """
        import ctypes, hbmalloc
        library = ctypes.CDLL(hbmalloc.get_library_path())
        def entry(backend):
            malloc, free = library[backend + "_malloc"], library[backend + "_free"]
            malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
            free.restype, free.argtypes = None, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
            return malloc, free
"""


def test_statistics_follow_the_blocks(sim):
    sim(ENTRY_POINTS + """
        for backend in hbmalloc.BACKENDS:
            malloc, free = entry(backend)
            block = malloc(5000, 1, None)
            assert block
            one, every = hbmalloc.stats(1, backend), hbmalloc.stats(1)
            assert one["requested"] == 5000 <= one["allocated"] <= one["reserved"], one
            assert one["allocations"] == 1 and every["requested"] >= 5000
            assert hbmalloc.stats(0, backend)["requested"] == 0
            free(block, 5000, 1, None)
            after = hbmalloc.stats(1, backend)
            assert after["requested"] == 0 and after["deallocations"] == 1, after
            assert after["peak_requested"] == 5000 and after["peak_blocks"] == 1, after
            hbmalloc.reset_peak_stats(1)
            again = hbmalloc.stats(1, backend)
            assert again["peak_requested"] == again["peak_blocks"] == 0, again
            assert again["total_requested"] == 5000 <= again["total_allocated"], again
        assert hbmalloc.trim(1) >= 0
    """)


def test_statistics_by_tag_and_stream(sim):
    sim(ENTRY_POINTS + """
        assert hbmalloc.stats_by_tag() == hbmalloc.stats_by_stream() == {}
        assert hbmalloc.stats(tag="weights")["allocations"] == hbmalloc.stats(stream=0)["allocations"] == 0
        assert not hbmalloc._library.library().hbm_driver_used(), "asking for statistics started the driver"
        malloc, free = entry("pool")
        with hbmalloc.tag("weights"):
            kept = malloc(3 << 20, 0, None)
            gone = malloc(5 << 20, 0, None)
            free(gone, 0, 0, None)
        plain = malloc(1000, 0, None)
        weights, untagged = hbmalloc.stats(tag="weights"), hbmalloc.stats(tag="")
        assert (weights["requested"], weights["peak_requested"], weights["allocations"]) == (3 << 20, 8 << 20, 2), weights
        assert weights["reserved"] >= weights["allocated"] and untagged["requested"] == 1000, untagged
        tags, streams, every = hbmalloc.stats_by_tag(), hbmalloc.stats_by_stream(), hbmalloc.stats()
        assert tags == {"weights": weights, "": untagged} and list(streams) == [0], (tags, streams)
        for name in ("requested", "allocated", "allocations", "deallocations", "total_requested", "total_allocated"):
            assert sum(of[name] for of in tags.values()) == streams[0][name] == every[name], name
        assert sum(of["reserved"] for of in tags.values()) == every["reserved"] and streams[0]["reserved"] == 0

        class Stream:
            cuda_stream = 0

        assert hbmalloc.stats(stream=Stream()) == streams[0] and hbmalloc.stats_by_tag(1) == {}
        hbmalloc.reset_peak_stats()
        assert hbmalloc.stats(tag="weights")["peak_requested"] == 3 << 20
        for bad in (dict(tag="a", stream=0), dict(backend="vmm", tag="a")):
            try:
                hbmalloc.stats(**bad)
            except ValueError as error:
                assert "at once" in str(error)
            else:
                raise SystemExit(5)
        for bad in (dict(stream="0"), dict(stream=True), dict(tag=3)):
            try:
                hbmalloc.stats(**bad)
            except TypeError:
                pass
            else:
                raise SystemExit(5)
    """)


def test_what_the_pool_and_the_driver_did(sim):
    sim(ENTRY_POINTS + """
        assert not any(hbmalloc.pool_stats().values()) and not any(hbmalloc.driver_stats().values())
        malloc, free = entry("pool")
        free(malloc(40 << 20, 0, None), 0, 0, None)
        first, calls = hbmalloc.pool_stats(), hbmalloc.driver_stats()
        assert (first["hits"], first["misses"]) == (0, 1) and first["creates"] == first["chunks"] > 0, first
        assert calls["calls"] > 0 == calls["timed_calls"] == calls["nanoseconds"], calls
        hbmalloc.set_option("driver_timing", "on")
        hbmalloc.trim()
        hbmalloc.set_option("driver_timing", "off")
        timed = hbmalloc.driver_stats()
        assert timed["timed_calls"] == timed["calls"] - calls["calls"] > 0 < timed["nanoseconds"], timed
        end = hbmalloc.pool_stats()
        assert end["releases"] == end["creates"] and end["cached"] == end["chunks"] == 0 < end["waits"], end
        every = hbmalloc.stats(0, "pool")
        assert end["hits"] + end["collected"] + end["misses"] == every["allocations"], (end, every)
        assert every["segments"] == 0 < every["peak_segments"] == every["total_segments"] == end["creates"], every
        assert not any(hbmalloc.pool_stats(1).values())
    """)


def test_out_of_memory_names_the_tags(sim):
    sim(ENTRY_POINTS + """
        malloc, free = entry("pool")
        hbmalloc.set_limit("64MiB")
        with hbmalloc.tag("weights"):
            assert malloc(48 << 20, 0, None)
        assert not library.pool_segment_malloc(ctypes.c_size_t(32 << 20), 0, None)
        text = hbmalloc._library.library().hbm_last_error().decode()
        held = hbmalloc.stats()["reserved"]
        for part in ("33554432 bytes asked for", "its limit is 67108864 bytes",
                     "this process holds %d bytes, 50331648 bytes of them" % held,
                     "its blocks take 50331648 bytes under 'weights'", "the pool holds %d bytes" % held,
                     "its largest free piece has", ". Raise the limit"):
            assert part in text, text
        assert hbmalloc.stats()["retries"] >= 1
    """)


def test_a_request_beyond_the_device(sim):
    sim(ENTRY_POINTS + """
        malloc, free = entry("vmm")
        assert not malloc(1 << 50, 0, None)
        refused = hbmalloc.stats(0, "vmm")
        assert refused["failed_allocations"] == refused["out_of_memory"] == 1
        assert refused["limit"] == 2**64 - 1
        block = malloc(1 << 20, 0, None)
        assert block
        free(block, 1 << 20, 0, None)
    """)


def test_errors_carry_status_and_fit_built_ins(sim):
    sim("""
        import hbmalloc
        assert hbmalloc.stats(99)["allocations"] == 0
        assert not hbmalloc._library.library().hbm_driver_used(), "asking for statistics started the driver"
        assert hbmalloc.device_count() == 2
        try:
            hbmalloc.stats(99)
        except hbmalloc.InvalidArgumentError as error:
            assert error.status == 1 and isinstance(error, ValueError) and "stats" in str(error)
        else:
            raise SystemExit(5)
        try:
            hbmalloc.stats(0, "cuda")
        except ValueError as error:
            assert "vmm" in str(error)
        else:
            raise SystemExit(5)
        assert issubclass(hbmalloc.OutOfMemoryError, MemoryError)
        assert issubclass(hbmalloc.HbmallocError, RuntimeError)
    """)


def test_every_status_of_the_library_has_its_class(sim):
    sim("""
        import hbmalloc
        from hbmalloc._errors import BY_STATUS
        library = hbmalloc._library.library()
        for status, kind in BY_STATUS.items():
            name = library.hbm_status_name(status).decode()
            try:
                hbmalloc._library.check(status, "this call")
            except kind as error:
                assert type(error) is kind and "this call" in str(error) and name
            else:
                raise SystemExit(5)
    """)


def test_log_callback(sim):
    out = sim("""
        import hbmalloc
        lines = []
        hbmalloc.set_log_callback(lambda level, target, message: lines.append((level, target, message)))
        hbmalloc.device_count()
        assert any("0.1.0" in message for _, _, message in lines), lines
        assert all(isinstance(level, int) for level, _, _ in lines)
        hbmalloc.set_log_callback(None)
        count = len(lines)
        hbmalloc.trim(0)
        assert len(lines) == count
        hbmalloc.set_log_callback(lambda *line: None)   # still set when the process ends
        print("end")
    """, HBMALLOC_LOG="info")
    assert out.rstrip().endswith("end")


def test_nothing_on_stdout(sim):
    out = sim("""
        import hbmalloc
        hbmalloc.device_count()
    """)
    assert out == ""


def test_in_a_forked_child(sim):
    sim("""
        import hbmalloc, os
        hbmalloc.device_count()
        child = os.fork()
        if child == 0:
            assert hbmalloc._library.library().hbm_forked() == 1
            try:
                hbmalloc.trim(0)
            except hbmalloc.ForkedError:
                os._exit(0)
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


def test_trim_to_a_target(sim):
    sim(ENTRY_POINTS + """
        malloc, free = entry("async")
        free(malloc(100 << 20, 0, None), 0, 0, None)
        held = hbmalloc.stats(0)["reserved"]
        assert held >= 100 << 20
        given = hbmalloc.trim(keep=64 << 20, device=0)
        assert hbmalloc.stats(0)["reserved"] == held - given == 64 << 20
        assert hbmalloc.trim() == 64 << 20 and hbmalloc.stats(0)["reserved"] == 0
        free(malloc(100 << 20, 0, None), 0, 0, None)
        hbmalloc.trim("64MiB")
        assert hbmalloc.stats(0)["reserved"] == 64 << 20
        hbmalloc.trim(0, "32 MiB")
        assert hbmalloc.stats(0)["reserved"] == 32 << 20
    """, HBMALLOC_ASYNC_POOL="own")    # the driver's default pool keeps nothing at all over a trim


def test_what_a_trim_does_not_take(sim):
    sim("""
        import hbmalloc
        for bad in [(0, -1), (0, 1 << 64), (0, "lots"), (0, "50%"), ("lots",)]:
            try:
                hbmalloc.trim(*bad)
            except ValueError:
                continue
            raise SystemExit("%r was accepted" % (bad,))
        for bad in [(0, 1.5), (0, None), (None,), (1.0,), (True,), ("1GiB", 5)]:
            try:
                hbmalloc.trim(*bad)
            except TypeError:
                continue
            raise SystemExit("%r was accepted" % (bad,))
    """)


def test_an_error_names_its_operation_once(sim):
    sim("""
        import hbmalloc
        for call, text in [
            (lambda: hbmalloc.tag("").__enter__(), "tag: invalid argument; a tag needs a name"),
            (lambda: hbmalloc.tag_of(5), "tag_of: not owned; 0x5 is not the address of a live block. "
                                         "It was freed already, or comes from another allocator"),
            (lambda: hbmalloc.set_default_tag(""), "set_default_tag: tag: invalid argument; a tag needs a name"),
        ]:
            try:
                call()
            except hbmalloc.HbmallocError as error:
                assert str(error) == text, error
            else:
                raise SystemExit(5)
    """)
