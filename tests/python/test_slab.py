"""Memory of the host that grows: how far it is, what stops it, who shares it, and how it ends."""

import os
import signal
import subprocess
import sys

import pytest

from conftest import environment

COMMON = """
import ctypes, gc, os, signal, subprocess, sys, threading, time
import hbmalloc
# What runs in the background of a shell is started deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from hbmalloc import host
from hbmalloc.host import Slab
MIB, GIB = 1 << 20, 1 << 30
EMPTY = {"blocks": 0, "requested": 0, "bytes": 0, "pinned": 0, "unbound": 0}
BAD = (ValueError, TypeError, hbmalloc.HbmallocError)
def raises(error, call, text=""):
    try:
        value = call()
    except error as raised:
        assert text in str(raised), raised
        return raised
    raise SystemExit("not refused: %r" % (value,))
def simulator():
    return ctypes.CDLL(os.path.join(os.path.dirname(hbmalloc.get_library_path()), "libhbmalloc_sim.so"))
def calls(name):
    simulator().hbmsim_calls.restype = ctypes.c_uint64
    return simulator().hbmsim_calls(name)
def fail(name, nth=1, code=2, times=1):
    assert simulator().hbmsim_fail(name, ctypes.c_uint64(nth), ctypes.c_int(code), ctypes.c_uint64(times)) == 0
def stopped(slab):
    begin = time.monotonic()
    while slab.progress()["is_growing"]:
        assert time.monotonic() - begin < 60
        time.sleep(0.005)
    return slab.progress()
# Far from done for as long as nobody waits.
def slow():
    return Slab(512 * MIB, initial=8 * MIB, pace=MIB)
"""


@pytest.fixture
def slabs(sim):
    return lambda code, status=0, **variables: sim(COMMON + code, status, **variables)


def test_all_of_it_at_once(slabs):
    slabs("""
for nbytes in (1, 4096, 5000, 2 * MIB, 5 * MIB, 32 * MIB):
    for options in ({}, {"numa_node": 0}, {"pinned": False}, {"initial": nbytes}):
        with Slab(nbytes, **options) as slab:
            progress = slab.progress()
            assert slab.ready >= nbytes and len(slab) >= nbytes and slab.address % 4096 == 0, (nbytes, options)
            assert progress["ready"] == progress["target"] == progress["nbytes"] == slab.ready == len(slab), progress
            assert not progress["is_growing"] and progress["error"] is None and progress["parts"] == 1
            assert slab.seams() == [slab.ready] and slab.wait() == slab.ready and slab.shrink() == 0
            assert host.blocks()["pinned"] == (0 if "pinned" in options else slab.ready)
            assert slab.is_pinned == ("pinned" not in options)
            view = slab.memoryview()
            assert not any(view[::512])
            view[0] = view[nbytes - 1] = 5
            raises(BufferError, slab.close)
            del view
        slab.close()                            # nothing
        assert host.blocks() == EMPTY
""")


def test_it_grows(slabs):
    slabs("""
slab = Slab(48 * MIB, initial=4 * MIB, part=8 * MIB)
address, seen = slab.address, []
assert slab.ready >= 4 * MIB and len(slab) == 48 * MIB
while True:
    progress = slab.progress()
    seen.append(progress["ready"])
    assert progress["nbytes"] == progress["target"] == 48 * MIB and progress["ready"] <= 48 * MIB
    if not progress["is_growing"]:
        break
assert seen == sorted(seen) and slab.ready == 48 * MIB and progress["error"] is None
assert slab.address == address and progress["parts"] == 7
assert slab.seams() == [4 * MIB] + [(12 + 8 * part) * MIB for part in range(5)] + [48 * MIB]
assert host.blocks() == {"blocks": 1, "requested": 48 * MIB, "bytes": 48 * MIB, "pinned": 48 * MIB, "unbound": 0}
assert calls(b"cuMemHostRegister_v2") == 7
view = slab.memoryview()
assert not any(view[::4096])
view[:] = b"z" * len(view)
del view
slab.close()
assert calls(b"cuMemHostUnregister") == 7 and host.blocks() == EMPTY
# Every part has its own registration, and each was taken back.
""")


def test_what_is_not_ready_is_not_pinned(slabs):
    slabs("""
slab = slow()
assert slab.ready == 8 * MIB == host.blocks()["pinned"] and slab.seams() == [8 * MIB]
progress = slab.progress()
assert progress["is_growing"] and progress["error"] is None and progress["target"] == 512 * MIB and progress["parts"] == 1
assert calls(b"cuMemHostRegister_v2") == 1
time.sleep(0.3)
assert slab.ready == 8 * MIB
""")


def test_waiting(slabs):
    """Only for what is not there, as long as it was told, and growth makes haste meanwhile."""
    slabs("""
slab = slow()
for nbytes in (0, 1, 8 * MIB):
    assert slab.wait(nbytes) == 8 * MIB and slab.ready == 8 * MIB
begin = time.monotonic()
for timeout in (0, 0.0, 1e-9):
    assert slab.wait(timeout=timeout) == 8 * MIB
assert time.monotonic() - begin < 5
assert slab.wait(9 * MIB, 1e9) >= 9 * MIB       # at its pace a part is four minutes
assert slab.wait() == 512 * MIB and slab.wait(timeout=float("inf")) == 512 * MIB
assert slab.wait(1 << 40) == 512 * MIB          # no more will come
slab.close()
assert host.blocks() == EMPTY
""")


def test_waiting_from_many_threads(slabs):
    slabs("""
slab = Slab(64 * MIB, initial=2 * MIB, part=2 * MIB)
found, threads = [], []
for number in range(6):
    threads.append(threading.Thread(target=lambda nbytes: found.append((nbytes, slab.wait(nbytes))), args=((2 + 12 * number) * MIB,)))
    threads.append(threading.Thread(target=lambda: [slab.progress() for _ in range(50)] + [slab.seams() for _ in range(50)]))
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 6 and all(ready >= nbytes for nbytes, ready in found), found
""")


def test_the_pace_holds_for_small_parts(slabs):
    slabs("""
begin = time.monotonic()
slab = Slab(66 * MIB, initial=2 * MIB, part=2 * MIB, pace=16 * MIB)
while slab.ready < 34 * MIB:
    time.sleep(0.002)
took = time.monotonic() - begin
assert took > 1, took                           # two seconds at 16 MiB a second
""")


@pytest.mark.parametrize("position", [2, 3, 5])
def test_a_part_that_cannot_be_pinned(slabs, position):
    slabs("""
position = %d
for code in (2, 304, 719, 999):
    fail(b"cuMemHostRegister_v2", position, code, 0)
    slab = Slab(32 * MIB, initial=4 * MIB, part=4 * MIB)
    progress = stopped(slab)
    there = (position - 1) * 4 * MIB
    assert progress["ready"] == there == slab.ready and progress["parts"] == position - 1 and progress["nbytes"] == 32 * MIB
    assert isinstance(progress["error"], hbmalloc.HbmallocError) and str(code) in str(progress["error"]), progress
    if code == 2:
        assert isinstance(progress["error"], hbmalloc.OutOfMemoryError)
    assert host.blocks()["pinned"] == there and slab.seams()[-1] == there
    assert slab.wait(there) == there
    raises(hbmalloc.HbmallocError, slab.wait, str(code))
    raises(hbmalloc.HbmallocError, lambda: slab.wait(there + 1), str(code))
    # Pinned memory beside it works: nothing stayed behind in the driver.
    simulator().hbmsim_fail_clear()
    host.pinned(MIB).close()
    slab.grow()
    assert slab.wait() == 32 * MIB and slab.progress()["error"] is None and host.blocks()["pinned"] == 32 * MIB
    view = slab.memoryview()
    assert not any(view[::4096])
    del view
    slab.close()
    assert host.blocks() == EMPTY
""" % position)


def test_a_failure_by_the_environment(slabs):
    slabs("""
slab = Slab(16 * MIB, initial=4 * MIB, part=4 * MIB)
assert stopped(slab)["ready"] == 8 * MIB and slab.progress()["error"].driver_code == 719, slab.progress()
""", HBMALLOC_SIM="devices=1,fail=cuMemHostRegister_v2:3:719")


def test_the_first_part_cannot_be_pinned(slabs):
    slabs("""
name = "hbmalloc-test-first-%d" % os.getpid()
for options in ({}, {"initial": MIB}, {"numa_node": 0}, {"name": name}):
    for code in (2, 1, 999):
        fail(b"cuMemHostRegister_v2", 1, code)
        raises(hbmalloc.HbmallocError, lambda: Slab(8 * MIB, **options))
        gc.collect()
        assert host.blocks() == EMPTY and name not in os.listdir("/dev/shm")
        simulator().hbmsim_fail_clear()
    Slab(8 * MIB, **options).close()
""")


def test_unpinning_that_fails(slabs):
    """An error, or not: the process goes on, and the rest is given back."""
    slabs("""
for nth in (1, 2, 3):
    slab = Slab(12 * MIB, initial=4 * MIB, part=4 * MIB)
    slab.wait()
    fail(b"cuMemHostUnregister", nth, 719)
    try:
        slab.close()
    except hbmalloc.HbmallocError:
        pass
    simulator().hbmsim_fail_clear()
    slab.close()
    with Slab(4 * MIB) as other:
        assert other.ready == 4 * MIB
    slab = Slab(12 * MIB, initial=4 * MIB, part=4 * MIB)
    slab.wait()
    fail(b"cuMemHostUnregister", 1, 719)
    raises(hbmalloc.HbmallocError, slab.shrink)
    assert slab.ready == 12 * MIB == slab.seams()[-1], slab.progress()
    simulator().hbmsim_fail_clear()
    assert slab.shrink() == 8 * MIB
    slab.close()
""")


def test_closed_while_it_grows(slabs):
    slabs("""
for options in ({"pace": MIB}, {}, {"part": 2 * MIB}, {"pace": MIB, "pinned": False}):
    slab = Slab(GIB, initial=8 * MIB, **options)
    assert slab.progress()["is_growing"] or slab.ready == GIB
    begin = time.monotonic()
    slab.close()
    assert time.monotonic() - begin < 5
    assert host.blocks() == EMPTY
    for call in (slab.progress, slab.seams, slab.wait, slab.grow, slab.shrink, slab.memoryview, lambda: slab.ready,
                 lambda: slab.handle, lambda: slab.address):
        raises(ValueError, call)
    assert "closed" in repr(slab)
""")


def test_closed_while_others_wait(slabs):
    """They are told or find it closed, and nobody hangs or crashes."""
    slabs("""
for turn in range(20):
    slab = Slab(64 * MIB, initial=2 * MIB, part=2 * MIB)
    def work():
        try:
            while True:
                slab.wait(); slab.progress(); slab.seams()
        except BAD:
            ended.append(1)
    ended, threads = [], [threading.Thread(target=work) for _ in range(3)]
    for thread in threads: thread.start()
    time.sleep(0.002 * turn)
    slab.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(ended) == 3
assert host.blocks() == EMPTY
""")


def test_shrink_and_grow_again(slabs):
    slabs("""
slab = Slab(32 * MIB, initial=4 * MIB, part=4 * MIB)
slab.wait()
address = slab.address
view = slab.memoryview()
view[0], view[5 * MIB], view[20 * MIB] = 1, 2, 3
assert slab.shrink(16 * MIB) == 16 * MIB and slab.ready == 16 * MIB == host.blocks()["pinned"]
assert slab.seams() == [4 * MIB, 8 * MIB, 12 * MIB, 16 * MIB] and not slab.progress()["is_growing"]
assert slab.shrink(13 * MIB) == 0 and slab.shrink(16 * MIB) == 0 and slab.shrink(1 << 40) == 0
assert view[0] == 1 and view[5 * MIB] == 2
slab.grow(21 * MIB)
assert slab.wait(21 * MIB) >= 21 * MIB and slab.ready <= 24 * MIB
stopped(slab)
assert view[20 * MIB] == 0 and slab.address == address       # new memory
assert slab.shrink() > 0 and slab.ready == 4 * MIB == host.blocks()["pinned"]
slab.grow()
assert slab.wait() == 32 * MIB and slab.seams()[-1] == 32 * MIB and view[5 * MIB] == 0 and view[0] == 1
slab.grow(1)                                    # nothing to do
slab.grow(1 << 50)
assert slab.wait() == 32 * MIB
# In the middle of growing.
other = slow()
assert other.shrink() == 0 and other.ready == 8 * MIB and not other.progress()["is_growing"]
assert other.wait(timeout=1e9) == 8 * MIB       # no more will come
other.grow(40 * MIB)
assert other.wait(40 * MIB) == 40 * MIB
del view
slab.close(); other.close()
assert host.blocks() == EMPTY
""")


def test_growing_and_shrinking_at_once(slabs):
    slabs("""
slab = Slab(64 * MIB, initial=2 * MIB, part=2 * MIB)
failed = []
threading.excepthook = lambda failure: failed.append(failure.exc_value)
def work(number):
    for turn in range(15):
        if number == 0: slab.shrink(2 * MIB * turn)
        elif number == 1: slab.grow(4 * MIB * turn)
        elif number == 2: slab.wait(8 * MIB, 0.01)
        else:
            seams = slab.seams()
            assert seams == sorted(set(seams)) and 0 not in seams, seams
            assert slab.progress()["ready"] <= 64 * MIB
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
assert not failed, failed
stopped(slab)
assert host.blocks()["pinned"] == slab.ready == slab.seams()[-1]
slab.grow()
assert slab.wait() == 64 * MIB
""")


def test_a_pool_keeps_its_parts(slabs):
    """What objects lie in is not given back, and comes to use again after growing."""
    slabs("""
from hbmalloc.host import L1Error, L1MemoryManager, L1MemoryManagerConfig, MemoryLayoutDesc
manager = L1MemoryManager(L1MemoryManagerConfig(32 * MIB, True, 4 * MIB))
layout = MemoryLayoutDesc([(MIB,)], ["uint8"])
slab = manager.slab
assert slab.wait() == 32 * MIB
error, objects = manager.allocate(layout, 30)
assert error == L1Error.SUCCESS
for number, one in enumerate(objects):
    one.byte_array[:] = bytes([number]) * MIB
assert slab.shrink() == 0 and slab.ready == 32 * MIB
low = [one for one in objects if one.data_ptr < slab.address + 4 * MIB]
high = [one for one in objects if one not in low]
view = high[0].byte_array
manager.free(high)
assert slab.shrink() == 0, "given back under a view"
assert bytes(view[:9]) == bytes([objects.index(high[0])]) * 9
del view, high, objects, one
gc.collect()
assert slab.shrink() == 28 * MIB and manager.get_memory_usage() == (len(low) * MIB, 4 * MIB)
assert all(bytes(one.byte_array[::MIB - 1]) == bytes(one.byte_array[:2]) for one in low) and manager.memcheck()
error, none = manager.allocate(layout, 5)
assert error == L1Error.OUT_OF_MEMORY and none.feasible == 4 - len(low)
slab.grow()
error, objects = manager.allocate(layout, 20)
assert error == L1Error.SUCCESS and manager.memcheck()
raises((hbmalloc.BusyError, BufferError), slab.close)
manager.close()
del objects
gc.collect()
assert host.blocks() == EMPTY
""")


def test_shared_with_another_process(slabs):
    slabs("""
name = "hbmalloc-test-slab-%d" % os.getpid()
for nbytes in (4 * MIB, 5 * MIB, 100000):
    slab = Slab(nbytes, name=name)
    assert slab.ready >= nbytes and os.stat("/dev/shm/" + name).st_mode & 0o777 == 0o600
    slab.memoryview()[:5] = b"hello"
    code = '''
import hbmalloc
from hbmalloc import host
from hbmalloc.host import Slab
with host.shared(%d, %r, create=False) as other:
    view = other.memoryview()
    assert bytes(view[:5]) == b"hello"
    view[%d] = 7
    del view
try:
    Slab(%d, name=%r)
    raise SystemExit("made twice")
except hbmalloc.BusyError:
    pass
''' % (nbytes, name, nbytes - 1, nbytes, name)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert slab.memoryview()[nbytes - 1] == 7
    raises(hbmalloc.BusyError, lambda: Slab(nbytes, name=name))
    gc.collect()
    slab.close()
    assert name not in os.listdir("/dev/shm")
    raises(hbmalloc.InvalidArgumentError, lambda: host.shared(nbytes, name, create=False))
raises(BAD, lambda: Slab(4 * MIB, initial=2 * MIB, name=name))      # it does not grow
assert name not in os.listdir("/dev/shm") and host.blocks() == EMPTY
""")


def test_what_a_killed_process_left(slabs):
    slabs("""
name = "hbmalloc-test-stale-%d" % os.getpid()
code = '''
import os, signal
from hbmalloc.host import Slab
slab = Slab(4 << 20, name=%r)
slab.memoryview()[:5] = b"stale"
os.kill(os.getpid(), signal.SIGKILL)
''' % name
died = subprocess.run([sys.executable, "-c", code], timeout=60)
assert died.returncode == -signal.SIGKILL and name in os.listdir("/dev/shm")
raises(hbmalloc.HbmallocError, lambda: host.shared(4 * MIB, name, create=False))
with Slab(4 * MIB, name=name) as slab:
    assert not any(slab.memoryview()[::512])
    gc.collect()
assert name not in os.listdir("/dev/shm")
""")


def test_a_child_that_was_forked(slabs):
    slabs("""
slab, small = slow(), Slab(4 * MIB, name="hbmalloc-test-fork-%d" % os.getpid())
slab.memoryview()[:5] = b"first"
child = os.fork()
if child == 0:
    for call in (lambda: slab.ready, slab.progress, slab.seams, slab.wait, slab.grow, slab.shrink, lambda: Slab(MIB),
                 lambda: Slab(MIB, pinned=False), small.progress):
        raises(hbmalloc.ForkedError, call)
    sys.exit(44)
status = os.waitpid(child, 0)[1]
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 44, status
assert bytes(slab.memoryview()[:5]) == b"first" and slab.wait(9 * MIB) > 8 * MIB
assert os.path.exists("/dev/shm/hbmalloc-test-fork-%d" % os.getpid())
gc.collect()
slab.close(); small.close()
assert host.blocks() == EMPTY
""")


@pytest.mark.parametrize("how", ["growing", "views", "waiting thread", "sys.exit", "exception", "cycle"])
def test_the_process_ends_with_everything_open(slabs, how):
    output = slabs("""
how = %r
slab, other, named = slow(), Slab(8 * MIB, pinned=False), Slab(4 * MIB, name="hbmalloc-test-exit-%%d" %% os.getpid())
print(os.getpid())
if how == "views":
    kept = [slab.memoryview(), other.memoryview(), named.memoryview()[5:], slab.__dlpack__()]
elif how == "waiting thread":
    slab.shrink()
    fast = Slab(256 * MIB, initial=2 * MIB, part=2 * MIB)
    threading.Thread(target=fast.wait, daemon=True).start()
elif how == "sys.exit":
    sys.exit()
elif how == "cycle":
    slab.itself, slab.view = slab, slab.memoryview()
    other.slab, slab.other = slab, other
elif how == "exception":
    import atexit
    sys.excepthook = lambda *_: None
    atexit.register(slab.close)
    raise KeyError
""" % how, status=how == "exception")
    assert output.strip().isdigit(), output
    assert "hbmalloc-test-exit-" + output.strip() not in os.listdir("/dev/shm")


def test_the_process_is_killed_while_it_grows(sim):
    """By a signal that it does not handle: nothing holds it up."""
    sim("pass")
    for number in (signal.SIGTERM, signal.SIGKILL):
        variables = environment(HBMALLOC_DRIVER="sim")
        child = subprocess.Popen([sys.executable, "-c", COMMON + "slab = slow()\nprint(1, flush=True)\nslab.wait(timeout=0)\n"
                                  "time.sleep(1000)\n"], env=variables, stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"1\n"
        child.send_signal(number)
        assert child.wait(60) == -number
        child.stdout.close()


def test_an_interrupt_during_a_wait(slabs):
    slabs("""
for turn in range(3):
    slab = Slab(GIB, initial=2 * MIB, pace=MIB)
    timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    try:
        timer.start()
        slab.wait()
        timer.join()
        time.sleep(1)
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit("no KeyboardInterrupt")
    assert time.monotonic() - begin < 60
    assert slab.progress()["error"] is None and slab.ready <= GIB
    slab.close()
    assert host.blocks() == EMPTY
""")


def test_an_interrupt_ends_a_long_wait(slabs):
    """It does not first wait for all that was waited for."""
    slabs("""
slab = Slab(6 * GIB, initial=2 * MIB, part=64 * MIB)
timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
try:
    timer.start()
    slab.wait()
except KeyboardInterrupt:
    pass
assert slab.ready < 6 * GIB and slab.progress()["is_growing"]
slab.close()
assert host.blocks() == EMPTY
""")


def test_lifetimes(slabs):
    slabs("""
view = Slab(4 * MIB).memoryview()
gc.collect()
view[7] = 8
assert host.blocks()["blocks"] == 1 and view[7] == 8
del view
gc.collect()
assert host.blocks() == EMPTY
# One that grows, dropped.
slow()
gc.collect()
assert host.blocks() == EMPTY
view = slow().memoryview()
gc.collect()
view[5] = 4
assert host.blocks()["blocks"] == 1 and view[5] == 4
del view
assert host.blocks() == EMPTY
# A cycle.
class Node:
    def __del__(self):
        self.view[1] = 9
        ended.append(self.view[1])
ended = []
node = Node()
node.slab = Slab(4 * MIB)
node.view, node.itself, node.slab.node = node.slab.memoryview(), node, node
del node
gc.collect()
assert ended == [9] and host.blocks() == EMPTY
# Dropped by another thread.
kept = [Slab(4 * MIB), slow()]
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
assert host.blocks() == EMPTY
""")


def test_arrays(sim):
    pytest.importorskip("numpy")
    sim(COMMON + """
import numpy
slab = Slab(4 * MIB)
for make in (numpy.asarray, numpy.from_dlpack):
    array = make(slab)
    assert array.nbytes == 4 * MIB and array.ctypes.data == slab.address
    array[:] = 3
    raises(BufferError, slab.close)
    del array
slab.close()
array = numpy.asarray(Slab(4 * MIB))
gc.collect()
assert int(array.sum()) == 0 and host.blocks()["blocks"] == 1
del array
assert host.blocks() == EMPTY
""")


NUMBERS = '-1, -(1 << 70), 1.5, 2.0, "4096", b"1", 1 << 63, 1 << 64, (1 << 64) + 4096, float("nan"), float("inf"), True, False, []'


@pytest.mark.parametrize("parameter, values", [
    ("nbytes", NUMBERS + ', 0, None, 1 << 62'),
    ("initial", NUMBERS + ', 0, 8 << 20, 1 << 46'),
    ("part", NUMBERS + ', None'),
    ("pace", NUMBERS + ', None'),
    ("numa_node", '-1, -2, 999, 1 << 31, 1 << 32, 1 << 64, -(1 << 31), 0.0, 0.5, "0", "zero", b"0", True, False, float("nan"), []'),
    ("name", '3, b"x", 1.5, True, False, ["x"], "a/b", "a\\0b", "x" * 300, "", "/", ".", "..", "\\udc80"'),
], ids=lambda value: value if value.isidentifier() else "")
def test_what_no_slab_is(slabs, parameter, values):
    slabs("""
before = sorted(os.listdir("/dev/shm"))
for value in (%s,):
    for rest in (%s):
        arguments = {"nbytes": 4 * MIB, **rest}
        arguments[%r] = value
        raises(BAD, lambda: (value, Slab(**arguments)))
        gc.collect()
        assert host.blocks() == EMPTY, value
left = set(os.listdir("/dev/shm")) - set(before)     # others may run beside this
assert not left & {"x", "a", "b", "a" + chr(0) + "b", "x" * 255, "x" * 300}, left
raises(TypeError, Slab)
raises(TypeError, lambda: Slab(4096, nothing=1))
Slab(4096).close()
""" % (values, "{}," if parameter in ("name", "initial") else '{"initial": 4096}, {"pinned": False, "initial": 4096}', parameter))


def test_huge_pages_that_are_not_there(slabs):
    if open("/proc/sys/vm/nr_hugepages").read().strip() != "0":
        pytest.skip("this machine has set huge pages aside")
    slabs("""
error = raises(hbmalloc.HbmallocError, lambda: Slab(4 * MIB, huge_pages=True))
assert "huge pages" in str(error) and "0" in str(error), error
name = "hbmalloc-test-huge-%d" % os.getpid()
raises(hbmalloc.HbmallocError, lambda: Slab(4 * MIB, huge_pages=True, name=name))
assert host.blocks() == EMPTY and name not in os.listdir("/dev/shm")
""")


def test_what_no_wait_is(slabs):
    slabs("""
slab = Slab(4 * MIB)
for nbytes in (-1, 1.5, "1", b"1", 1 << 63, 1 << 64, float("nan"), True, []):
    raises(BAD, lambda: (nbytes, slab.wait(nbytes)))
    raises(BAD, lambda: (nbytes, slab.grow(nbytes)))
    raises(BAD, lambda: (nbytes, slab.shrink(nbytes)))
raises(BAD, lambda: slab.shrink(None))
for timeout in (-1, -0.001, -(1 << 70), float("nan"), float("-inf"), "1", b"1", True, []):
    raises(BAD, lambda: (timeout, slab.wait(timeout=timeout)))
for timeout in (0, 0.5, 1, 10 ** 12, 1e300, float("inf"), 1 << 70, 10 ** 400, None):
    assert slab.wait(timeout=timeout) == 4 * MIB
assert slab.progress()["ready"] == 4 * MIB
# A long time is not cut to a short one.
for timeout in (1 << 54, (1 << 64) / 1000, 1e300):
    other = Slab(80 * MIB, initial=2 * MIB, pace=1)
    assert other.wait(timeout=timeout) == 80 * MIB, timeout
    other.close()
""")


def test_more_than_the_machine_has(slabs):
    """Addresses there are; what cannot be had behind them stops growth, and is an error where it is wanted at once."""
    slabs("""
raises(hbmalloc.OutOfMemoryError, lambda: Slab(1 << 44))
raises(hbmalloc.OutOfMemoryError, lambda: Slab(1 << 44, initial=1 << 43))
slab = Slab(1 << 45, initial=2 * MIB, part=1 << 42)
progress = stopped(slab)
assert progress["ready"] == 2 * MIB == host.blocks()["pinned"] and isinstance(progress["error"], hbmalloc.OutOfMemoryError)
raises(hbmalloc.OutOfMemoryError, slab.wait)
slab.memoryview()[0] = 1
gc.collect()
slab.close()
assert host.blocks() == EMPTY
""")
