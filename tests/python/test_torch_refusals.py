"""What torch refuses with a pluggable allocator: our words name what works, and torch's stay the cause."""

PREPARE = """
        import sys, types, torch, hbmalloc, warnings
        warnings.simplefilter("error")
        def refused(*words, cause="does not yet support"):
            class Refused:
                def __enter__(self):
                    pass
                def __exit__(self, kind, error, trace):
                    assert kind is RuntimeError, (kind, error)
                    for word in words:
                        assert word in str(error), error
                    assert (cause in str(error.__cause__)) if cause else error.__cause__ is None, error.__cause__
                    return True
            return Refused()
        hbmalloc.torch.install("vmm")
        stand_in = "fake_torch" in torch.__file__     # without a GPU, torch itself does not always come to its allocator
"""


def test_snapshots_and_history(either):
    either(PREPARE + """
        with refused("snapshots", "memory_stats", "memory_pool"):
            torch.cuda.memory._snapshot()
        with refused("snapshots", "memory_stats", "memory_pool"):
            torch.cuda.memory_snapshot()
        assert torch._C._cuda_isHistoryEnabled() is False
        if stand_in:
            with refused("history", "memory_pool"):
                torch.cuda.memory._record_memory_history()
            with refused("history", "memory_pool"):
                torch._C._cuda_attach_out_of_memory_observer(print)
    """)


def test_other_errors_pass(either):
    either(PREPARE + """
        error = None
        try:
            torch._C._cuda_record_memory_history("sometimes", "all", "all", 1, False, False, False, [])
        except RuntimeError as caught:
            error = caught
        assert error is not None and "hbmalloc" not in str(error) and error.__cause__ is None, error
    """)


def test_graph_trees(either):
    either(PREPARE + """
        with refused("reduce-overhead", "max-autotune-no-cudagraphs", "make_graphed_callables"):
            torch._C._cuda_getCheckpointState(0, (0, 1))
        with refused("reduce-overhead", "memory_pool"):
            torch._C._cuda_checkPoolLiveAllocations(0, (0, 1), set())
        # where they begin to warm up it is refused already, and only there
        trees = types.ModuleType("torch._inductor.cudagraph_trees")
        exec("import torch\\ndef begin(): torch._C._cuda_beginAllocateCurrentThreadToPool(0, (0, 1))", trees.__dict__)
        with refused("reduce-overhead", cause=None):
            trees.begin()
        torch._C._cuda_beginAllocateCurrentThreadToPool(0, (0, 1))
    """)


def test_sharing_between_processes(either):
    either(PREPARE + """
        if stand_in:
            with refused("between processes", 'memory_pool("device")', "CPU"):
                torch.UntypedStorage()._share_cuda_()
            with refused("between processes", 'memory_pool("device")'):
                torch.UntypedStorage._new_shared_cuda(0, b"", 1)
        else:
            # its own error passes
            try:
                torch.UntypedStorage(4)._share_cuda_()
            except RuntimeError as error:
                assert "_share_cuda_: only available on CUDA" in str(error), error
            else:
                raise SystemExit(5)
    """)


def test_memory_pools(either):
    either(PREPARE + """
        if stand_in:
            with refused("torch.cuda.MemPool", "hbmalloc.torch.memory_pool()"):
                torch.cuda.MemPool()
        else:
            with refused("NVIDIA driver", cause=None):
                torch.cuda.MemPool()
    """)
