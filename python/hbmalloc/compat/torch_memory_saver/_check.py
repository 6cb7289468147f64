"""Whether torch_memory_saver's Python works over hbmalloc on this machine, in both hook modes.

Each mode is tried in a process of its own, since it is chosen once a process.
"""

import os
import sys

from ... import _library
from .._checking import failed, fails_apart, installed_version, require
from ._install import install, preload_path

MODES = ("torch", "preload")


def check(size):
    """Tries both modes with `size` bytes; 0 if hbmalloc serves in both, else 1."""
    version = installed_version("torch_memory_saver", "torch_memory_saver")
    if version is None:
        return 1
    print("torch_memory_saver %s, %s" % (version, _library.get_library_path()))
    failures = 0
    for mode in MODES:
        print("hook mode %s:" % mode, flush=True)
        environment = dict(os.environ)
        environment.pop("LD_PRELOAD", None)
        try:
            if mode == "preload":
                environment["LD_PRELOAD"] = preload_path()
        except RuntimeError as error:
            failures += failed(error)
            continue
        arguments = ["hbmalloc.compat.torch_memory_saver", "try", "--mode", mode, "--bytes", str(size)]
        failures += fails_apart(arguments, environment)
    return 1 if failures else 0


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

    require(torch.cuda.is_available(), "PyTorch finds no GPU: run the check on the machine that is to be used")
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
    require(awake - asleep >= 2 * size, "paused, hbmalloc holds only %d bytes less, not %d" % (awake - asleep, 2 * size))
    saver.resume()
    require(kept.data_ptr() == address and torch.equal(kept.cpu(), wanted), "what was saved came back changed")
    lost.fill_(7)
    require(int(lost.sum()) == 7 * count, "memory that was discarded cannot be used")
    require(os.path.samefile(_served(), _library.get_library_path()), "%s served" % _served())
    print("  %.2f GiB paused and resumed, contents whole, served by %s" % (2 * size / 1024 ** 3, _served()))
    print("  PASS", flush=True)


def _library_bytes():
    import hbmalloc

    return hbmalloc.residency()["device"]
