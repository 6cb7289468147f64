"""`benches/peers/places.py`: where it finds the other allocators, in folders laid out as their wheels are."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = os.path.join(ROOT, "benches", "peers", "places.py")


def put(folder, *names):
    for name in names:
        path = os.path.join(str(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass


def facts(folder, **variables):
    """{(what, key): [values]} with `folder` as the only place of packages."""
    environment = dict(variables, PYTHONPATH=str(folder), PATH="/nowhere")
    done = subprocess.run([sys.executable, "-S", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        what, key, value = line.split("\t")
        found.setdefault((what, key), []).append(value)
    return found


@pytest.fixture
def site(tmp_path):
    put(tmp_path, "nvidia/cu13/include/cuda_runtime.h", "nvidia/cu13/include/crt/host_config.h",
        "nvidia/cu13/lib/libcudart.so.13", "torch/__init__.py", "torch/include/c10/cuda/CUDACachingAllocator.h",
        "librmm/__init__.py", "librmm/include/rmm/mr/pool_memory_resource.hpp", "librmm/include/rapids/cuda/stream_ref",
        "librmm/lib64/librmm.so", "rapids_logger/__init__.py", "rapids_logger/include/rapids_logger/logger.hpp",
        "rapids_logger/lib64/librapids_logger.so")
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    return tmp_path


def test_wheels(site):
    found = facts(site)
    at = str(site) + os.sep
    assert found["cuda", "include"] == [at + "nvidia/cu13/include"]
    assert found["cudart", "file"] == [at + "nvidia/cu13/lib/libcudart.so.13"]
    assert found["torch", "version"] == ["2.11.0"]
    assert found["torch", "include"] == [at + "torch/include"] and found["torch", "lib"] == [at + "torch/lib"]
    assert found["rmm", "include"] == [
        at + "librmm/include", at + "librmm/include/rapids", at + "rapids_logger/include"]
    assert found["rmm", "lib"] == [at + "librmm/lib64", at + "rapids_logger/lib64"]
    assert not [fact for fact in found if fact[1] == "missing"]


def test_headers_that_a_wheel_lacks_come_from_the_toolkit(site, tmp_path):
    os.remove(site / "nvidia/cu13/include/crt/host_config.h")
    put(tmp_path, "toolkit/include/crt/host_config.h", "toolkit/include/cuda_runtime.h")
    found = facts(site, CUDA_HOME=str(tmp_path / "toolkit"))
    assert found["cuda", "include"] == [str(tmp_path / "toolkit/include")], "whole ones are not mixed"
    if os.path.isdir("/usr/local/cuda"):
        return  # a whole one, which is preferred
    os.remove(tmp_path / "toolkit/include/cuda_runtime.h")
    found = facts(site, CUDA_HOME=str(tmp_path / "toolkit"))
    assert found["cuda", "include"] == [str(site / "nvidia/cu13/include"), str(tmp_path / "toolkit/include")]


def test_what_is_not_there_is_missing_with_the_reason(site, tmp_path):
    (site / "torch" / "version.py").write_text("__version__ = '2.11.0'\ncuda: Optional[str] = None\n")
    assert "without CUDA" in facts(site)["torch", "missing"][0]
    empty = tmp_path / "empty"
    empty.mkdir()
    found = facts(empty)
    assert "not installed" in found["torch", "missing"][0] and "not installed" in found["rmm", "missing"][0]
