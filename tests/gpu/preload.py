"""Unmodified programs under `hbmalloc run` and without: the same results, memory and time beside it."""

import os
import shutil
import subprocess
import sys
import tempfile

import gpucase
import hbmalloc
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


def cold(command, **variables):
    """With nothing that an earlier run has compiled."""
    with tempfile.TemporaryDirectory() as folder:
        return run(command, TORCHINDUCTOR_CACHE_DIR=folder, TRITON_CACHE_DIR=os.path.join(folder, "triton"), **variables)


def same(name, **variables):
    program = [sys.executable, CHILD, name]
    alone, under = cold(program, **variables), cold(COMMAND + program, **variables)
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


def compiled(name, source, backends=()):
    """A program of C++ without ours and under it, with further backends too."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        gpucase.line("SKIP", name, "no nvcc")
        return
    with case(name), tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "program")
        run([compiler, "-O2", "-std=c++17", "-cudart", "shared", source, "-o", program])
        commands = [("alone", [program]), ("under", COMMAND + [program])]
        commands += [("under, " + backend, COMMAND[:-1] + ["--backend", backend, "--", program]) for backend in backends]
        for how, command in commands:
            done = run(command)
            check("\n0 words were wrong" in done.stdout, done.stdout)
            told = [line for line in done.stderr.splitlines() if "allocations" in line]
            print("   %s:\n   %s" % (how, "\n   ".join(done.stdout.splitlines() + told)))


def timed():
    """What the program's own calls take, by a library before ours."""
    compiler = shutil.which("cc")
    if compiler is None:
        gpucase.line("SKIP", "uncached tensors, timed", "no C compiler")
        return
    with case("uncached tensors, timed"), tempfile.TemporaryDirectory() as folder:
        timing = os.path.join(folder, "timing.so")
        run([compiler, "-O2", "-shared", "-fPIC", os.path.join(BENCHES, "timing.c"), "-o", timing, "-ldl"])
        ours = os.path.join(os.path.dirname(os.path.realpath(hbmalloc.get_library_path())), "libhbmalloc_preload.so")
        for how, libraries in (("alone", timing), ("under", timing + ":" + ours)):
            done = run([sys.executable, CHILD, "uncached"], LD_PRELOAD=libraries, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            check("out wrong 0" in done.stdout, done.stdout)
            told = [line for line in done.stderr.splitlines() if line.startswith("timing:")]
            check(told, done.stderr[-500:])
            print("   %s %s" % (how, "; ".join(told)))


if __name__ == "__main__":
    programs()
    limited()
    compiled("a program of C++: its kernels find what they wrote", os.path.join(BENCHES, "streams.cu"),
             backends=("async", "vmm", "managed"))
    compiled("a program of C++: devices reset, and beside another's work", os.path.join(os.path.dirname(CHILD), "devices.cu"))
    timed()
    gpucase.finish()
