"""The functions of LMCache's mem_alloc under its names: what they give, refuse and copy, and who serves them."""

COMMON = """
import ctypes, hbmalloc, os, threading, time
from hbmalloc import host
from hbmalloc.compat import lmcache as lm
MIB = 1 << 20
def raises(error, call, *arguments, text=""):
    try:
        call(*arguments)
    except error as raised:
        assert text in str(raised), raised
        return raised
    raise SystemExit("no %s" % error.__name__)
def in_bytes(address, size):
    return (ctypes.c_ubyte * size).from_address(address)
"""


def test_every_kind(sim):
    sim(COMMON + """
size = 3 * MIB + 1
def kinds():
    yield lm.alloc_pinned_ptr, lm.free_pinned_ptr, (size, 0), (), True
    yield lm.alloc_pinned_ptr, lm.free_pinned_ptr, (size, 7), (), True
    yield lm.alloc_numa_ptr, lm.free_numa_ptr, (size, 0), (size,), False
    yield lm.alloc_pinned_numa_ptr, lm.free_pinned_numa_ptr, (size, 0), (size,), True
    name = "/hbmalloc-test-lmcache-%d" % os.getpid()
    yield lm.alloc_shm_pinned_ptr, lm.free_shm_pinned_ptr, (size, name), (size, name), True
for allocate, free, arguments, rest, is_pinned in kinds():
    address = allocate(*arguments)
    assert type(address) is int and address % 4096 == 0
    now = host.blocks()
    assert now["blocks"] == 1 and now["requested"] == size and (now["pinned"] > 0) == is_pinned, now
    view = in_bytes(address, size)
    view[0], view[size - 1] = 1, 2
    del view
    if rest:
        raises(RuntimeError, free, address, size - 1, *rest[1:], text="bytes, not")
    other = lm.free_numa_ptr if free is not lm.free_numa_ptr else lm.free_pinned_numa_ptr
    raises(RuntimeError, other, address, size, text="was given out by")
    assert free(address, *rest) is None
    raises(RuntimeError, free, address, *rest, text="freed before")
    assert host.blocks()["blocks"] == 0
# Few machines have pages set aside: then the error counts them.
for allocate, free, last in ((lm.alloc_hugepage_pinned_ptr, lm.free_hugepage_pinned_ptr, 0),
                             (lm.alloc_hugepage_pinned_numa_ptr, lm.free_hugepage_pinned_numa_ptr, 0)):
    try:
        address = allocate(size, last)
    except RuntimeError as error:
        assert "huge pages of 2 MiB are needed" in str(error), error
        raises(RuntimeError, free, 1 << 30, size)
    else:
        assert host.blocks()["bytes"] == 4 * MIB
        free(address, size)
""")


def test_refused(sim):
    sim(COMMON + """
raises(RuntimeError, lm.alloc_pinned_ptr, 0, 0, text="alloc_pinned_ptr: ")
raises(RuntimeError, lm.alloc_pinned_ptr, 4096, 8, text="flags 0x8")
raises(RuntimeError, lm.alloc_pinned_ptr, 1 << 46, 0, text="bytes left")
for node in (-1, 64, 1023):
    raises(RuntimeError, lm.alloc_numa_ptr, 4096, node, text="Nodes with memory here")
    raises(RuntimeError, lm.alloc_pinned_numa_ptr, 4096, node)
# What is none of the C type is neither cut nor wrapped.
for size in (-1, 1 << 64, 1.5, "4096", None):
    for call in (lm.alloc_pinned_ptr, lm.alloc_numa_ptr, lm.alloc_hugepage_pinned_ptr, lm.alloc_hugepage_pinned_numa_ptr):
        raises(TypeError, call, size, 0, text="size is a")
for flags in (-1, 1 << 32, None):
    raises(TypeError, lm.alloc_pinned_ptr, 4096, flags)
for node in (1 << 31, 1 << 32, "0"):
    raises(TypeError, lm.alloc_numa_ptr, 4096, node)
for name in (None, b"a"):
    raises(TypeError, lm.alloc_shm_pinned_ptr, 4096, name)
for name in ("a" + chr(0), "a" + chr(0xdc80), "a/b", ""):
    raises(hbmalloc.InvalidArgumentError, lm.alloc_shm_pinned_ptr, 4096, name)
    raises(RuntimeError, lm.free_shm_pinned_ptr, 4096, 4096, name)
for ptr in (-1, 1 << 64, None):
    raises(TypeError, lm.free_pinned_ptr, ptr)
assert host.blocks()["blocks"] == 0
""")


def test_python_goes_on_meanwhile(sim):
    """No other thread waits for as long as one allocates or frees."""
    sim(COMMON + """
def worst_wait(call):
    def work():
        begin = time.monotonic()
        found.append(call())
        found.append(time.monotonic() - begin)
    found, worst, thread, last = [], 0, threading.Thread(target=work), time.monotonic()
    thread.start()
    while thread.is_alive():
        now = time.monotonic()
        worst, last = max(worst, now - last), now
    result, took = found
    return result, took, max(worst, time.monotonic() - last)
size, name = 768 * MIB, "hbmalloc-test-meanwhile-%d" % os.getpid()
for allocate, free in (
    (lambda: lm.alloc_pinned_ptr(size, 0), lm.free_pinned_ptr),
    (lambda: lm.alloc_numa_ptr(size, 0), lambda address: lm.free_numa_ptr(address, size)),
    (lambda: lm.alloc_pinned_numa_ptr(size, 0), lambda address: lm.free_pinned_numa_ptr(address, size)),
    (lambda: lm.alloc_shm_pinned_ptr(size, name), lambda address: lm.free_shm_pinned_ptr(address, size, name)),
):
    address, took, worst = worst_wait(allocate)
    assert worst < took / 2, (worst, took)
    free(address)
""")


def test_batched_memcpy(run):
    """Needs no driver."""
    run(COMMON + """
source, target = bytearray(range(250)) * 4, bytearray(1000)
views = [(ctypes.c_ubyte * 1000).from_buffer(part) for part in (source, target)]
s, t = (ctypes.addressof(view) for view in views)
lm.batched_memcpy([], [], [])
lm.batched_memcpy([s, s + 500, 0], (t + 500, t, 0), iter([500, 500, 0]))
assert target == source[500:] + source[:500]
for wrong in (([s], [t], []), ([s], [], [1]), ([], [t], [1]), ([s], [t, t], [1])):
    raises(ValueError, lm.batched_memcpy, *wrong, text="there must be as many of each")
for wrong in (([s], [t], [-1]), ([s], ["t"], [1]), ([1.5], [t], [1]), ([1 << 64], [t], [1]), (None, [t], [1])):
    raises(TypeError, lm.batched_memcpy, *wrong, text="whole numbers")
raises(RuntimeError, lm.batched_memcpy, [s], [0], [8], text="piece 0 of 1")
# Python goes on meanwhile: this thread never waits for as long as another one copies in one call.
size, times = 256 * MIB, 32
one, other = lm.alloc_numa_ptr(size, 0), lm.alloc_numa_ptr(size, 0)
in_bytes(one, size)[size - 1] = 9
def copy():
    begin = time.monotonic()
    lm.batched_memcpy([one] * times, [other] * times, [size] * times)
    took.append(time.monotonic() - begin)
took, worst, thread = [], 0, threading.Thread(target=copy)
last = time.monotonic()
thread.start()
while thread.is_alive():
    now = time.monotonic()
    worst, last = max(worst, now - last), now
worst = max(worst, time.monotonic() - last)
assert worst < took[0] / 2, (worst, took)
assert in_bytes(other, size)[size - 1] == 9
lm.free_numa_ptr(one, size)
lm.free_numa_ptr(other, size)
""")


LEFT = COMMON + """
import mmap, subprocess, sys
name = "lmcache_l1_pool_hbmalloc-test-%d" % os.getpid()
path = "/dev/shm/" + name
def leave(path=path, mode=0o600):
    with open(path, "wb") as file:
        file.write(bytes(100))
    os.chmod(path, mode)
def mine():
    address = lm.alloc_shm_pinned_ptr(MIB, name)
    lm.free_shm_pinned_ptr(address, MIB, name)
    assert not os.path.exists(path)
"""


def test_a_name_that_lmcache_left(sim):
    """LMCache removes it whatever it is; here it goes if nobody uses it."""
    output = sim(LEFT + """
for mode in (0o600, 0o644):
    leave(mode=mode)
    mine()
leave()
with open(path, "r+b") as file:
    raises(hbmalloc.BusyError, lm.alloc_shm_pinned_ptr, MIB, name, text="remove it if nobody uses it")
    used = mmap.mmap(file.fileno(), 100)
raises(hbmalloc.BusyError, lm.alloc_shm_pinned_ptr, MIB, name)
used.close()
mine()
# Another process's, as its maker and as its user.
code = '''
import sys, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None
segment = shared_memory.SharedMemory(sys.argv[1], create=sys.argv[2] == "make", size=100)
print("there", flush=True)
sys.stdin.read()
'''
for what in ("make", "use"):
    other = subprocess.Popen([sys.executable, "-c", code, name, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "there\\n"
    raises(hbmalloc.BusyError, lm.alloc_shm_pinned_ptr, MIB, name)
    other.kill()
    other.wait()
    assert os.path.exists(path)
mine()
""")
    assert "was left by LMCache" in output


def test_a_name_that_lmcache_would_not_remove(sim):
    sim(LEFT + """
other = "hbmalloc-test-left-%d" % os.getpid()
leave("/dev/shm/" + other)
raises(hbmalloc.BusyError, lm.alloc_shm_pinned_ptr, MIB, other)
os.unlink("/dev/shm/" + other)
os.symlink("/dev/null", path)
raises(RuntimeError, lm.alloc_shm_pinned_ptr, MIB, name)
os.unlink(path)
os.mkfifo(path)
raises(RuntimeError, lm.alloc_shm_pinned_ptr, MIB, name)
os.unlink(path)
if os.geteuid() == 0:
    leave()
    os.chown(path, 65534, -1)
    raises(hbmalloc.BusyError, lm.alloc_shm_pinned_ptr, MIB, name)
    os.unlink(path)
# Ours is the library's to judge.
kept = lm.alloc_shm_pinned_ptr(MIB, name)
raises(hbmalloc.BusyError, lm.alloc_shm_pinned_ptr, MIB, name, text="lives")
lm.free_shm_pinned_ptr(kept, MIB, name)
leave(mode=0o1600)
mine()
""")


def test_one_of_many_gets_the_name_that_lmcache_left(sim):
    sim(LEFT + """
for _ in range(20):
    leave()
    made, failed, start = [], [], threading.Barrier(4)
    def work():
        start.wait()
        try:
            made.append(lm.alloc_shm_pinned_ptr(MIB, name))
        except hbmalloc.BusyError as error:
            failed.append(error)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert (len(made), len(failed)) == (1, 3), failed
    lm.free_shm_pinned_ptr(made[0], MIB, name)
""")


def test_who_opens_what_is_removed_ends_nobody(sim):
    """A lease that is broken is told by a signal."""
    sim(LEFT + """
import fcntl
from hbmalloc.compat.lmcache import _left_names
leave()
def lstat(path):
    # Meanwhile another process opens it, and waits until the lease is gone.
    global other
    other = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'r+b')", path])
    time.sleep(1)
    assert other.poll() is None
    return os_lstat(path)
os_lstat, _left_names.os.lstat = os.lstat, lstat
mine()
assert other.wait() == 0
""")
