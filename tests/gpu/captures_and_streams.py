"""What goes wrong in programs: captures that fail, streams that nobody recorded. Memory comes back,
and nothing is unmapped under running work."""

import sys

import gpucase
from gpucase import case, check


def failed_capture(torch, hbmalloc, how):
    graph = torch.cuda.CUDAGraph()
    x = torch.ones(1 << 20, device="cuda")
    try:
        with torch.cuda.graph(graph):
            y = x * 2 if how == "after an allocation" else x
            float(y.sum().item() if how == "after an allocation" else x[0])  # not allowed in a capture
    except Exception as error:
        print("    refused: %s" % str(error).splitlines()[0])
    else:
        raise AssertionError("the capture did not fail")
    del graph
    torch.cuda.synchronize()


def memory_comes_back(torch, hbmalloc):
    for _ in range(40):
        block = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        block.fill_(1)
        del block
    torch.cuda.synchronize()
    hbmalloc.trim(0)
    stats = hbmalloc.stats(0)
    print("    reserved %(reserved)d, pending %(pending_bytes)d" % stats)
    check(stats["pending_frees"] == 0, "frees wait: %r" % stats)
    check(stats["reserved"] < 200 << 20, "memory is kept: %r" % stats)


def one_backend(backend):
    import torch

    import hbmalloc

    hbmalloc.torch.install(backend)
    for how in ("after an allocation", "at once"):
        with case("a capture that fails " + how):
            failed_capture(torch, hbmalloc, how)
            memory_comes_back(torch, hbmalloc)
    with case("a capture after them works"):
        x = torch.ones(1 << 20, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 3
        graph.replay()
        check(float(y[7]) == 3, "wrong result")
        del y, graph
        memory_comes_back(torch, hbmalloc)
    with case("read on a stream that nobody recorded, and freed under it"):
        side = torch.cuda.Stream()
        for _ in range(10):
            block = torch.ones(64 << 20, device="cuda")
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(50):
                    torch.neg(block, out=block)
            del block
            torch.empty(64 << 20, device="cuda")
        torch.cuda.synchronize()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one_backend(sys.argv[1])
    else:
        gpucase.children([
            dict(label="install/" + backend, arguments=[__file__, backend], managed=backend == "managed")
            for backend in gpucase.BACKENDS
        ])
    gpucase.finish()
