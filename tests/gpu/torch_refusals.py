"""What PyTorch cannot do under install(): refused in words that name what works, and what they name works."""

import os
import sys

import gpucase
from gpucase import case, check, raises


def under_install():
    import hbmalloc

    hbmalloc.torch.install()
    import torch

    torch.ones(1, device="cuda")
    with case("snapshots and history are refused"):
        with raises(RuntimeError, "memory_stats", "memory_pool"):
            torch.cuda.memory._snapshot()
        with raises(RuntimeError, "memory_stats", "memory_pool"):
            torch.cuda.memory_snapshot()
        with raises(RuntimeError, "memory_stats", "memory_pool"):
            torch.cuda.memory._record_memory_history()
    with case("memory pools are refused"), raises(RuntimeError, "hbmalloc.torch.memory_pool()"):
        torch.cuda.MemPool()
    with case("sharing between processes is refused"), raises(RuntimeError, 'memory_pool("device")', "CPU"):
        from torch.multiprocessing.reductions import reduce_tensor

        reduce_tensor(torch.ones(4, device="cuda"))
    compiled(torch)
    with case("work goes on"):
        x = torch.randn(512, 512, device="cuda")
        x @ x  # cuBLAS cannot be started during a capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x @ x
        graph.replay()
        check(torch.equal(y, x @ x), "a graph afterwards computes something else")
    gpucase.finish()


def compiled(torch):
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        gpucase.line("SKIP", "graph trees of torch.compile", "triton is not installed")
        return

    def function(x):
        return torch.tanh(x * 2).sum(0)

    x = torch.randn(64, 64, device="cuda")
    with case("graph trees of torch.compile are refused"):
        tree = torch.compile(function, mode="reduce-overhead")
        with raises(Exception, "make_graphed_callables", "max-autotune-no-cudagraphs"):
            for _ in range(3):
                tree(x)
    torch._dynamo.reset()
    with case("torch.compile in its default mode works"):
        check(torch.allclose(torch.compile(function)(x), function(x)), "it computes something else")
    torch._dynamo.reset()
    # Graphs without trees are not named as a way yet: this says whether they are one.
    try:
        torch._inductor.config.triton.cudagraph_trees = False
        plain = torch.compile(function, mode="reduce-overhead")
        for _ in range(4):
            x = torch.randn(64, 64, device="cuda")
            check(torch.allclose(plain(x), function(x)), "it computes something else")
    except Exception as error:
        gpucase.line("SKIP", "reduce-overhead without graph trees", "%s: %s" % (type(error).__name__, str(error)[:300]))
    else:
        gpucase.line("PASS", "reduce-overhead without graph trees")


def receive(queue, answers):
    tensor = queue.get()
    answers.put(float(tensor.double().sum()))
    del tensor


def shared():
    """Torch's own allocator, and a pool on the source that has the driver's interprocess handles."""
    import torch
    import torch.multiprocessing

    import hbmalloc

    def send(tensor):
        context = torch.multiprocessing.get_context("spawn")
        queue, answers = context.Queue(), context.Queue()
        child = context.Process(target=receive, args=(queue, answers), daemon=True)
        child.start()
        queue.put(tensor)
        try:
            return answers.get(timeout=40)
        finally:
            child.join(10)

    own = torch.ones(1 << 20, device="cuda")
    try:
        check(send(own) == 1 << 20, "another sum")
    except Exception as error:
        gpucase.line("SKIP", "sharing from memory_pool(\"device\")",
                     "this machine does not share torch's own tensors: %s" % type(error).__name__)
        gpucase.finish()
    with case('sharing from memory_pool("device")'):
        with hbmalloc.torch.memory_pool("device", tag="shared"):
            ours = torch.full((1 << 20,), 3.0, device="cuda")
        check(hbmalloc.stats(0, "device")["allocated"] > 0, "the tensor is not ours")
        check(send(ours) == 3 << 20, "another sum")
    gpucase.finish()


def main():
    program = os.path.abspath(__file__)
    gpucase.child("install", [program, "install"])
    gpucase.child("memory_pool", [program, "shared"])
    gpucase.finish()


if __name__ == "__main__":
    {"": main, "install": under_install, "shared": shared}["".join(sys.argv[1:2])]()
