"""One process of `programs.py`: program_child.py ALLOCATOR REFERENCE.

ALLOCATOR is native (then REFERENCE is written), cpu (a dry run, without hbmalloc), or
what `install` takes: default, or a backend's name.
"""

import gc
import json
import sys

import gpucase
from gpucase import case, check

ALLOCATOR, REFERENCE = sys.argv[1:3]
IS_OURS = ALLOCATOR not in ("native", "cpu")
if IS_OURS:
    gpucase.install("install", None if ALLOCATOR == "default" else ALLOCATOR)

import workloads  # noqa: E402

import torch  # noqa: E402


def settle():
    """Frees what can be freed, cuBLAS's workspaces included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def compare(name, values, reference):
    check(name in reference, "native has no result to compare with")
    wanted = reference[name]
    different = [place for place in range(max(len(values), len(wanted))) if values[place:place + 1] != wanted[place:place + 1]]
    check(not different, "%d of %d values differ from native's, the first is number %s" % (
        len(different), len(wanted), different[:1]))


def run(program, results, reference):
    name = program.__name__
    print("RUN " + name, flush=True)
    try:
        results[name] = program("cpu" if ALLOCATOR == "cpu" else "cuda")
    except workloads.Missing as missing:
        gpucase.line("SKIP", name, missing)
        return
    with case(name):
        check(len(set(results[name])) > 1, "it computed %s" % results[name][:2])
        if IS_OURS:
            compare(name, results[name], reference)


def memory_is_back(results, reference):
    """What is still asked for afterwards is what it is with native."""
    with case("memory afterwards"):
        settle()
        left = torch.cuda.memory_stats()["requested_bytes.all.current"]
        results["left"] = left
        print("    %d bytes are in use at the end, %d reserved" % (left, torch.cuda.memory_reserved()))
        if IS_OURS:
            check(abs(left - reference["left"]) < 1 << 20, "%d bytes are in use and %d with native" % (left, reference["left"]))


def main():
    results, reference = {}, {}
    if IS_OURS:
        with open(REFERENCE) as handle:
            reference = json.load(handle)
    programs = workloads.ANYWHERE + (workloads.WITH_CUDA if ALLOCATOR != "cpu" else [])
    for program in programs:
        try:
            run(program, results, reference)
        except Exception as error:
            gpucase.line("FAIL", program.__name__, "%s: %s" % (type(error).__name__, error))
        settle()
    if ALLOCATOR != "cpu":
        memory_is_back(results, reference)
    if ALLOCATOR == "native":
        with open(REFERENCE, "w") as handle:
            json.dump(results, handle)
    gpucase.finish()


if __name__ == "__main__":
    main()
