"""PyTorch's questions about memory, its limit and cudnn.benchmark under install(), beside native's answers."""

import gc
import json
import os
import sys
import tempfile

import gpucase
from gpucase import case, check, raises

MIB = 1 << 20


def settle(torch):
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def changes(torch):
    """How the statistics answer to a few tensors whose sizes no allocator rounds."""
    names = ("allocated_bytes.all.current", "requested_bytes.all.current", "allocation.all.current",
             "allocated_bytes.all.peak", "allocation.all.allocated", "allocation.all.freed",
             "allocated_bytes.all.allocated", "allocated_bytes.all.freed", "num_ooms")
    settle(torch)
    torch.cuda.reset_accumulated_memory_stats()
    torch.cuda.reset_peak_memory_stats()
    before, steps = torch.cuda.memory_stats(), []

    def note():
        now = torch.cuda.memory_stats()
        steps.append([now[name] - before[name] for name in names])

    tensors = [torch.empty(size * MIB, dtype=torch.uint8, device="cuda") for size in (64, 2, 256)]
    note()
    del tensors[0]
    note()
    torch.cuda.reset_peak_memory_stats()
    note()
    torch.cuda.reset_accumulated_memory_stats()
    tensors.append(torch.empty(32 * MIB, dtype=torch.uint8, device="cuda"))
    note()
    with raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    note()
    tensors.clear()
    settle(torch)
    note()
    return {"names": names, "steps": steps, "keys": sorted(torch.cuda.memory_stats()),
            "total": torch.cuda.mem_get_info()[1]}


def as_native(torch, reference):
    with case("the same keys as native"):
        check(sorted(torch.cuda.memory_stats()) == reference["keys"],
              set(torch.cuda.memory_stats()) ^ set(reference["keys"]))
    with case("the same changes as native"):
        now = changes(torch)
        for step, (ours, wanted) in enumerate(zip(now["steps"], reference["steps"])):
            for name, our, want in zip(now["names"], ours, wanted):
                check(our == want, "step %d, %s: %d, native %d" % (step, name, our, want))
        check(now["total"] == reference["total"], "total memory %d, native %d" % (now["total"], reference["total"]))


def questions(torch, hbmalloc):
    with case("allocated, reserved and their peaks"):
        settle(torch)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        x = torch.ones(100 * MIB, dtype=torch.uint8, device="cuda")
        check(torch.cuda.memory_allocated() - before == 100 * MIB, torch.cuda.memory_allocated() - before)
        del x
        check(torch.cuda.memory_allocated() == before, "%d after, %d before" % (torch.cuda.memory_allocated(), before))
        check(torch.cuda.max_memory_allocated() >= before + 100 * MIB, torch.cuda.max_memory_allocated())
        check(torch.cuda.max_memory_reserved() >= torch.cuda.memory_reserved() >= before, "reserved")
        torch.cuda.reset_peak_memory_stats()
        check(torch.cuda.max_memory_allocated() == before, "the peak did not begin again")
    with case("empty_cache"):
        free = torch.cuda.mem_get_info()[0]
        blocks = [torch.ones(64 * MIB, dtype=torch.uint8, device="cuda") for _ in range(8)]
        del blocks
        settle(torch)
        check(torch.cuda.memory_reserved() - torch.cuda.memory_allocated() < 64 * MIB, "%d reserved, %d allocated" % (
            torch.cuda.memory_reserved(), torch.cuda.memory_allocated()))
        check(free - torch.cuda.mem_get_info()[0] < 128 * MIB, "%d bytes did not come back" % (
            free - torch.cuda.mem_get_info()[0]))
    with case("memory_summary"):
        text = torch.cuda.memory_summary()
        check("Allocated memory" in text and len(text.splitlines()) > 30, text)
        check(len(torch.cuda.memory_summary(abbreviated=True)) < len(text), "not abbreviated")
    with case("torch.accelerator"):
        keep = torch.ones(MIB, device="cuda")
        check(torch.accelerator.memory_allocated() == torch.cuda.memory_allocated() > 0, "memory_allocated")
        check(torch.accelerator.memory_reserved() == torch.cuda.memory_reserved(), "memory_reserved")
        check(torch.accelerator.memory_stats().keys() == torch.cuda.memory_stats().keys(), "memory_stats")
        torch.accelerator.reset_peak_memory_stats()
        torch.accelerator.empty_cache()
        del keep
    with case("hbmalloc's own counts are the same"):
        ours = hbmalloc.stats(0)
        check(ours["requested"] <= ours["allocated"] <= ours["reserved"], ours)
        check(ours["allocated"] == torch.cuda.memory_allocated(), ours)


def parts(torch, hbmalloc):
    with case("segments, splits and what the driver was called for"):
        settle(torch)
        hbmalloc.set_option("driver_timing", "on")
        before, calls = torch.cuda.memory_stats(), hbmalloc.driver_stats()
        blocks = [torch.ones(size * MIB, dtype=torch.uint8, device="cuda") for size in (3, 700, 5, 900)]
        del blocks[::2]
        now, ours = torch.cuda.memory_stats(), hbmalloc.stats(0)
        hbmalloc.set_option("driver_timing", "off")
        check(now["segment.all.current"] == ours["segments"] > 0 or ours["segments"] == 0 == now["segment.all.peak"],
              "%d segments, %r" % (now["segment.all.current"], ours))
        check(now["num_device_alloc"] - now["num_device_free"]
              == now["segment.all.allocated"] - now["segment.all.freed"], now)
        check(now["num_device_alloc"] > before["num_device_alloc"] or ours["segments"] == 0, "nothing new was had")
        idle = now["reserved_bytes.all.current"] - now["allocated_bytes.all.current"]
        check(0 <= now["inactive_split_bytes.all.current"] <= idle, "%d of %d idle bytes are splits" % (
            now["inactive_split_bytes.all.current"], idle))
        after = hbmalloc.driver_stats()
        check(after["calls"] > calls["calls"] and after["nanoseconds"] > calls["nanoseconds"], (calls, after))
        print("    %d driver calls, %.1f us each" % (
            after["timed_calls"] - calls["timed_calls"],
            (after["nanoseconds"] - calls["nanoseconds"]) / 1000 / max(after["timed_calls"] - calls["timed_calls"], 1)))
        del blocks
    with case("by tag and by stream"):
        settle(torch)
        side = torch.cuda.Stream()
        with hbmalloc.tag("on the side"), torch.cuda.stream(side):
            x = torch.ones(50 * MIB, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        of_tag, of_stream = hbmalloc.stats(tag="on the side"), hbmalloc.stats(stream=side)
        check(of_tag["requested"] >= 50 * MIB and of_tag["reserved"] >= of_tag["allocated"], of_tag)
        check(of_stream["requested"] == of_tag["requested"], of_stream)
        every, tags, streams = hbmalloc.stats(0), hbmalloc.stats_by_tag(0), hbmalloc.stats_by_stream(0)
        for name in ("requested", "allocated", "allocations", "deallocations", "total_allocated"):
            sums = [sum(of[name] for of in parts.values()) for parts in (tags, streams)]
            check(sums == [every[name]] * 2, "%s: %r by tag and stream, %d in all" % (name, sums, every[name]))
        pool, of_pool = hbmalloc.pool_stats(0), hbmalloc.stats(0, "pool")
        check(pool["hits"] + pool["collected"] + pool["misses"] == of_pool["allocations"], (pool, of_pool))
        print("    %r" % pool)
        del x


def limit(torch):
    with case("a limit by set_per_process_memory_fraction"):
        settle(torch)
        total = torch.cuda.mem_get_info()[1]
        used = torch.cuda.memory_reserved()
        check(torch.cuda.get_per_process_memory_fraction() == 1.0, "a limit was set already")
        fraction = (used + (4 << 30)) / total
        torch.cuda.set_per_process_memory_fraction(fraction)
        check(abs(torch.cuda.get_per_process_memory_fraction() - fraction) < 1e-6, "it is not what was set")
        free = torch.cuda.mem_get_info()[0]
        check(3 << 30 < free <= (4 << 30) + MIB, "%d bytes count as free" % free)
        check(torch.accelerator.get_memory_info()[0] == free, "torch.accelerator says otherwise")
        half = torch.ones(2 << 30, dtype=torch.uint8, device="cuda")
        check(torch.cuda.mem_get_info()[0] <= free - (2 << 30), "free memory does not fall")
        with raises(torch.OutOfMemoryError, "limit"):
            torch.empty(3 << 30, dtype=torch.uint8, device="cuda")
        rest = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
        check(int(half[-1]) == int(rest[-1]) == 1, "memory is not usable")
        del half, rest
        torch.cuda.set_per_process_memory_fraction(1.0)
        check(torch.cuda.mem_get_info()[0] > free, "the limit is still there")


def convolution(torch, channels):
    layer = torch.nn.Conv2d(channels, 64, 3, padding=1, device="cuda")
    x = torch.randn(8, channels, 64, 64, device="cuda", requires_grad=True)
    layer(x).square().mean().backward()
    torch.cuda.synchronize()
    return x.grad


def kernels(torch, work):
    """How many kernels `work` runs, or None where the profiler cannot see them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    return sum(event.count for event in seen.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA) or None


def benchmark(torch):
    """The first convolution of a shape tries several algorithms, the second takes the fastest."""
    torch.backends.cudnn.benchmark = False
    convolution(torch, 16)
    with case("cudnn.benchmark works"):
        torch.backends.cudnn.benchmark = True
        first = convolution(torch, 16)
        check(bool(torch.isfinite(first).all()), "no numbers came out")
    with case("cudnn.benchmark tries algorithms"):
        tried, then = kernels(torch, lambda: convolution(torch, 24)), kernels(torch, lambda: convolution(torch, 24))
        if tried is None or then is None:
            gpucase.line("SKIP", "kernels of cudnn.benchmark", "the profiler sees none here")
        else:
            print("    %d kernels at first, then %d" % (tried, then))
            check(tried > then + 3, "%d kernels at first, %d then" % (tried, then))
    torch.backends.cudnn.benchmark = False


def benchmark_unserved():
    """Without install() the question is refused, which shows that benchmark asks it."""
    import torch

    import hbmalloc

    torch.cuda.memory.change_current_allocator(hbmalloc.torch.allocator())
    torch.backends.cudnn.benchmark = True
    with case("cudnn.benchmark asks the allocator"), raises(RuntimeError, "cacheInfo"):
        convolution(torch, 16)


def one(allocator, reference):
    if allocator == "unserved":
        benchmark_unserved()
        gpucase.finish()
    if allocator != "native":
        gpucase.install("install", None if allocator == "default" else allocator)
    import torch

    import hbmalloc

    torch.ones(1, device="cuda")
    if allocator == "native":
        with case("native"):
            now = changes(torch)
            with open(reference, "w") as handle:
                json.dump(now, handle)
        gpucase.finish()
    with open(reference) as handle:
        as_native(torch, json.load(handle))
    questions(torch, hbmalloc)
    parts(torch, hbmalloc)
    limit(torch)
    benchmark(torch)
    gpucase.finish()


def main():
    with tempfile.TemporaryDirectory() as folder:
        reference = os.path.join(folder, "native.json")
        gpucase.child("native", [os.path.abspath(__file__), "native", reference])
        gpucase.children([
            dict(label="install/" + backend, arguments=[os.path.abspath(__file__), backend, reference])
            for backend in ("default", "async", "unserved")
        ], parallel=1)
    gpucase.finish()


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
