"""What the scripts of this folder share: cases that print one line each, and child processes.

A script prints `PASS name`, `FAIL name: why` or `SKIP name: why` lines and exits 1 after
a FAIL. A process has one allocator, so most scripts start a child for each; a child that
dies still gets its line, with the case it died in.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

BACKENDS = ("pool", "device", "managed", "async", "vmm")
MANAGED_TOTAL = 2 << 30  # no script may hold more managed memory than this

_failed = False
_print_lock = threading.Lock()
_managed_lock = threading.Lock()  # one process with managed memory at a time


def line(word, name, why=""):
    global _failed
    _failed = _failed or word == "FAIL"
    with _print_lock:
        print("%s %s%s" % (word, name, ": " + " ".join(str(why).split()) if why else ""), flush=True)


def check(condition, why):
    if not condition:
        raise AssertionError(why)


@contextlib.contextmanager
def case(name):
    """One case; an exception is its failure and the script goes on."""
    print("RUN " + name, flush=True)
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        line("FAIL", name, "%s: %s" % (type(error).__name__, error))
    else:
        line("PASS", name)


@contextlib.contextmanager
def raises(kind, *words):
    """The block raises `kind` with all `words` in its text."""
    try:
        yield
    except kind as error:
        for word in words:
            check(word in str(error), "the error lacks %r: %s" % (word, error))
    else:
        raise AssertionError("no %s was raised" % kind.__name__)


def finish():
    """Ends the script the way it went, through the ordinary exit."""
    sys.exit(1 if _failed else 0)


def install(route, backend):
    """Takes `route` to `backend`: the ways a program can come to hbmalloc."""
    import torch

    import hbmalloc

    if route == "install":
        hbmalloc.torch.install(backend)
    elif route == "plain":
        memory = torch.cuda.memory
        memory.change_current_allocator(memory.CUDAPluggableAllocator(
            hbmalloc.get_library_path(), backend + "_malloc", backend + "_free"))
    elif route not in ("native", "pool"):
        raise ValueError(route)


def child(label, arguments, limit=180, expect=0, managed=False, forbid=()):
    """Runs this interpreter on `arguments`, relays its lines, and returns (status, output)."""
    started = time.monotonic()
    with _managed_lock if managed else contextlib.nullcontext():
        try:
            done = subprocess.run([sys.executable, "-u"] + arguments, cwd=os.path.dirname(os.path.abspath(__file__)),
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit)
            status, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            status, output = "no end within %d s" % limit, (late.stdout or b"").decode("utf-8", "replace")
    took = time.monotonic() - started
    last = ""
    relayed_failure = False
    for text in output.splitlines():
        word, _, rest = text.partition(" ")
        if word == "RUN":
            last = rest
        elif word in ("PASS", "FAIL", "SKIP"):
            name, _, why = rest.partition(": ")
            line(word, "%s %s" % (label, name), why)
            relayed_failure = relayed_failure or word == "FAIL"
            last = ""
        else:
            with _print_lock:
                print("    [%s] %s" % (label, text), flush=True)
    for words in forbid:
        if words in output:
            line("FAIL", label, "its output has %r" % words)
    if expect is None:
        expect = status
    if status != expect and not (relayed_failure and status == 1):
        where = " in " + last if last else ""
        line("FAIL", label, "exit status %s instead of %s%s after %.0f s" % (status, expect, where, took))
    elif status == expect and not relayed_failure:
        line("PASS", "%s exit %s" % (label, expect))
    return status, output


def children(jobs, parallel=4):
    """Runs `child` on each tuple of keyword arguments, a few at a time."""
    with ThreadPoolExecutor(parallel) as pool:
        return [each.result() for each in [pool.submit(child, **job) for job in jobs]]
