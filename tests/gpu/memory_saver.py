"""torch_memory_saver's Python over hbmalloc on a real card, in both of its hook modes, and for comparison over its own library.

Needs torch_memory_saver (its wheel, unpacked or installed) where Python finds it; skipped where it is not.
"""

import importlib.util
import os
import sys
import tempfile
import time

import gpucase
from gpucase import case, check, raises

MIB = 1 << 20
GIB = 1 << 30
#: What is paused with its contents, for speed.
LARGE = 8 * GIB
SIZE = 256 * MIB
#: The driver keeps some for itself.
SLACK = 64 * MIB


def free_bytes():
    import torch

    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


def parts(tensor, seed):
    """Pieces of a tensor, each with contents that no other piece has; large ones would need as much memory again."""
    import torch

    step = 64 * MIB // 8
    for begin in range(0, tensor.numel(), step):
        part = tensor[begin:begin + step]
        yield part, torch.arange(begin, begin + part.numel(), dtype=torch.int64, device="cuda") * 2654435761 + seed


def same(tensor, seed):
    import torch

    return all(torch.equal(part, wanted) for part, wanted in parts(tensor, seed))


def write(tensor, seed):
    for part, wanted in parts(tensor, seed):
        part.copy_(wanted)


def empty(size=SIZE):
    import torch

    return torch.empty(size // 8, dtype=torch.int64, device="cuda")


def timed(call, *arguments):
    import torch

    torch.cuda.synchronize()
    begun = time.perf_counter()
    call(*arguments)
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def speed(saver, rounds=4):
    import torch

    with case("%.1f GiB with CPU backup, %d rounds" % (LARGE / GIB, rounds)):
        with saver.region(tag="large", enable_cpu_backup=True):
            large = empty(LARGE)
        write(large, 1)
        torch.cuda.empty_cache()
        address = large.data_ptr()
        for number in range(rounds):
            before = free_bytes()
            pause = timed(saver.pause, "large")
            freed = free_bytes() - before
            resume = timed(saver.resume, "large")
            print("    round %d: pause %.1f GB/s (%.3f s), resume %.1f GB/s (%.3f s), %.2f GiB more were free" % (
                number, LARGE / pause / 1e9, pause, LARGE / resume / 1e9, resume, freed / GIB), flush=True)
            check(freed >= LARGE - SLACK, "paused, only %d bytes more are free" % freed)
            check(large.data_ptr() == address and same(large, 1), "contents changed")
        del large
    torch.cuda.empty_cache()


def tags(saver):
    import torch

    with case("two tags, discard, twice, tags that nobody had"):
        with saver.region(tag="weights", enable_cpu_backup=True):
            weights = empty()
        with saver.region(tag="cache"):
            cache = empty()
        plain = empty()
        write(plain, 9)
        write(weights, 2)
        write(cache, 3)
        torch.cuda.empty_cache()
        places = [tensor.data_ptr() for tensor in (weights, cache, plain)]
        before = free_bytes()
        saver.pause("cache")
        check(free_bytes() - before >= SIZE - SLACK, "%d bytes more are free" % (free_bytes() - before))
        check(same(weights, 2) and same(plain, 9), "memory of another tag changed")
        saver.pause("cache")
        saver.pause()
        saver.pause()
        check(free_bytes() - before >= 2 * SIZE - SLACK, "%d bytes more are free" % (free_bytes() - before))
        check(same(plain, 9), "memory outside regions changed")
        saver.pause("nobody")
        saver.resume("nobody")
        saver.resume("weights")
        check(same(weights, 2), "the weights changed")
        saver.resume("weights")
        saver.resume()
        saver.resume()
        write(cache, 4)
        check(same(cache, 4) and same(weights, 2), "discarded memory cannot be used")
        check(places == [tensor.data_ptr() for tensor in (weights, cache, plain)], "addresses changed")


def backups(saver):
    import torch

    with case("the backup on the host"):
        with saver.region(tag="backup", enable_cpu_backup=True):
            kept = empty()
        write(kept, 5)
        wanted = kept.cpu()
        check(saver.get_cpu_backup(kept) is None, "a backup of what is awake")
        saver.pause("backup")
        for zero_copy in (False, True):
            check(torch.equal(saver.get_cpu_backup(kept, zero_copy=zero_copy), wanted), "the backup differs")
            part = kept[1000:2000]
            check(torch.equal(saver.get_cpu_backup(part, zero_copy=zero_copy), wanted[1000:2000]), "part of it differs")
        saver.resume("backup")
        check(saver.get_cpu_backup(kept) is None, "a backup after the resume")
        saver.retain_cpu_backup = True
        saver.pause("backup")
        saver.resume("backup")
        kept.zero_()
        check(torch.equal(saver.get_cpu_backup(kept), wanted), "the backup was not retained")
        saver.retain_cpu_backup = False
        saver.pause("backup")
        saver.resume("backup")
        check(saver.get_cpu_backup(kept) is None, "retained though not asked for")
    with case("disk"):
        with saver.region(tag="disk", enable_disk_backup=True):
            cold = empty()
        write(cold, 6)
        before = free_bytes()
        with tempfile.TemporaryDirectory() as folder:
            saver.set_disk_backup_dir(folder)
            pause = timed(saver.pause, "disk")
            check(free_bytes() - before >= SIZE - SLACK, "%d bytes more are free" % (free_bytes() - before))
            check(saver.get_cpu_backup(cold) is None, "a backup on the host")
            resume = timed(saver.resume, "disk")
        check(same(cold, 6), "contents changed")
        print("    pause %.2f GB/s, resume %.2f GB/s" % (SIZE / pause / 1e9, SIZE / resume / 1e9))


def running_work(saver):
    import torch

    with case("work on a side stream is waited for"):
        with saver.region(tag="busy", enable_cpu_backup=True):
            busy = torch.zeros(SIZE, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        for number in range(1, 4):
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda._sleep(100_000_000)
                busy.add_(1)
            saver.pause("busy")
            saver.resume("busy")
            check(int(busy.min()) == number == int(busy.max()), "not what the side stream wrote")


def disabled():
    # It frees a pool of PyTorch's inside the use of another.
    gpucase.line("SKIP", "disable() inside a region", "PyTorch 2.11 ends the process there, whatever library serves")


def graphs(saver):
    import torch

    with case("a CUDA graph in a region replays after pause and resume"):
        given = torch.ones(1 << 20, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with saver.cuda_graph(graph, tag="graph", enable_cpu_backup=True):
            result = (given * 3).square() + given
        graph.replay()
        check(float(result.sum()) == 10 * (1 << 20), "the graph computes otherwise")
        saver.pause("graph")
        saver.resume("graph")
        given.fill_(2)
        graph.replay()
        check(float(result.sum()) == 38 * (1 << 20), "the graph computes otherwise after a resume")
        torch.cuda.synchronize()


def failures(saver):
    import hbmalloc
    import torch

    with case("no room on the host: an exception, nothing changed, and again"):
        with saver.region(tag="refused", enable_cpu_backup=True):
            kept = empty()
        write(kept, 7)
        # A pause takes what is pinned already, whatever the limit.
        hbmalloc.trim_host_buffer()
        check(hbmalloc.host_buffer()["pinned"] == 0, "%s" % hbmalloc.host_buffer())
        hbmalloc.set_option("sleep_host_limit", "1MiB")
        with raises(hbmalloc.OutOfMemoryError, "sleep_host_limit"):
            saver.pause("refused")
        check(same(kept, 7), "contents changed")
        hbmalloc.set_option("sleep_host_limit", "80%")
        saver.pause("refused")
        saver.resume("refused")
        check(same(kept, 7), "contents changed")
    with case("the margin"):
        saver.memory_margin_bytes = 1 << 50
        with raises(torch.OutOfMemoryError):
            with saver.region(tag="margin"):
                torch.empty(SIZE, dtype=torch.uint8, device="cuda")
        saver.memory_margin_bytes = 0


def one(library, mode):
    if library == "hbmalloc":
        from hbmalloc.compat import torch_memory_saver as compat

        compat.install()
    import torch
    from torch_memory_saver import torch_memory_saver as saver

    torch.cuda.init()
    saver.hook_mode = mode
    if library == "theirs":
        try:
            saver.pause("nobody")
        except Exception as error:
            gpucase.line("SKIP", "its own library", "%s: %s" % (type(error).__name__, error))
            gpucase.finish()
    speed(saver)
    if library != "theirs":
        tags(saver)
        backups(saver)
        running_work(saver)
        disabled()
        if mode == "preload":
            graphs(saver)
    if library == "hbmalloc":
        failures(saver)
    served = saver._impl._binary_wrapper.cdll._name
    print("    served by %s" % served, flush=True)
    with case("whose library served"):
        is_ours = "hbmalloc" in os.path.basename(os.path.realpath(served))
        check(is_ours == (library != "theirs"), "%s served" % served)
    gpucase.finish()


def main():
    if importlib.util.find_spec("torch_memory_saver") is None:
        gpucase.line("SKIP", "torch_memory_saver", "it is not installed, nor on PYTHONPATH")
        gpucase.finish()
    from hbmalloc.compat import torch_memory_saver as compat

    program = os.path.abspath(__file__)
    gpucase.child("check", ["-m", "hbmalloc.compat.torch_memory_saver", "check"])
    for library, mode in (("theirs", "torch"), ("hbmalloc", "torch"), ("hbmalloc", "preload"), ("uninstalled", "preload")):
        if mode == "preload":
            os.environ["LD_PRELOAD"] = compat.preload_path()
        try:
            # Its own library may end the process when PyTorch gives memory back at the exit.
            gpucase.child("%s/%s" % (library, mode), [program, library, mode], limit=150,
                          expect=None if library == "theirs" else 0)
        finally:
            os.environ.pop("LD_PRELOAD", None)
    gpucase.finish()


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
