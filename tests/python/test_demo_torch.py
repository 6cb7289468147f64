"""The demo on a GPU, as far as it can run without one."""


def test_the_pool_comes_first_after_native(run):
    run("""
        from hbmalloc import BACKENDS, demo_torch

        assert demo_torch.RUNS[:2] == ["native", "pool"] and set(demo_torch.RUNS[1:]) == set(BACKENDS) - {"pinned"}
        native = {"step_ms": 20.0, "live": 1000, "held": 1300}
        text = demo_torch.verdict(native, {"step_ms": 19.0, "live": 1000, "held": 1020})
        assert "0.95 of native's" in text and "1.020 times" in text and "native 1.300" in text, text
    """)


def test_without_a_gpu_it_says_so(run):
    told = run("import sys; from hbmalloc import demo_torch; sys.exit(demo_torch.main())", status=3)
    assert told.startswith("hbmalloc demo: ") and "PyTorch" in told
