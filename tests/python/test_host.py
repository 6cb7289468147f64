"""Memory of the host from Python: what it is, how long it stays, what is refused."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import environment


def test_buffers(sim):
    sim("""
    import gc, hbmalloc, os
    from hbmalloc import host
    MIB = 1 << 20
    for make in (lambda n: host.pinned(n), lambda n: host.pinned(n, numa_node=0), lambda n: host.numa(n, 0),
                 lambda n: host.shared(n, "/hbmalloc-python-%d" % os.getpid())):
        for nbytes in (1, 5000, 3 * MIB + 1):
            with make(nbytes) as buffer:
                assert len(buffer) == buffer.nbytes == nbytes and buffer.address % 4096 == 0
                assert buffer.seams() == [host.blocks()["bytes"]]
                view = buffer.memoryview()
                assert len(view) == nbytes and not any(view[:: max(1, nbytes // 100)])
                view[-1] = 7
                try:
                    buffer.close()
                    raise SystemExit("a buffer with a view was closed")
                except BufferError as error:
                    assert "views" in str(error)
                assert host.blocks()["requested"] == nbytes
                assert host.blocks()["pinned"] == (host.blocks()["bytes"] if buffer.is_pinned else 0)
                del view
                gc.collect()
            buffer.close()
            assert "closed" in repr(buffer)
            for use in (buffer.memoryview, buffer.seams):
                try:
                    use()
                    raise SystemExit("a closed buffer was used")
                except ValueError:
                    pass
    view = host.pinned(MIB).memoryview()
    gc.collect()
    view[5] = 9
    assert host.blocks()["blocks"] == 1 and view[5] == 9
    del view
    gc.collect()
    assert host.blocks() == {"blocks": 0, "requested": 0, "bytes": 0, "pinned": 0, "unbound": 0}
    kept = host.pinned(MIB)     # at exit
    """)


def test_arrays_keep_it(sim):
    pytest.importorskip("numpy")
    sim("""
    import gc, hbmalloc, numpy
    from hbmalloc import host
    array = numpy.asarray(host.pinned(1 << 20, numa_node=0))
    gc.collect()
    array[:] = 3
    assert array.dtype == numpy.uint8 and int(array.sum()) == 3 << 20 and host.blocks()["blocks"] == 1
    buffer = host.pinned(4096)
    shown = numpy.asarray(buffer)
    shown[7] = 1
    assert shown.ctypes.data == buffer.address and buffer.memoryview()[7] == 1
    try:
        buffer.close()
        raise SystemExit("a buffer with an array was closed")
    except BufferError as error:
        assert "views" in str(error)
    del shown
    buffer.close()
    assert host.blocks()["blocks"] == 1
    part = array[10:20].view(numpy.uint16)
    del array
    gc.collect()
    assert part[0] == 0x0303 and host.blocks()["blocks"] == 1
    del part
    gc.collect()
    assert host.blocks()["blocks"] == 0
    """)


def test_a_cycle(sim):
    """The collector finalizes a cycle's objects in any order; each may still use its view then."""
    sim("""
    import gc
    from hbmalloc import host
    class Node:
        def __del__(self):
            self.view[-1] = 3
            try:
                self.buffer.close()
                raise SystemExit("closed under a view")
            except BufferError:
                pass
            ended.append(self.view[-1])
            if is_kept:
                kept.append(self.view)
    ended, kept, is_kept = [], [], False
    def cycle(buffer_first):
        node = None if buffer_first else Node()
        buffer = host.pinned(4 << 20)
        node = node or Node()
        node.view, node.buffer, buffer.node = buffer.memoryview(), buffer, node
    for turn in range(20):
        cycle(turn % 2)
        assert host.blocks()["blocks"] == 1
        gc.collect()
        assert ended.pop() == 3 and host.blocks()["blocks"] == 0
    is_kept = True
    cycle(True)
    gc.collect()
    assert host.blocks()["blocks"] == 1
    kept[0][5] = 8
    gc.collect()
    assert kept[0][5] == 8 and kept[0][-1] == 3
    kept.clear()
    gc.collect()
    assert host.blocks()["blocks"] == 0 and len(ended) == 1
    """)


def test_threads_show_and_drop(sim):
    sim("""
    import threading
    from hbmalloc import host
    def work(seed):
        for turn in range(300):
            view = buffer.memoryview()
            view[seed] = turn % 256
            capsule = buffer.__dlpack__()
    buffer = host.pinned(4096)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    buffer.close()
    assert host.blocks()["blocks"] == 0
    """)


def test_dlpack_capsules_that_nobody_takes(sim):
    """They go in the middle of an exception too, which stays what it was."""
    sim("""
    import gc
    from hbmalloc import host
    buffer = host.pinned(4096)
    assert buffer.__dlpack_device__() == (1, 0)
    def kept():
        return host.blocks()["blocks"]
    def fail():
        raise KeyError("this one")
    for version in (None, (0, 8), (1, 0), (1, 3), (7, 0)):
        capsule = buffer.__dlpack__(max_version=version)
        assert ("versioned" in repr(capsule)) == (version is not None and version[0] > 0), capsule
        try:
            buffer.close()
            raise SystemExit("closed under a capsule")
        except BufferError:
            pass
        del capsule
        try:
            (lambda *_: None)(buffer.__dlpack__(max_version=version), fail())
            raise SystemExit("nothing was raised")
        except KeyError as error:
            assert error.args == ("this one",)
    for bad, error in (({"stream": 1}, ValueError), ({"dl_device": (2, 0)}, BufferError), ({"copy": True}, BufferError)):
        try:
            buffer.__dlpack__(**bad)
            raise SystemExit("taken: %r" % bad)
        except error:
            pass
    buffer.__dlpack__(dl_device=(1, 0), copy=False)
    buffer.close()
    assert kept() == 0
    try:
        buffer.__dlpack__()
        raise SystemExit("a closed buffer has a capsule")
    except ValueError:
        pass
    capsule = host.pinned(4096).__dlpack__()
    gc.collect()
    assert kept() == 1
    del capsule
    assert kept() == 0
    left = host.pinned(4096).__dlpack__()      # at exit
    """)


def _taken_by(sim, consumer):
    sim("""
    import gc, hbmalloc, threading
    import %s as consumer
    from hbmalloc import host
    for _ in range(100):
        buffer = host.pinned(4096)
        array = consumer.from_dlpack(buffer)
        assert array.shape == (4096,) and array.dtype == consumer.uint8
        array[9] = 5
        view = buffer.memoryview()
        assert view[9] == 5
        view[10] = 6
        assert array[10] == 6
        del view
        try:
            buffer.close()
            raise SystemExit("closed under an array")
        except BufferError:
            pass
        part = array[8:16]
        del array
        kept = [part, buffer] if _ %% 2 else [buffer]
        if _ %% 2:
            del buffer, part
            thread = threading.Thread(target=kept.clear)   # goes on another thread
            thread.start()
            thread.join()
        else:
            del part
            buffer.close()
        assert host.blocks()["blocks"] == 0
    def fail():
        raise KeyError("this one")
    try:
        (lambda *_: None)(consumer.from_dlpack(host.pinned(4096)), fail())
    except KeyError:
        pass
    gc.collect()
    assert host.blocks()["blocks"] == 0
    left = consumer.from_dlpack(host.pinned(4096))         # at exit
    """ % consumer)


def test_dlpack_to_numpy(sim):
    pytest.importorskip("numpy")
    _taken_by(sim, "numpy")


def test_dlpack_to_torch(sim):
    pytest.importorskip("torch")
    _taken_by(sim, "torch")


def test_dlpack_of_what_a_consumer_does_not_know(sim):
    """Numpy has no bfloat16: its error comes through, and the memory goes."""
    pytest.importorskip("numpy")
    sim("""
    import numpy
    from hbmalloc import _dlpack, host
    class Tensor:
        def __init__(self, buffer, element, **more):
            self.buffer, self.element, self.more = buffer, element, more
        def __dlpack_device__(self):
            return _dlpack.DEVICE
        def __dlpack__(self, **asked):
            hold = self.buffer._view_hold()
            return _dlpack.capsule(self.buffer.address, (4, 3), _dlpack.ELEMENTS[self.element], hold, **self.more, **asked)
    buffer = host.pinned(4096)
    buffer.memoryview()[:2] = bytes((0, 0x3c))
    array = numpy.from_dlpack(Tensor(buffer, "float16"))
    assert array.shape == (4, 3) and array.strides == (6, 2) and array[0, 0] == 1.0 and array[3, 2] == 0
    assert array.ctypes.data == buffer.address
    del array
    try:
        numpy.from_dlpack(Tensor(buffer, "bfloat16"))
        raise SystemExit("numpy has bfloat16")
    except (RuntimeError, BufferError) as error:
        assert "dtype" in str(error).lower(), error
    array = numpy.from_dlpack(Tensor(buffer, "int64", read_only=True))
    assert not array.flags.writeable
    del array
    buffer.close()
    """)


def test_wrong_use(sim):
    sim("""
    import hbmalloc, os
    from hbmalloc import host
    def raises(error, make, text=""):
        try:
            make()
        except error as raised:
            assert text in str(raised), raised
            return
        raise SystemExit("no %s" % error.__name__)
    for size in (0, -1, 1.5, "4", None, True, 1 << 63):
        raises(ValueError, lambda: host.pinned(size))
        raises(ValueError, lambda: host.numa(size, 0))
    for node in (1.5, "0", "gpu", None, 1 << 31):
        raises(ValueError, lambda: host.numa(4096, node))
    raises(hbmalloc.InvalidArgumentError, lambda: host.numa(4096, 999), "Nodes with memory here")
    raises(hbmalloc.InvalidArgumentError, lambda: host.pinned(4096, numa_node=-1), "unknown")
    raises(hbmalloc.OutOfMemoryError, lambda: host.pinned(1 << 46), "left")
    raises(hbmalloc.InvalidArgumentError, lambda: host.shared(4096, "a/b"))
    # One class for all names that will not do, whoever finds out.
    for name in (None, 3, b"a", "a\\0b", "a\\udc80", "a/b", ""):
        raises(hbmalloc.InvalidArgumentError, lambda: host.shared(4096, name))
        if name is not None:
            raises(hbmalloc.InvalidArgumentError, lambda: host.Slab(4096, name=name))
    raises(hbmalloc.InvalidArgumentError, lambda: host.shared(4096, "nobody-made-this-%d" % os.getpid(), create=False))
    name = "hbmalloc-twice-%d" % os.getpid()
    with host.shared(4096, name) as one:
        raises(hbmalloc.BusyError, lambda: host.shared(4096, name), "lives")
        with host.shared(4096, name, create=False) as other:
            one.memoryview()[0] = 5
            assert other.memoryview()[0] == 5
    assert host.blocks()["blocks"] == 0
    """)


def test_the_nearest_node(sim):
    sim("""
    import hbmalloc
    from hbmalloc import host
    assert host.nearest_node(0) == host.nearest_node("gpu:0") == 0
    with host.pinned(4096, numa_node="gpu:0") as one, host.numa(4096, "gpu:0") as other:
        assert host.blocks()["blocks"] == 2
    for wrong in ("gpu", "gpu:", "gpu:x", "gpu:-1", "gpu: 1", "cpu:0", "0", 1.5, None, True, 1 << 31):
        try:
            host.nearest_node(wrong)
            raise SystemExit("%r is a device" % (wrong,))
        except ValueError:
            pass
    for device in (7, -1):
        try:
            host.nearest_node(device)
            raise SystemExit("there is no such device")
        except hbmalloc.InvalidArgumentError as error:
            assert "devices 0 to 1" in str(error), error
    """)


def test_a_nearest_node_that_nobody_knows(sim):
    sim("""
    import hbmalloc
    from hbmalloc import host
    for make in (lambda: host.pinned(4096, numa_node="gpu:0"), lambda: host.numa(4096, "gpu:1")):
        try:
            make()
            raise SystemExit("an unknown node was guessed")
        except hbmalloc.UnsupportedError as error:
            assert "Name a node" in str(error) and "Nodes with memory here: 0" in str(error), error
    assert host.blocks()["blocks"] == 0
    """, HBMALLOC_SIM="devices=2,node_known=0")


TWO_PROCESSES = """
import hbmalloc, os, signal, subprocess, sys
from hbmalloc import host
NAME = "hbmalloc-two-%d" % os.getpid()
MAKER = '''
import os, signal, sys
from hbmalloc import host
buffer = host.shared(3 << 20, sys.argv[1])
buffer.memoryview()[:4] = b"made"
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[2] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
assert bytes(buffer.memoryview()[:4]) == b"seen"
'''
def maker(how):
    child = subprocess.Popen([sys.executable, "-c", MAKER, NAME, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\\n"
    return child
def end(child, status):
    child.communicate("end\\n", timeout=60)
    assert child.returncode == status, child.returncode
def refuses(error, **arguments):
    try:
        host.shared(3 << 20, NAME, **arguments)
    except error as raised:
        return str(raised)
    raise SystemExit("no %s" % error.__name__)
PATH = "/dev/shm/" + NAME
"""


def test_a_segment_of_two_processes(sim):
    sim(TWO_PROCESSES + textwrap.dedent("""
    child = maker("live")
    assert os.stat(PATH).st_mode & 0o777 == 0o600
    assert "lives" in refuses(hbmalloc.BusyError)
    with host.shared(3 << 20, NAME, create=False) as buffer:
        assert bytes(buffer.memoryview()[:4]) == b"made"
        buffer.memoryview()[:4] = b"seen"
        assert host.blocks()["pinned"] == 4 << 20
        end(child, 0)
        # The name went with its maker; the memory is there as long as anybody has it.
        assert not os.path.exists(PATH) and bytes(buffer.memoryview()[:4]) == b"seen"
        refuses(hbmalloc.InvalidArgumentError, create=False)
    assert host.blocks()["blocks"] == 0
    """))


def test_what_a_killed_process_left(sim):
    sim(TWO_PROCESSES + textwrap.dedent("""
    end(maker("die"), -signal.SIGKILL)
    assert os.path.exists(PATH)
    assert "nobody who lives" in refuses(hbmalloc.InvalidArgumentError, create=False)
    with host.shared(1 << 20, NAME) as buffer:
        assert bytes(buffer.memoryview()[:4]) == bytes(4)
    assert not os.path.exists(PATH) and host.blocks()["blocks"] == 0
    """))


def test_a_name_that_was_removed_and_made_again(sim):
    name = "/dev/shm/hbmalloc-again-%d" % os.getpid()
    sim("""
    import os
    from hbmalloc import host
    first = host.shared(1 << 20, %r)
    os.unlink(%r)
    second = host.shared(1 << 20, %r)
    first.close()
    assert os.path.exists(%r)
    """ % (os.path.basename(name), name, os.path.basename(name), name))
    assert not os.path.exists(name)


def test_room_that_a_killed_process_left_under_the_name(sim):
    """In a /dev/shm that holds one of them."""
    small = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec \"$@\"", "sh"]
    if not shutil.which("unshare") or subprocess.run(small + ["true"], capture_output=True).returncode:
        pytest.skip("no small /dev/shm can be mounted here: it takes root")
    maker = "import os, signal; from hbmalloc import host; kept = host.shared(40 << 20, 'hbmalloc-room'); os.kill(os.getpid(), signal.SIGKILL)"
    taker = "from hbmalloc import host; host.shared(40 << 20, 'hbmalloc-room').close()"
    both = small + ["sh", "-c", '"$0" -c "$1"; exec "$0" -c "$2"', sys.executable, maker, taker]
    done = subprocess.run(both, env=environment(HBMALLOC_DRIVER="sim"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_policies(sim):
    sim("""
    import hbmalloc
    from hbmalloc import host
    for policy in ("bind", "preferred", "interleave"):
        for node in (0, [0], ("gpu:0",), "gpu:0"):
            with host.pinned(3 << 20, numa_node=node, policy=policy) as one, host.numa(5000, node, policy=policy) as other:
                one.memoryview()[0] = other.memoryview()[0] = 1
                assert host.blocks()["blocks"] == 2 and host.blocks()["unbound"] in (0, 2)
    for wrong in (lambda: host.pinned(4096, 0, policy="near"), lambda: host.pinned(4096, policy="interleave"),
                  lambda: host.numa(4096, []), lambda: host.numa(4096, [0, 64]), lambda: host.numa(4096, [0.5]),
                  lambda: host.pinned(4096, huge_pages=4096), lambda: host.pinned(4096, huge_pages=1),
                  lambda: host.pinned(4096, huge_pages=[]), lambda: host.pinned(4096, huge_pages="4MiB")):
        try:
            wrong()
            raise SystemExit("taken")
        except ValueError as error:
            assert not isinstance(error, hbmalloc.HbmallocError)
    try:
        host.numa(4096, [0, 40], policy="interleave")
        raise SystemExit("there is no node 40")
    except hbmalloc.InvalidArgumentError as error:
        assert "Nodes with memory here: 0" in str(error)
    for pages, size in ((True, 2), ("2MiB", 2), ("1GiB", 1024), (1 << 30, 1024)):
        for node in (None, 0, "gpu:0"):
            try:
                host.pinned(1 << 44, numa_node=node, huge_pages=pages)
                raise SystemExit("nobody has so many")
            except hbmalloc.OutOfMemoryError as error:
                assert "%d huge pages of %d MiB are needed" % ((1 << 24) // size, size) in str(error), error
    assert host.blocks()["blocks"] == 0
    """)


def test_without_a_driver(run):
    run("""
    import hbmalloc
    with hbmalloc.host.numa(1 << 20, 0) as buffer:
        assert not buffer.is_pinned
    """)
