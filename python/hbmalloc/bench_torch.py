"""`torch.empty` created and dropped, for `hbmalloc bench`: one allocator a process.

    python -m hbmalloc.bench_torch --allocator pool

prints a line of JSON for each size, or one that says why there is none. The environment
chooses among torch's own allocators (`PYTORCH_CUDA_ALLOC_CONF`); that it did is checked.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time

#: a case and its size in float32
CASES = [("4 KiB", 1 << 10), ("1 MiB", 1 << 18), ("64 MiB", 1 << 24)]

#: What is not hbmalloc: torch's own, an allocator that does nothing, and none at all.
OTHERS = ("native", "expandable", "cudaMallocAsync", "nothing", "meta")


class Unfit(Exception):
    """This allocator cannot be measured here; the text says why."""


def put_in_force(name, library):
    """Makes the allocator torch's; before CUDA is used."""
    import torch

    if name == "nothing":
        if not library:
            raise Unfit("it was not compiled")
        torch.cuda.memory.change_current_allocator(
            torch.cuda.memory.CUDAPluggableAllocator(library, "nothing_malloc", "nothing_free"))
    elif name not in OTHERS:
        import hbmalloc

        hbmalloc.torch.install(name)


def check_in_force(name):
    """Raises where another allocator than the named one has served; after memory was used."""
    import torch

    backend = torch.cuda.memory.get_allocator_backend()
    wanted = {"native": "native", "expandable": "native", "cudaMallocAsync": "cudaMallocAsync"}.get(name, "pluggable")
    if backend != wanted:
        raise Unfit("torch uses its allocator %s" % backend)
    if wanted == "native":
        expandable = any(segment.get("is_expandable") for segment in torch.cuda.memory_snapshot())
        if expandable != (name == "expandable"):
            raise Unfit("its segments are %sexpandable" % ("" if expandable else "not "))
    elif name not in OTHERS:
        import hbmalloc

        if not hbmalloc.stats(0)["allocations"]:
            raise Unfit("hbmalloc was not asked for memory")


def pin():
    """Keeps this thread on the first processor it may use."""
    try:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    except OSError:
        pass


def repeat(batch, reps, batch_ns):
    """Nanoseconds a call of `reps` batches, each about `batch_ns` long."""
    count = 16
    while True:
        took = batch(count)
        if took >= batch_ns / 4:
            break
        count *= 4
    count = max(16, int(count * batch_ns / took))
    return [batch(count) / count for _ in range(reps)]


def measure(name, reps, batch_ns):
    import torch

    empty, device = torch.empty, "meta" if name == "meta" else "cuda"
    device = torch.device(device)
    kept = empty(1, device=device)
    if name != "meta":
        if not kept.data_ptr():
            raise Unfit("it gave no memory")
        check_in_force(name)

    for case, numbers in CASES:
        def batch(count):
            begin = time.perf_counter_ns()
            for _ in itertools.repeat(None, count):
                empty(numbers, device=device)
            return time.perf_counter_ns() - begin

        ns = repeat(batch, reps, batch_ns)
        yield {"allocator": name, "bench": "torch", "case": case, "reps": reps,
               "ns_median": round(statistics.median(ns), 2), "ns_min": round(min(ns), 2), "ns_max": round(max(ns), 2)}
    del kept


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m hbmalloc.bench_torch")
    parser.add_argument("--allocator", required=True, help="%s, or a backend of hbmalloc" % ", ".join(OTHERS))
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--batch-ms", type=float, default=30)
    parser.add_argument("--library", help="the compiled allocator that does nothing")
    options = parser.parse_args(arguments)
    pin()
    gc.disable()
    try:
        put_in_force(options.allocator, options.library)
        for line in measure(options.allocator, options.reps, options.batch_ms * 1e6):
            print(json.dumps(line, separators=(",", ":")), flush=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(json.dumps({"allocator": options.allocator, "bench": "torch", "skipped": reason},
                         separators=(",", ":")), flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
