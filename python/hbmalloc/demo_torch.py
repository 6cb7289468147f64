"""`hbmalloc demo` on a machine with a GPU and torch: a training run on the pool, and on all others.

Torch's own allocator, the pool, which is the default, and then every other backend train
the same small transformer, each in a process of its own, since a process has one
allocator; the losses must equal those of torch's own allocator to the last bit.
Exit status 0 when they do, 1 when not, 2 when a run failed, 3 without torch or GPU.
"""

import json
import os
import subprocess
import sys
import time

from hbmalloc import BACKENDS

STEPS, TIMED_FROM = 30, 10
#: Of pinned memory every access crosses the link, which is no way to train.
RUNS = ["native"] + [backend for backend in BACKENDS if backend != "pinned"]


def one_run(backend):
    """Trains on `backend` in this process and prints its figures as one JSON line."""
    import torch

    import hbmalloc

    if backend != "native":
        hbmalloc.torch.install(backend)
    from hbmalloc._transformer import train

    marks = {}

    def each_step(step):
        if step in (TIMED_FROM, STEPS - 1):
            torch.cuda.synchronize()
            marks[step] = time.perf_counter()

    losses = train("cuda", STEPS, each_step=each_step, width=512, heads=8, layers=6, size=32)
    if backend == "native":
        live, held = torch.cuda.memory_stats()["requested_bytes.all.peak"], torch.cuda.max_memory_reserved()
    else:
        stats = hbmalloc.stats(torch.cuda.current_device())
        live, held = stats["peak_requested"], stats["peak_reserved"]
    step_ms = (marks[STEPS - 1] - marks[TIMED_FROM]) / (STEPS - 1 - TIMED_FROM) * 1e3
    figures = {"losses": losses, "step_ms": step_ms, "live": live, "held": held}
    print("RESULT " + json.dumps(figures), flush=True)


def refuse(text):
    print("hbmalloc demo: " + text, file=sys.stderr)
    return 3


def row_of(backend, figures, native):
    losses = [float.fromhex(loss) for loss in figures["losses"]]
    same = "" if backend == "native" else ("yes" if figures["losses"] == native["losses"] else "NO")
    return "%-10s %12.8f %12.8f %-16s %10.2f %10.1f %10.1f" % (
        backend, losses[0], losses[-1], same, figures["step_ms"], figures["live"] / 2**20, figures["held"] / 2**20)


def verdict(native, pool):
    """What the pool, which is the default, made of the run, beside torch's own allocator."""
    text = "The pool, the default, takes %.2f of native's time a step; it held %.3f times what was asked for, native %.3f."
    return text % (
        pool["step_ms"] / native["step_ms"], pool["held"] / pool["live"], native["held"] / native["live"])


def main():
    try:
        import torch
    except ImportError as error:
        return refuse("PyTorch cannot be imported (%s)" % error)
    if torch.version.cuda is None:
        return refuse("this PyTorch, %s, was built without CUDA" % torch.__version__)
    if not torch.cuda.is_available():
        return refuse("PyTorch finds no GPU")
    print("hbmalloc demo: %s, PyTorch %s; %d steps of a transformer, a process a backend" % (
        torch.cuda.get_device_name(0), torch.__version__, STEPS), flush=True)

    results, failed = {}, []
    for number, backend in enumerate(RUNS, 1):
        print("[%d/%d] %s ..." % (number, len(RUNS), backend), end=" ", flush=True)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "hbmalloc.demo_torch", "--run", backend],
                              stdout=subprocess.PIPE, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if done.returncode or not lines:
            failed.append(backend)
            print("failed with status %d" % done.returncode, flush=True)
        else:
            results[backend] = json.loads(lines[-1][len("RESULT "):])
            print("%.1f s" % (time.perf_counter() - started), flush=True)

    print("\n%-10s %12s %12s %-16s %10s %10s %10s" % (
        "backend", "first loss", "last loss", "equal to native", "ms a step", "live MiB", "held MiB"))
    native = results.get("native", {"losses": None})
    for backend, figures in results.items():
        print(row_of(backend, figures, native))
    print("\nlive: the most that tensors asked for at a time; held: the most taken from the driver")
    if "native" in results and "pool" in results:
        print(verdict(results["native"], results["pool"]))
    different = [backend for backend, figures in results.items() if figures["losses"] != native["losses"]]
    if failed:
        print("failed: " + ", ".join(failed))
        return 2
    if different:
        print("the losses differ from native's: " + ", ".join(different))
        return 1
    print("all losses equal native's to the last bit")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if sys.argv[1:2] == ["--run"]:
        one_run(sys.argv[2])
    else:
        sys.exit(main())
