"""`hbmalloc replay` on the GPU: every backend, lagging work, and the other allocators beside ours."""

import json
import os
import subprocess
import sys

import gpucase
from gpucase import case, check

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: a training run and tensors handed from stream to stream, sizes scaled down to 256 MiB
TRACE = os.path.join(ROOT, "src", "bin", "hbmalloc", "demo", "train.csv.gz")
#: `sim` shows that this script itself works
DRIVER = "sim" if os.environ.get("HBMALLOC_DRIVER") == "sim" else "cuda"
FIRST = ["trace", "backend", "driver", "peak_requested", "peak_reserved", "ratio", "pair_ns_p50", "pair_ns_p99",
         "host_ms", "driver_calls", "driver_ms"]


def replay(*arguments, expect=(0,)):
    """Its objects by backend, and what it told beside them."""
    done = subprocess.run([sys.executable, "-m", "hbmalloc", "replay", "--json", *arguments, TRACE],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300)
    print(done.stdout + done.stderr, flush=True)
    check(done.returncode in expect, "exit status %d" % done.returncode)
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    for figures in objects:
        check(list(figures)[:len(FIRST)] == FIRST, "its keys are %s" % list(figures))
        check(figures["driver"] == DRIVER, "its driver is " + figures["driver"])
        check(not figures["problems"], figures["problems"])
        check(figures["ratio"] >= 1 and figures["total_ms"] > 0, figures)
    return {figures["backend"]: figures for figures in objects}, done.stderr


def every_backend():
    found, _ = replay("--no-peers", "--backend", ",".join(gpucase.BACKENDS))
    check(list(found) == list(gpucase.BACKENDS), list(found))
    for figures in found.values():
        check(figures["driver_ms"] > 0 and figures["host_ms"] > 0, figures)
    blocks = found["device"]["pairs"]
    check(found["device"]["driver_calls"] >= 2 * blocks, "device made too few calls")
    check(found["pool"]["driver_calls"] < blocks, "the pool called the driver for every block")


def lagging_work():
    names = "pool,async,vmm"
    found, _ = replay("--no-peers", "--backend", names, "--lag", "100")
    for figures in found.values():
        check(figures["lag"] == 100, figures)
        check(figures["forced_waits"] < figures["pairs"] / 20, "%(forced_waits)s forced waits" % figures)
    calm, _ = replay("--no-peers", "--backend", names)
    check(found["vmm"]["peak_reserved"] > calm["vmm"]["peak_reserved"], "work that lags holds memory back")


def other_allocators():
    found, told = replay("--peers", "--compare", expect=(0, 1, 2))
    skipped = [line.split(": ")[1] for line in told.splitlines() if line.startswith("skipped: ")]
    peers = ["torch-native", "torch-expandable", "cudaMallocAsync", "rmm-pool", "rmm-arena"]
    check(sorted(found) == sorted(["pool"] + [name for name in peers if name not in skipped]), list(found))
    check("cudaMallocAsync" in found, "the driver's own pool was skipped")
    ours = found.pop("pool")
    losses = [line for line in told.splitlines() if line.startswith("loss: ")]
    worse = sum(ours["ratio"] > figures["ratio"] for figures in found.values())
    native = found.get("torch-native")
    worse += bool(native) and ours["total_ms"] > native["total_ms"]
    check(len(losses) == worse, "%d losses are told, %d are there" % (len(losses), worse))
    for name in skipped:
        gpucase.line("SKIP", "replayed through " + name, "see above")


if __name__ == "__main__":
    with case("every backend"):
        every_backend()
    with case("lagging work"):
        lagging_work()
    with case("other allocators"):
        other_allocators()
    gpucase.finish()
