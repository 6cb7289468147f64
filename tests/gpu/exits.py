"""Processes that end in every way with live tensors, graphs and pools, and end cleanly."""

import os
import sys

import gpucase

# What a process must not say when it ends.
FORBIDDEN = ("terminate called", "Segmentation fault", "core dumped", "panicked at", "CUDA error", "driver shutting down",
             "Fatal Python error")


def one(route, backend, how):
    gpucase.install(route, backend)
    import torch

    import hbmalloc

    keep = globals()
    pool = None
    if route == "pool":
        pool = keep["pool"] = hbmalloc.torch.memory_pool(backend, tag="exit")
        pool.__enter__()
    stream = keep["stream"] = torch.cuda.Stream()
    keep["tensors"] = [torch.ones(1 << 18, device="cuda") for _ in range(8)]
    with torch.cuda.stream(stream):
        keep["other"] = torch.ones(1 << 18, device="cuda")
        keep["other"].record_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    graph = keep["graph"] = torch.cuda.CUDAGraph()
    if pool is not None:
        pool.__exit__(None, None, None)  # torch does not capture into a pool in use
    with torch.cuda.graph(graph, **({"pool": pool.id} if pool else {})):
        keep["captured"] = keep["tensors"][0] * 2
    if pool is not None:
        pool.__enter__()
    graph.replay()
    torch.cuda._sleep(10_000_000)  # work is running when the process ends
    if how == "raise":
        raise ValueError("on purpose")
    if how == "sys.exit":
        with torch.cuda.stream(stream):
            sys.exit(7)
    if how == "os._exit":
        os._exit(9)


STATUS = {"end": 0, "raise": 1, "sys.exit": 7, "os._exit": 9}


def main():
    program = os.path.abspath(__file__)
    jobs = [("install", backend, how) for backend in gpucase.BACKENDS for how in ("raise", "sys.exit")]
    jobs += [("install", backend, "os._exit") for backend in ("pool", "async", "vmm")]
    jobs += [("install", "pool", "end"), ("install", "vmm", "end")]
    jobs += [("plain", "pool", "end"), ("plain", "vmm", "end"), ("plain", "async", "raise")]
    jobs += [("pool", "vmm", how) for how in ("end", "raise", "sys.exit")] + [("pool", "async", "raise")]
    jobs += [("pool", "pool", "raise")]
    gpucase.children([
        {"label": "%s/%s %s" % job, "arguments": [program, *job], "limit": 60, "expect": STATUS[job[2]],
         "managed": job[1] == "managed", "forbid": FORBIDDEN}
        for job in jobs
    ])
    gpucase.finish()


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 4 else main()
