"""Fills the card until torch.OutOfMemoryError, frees, and trains on. Never with managed memory."""

import os
import sys

import gpucase
from gpucase import case, check

BLOCK = 4 << 30
SLACK = 1 << 30  # what CUDA itself may come to hold meanwhile


def one(route, backend):
    gpucase.install(route, backend)
    from hbmalloc import _transformer

    import torch

    import hbmalloc

    torch.cuda.synchronize()
    empty = torch.cuda.mem_get_info()[0]
    with case("just beyond the card"):
        try:
            torch.empty(torch.cuda.get_device_properties(0).total_memory + (1 << 30), dtype=torch.uint8, device="cuda")
            raise AssertionError("it was not refused")
        except torch.OutOfMemoryError as error:
            print("    %s" % error)
        torch.cuda.synchronize()
        check(empty - torch.cuda.mem_get_info()[0] < SLACK, "the refused request left memory taken")
    with case("the card filled"):
        blocks, pool = [], None
        if route == "pool":
            pool = hbmalloc.torch.memory_pool(backend, tag="fill")
            pool.__enter__()
        free_before = torch.cuda.mem_get_info()[0]
        try:
            while len(blocks) * BLOCK < 2 * free_before:
                blocks.append(torch.empty(BLOCK, dtype=torch.uint8, device="cuda"))
                blocks[-1][:: 1 << 21] = len(blocks)
            raise AssertionError("the card never got full")
        except torch.OutOfMemoryError as error:
            print("    after %d GiB: %s" % (len(blocks) * BLOCK >> 30, error))
        check(len(blocks) * BLOCK > free_before // 2, "refused after %d of %d bytes" % (len(blocks) * BLOCK, free_before))
        for number, block in enumerate(blocks, 1):
            check(int(block[:: 1 << 21].min()) == number == int(block[:: 1 << 21].max()), "block %d changed" % number)
        blocks.clear()
        del block
        if pool is not None:
            pool.__exit__(None, None, None)
            del pool
    with case("given back"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        hbmalloc.trim(0)
        torch.cuda.synchronize()
        left = empty - torch.cuda.mem_get_info()[0]
        check(left < SLACK, "%d bytes are still taken" % left)
    with case("training on"):
        first = _transformer.train("cuda", 5)
        check(first == _transformer.train("cuda", 5), "two runs after it differ")
        again = torch.zeros(BLOCK, dtype=torch.uint8, device="cuda")
        check(int(again[-1]) == 0, "memory is not usable")
    gpucase.finish()


def main():
    program = os.path.abspath(__file__)
    for route, backend in [("install", "pool"), ("install", "device"), ("install", "async"), ("install", "vmm"), ("pool", "vmm")]:
        gpucase.child("%s/%s" % (route, backend), [program, route, backend], limit=90)
    gpucase.finish()


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
