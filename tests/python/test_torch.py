"""hbmalloc.torch against a stand-in for torch's allocator interface (tests/gpu has the real one)."""

import pytest

EXPECT = """
        import contextlib, os
        @contextlib.contextmanager
        def refused(*words, kind=RuntimeError):
            try:
                yield
            except kind as error:
                for word in words:
                    assert word in str(error), error
            else:
                raise AssertionError("nothing was raised")
        import torch, hbmalloc
"""


@pytest.mark.parametrize("backend", ["pool", "device", "managed", "async", "vmm"])
def test_install_sets_every_hook_and_starts_nothing(fake, backend):
    fake(EXPECT + """
        hbmalloc.torch.install("%s")
        current = torch.cuda.memory.current
        assert current.names == ("%s_malloc", "%s_free") and current.path == hbmalloc.get_library_path()
        assert sorted(current._allocator.hooks) == sorted(torch._C.SETTERS)
        assert len(set(current._allocator.hooks.values())) == len(torch._C.SETTERS)
        assert hbmalloc.torch.is_installed() and not torch.cuda.is_initialized()
        assert hbmalloc._library.library().hbm_driver_used() == 0
        block = current._allocator.malloc(1000, 0, None)
        assert block and hbmalloc.stats(0, "%s")["requested"] == 1000
        current._allocator.free(block, 1000, 0, None)
        assert hbmalloc.stats(0, "%s")["requested"] == 0
    """ % ((backend,) * 5))


def test_install_takes_the_option(fake):
    fake(EXPECT + """
        hbmalloc.torch.install()
        assert torch.cuda.memory.current.names == ("vmm_malloc", "vmm_free")
    """, HBMALLOC_BACKEND="vmm")


def test_the_pool_is_what_one_gets(fake):
    fake(EXPECT + """
        hbmalloc.torch.install()
        hbmalloc.torch.install("pool")
        current = torch.cuda.memory.current
        assert current.names == ("pool_malloc", "pool_free")
        malloc, free = current._allocator.malloc, current._allocator.free
        block = malloc(1000, 0, None)
        free(block, 1000, 0, None)
        assert malloc(600, 0, None) == block            # given out again at once on its stream
        stats = hbmalloc.stats(0, "pool")
        assert stats["requested"] == 600 and stats["allocated"] == 1024, stats
        free(block, 600, 0, None)
        assert hbmalloc.stats(0)["reserved"] > 0        # kept
        torch.cuda.empty_cache()
        assert hbmalloc.stats(0)["reserved"] == 0
    """)


def test_install_twice(fake):
    fake(EXPECT + """
        hbmalloc.torch.install("vmm")
        first = torch.cuda.memory.current
        torch.cuda.init()
        hbmalloc.torch.install("vmm")
        hbmalloc.torch.install()
        assert torch.cuda.memory.current is first
        with refused("async", "vmm", "another process"):
            hbmalloc.torch.install("async")
        assert hbmalloc.get_option("backend") == "vmm"
    """)


def test_install_with_options(fake):
    fake(EXPECT + """
        with refused("prefetch_threshold", "plenty", kind=hbmalloc.OptionError):
            hbmalloc.torch.install("vmm", managed_headroom="3GiB", prefetch_threshold="plenty")
        with refused("prefetch_threshold", kind=hbmalloc.OptionError):
            hbmalloc.torch.install("vmm", prefetch_treshold="64MiB")
        with refused("vmm", kind=ValueError):
            hbmalloc.torch.install("vvm")
        assert hbmalloc.get_option("managed_headroom") == "1GiB" and hbmalloc.get_option("backend") == "pool"
        assert torch.cuda.memory.current is None and not hbmalloc.torch.is_installed()
        hbmalloc.torch.install("managed", prefetch_threshold="64MiB")
        assert hbmalloc.get_option("prefetch_threshold") == "64MiB"
        assert hbmalloc.get_option("backend") == "managed"
    """)


def test_install_too_late(fake):
    fake(EXPECT + """
        torch.cuda.init()
        with refused("before", "memory_pool"):
            hbmalloc.torch.install()
        assert not hbmalloc.torch.is_installed()
    """)


def test_install_over_another_allocator(fake):
    fake(EXPECT + """
        other = torch.cuda.memory.CUDAPluggableAllocator(hbmalloc.get_library_path(), "device_malloc", "device_free")
        torch.cuda.memory.change_current_allocator(other)
        with refused("another pluggable allocator"):
            hbmalloc.torch.install("vmm")
        assert torch.cuda.memory.current is other
    """)


FORK = """
        def in_child(function):
            child = os.fork()
            if child == 0:
                status = 5
                try:
                    function()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_forked_children(fake):
    fake(EXPECT + FORK + """
        def install():
            hbmalloc.torch.install("vmm")
            assert hbmalloc.torch.is_installed()
        in_child(install)                  # nothing was used before: allowed
        install()
        def refusal():
            assert not hbmalloc.torch.is_installed()
            with refused("fork", "spawn"):
                hbmalloc.torch.install("vmm")
            with refused("fork", "spawn"):
                hbmalloc.torch.memory_pool("vmm")
        in_child(refusal)
    """)


def test_child_of_a_process_that_used_the_driver(fake):
    fake(EXPECT + FORK + """
        hbmalloc.device_count()
        def refusal():
            with refused("fork", "spawn"):
                hbmalloc.torch.install("vmm")
        in_child(refusal)
    """)


def test_torch_without_cuda(fake):
    fake(EXPECT + """
        for call in (hbmalloc.torch.install, hbmalloc.torch.allocator, hbmalloc.torch.memory_pool):
            with refused("without CUDA", "install a CUDA build"):
                call()
    """, FAKE_TORCH_CUDA="")


def test_no_torch(sim):
    sim("""
        import sys
        sys.modules["torch"] = None      # what a failed import looks like
        import hbmalloc
        try:
            hbmalloc.torch.install()
        except RuntimeError as error:
            assert "PyTorch" in str(error)
        else:
            raise SystemExit(5)
    """)


def test_an_untested_version_warns_once(fake):
    code = EXPECT + """
        import warnings
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            hbmalloc.torch.allocator("vmm")
            hbmalloc.torch.install("vmm")
        print("warnings:", len(seen), [str(each.message) for each in seen])
    """
    assert "warnings: 0" in fake(code)
    out = fake(code, FAKE_TORCH_VERSION="2.99.1")
    assert "warnings: 1" in out and "2.99.1" in out and "2.11" in out


def test_a_torch_that_lacks_a_hook(fake):
    fake(EXPECT + """
        torch._C.SETTERS.remove("set_record_stream_fn")
        with refused("set_record_stream_fn", "2.11"):
            hbmalloc.torch.install("vmm")
        assert torch.cuda.memory.current is None and hbmalloc.get_option("backend") == "pool"
    """)


def test_memory_pool(fake):
    fake(EXPECT + """
        pool = hbmalloc.torch.memory_pool("vmm", tag="kv")
        assert isinstance(pool, torch.cuda.MemPool) and torch.cuda.is_initialized()
        with pool as same, pool:
            assert same is pool and torch.cuda._entered == [pool, pool]
        assert torch.cuda._entered == []
        block = pool.allocator.malloc(2 << 20, 0, None)
        assert block and hbmalloc.stats(0, "vmm")["allocated"] == 2 << 20
        pool.allocator.free(block, 2 << 20, 0, None)
        assert pool.allocator.malloc(1 << 50, 0, None) is None      # torch's own retry needs the NULL
        again, other = hbmalloc.torch.memory_pool("vmm", tag="kv"), hbmalloc.torch.memory_pool("vmm", tag="weights")
        assert again.allocator is pool.allocator and other.allocator is not pool.allocator
        assert not hbmalloc.torch.is_installed()
    """)


def test_memory_pool_takes_what_the_pool_is_over(fake):
    code = EXPECT + """
        pool = hbmalloc.torch.memory_pool(tag="kv")
        block = pool.allocator.malloc(2 << 20, 0, None)
        assert hbmalloc.stats(0, "%s")["requested"] == 2 << 20
        pool.allocator.free(block, 2 << 20, 0, None)
        hbmalloc.trim(0)
        cached = hbmalloc.torch.memory_pool("pool", tag="kv")      # by name also the pool itself
        assert cached.allocator.malloc(2 << 20, 0, None) and hbmalloc.stats(0, "pool")["requested"] == 2 << 20
    """
    fake(code % "vmm")
    fake(code % "device", HBMALLOC_POOL_SOURCE="device")
    fake(code % "async", HBMALLOC_BACKEND="async")


def test_memory_pool_after_install(fake):
    fake(EXPECT + """
        hbmalloc.torch.install("vmm")
        with refused("already"):
            hbmalloc.torch.memory_pool("vmm")
    """)


def test_allocator(fake):
    fake(EXPECT + """
        made = hbmalloc.torch.allocator()
        assert made.names == ("hbm_malloc", "hbm_free")
        assert sorted(made._allocator.hooks) == sorted(torch._C.SETTERS)
        torch.cuda.memory.change_current_allocator(made)
        block = made._allocator.malloc(4096, 0, None)
        assert hbmalloc.stats(0, "pool")["requested"] == 4096
        made._allocator.free(block, 4096, 0, None)
    """)
