"""Unmodified programs under `hbmalloc run` and without: the same results, memory and time beside it."""

import os
import shutil
import subprocess
import sys

import gpucase
from gpucase import case, check

CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "preload_child.py")
BENCHES = os.path.join(os.path.dirname(CHILD), "..", "..", "benches", "preload")
COMMAND = [sys.executable, "-m", "hbmalloc", "run", "--stats", "--"]


def run(command, **variables):
    environment = dict(os.environ, CUBLAS_WORKSPACE_CONFIG=":4096:8", **variables)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    check(done.returncode == 0, "exit status %d: %s" % (done.returncode, done.stderr[-1500:]))
    return done


def lines(done, word):
    return sorted(line for line in done.stdout.splitlines() if line.startswith(word))


def same(name, **variables):
    program = [sys.executable, CHILD, name]
    alone, under = run(program, **variables), run(COMMAND + program, **variables)
    check(lines(alone, "out") and lines(alone, "out") == lines(under, "out"), "the results differ:\n%s\n%s" % (
        alone.stdout[-800:], under.stdout[-800:]))
    for how, done in (("alone", alone), ("under", under)):
        for line in lines(done, "cost"):
            print("   %s %s" % (how, line))
    told = [line for line in under.stderr.splitlines() if "allocations" in line]
    check(told, "no process told what it held: %s" % under.stderr[-500:])
    print("   " + "\n   ".join(told))


def programs():
    import torch

    for name in ("train", "graph", "generate", "compile", "pinned", "share"):
        with case("%s: as without" % name):
            same(name)
    with case("uncached tensors on four streams: as without"):
        same("uncached", PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if torch.cuda.device_count() < 2:
        gpucase.line("SKIP", "reduce: as without", "one device")
    else:
        with case("reduce: as without"):
            same("reduce")


@case("a limit is the program's memory")
def limited():
    code = ("import torch; print('out', torch.cuda.mem_get_info()[1] >> 20); kept = torch.empty(3 << 30, dtype=torch.uint8, "
            "device='cuda')\ntry: torch.empty(3 << 30, dtype=torch.uint8, device='cuda')\n"
            "except torch.OutOfMemoryError: print('out of memory')")
    command = COMMAND[:-2] + ["--limit", "4GiB", "--", sys.executable, "-c", code]
    done = run(command)
    check("out 4096\nout of memory" in done.stdout, done.stdout)


def streams():
    compiler = shutil.which("nvcc")
    if compiler is None:
        gpucase.line("SKIP", "a program of C++: its kernels find what they wrote", "no nvcc")
        return
    with case("a program of C++: its kernels find what they wrote"):
        program = os.path.join(os.environ.get("HBMALLOC_CHECK_OUT", "/tmp"), "streams")
        run([compiler, "-O2", "-std=c++17", "-cudart", "shared", os.path.join(BENCHES, "streams.cu"), "-o", program])
        for how, command in (("alone", [program]), ("under", COMMAND + [program])):
            done = run(command)
            check("0 words were wrong" in done.stdout, done.stdout)
            print("   %s:\n   %s" % (how, done.stdout.replace("\n", "\n   ")))
        os.unlink(program)


if __name__ == "__main__":
    programs()
    limited()
    streams()
    gpucase.finish()
