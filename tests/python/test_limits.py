"""Limits on what is held of a device, on the simulated driver: devices of 4 GiB."""

VMM = """
        import ctypes, hbmalloc
        GIB = 1 << 30
        library = ctypes.CDLL(hbmalloc.get_library_path())
        library.vmm_malloc.restype = ctypes.c_void_p
        library.vmm_malloc.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        library.vmm_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
"""


def test_every_form_of_a_limit(sim):
    sim("""
        import hbmalloc
        GIB = 1 << 30
        assert hbmalloc.get_limit() is None
        for said, held in [(GIB, GIB), ("1.5GiB", 3 * GIB // 2), ("2 gb", 2 * 10**9), ("4096", 4096), ("64k", 65536)]:
            hbmalloc.set_limit(said)
            assert hbmalloc.get_limit(0) == hbmalloc.get_limit(1) == held, said
        hbmalloc.set_limit("1GiB", device=1)
        assert hbmalloc._library.library().hbm_driver_used() == 0
        hbmalloc.set_limit("25%", device=0)
        assert (hbmalloc.get_limit(0), hbmalloc.get_limit(1)) == (GIB, GIB)
        assert hbmalloc._library.library().hbm_driver_used() == 1
        hbmalloc.set_limit("50%")
        assert (hbmalloc.get_limit(0), hbmalloc.get_limit(1)) == (2 * GIB, 2 * GIB)
        assert hbmalloc.get_option("limit") == "50%"
        hbmalloc.set_limit(None, device=1)
        assert (hbmalloc.get_limit(0), hbmalloc.get_limit(1)) == (2 * GIB, None)
        hbmalloc.set_limit("100%")
        assert hbmalloc.get_limit() is None
    """)


def test_what_is_no_limit(sim):
    sim("""
        import hbmalloc
        hbmalloc.set_limit("1GiB")
        for bad in ["", "lots", "0%", "101%", "-1", "1.5", "1e9", "2XB", 0, -5, 1 << 64]:
            try:
                hbmalloc.set_limit(bad)
            except ValueError:
                continue
            raise SystemExit("%r was accepted" % (bad,))
        for bad in [1.5, True, b"1GiB"]:
            try:
                hbmalloc.set_limit(bad)
            except TypeError:
                continue
            raise SystemExit("%r was accepted" % (bad,))
        try:
            hbmalloc.set_limit("1GiB", device=-7)
        except hbmalloc.InvalidArgumentError:
            pass
        else:
            raise SystemExit(5)
        assert hbmalloc.get_limit() == 1 << 30
    """)


def test_a_share_beyond_all_says_what_is_accepted(sim):
    sim("""
        import hbmalloc
        for bad in ("101%", "0%"):
            try:
                hbmalloc.set_limit(bad)
            except ValueError as error:
                assert "above 0% and goes up to 100%" in str(error) and bad in str(error), error
            else:
                raise SystemExit(5)
    """)


def test_a_limit_of_a_device_that_is_not_there_shows_at_its_use(sim):
    sim(VMM + """
        hbmalloc.set_limit("80%", device=7)          # the driver is not asked before it is used
        assert not hbmalloc._library.library().hbm_driver_used()
        assert not library.vmm_malloc(4096, 7, None)
        text = hbmalloc._library.library().hbm_last_error().decode()
        assert text == ("allocate: invalid argument; 4096 bytes asked for; there is no device 7: the driver shows 2, "
                        "devices 0 to 1"), text
        try:
            hbmalloc.set_limit("80%", device=7)
        except hbmalloc.InvalidArgumentError as error:
            assert "there is no device 7" in str(error)
        else:
            raise SystemExit(5)
    """)


def test_it_is_kept_and_can_be_lowered(sim):
    sim(VMM + """
        hbmalloc.set_limit("1GiB")
        held = [library.vmm_malloc(GIB // 4, 0, None) for _ in range(4)]
        assert all(held) and not library.vmm_malloc(1, 0, None)
        assert hbmalloc.stats(0)["reserved"] == GIB == hbmalloc.stats(0)["limit"]
        assert library.vmm_malloc(GIB, 1, None)      # each device has its own
        hbmalloc.set_limit("512MiB")
        library.vmm_free(held.pop(), 0, 0, None)
        assert not library.vmm_malloc(1, 0, None)
        for block in held[1:]:
            library.vmm_free(block, 0, 0, None)
        assert library.vmm_malloc(GIB // 4, 0, None)
        hbmalloc.set_limit(None)
        assert library.vmm_malloc(GIB, 0, None)
    """)


def test_from_the_environment(sim):
    sim(VMM + """
        assert hbmalloc.get_limit() == GIB and not library.vmm_malloc(GIB + 1, 0, None)
        assert library.vmm_malloc(GIB, 0, None)
    """, HBMALLOC_LIMIT="25%")


def test_torchs_memory_fraction_is_the_same_limit(sim):
    sim(VMM + """
        hbmalloc._library.library().hbm_torch_memory_fraction(0.25, 0)
        assert hbmalloc.get_limit() == GIB
        hbmalloc._library.library().hbm_torch_memory_fraction(1.0, 0)
        assert hbmalloc.get_limit() is None
        hbmalloc._library.library().hbm_torch_memory_fraction(0.0, 0)
        assert not library.vmm_malloc(1, 0, None)
    """)
