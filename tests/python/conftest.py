"""Fixtures: the built library on the simulated driver, and fresh interpreters to use it in.

Most of what is tested is once a process (install, environment, the loaded library), so a
test runs its code in an interpreter of its own. Tests that need a built library are
skipped, with a line that says so, where there is none.
"""

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = os.path.join(ROOT, "python")
FAKE_TORCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_torch")
sys.path.insert(0, PYTHON)


def environment(**extra):
    """A plain environment: no HBMALLOC_ variable but where the library is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HBMALLOC_")}
    if os.environ.get("HBMALLOC_LIBRARY"):
        kept["HBMALLOC_LIBRARY"] = os.environ["HBMALLOC_LIBRARY"]
    kept["PYTHONPATH"] = PYTHON
    kept.update(extra)
    return kept


def execute(code, status=0, **variables):
    """Runs `code` in a fresh interpreter; its output, after checking its exit status."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment(**variables),
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == status, "status %d\n%s\n%s" % (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def built_library():
    import hbmalloc

    try:
        return hbmalloc.get_library_path()
    except hbmalloc.HbmallocError:
        return None


@pytest.fixture(scope="session")
def installable():
    """A folder for `make install BUILT=`: the build beside the library, without what is for debuggers, which is most of it.

    It and what is above it can be read by everyone, unlike a folder of tmp_path.
    """
    built = os.path.dirname(built_library() or "")
    names = ["hbmalloc", "libhbmalloc.a"] + [os.path.basename(path) for path in glob.glob(os.path.join(built, "libhbmalloc*.so"))]
    missing = [name for name in names if not os.path.exists(os.path.join(built, name))]
    if missing or not shutil.which("make") or not shutil.which("strip"):
        pytest.skip("needs make, strip and a build of the repository with the command; missing: %s" % (missing or "a tool"))
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    for name in names:
        subprocess.run(["strip", "-g", "-o", os.path.join(folder, name), os.path.join(built, name)], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run():
    """`run(code, status=0, **environment)`: no driver named, none needed."""
    return execute


@pytest.fixture
def sim():
    """As `run`, on the simulated driver with the built library."""
    if built_library() is None:
        pytest.skip("libhbmalloc is not built")

    def on_simulator(code, status=0, **variables):
        variables.setdefault("HBMALLOC_DRIVER", "sim")
        variables.setdefault("HBMALLOC_SIM", "devices=2,memory=4GiB")
        return execute(code, status, **variables)

    return on_simulator


@pytest.fixture
def fake(sim):
    """As `sim`, with a stand-in for torch that has its allocator interface."""

    def with_fake_torch(code, status=0, **variables):
        return sim(code, status, PYTHONPATH=PYTHON + os.pathsep + FAKE_TORCH, **variables)

    return with_fake_torch


@pytest.fixture(params=["stand-in", "torch"])
def either(request, fake, sim):
    """As `fake`, and a second time with torch itself where that is installed, without a GPU.

    Torch's functions then end in hbmalloc, whose driver is the simulated one.
    """
    if request.param == "stand-in":
        return fake
    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    return sim
