"""The examples of the README and of docs/ are run as they stand.

A comment before a block says what it needs: `<!-- needs: gpu -->`, `network`, `command`, `lmcache`, `saver`, and `install` or
`cmake` for one that runs in a copy of the repository and installs into a home of its own. What is not here is skipped
with a line that says so. Output goes nowhere: an example has to run, and to say itself what it checks.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, built_library, environment

PAGES = ["README.md"] + sorted(
    os.path.join("docs", name) for name in os.listdir(os.path.join(ROOT, "docs")) if name.endswith(".md"))
BLOCK = re.compile(r"(?:<!-- needs: (\w+) -->\n)?^```(python|sh|cpp)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples():
    for page in PAGES:
        with open(os.path.join(ROOT, page)) as handle:
            text = handle.read()
        for match in BLOCK.finditer(text):
            line = text[: match.start(3)].count("\n") + 1
            yield pytest.param(*match.groups(), id="%s:%d" % (page, line))


def compiled(code, folder):
    """The C++ program, and the variables that it finds the library by, laid out as after installation."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = built_library()
    simulator = os.path.join(os.path.dirname(library), "libhbmalloc_sim.so")
    for name, path in (("libhbmalloc.so.0", library), ("libhbmalloc.so", library), ("libhbmalloc_sim.so", simulator)):
        shutil.copy(path, folder / name)
    (folder / "example.cpp").write_text(code)
    subprocess.run([compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", os.path.join(ROOT, "include"), "example.cpp",
                    "-o", "example", "-L.", "-lhbmalloc"], cwd=folder, check=True)
    return [str(folder / "example")], {"LD_LIBRARY_PATH": str(folder)}


def checkout(folder):
    """A copy of what `make install` and the examples are of, so that a block may write where it stands."""
    folder.mkdir()
    for name in ("Makefile", "Cargo.toml", "scripts", "include", "examples"):
        path = os.path.join(ROOT, name)
        (shutil.copytree if os.path.isdir(path) else shutil.copy)(path, folder / name)


def gpu_is_there():
    probe = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0


def command_folder():
    """The folder of the command `hbmalloc` beside the library, or on the path."""
    beside = os.path.dirname(built_library() or "")
    if os.access(os.path.join(beside, "hbmalloc"), os.X_OK):
        return beside
    return os.path.dirname(shutil.which("hbmalloc") or "") or None


@pytest.mark.parametrize("needs, language, code", list(examples()))
def test_example(needs, language, code, tmp_path, request):
    variables = environment(TORCH_HOME=str(tmp_path))
    if needs == "network":
        pytest.skip("it installs software: run by hand")
    if needs == "gpu" and not gpu_is_there():
        pytest.skip("needs a GPU and PyTorch")
    if needs == "saver":
        found = importlib.util.find_spec("torch_memory_saver")
        if found is None or not gpu_is_there():
            pytest.skip("needs a GPU, PyTorch and torch_memory_saver")
        # It may be unpacked somewhere, where only this process looks.
        variables["PYTHONPATH"] += os.pathsep + os.path.dirname(os.path.dirname(found.origin))
    if needs == "lmcache" and not all(map(importlib.util.find_spec, ("lmcache", "torch"))):
        pytest.skip("LMCache and PyTorch are not both installed")
    if needs == "command":
        folder = command_folder()
        if folder is None:
            pytest.skip("the command hbmalloc is not built")
        variables["PATH"] = folder + os.pathsep + variables["PATH"]
    if built_library() is None:
        pytest.skip("libhbmalloc is not built")
    folder = tmp_path
    if needs in ("install", "cmake"):
        tools = os.path.dirname(sys.executable) + os.pathsep + variables["PATH"]
        wanted = "cmake" if needs == "cmake" else "pkg-config"
        if shutil.which(wanted, path=tools) is None:
            pytest.skip("%s is not installed" % wanted)
        folder = tmp_path / "hbmalloc"
        checkout(folder)
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PREFIX", "DESTDIR", "LIBDIR"):
            variables.pop(name, None)
        variables.update(BUILT=request.getfixturevalue("installable"), HOME=str(tmp_path), PATH=tools)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    if language == "cpp":
        command, more = compiled(code, tmp_path)
        variables.update(more)
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " WARN " not in done.stderr, done.stderr


def test_links_lead_somewhere():
    missing = []
    for page in PAGES:
        with open(os.path.join(ROOT, page)) as handle:
            for target in re.findall(r"\]\(([^)#:]+)\)", handle.read()):
                if not os.path.exists(os.path.join(ROOT, os.path.dirname(page), target)):
                    missing.append("%s: %s" % (page, target))
    assert not missing
