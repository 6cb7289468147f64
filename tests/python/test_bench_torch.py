"""`python -m hbmalloc.bench_torch`: what it says, with a stand-in for PyTorch and hardly any work."""

import json
import os
import shutil
import subprocess

import pytest
from conftest import ROOT, built_library

#: A torch.empty that takes memory from the allocator in force and gives it back when it is dropped.
EMPTY = """
    import torch

    class Tensor:
        def __init__(self, count, device):
            self.bytes = 4 * count
            self.address = torch._C.current.malloc(self.bytes, 0, None) if device == "cuda" else 0

        def data_ptr(self):
            return self.address

        def __del__(self):
            if self.address:
                torch._C.current.free(self.address, self.bytes, 0, None)

    torch.device = str
    torch.empty = Tensor
"""


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def measure(runner, name, status=0, before=""):
    code = EMPTY + before + """
    import sys
    from hbmalloc import bench_torch
    sys.exit(bench_torch.main(["--allocator", %r, "--reps", "3", "--batch-ms", "0.2"]))
""" % name
    return lines(runner(code, status))


@pytest.mark.parametrize("backend", ["pool", "async"])
def test_a_line_for_each_size(fake, backend):
    told = measure(fake, backend)
    assert [line["case"] for line in told] == ["4 KiB", "1 MiB", "64 MiB"]
    for line in told:
        assert line["allocator"] == backend and line["reps"] == 3
        assert 0 < line["ns_min"] <= line["ns_median"] <= line["ns_max"]


def test_meta_needs_no_allocator(fake):
    assert len(measure(fake, "meta")) == 3


@pytest.mark.parametrize("name, reason", [
    ("no_such", "unknown backend"),
    ("nothing", "was not compiled"),
    ("cudaMallocAsync", "torch uses its allocator pluggable"),
])
def test_what_cannot_be_measured_says_why(fake, name, reason):
    before = "    import hbmalloc; hbmalloc.torch.install('async')\n" if name == "cudaMallocAsync" else ""
    (line,) = measure(fake, name, status=3, before=before)
    assert reason in line["skipped"] and line["allocator"] == name


def test_the_allocator_that_does_nothing(sim, tmp_path):
    simulator = os.path.join(os.path.dirname(built_library()), "libhbmalloc_sim.so")
    if not shutil.which("cc") or not os.path.isfile(simulator):
        pytest.skip("no C compiler, or no simulated driver")
    os.symlink(simulator, tmp_path / "libcuda.so.1")
    library = str(tmp_path / "libnothing.so")
    subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", library,
                    os.path.join(ROOT, "benches", "peers", "nothing.c"), "-ldl"], check=True)
    sim("""
        import ctypes

        library = ctypes.CDLL(%r)
        malloc, free = library.nothing_malloc, library.nothing_free
        malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        first, second = malloc(600, 0, None), malloc(1, 0, None)
        assert first and second == first + 1024 and malloc(0, 0, None) is None
        most = (1 << 30) - (2 << 20)
        # A block that is kept is not given out again, which torch answers with an abort at its free.
        walk = [malloc(most, 0, None) for _ in range(3)] + [malloc(4, 0, None)]
        assert walk == [second + 512] + [first + (2 << 20)] * 3
        assert malloc(most + 1, 0, None) is None
    """ % library, LD_LIBRARY_PATH=str(tmp_path))
