"""Whether torch_memory_saver's Python works over hbmalloc on this machine, in both hook modes.

Each mode is tried in a process of its own, since it is chosen once a process.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

from ... import _library
from ._install import install, preload_path

MODES = ("torch", "preload")
_LIMIT_SECONDS = 300


def saver_version():
    """The version of the installed torch_memory_saver, None where there is none. Does not import it."""
    if importlib.util.find_spec("torch_memory_saver") is None:
        return None
    for name in ("torch_memory_saver", "torch-memory-saver"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def check(size):
    """Tries both modes with `size` bytes; 0 if hbmalloc serves in both, else 1."""
    version = saver_version()
    if version is None:
        print("torch_memory_saver is not installed in %s: install it there, or run the check with the Python that it is "
              "installed in" % sys.executable)
        return 1
    print("torch_memory_saver %s, %s" % (version, _library.get_library_path()))
    failed = 0
    for mode in MODES:
        print("hook mode %s:" % mode, flush=True)
        environment = dict(os.environ)
        environment.pop("LD_PRELOAD", None)
        try:
            if mode == "preload":
                environment["LD_PRELOAD"] = preload_path()
            command = [sys.executable, "-m", "hbmalloc.compat.torch_memory_saver", "try", "--mode", mode, "--bytes", str(size)]
            status = subprocess.run(command, env=environment, timeout=_LIMIT_SECONDS).returncode
        except subprocess.TimeoutExpired:
            status = "no end in %d s" % _LIMIT_SECONDS
        except RuntimeError as error:
            status = error
        if status != 0:
            failed += 1
            print("  FAIL (%s)" % status, flush=True)
    return 1 if failed else 0


def _require(condition, text):
    if not condition:
        sys.exit("  " + text)


def _served():
    """The file that has the functions which torch_memory_saver's Python calls."""
    from torch_memory_saver import torch_memory_saver

    return torch_memory_saver._impl._binary_wrapper.cdll._name


def try_once(size, mode):
    """Pauses and resumes `size` bytes in one mode, and says which library served."""
    try:
        install()
    except RuntimeError as error:
        sys.exit("  %s" % error)
    import torch
    from torch_memory_saver import torch_memory_saver as saver

    _require(torch.cuda.is_available(), "PyTorch finds no GPU: run the check on the machine that is to be used")
    saver.hook_mode = mode
    count = size // 8
    wanted = torch.arange(count, dtype=torch.int64)
    with saver.region(tag="kept", enable_cpu_backup=True):
        kept = torch.arange(count, dtype=torch.int64, device="cuda")
    with saver.region(tag="lost"):
        lost = torch.zeros(count, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    address = kept.data_ptr()
    awake = _library_bytes()
    saver.pause()
    saver.pause("kept")
    asleep = _library_bytes()
    _require(awake - asleep >= 2 * size, "paused, hbmalloc holds only %d bytes less, not %d" % (awake - asleep, 2 * size))
    saver.resume()
    _require(kept.data_ptr() == address and torch.equal(kept.cpu(), wanted), "what was saved came back changed")
    lost.fill_(7)
    _require(int(lost.sum()) == 7 * count, "memory that was discarded cannot be used")
    _require(os.path.samefile(_served(), _library.get_library_path()), "%s served" % _served())
    print("  %.2f GiB paused and resumed, contents whole, served by %s" % (2 * size / 1024 ** 3, _served()))
    print("  PASS", flush=True)


def _library_bytes():
    import hbmalloc

    return hbmalloc.residency()["device"]
