"""A wheel is built, its tag checked, and what it installs used away from the source.

It is what a wheel is made of that is tested, so the compiler optimises little, which takes a quarter of the time.
HBMALLOC_WHEEL names a wheel to test instead, such as one of dist/.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, environment


QUICK = {"CARGO_PROFILE_RELEASE_OPT_LEVEL": "0", "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    if os.environ.get("HBMALLOC_WHEEL"):
        return pathlib.Path(os.environ["HBMALLOC_WHEEL"]).resolve()
    if not shutil.which("cargo"):
        pytest.skip("no cargo to build a wheel with")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([os.path.join(ROOT, "scripts", "build-wheel"), os.uname().machine, str(folder)],
                          env=dict(os.environ, **QUICK), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "the tag holds" in done.stdout
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A fresh virtual environment with nothing but the wheel; its bin folder."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-index",
                    str(wheel)], check=True)
    return folder / "bin"


def call(command, **variables):
    variables = environment(PYTHONPATH="", HBMALLOC_LIBRARY="", **variables)
    del variables["HBMALLOC_LIBRARY"], variables["PYTHONPATH"]
    return subprocess.run([str(part) for part in command], env=variables, cwd="/", capture_output=True, text=True, timeout=120)


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"hbmalloc/__init__.py", "hbmalloc/torch.py", "hbmalloc/demo_torch.py", "hbmalloc/include/hbmalloc.h",
            "hbmalloc/include/hbmalloc/mem_alloc.h",
            "hbmalloc/lib/libhbmalloc.so.0", "hbmalloc/lib/libhbmalloc_sim.so",
            "hbmalloc/compat/vllm/cumem_allocator.abi3.so", "hbmalloc/compat/vllm/cumem.py",
            "hbmalloc-0.1.0.data/scripts/hbmalloc"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".rs")]


def test_the_installed_package_uses_its_own_library(installed):
    done = call([installed / "python", "-c",
                 "import hbmalloc; print(hbmalloc.get_library_path(), hbmalloc.device_count())"], HBMALLOC_DRIVER="sim")
    path, count = done.stdout.split()
    assert path.startswith(str(installed.parent)) and path.endswith("lib/libhbmalloc.so.0") and count == "2", done


def test_the_installed_native_module_and_plugin(installed):
    done = call([installed / "python", "-c", """
import importlib.metadata, os, sys
found = importlib.metadata.entry_points()
group = found.select(group="vllm.general_plugins") if hasattr(found, "select") else found["vllm.general_plugins"]
(plugin,) = group
plugin.load()()
import hbmalloc.compat.vllm as compat
from hbmalloc.compat.vllm import _native
assert compat.is_installed() and os.path.basename(_native.load().__file__) == "cumem_allocator.abi3.so"
print(_native.load().__file__)
"""], HBMALLOC_DRIVER="sim", HBMALLOC_VLLM="1")
    assert done.stdout.startswith(str(installed.parent)), done


def test_the_installed_command(installed):
    plain = call([installed / "hbmalloc", "doctor"])
    assert plain.returncode == 0, plain
    simulated = call([installed / "hbmalloc", "doctor"], HBMALLOC_DRIVER="sim")
    assert simulated.returncode == 0 and simulated.stdout != plain.stdout, simulated
    module = call([installed / "python", "-m", "hbmalloc", "doctor"], HBMALLOC_DRIVER="sim")
    assert module.returncode == 0, module
    assert call([installed / "hbmalloc", "doctor"], HBMALLOC_BACKEND="nonsense").returncode == 2


def test_check_wheel_refuses_a_false_tag(wheel, tmp_path):
    check = os.path.join(ROOT, "scripts", "check-wheel")
    base = os.path.basename(wheel)
    false = [base.replace("2_28", "2_5"), base.replace("x86_64", "aarch64"), "hbmalloc-0.1.0-py3-none-any.whl"]
    for name in false:
        if name == base:
            continue
        shutil.copy(wheel, tmp_path / name)
        done = subprocess.run([sys.executable, check, str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 1 and "check-wheel: " in done.stderr, (name, done)


def test_linker_arguments():
    import importlib.machinery
    import importlib.util

    loader = importlib.machinery.SourceFileLoader("zig_cc", os.path.join(ROOT, "scripts", "zig-cc"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("zig_cc", loader))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    out = module.translate(["-m64", "a.o", "-lgcc_s", "-target", "x", "--target=y", "-lc"], "x86_64-linux-gnu.2.28", "/s.so")
    assert out == ["-target", "x86_64-linux-gnu.2.28", "a.o", "/s.so", "-lc"]
