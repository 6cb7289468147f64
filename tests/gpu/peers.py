"""Two GPUs: a kernel on one reads and writes memory that the other's source gave out.

torch copies tensors with gaps between devices by a kernel on the source's device that writes to
the other's memory, which faults where access for peers is missing.
"""

import sys

import gpucase
from gpucase import case, check


def strided(device, count=1 << 20):
    import torch

    return torch.arange(2 * count, device=device, dtype=torch.float32)[::2]


def one_backend(route, backend):
    import torch

    gpucase.install(route, backend)
    with case("memory from before the peer came into use is reached"):
        early = strided("cuda:0")
        target = torch.zeros(2 * early.numel(), device="cuda:1")[::2]
        target.copy_(early)
        check(torch.equal(target.cpu(), early.cpu()), "wrong contents on the peer")
    with case("memory from after is reached, both ways"):
        for source, other in (("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")):
            late = strided(source)
            target = torch.zeros(2 * late.numel(), device=other)[::2]
            target.copy_(late)
            check(torch.equal(target.cpu(), late.cpu()), "wrong contents from %s to %s" % (source, other))
    with case("freed on one device while the other copies"):
        for _ in range(20):
            block = strided("cuda:0", 1 << 22)
            target = torch.zeros(2 * block.numel(), device="cuda:1")[::2]
            target.copy_(block)
            expected = float(block.numel() - 1) * block.numel()
            del block
            check(abs(float(target.double().sum()) - expected) < 1, "the copy saw other memory")


def main():
    import torch

    if torch.cuda.device_count() < 2:
        gpucase.line("SKIP", "peers", "needs two GPUs, %d here" % torch.cuda.device_count())
        return
    gpucase.children([
        dict(label="install/" + backend, arguments=[__file__, "install", backend], managed=backend == "managed")
        for backend in gpucase.BACKENDS
    ])


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one_backend(*sys.argv[1:])
    else:
        main()
    gpucase.finish()
