"""A DataLoader whose workers are forked after CUDA and hbmalloc were used."""

import os
import sys

import gpucase
from gpucase import case, check


def one(route, backend):
    gpucase.install(route, backend)
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    import hbmalloc

    held = hbmalloc.torch.memory_pool(backend, tag="loader") if route == "pool" else None
    if held is not None:
        held.__enter__()
    weights = torch.ones(64, device="cuda")  # CUDA is in use before the workers are forked
    data = torch.arange(512 * 64, dtype=torch.float32).reshape(512, 64)
    for pinned in (False, True):
        with case("two forked workers, pin_memory=%s" % pinned):
            loader = DataLoader(TensorDataset(data), batch_size=32, num_workers=2, pin_memory=pinned,
                                multiprocessing_context="fork", persistent_workers=True)
            for _ in range(2):
                total = torch.zeros((), dtype=torch.float64, device="cuda")
                for (batch,) in loader:
                    total += (batch.to("cuda", non_blocking=pinned) * weights).sum(dtype=torch.float64)
                check(total.item() == float(data.double().sum()), "the sum of the batches is %s" % total.item())
            del loader
    with case("training memory after the workers"):
        check(float(torch.full((1 << 20,), 2.0, device="cuda").sum()) == 2.0 * (1 << 20), "memory is not usable")
    if held is not None:
        held.__exit__(None, None, None)
    gpucase.finish()


def main():
    program = os.path.abspath(__file__)
    jobs = [("install", backend) for backend in gpucase.BACKENDS] + [("pool", "vmm"), ("plain", "pool"), ("plain", "async")]
    gpucase.children([
        {"label": "%s/%s" % job, "arguments": [program, *job], "limit": 120, "managed": job[1] == "managed"}
        for job in jobs
    ], parallel=3)
    gpucase.finish()


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
