"""Importing costs nothing and needs nothing: no library, no driver, no torch."""


def test_import_opens_no_library(run):
    out = run("""
        import hbmalloc, sys
        maps = open("/proc/self/maps").read()
        assert "libhbmalloc" not in maps and "libcuda" not in maps
        assert "torch" not in sys.modules
        print(hbmalloc.__version__)
    """)
    assert out.strip() == "0.1.0"


def test_public_names(run):
    run("""
        import hbmalloc
        for name in hbmalloc.__all__:
            assert getattr(hbmalloc, name) is not None, name
        assert sorted(hbmalloc.__all__) == hbmalloc.__all__
    """)


def test_version_is_the_crates():
    import os

    import hbmalloc
    from conftest import ROOT

    with open(os.path.join(ROOT, "Cargo.toml")) as handle:
        assert 'version = "%s"' % hbmalloc.__version__ in handle.read()


def test_loading_the_library_makes_no_driver_call(sim):
    sim("""
        import hbmalloc
        hbmalloc.options(); hbmalloc.set_option("backend", "vmm")
        assert hbmalloc._library.library().hbm_driver_used() == 0
        assert "hbmalloc_sim" not in open("/proc/self/maps").read()
    """)


def test_without_any_driver_the_library_says_so(sim):
    out = sim("""
        import hbmalloc
        try:
            hbmalloc.device_count()
        except hbmalloc.NoDriverError as error:
            print("said:", error)
            assert error.status == 4
    """, HBMALLOC_DRIVER="/nowhere/libcuda.so.1")
    assert "said:" in out and "/nowhere/libcuda.so.1" in out
