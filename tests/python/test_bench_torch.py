"""`python -m hbmalloc.bench_torch`: what it says, with a stand-in for PyTorch and hardly any work."""

import json

import pytest

#: A torch.empty that takes memory from the allocator in force and gives it back when it is dropped.
EMPTY = """
    import torch

    class Tensor:
        def __init__(self, count, device):
            self.bytes = 4 * count
            self.address = torch._C.current.malloc(self.bytes, 0, None) if device == "cuda" else 0

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
