"""Torch's questions about memory after install(): answered from hbmalloc's counts."""

PREPARE = """
        import ctypes, os, torch, hbmalloc
        MIB = 1 << 20
        memory_info = lambda device: (3 << 30, 4 << 30)
        torch._C._cudart.cudaMemGetInfo = memory_info       # torch itself has no driver here
        torch._C._accelerator_getMemoryInfo = memory_info
        def install(backend="vmm"):
            hbmalloc.torch.install(backend)
            torch.cuda._initialized = True
        library = ctypes.CDLL(hbmalloc.get_library_path())
        library.hbm_malloc.restype = ctypes.c_void_p
        library.hbm_malloc.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        library.hbm_free.restype = None
        library.hbm_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        def malloc(bytes, device=0):
            return library.hbm_malloc(bytes, device, None)
        def free(block):
            library.hbm_free(block, 0, 0, None)
"""

#: The keys of PyTorch 2.11, as seen with its native allocator.
COUNTERS = ["max_split_size", "num_alloc_retries", "num_device_alloc", "num_device_free", "num_ooms",
            "num_sync_all_streams"]
BY_POOL = ["active", "active_bytes", "allocated_bytes", "allocation", "inactive_split", "inactive_split_bytes",
           "requested_bytes", "reserved_bytes", "segment"]
OVERSIZE = ["oversize_allocations", "oversize_segments"]


def test_the_keys_are_torchs(either):
    either(PREPARE + """
        install()
        nested = torch.cuda.memory.memory_stats_as_nested_dict(0)
        counters, by_pool, oversize = %r
        assert sorted(nested) == sorted(counters + by_pool + oversize), sorted(nested)
        fields = ["allocated", "current", "freed", "peak"]
        for name in counters:
            assert isinstance(nested[name], int), name
        for name in by_pool:
            assert sorted(nested[name]) == ["all", "large_pool", "small_pool"], name
            assert all(sorted(each) == fields for each in nested[name].values()), name
        for name in oversize:
            assert sorted(nested[name]) == fields, name
        assert len(torch.cuda.memory_stats(0)) == len(counters) + 12 * len(by_pool) + 4 * len(oversize)
    """ % ((COUNTERS, BY_POOL, OVERSIZE),))


def test_the_statistics_follow_the_blocks(either):
    either(PREPARE + """
        install()
        assert torch.cuda.memory_allocated(0) == torch.cuda.memory_reserved(0) == 0
        kept, gone = malloc(3 * MIB), malloc(5 * MIB)
        assert torch.cuda.memory_allocated(0) == torch.cuda.max_memory_allocated(0) == 10 * MIB
        assert torch.cuda.memory_reserved(0) >= torch.cuda.memory_allocated(0)
        assert torch.cuda.memory_allocated(1) == 0
        free(gone)
        stats = torch.cuda.memory_stats(0)
        assert stats["allocated_bytes.all.current"] == 4 * MIB < stats["allocated_bytes.all.peak"] == 10 * MIB
        assert stats["allocated_bytes.all.allocated"] == 10 * MIB and stats["allocated_bytes.all.freed"] == 6 * MIB
        assert stats["requested_bytes.all.current"] == 3 * MIB and stats["requested_bytes.all.peak"] == 8 * MIB
        assert [stats["allocation.all." + field] for field in ("current", "peak", "allocated", "freed")] == [1, 2, 2, 1]
        # the freed block waits for the device's work: active, as torch says, but not allocated
        waiting = hbmalloc.stats(0)["pending_bytes"]
        assert waiting == 6 * MIB and stats["active_bytes.all.current"] == 4 * MIB + waiting
        assert stats["active.all.current"] == 2 and stats["active.all.freed"] == 0
        torch.cuda.empty_cache()
        stats = torch.cuda.memory_stats(0)
        assert stats["reserved_bytes.all.current"] == stats["active_bytes.all.current"] == 4 * MIB
        assert stats["active.all.freed"] == 1 and stats["active_bytes.all.freed"] == 6 * MIB
        assert stats["reserved_bytes.all.peak"] == torch.cuda.max_memory_reserved(0) == 10 * MIB
        assert stats["reserved_bytes.all.freed"] == 6 * MIB
        free(kept)
        assert torch.cuda.memory_allocated(0) == 0
    """)


def test_the_statistics_of_the_pool(either):
    either(PREPARE + """
        install("pool")
        kept, gone = malloc(3 * MIB), malloc(1000)
        stats = torch.cuda.memory_stats(0)
        assert stats["allocated_bytes.all.current"] == stats["allocated_bytes.all.peak"] == 3 * MIB + 1024
        assert stats["requested_bytes.all.current"] == 3 * MIB + 1000
        held = torch.cuda.memory_reserved(0)
        free(gone)
        # free in its stream's order: it waits for nothing, and stays with the pool
        stats = torch.cuda.memory_stats(0)
        assert stats["allocated_bytes.all.current"] == stats["active_bytes.all.current"] == 3 * MIB
        assert torch.cuda.memory_reserved(0) == held == torch.cuda.max_memory_reserved(0)
        torch.cuda.empty_cache()
        assert 3 * MIB <= torch.cuda.memory_reserved(0) < held
        free(kept)
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved(0) == torch.cuda.memory_allocated(0) == 0
        stats = torch.cuda.memory_stats(0)
        assert stats["reserved_bytes.all.allocated"] == stats["reserved_bytes.all.freed"] == held
    """)


def test_the_resets(either):
    either(PREPARE + """
        install()
        kept, gone = malloc(3 * MIB), malloc(5 * MIB)
        free(gone)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(0)
        assert torch.cuda.max_memory_allocated(0) == torch.cuda.memory_allocated(0) == 4 * MIB
        assert torch.cuda.max_memory_reserved(0) == 4 * MIB
        assert torch.cuda.memory_stats(0)["allocation.all.peak"] == 1
        torch.cuda.reset_accumulated_memory_stats(0)
        stats = torch.cuda.memory_stats(0)
        assert not [name for name, value in stats.items() if value and name.endswith((".allocated", ".freed"))], stats
        assert stats["allocated_bytes.all.current"] == 4 * MIB
        free(kept)
        stats = torch.cuda.memory_stats(0)
        assert stats["allocated_bytes.all.freed"] == 4 * MIB and stats["allocated_bytes.all.allocated"] == 0
        assert stats["allocation.all.freed"] == 1
        assert hbmalloc.stats(0)["total_allocated"] == 10 * MIB      # hbmalloc's own go on
    """)


def test_segments_and_what_lies_beside_blocks(either):
    either(PREPARE + """
        install("pool")
        kept, gone, last = malloc(3 * MIB), malloc(2 * MIB), malloc(1 * MIB)
        free(gone)
        free(malloc(1))                 # what a thread keeps is no split
        stats, pool = torch.cuda.memory_stats(0), hbmalloc.pool_stats(0)
        assert stats["segment.all.current"] == stats["num_device_alloc"] == pool["chunks"] > 0
        assert stats["segment.all.allocated"] == stats["segment.all.peak"] == pool["creates"]
        assert stats["num_device_free"] == stats["segment.all.freed"] == 0
        split = pool["cached"] - pool["kept"] - pool["releasable"]
        assert stats["inactive_split_bytes.all.current"] == split > 0, pool
        assert stats["inactive_split.all.current"] == pool["stuck_pieces"] > 0, pool
        held = stats["reserved_bytes.all.current"]
        assert stats["allocated_bytes.all.current"] + split + pool["kept"] + pool["releasable"] == held
        free(kept)
        free(last)
        torch.cuda.empty_cache()
        stats = torch.cuda.memory_stats(0)
        assert stats["segment.all.current"] == stats["inactive_split.all.current"] == 0
        assert stats["inactive_split_bytes.all.current"] == 0
        assert stats["num_device_free"] == stats["num_device_alloc"] == stats["segment.all.freed"] > 0
        assert stats["num_sync_all_streams"] > 0 == stats["num_alloc_retries"]
        torch.cuda.reset_accumulated_memory_stats(0)
        stats = torch.cuda.memory_stats(0)
        assert not [name for name, value in stats.items() if name.startswith("num_") and value], stats
        torch._C._cuda_setMemoryFraction(16 * MIB / (4 << 30), 0)
        library.pool_segment_malloc.restype = ctypes.c_void_p
        assert not library.pool_segment_malloc(ctypes.c_size_t(32 * MIB), 0, None)
        stats = torch.cuda.memory_stats(0)
        assert stats["num_alloc_retries"] == stats["num_ooms"] == 1, stats
    """)


def test_the_accelerators_names(either):
    either(PREPARE + """
        install()
        block = malloc(3 * MIB)
        assert torch.accelerator.memory_stats(0) == torch.cuda.memory_stats(0)
        assert torch.accelerator.memory_allocated(0) == 4 * MIB
        torch.accelerator.reset_accumulated_memory_stats(0)
        assert torch.accelerator.memory_stats(0)["allocated_bytes.all.allocated"] == 0
        free(block)
        torch.accelerator.empty_cache()
        assert hbmalloc.stats(0)["reserved"] == 0
        torch.accelerator.reset_peak_memory_stats(0)
        assert torch.accelerator.memory_stats(0)["allocated_bytes.all.peak"] == 0
        assert torch.accelerator.get_memory_info(0) == (3 << 30, 4 << 30)
    """)


def test_the_limit(either):
    either(PREPARE + """
        before = torch.cuda.mem_get_info       # as a program that imported it by name
        install()
        # no driver to initialise here, so below torch's own checks
        set_fraction = lambda fraction: torch._C._cuda_setMemoryFraction(fraction, 0)
        assert torch._C._cuda_getMemoryFraction(0) == 1.0
        assert torch.cuda.mem_get_info(0) == before(0) == (3 << 30, 4 << 30)
        set_fraction(0.5)
        assert torch._C._cuda_getMemoryFraction(0) == 0.5
        assert torch.cuda.mem_get_info(0) == before(0) == (2 << 30, 4 << 30)
        block = malloc(1 << 30)
        assert torch.cuda.mem_get_info(0) == torch.accelerator.get_memory_info(0) == (1 << 30, 4 << 30)
        assert torch.cuda.memory_stats(0)["num_ooms"] == 0
        # a segment: for a tensor torch's exception would be raised, which ctypes cannot carry
        assert not library.hbm_segment_malloc(ctypes.c_size_t(1 << 31), 0, None)
        assert torch.cuda.memory_stats(0)["num_ooms"] == 1
        set_fraction(0.125)
        assert torch.cuda.mem_get_info(0) == (0, 4 << 30)
        set_fraction(1.0)
        assert torch.cuda.mem_get_info(0) == (3 << 30, 4 << 30)
        free(block)
        torch.cuda.reset_accumulated_memory_stats(0)
        assert torch.cuda.memory_stats(0)["num_ooms"] == 0
    """)


def test_nothing_is_asked_of_the_driver_before_its_time(either):
    either(PREPARE + """
        hbmalloc.torch.install()
        assert torch.cuda.memory_stats(0) == {} and torch.cuda.memory_allocated(0) == 0
        torch.cuda._initialized = True
        assert torch.cuda.memory_allocated(0) == 0 and torch.cuda.max_memory_reserved(1) == 0
        assert not hbmalloc._library.library().hbm_driver_used()
    """)


def test_a_summary_prints(either):
    either(PREPARE + """
        install()
        if not hasattr(torch.cuda, "memory_summary"):
            raise SystemExit(0)     # the stand-in has none
        block = malloc(3 * MIB)
        text = torch.cuda.memory_summary(0)
        assert "Allocated memory" in text and "4096 KiB" in text, text
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
        assert ["GPU reserved segments", "1", "1", "1", "0"] in rows, text
        assert torch.cuda.memory_summary(0, abbreviated=True)
    """)


def test_in_a_forked_child(either):
    either(PREPARE + """
        install()
        assert malloc(1) and torch.cuda.memory_allocated(0)
        child = os.fork()
        if child == 0:
            try:
                torch.cuda.memory_allocated(0)
            except hbmalloc.ForkedError:
                os._exit(0)
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


def test_torchs_own_allocator_is_left_alone(either):
    either(PREPARE + """
        original = {name: getattr(torch._C, name) for name in dir(torch._C) if "emory" in name}
        hbmalloc.torch.allocator("vmm")
        assert all(getattr(torch._C, name) is function for name, function in original.items())
    """)


def test_compiled_functions_may_ask(either):
    """torch.compile knows torch's functions by their identity and checks that it knows each only once."""
    either(PREPARE + """
        install()
        if not hasattr(torch, "compile"):
            raise SystemExit(0)     # the stand-in has none
        @torch.compile(backend="eager")
        def function(x):
            return x + 1 if torch.cuda.memory_allocated(0) == torch.accelerator.memory_allocated(0) else x
        assert function(torch.ones(3)).tolist() == [2, 2, 2]
    """)
