"""`python -m hbmalloc.bench_sleep`: what it says of rows that cannot be measured, and of those that were."""

import json
import os
import subprocess
import sys
import types

from conftest import ROOT, environment

#: A torch with a card on which nothing can be done.
TORCH = """
__version__ = "0"
class cuda:
    is_available = staticmethod(lambda: %s)
    get_device_name = staticmethod(lambda: "a card")
"""


def bench(tmp_path, *arguments, available=True):
    (tmp_path / "torch.py").write_text(TORCH % available)
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.path.join(ROOT, "python")])
    command = [sys.executable, "-m", "hbmalloc.bench_sleep", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def test_without_a_card_it_says_so(tmp_path):
    done = bench(tmp_path, available=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no GPU" in done.stderr


def test_an_unknown_row_is_refused(tmp_path):
    done = bench(tmp_path, "--only", "pool,nobody")
    assert done.returncode == 2 and "no row nobody" in done.stderr


def test_a_row_that_cannot_be_measured_is_named_with_the_reason(tmp_path):
    done = bench(tmp_path, "--only", "torch_memory_saver", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["case"] for row in found} == {"16 GiB in 1 GiB", "16 GiB in 256 MiB", "4 GiB in 4 MiB"}
    assert all("torch_memory_saver" in row["skipped"] for row in found), found
    table = bench(tmp_path, "--only", "torch_memory_saver").stdout
    assert "a card" in table and "not measured: Unfit: it cannot be imported" in table


def test_a_row_that_was_measured_is_a_line_of_figures(monkeypatch, capsys):
    from hbmalloc import bench_sleep

    torch = types.ModuleType("torch")
    exec(TORCH % True, torch.__dict__)
    # Undone afterwards: other tests look whether torch is there.
    monkeypatch.setitem(sys.modules, "torch", torch)
    measured = {"first": 20.04, "sleep": 55.2, "wake": 55.3, "left_mib": 32.0}
    monkeypatch.setattr(bench_sleep, "run", lambda *_: measured)
    assert bench_sleep.main(["--only", "vllm"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == [
        "4 GiB in 4 MiB", "vLLM", "20.0", "55.2", "55.3", "-", "32"]
