"""Sleep and wake from Python, on the simulated driver: contents, figures, types and errors."""

import pytest

MEMORY = """
        import ctypes, threading, hbmalloc
        MIB = 1 << 20
        library = ctypes.CDLL(hbmalloc.get_library_path())

        class Block:
            def __init__(self, kind, nbytes, tag=None, device=0):
                malloc = getattr(library, kind + "_malloc")
                malloc.restype = ctypes.c_void_p
                malloc.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
                self.kind, self.nbytes, self.device = kind, nbytes, device
                if tag is None:
                    self.address = malloc(nbytes, device, None)
                else:
                    with hbmalloc.tag(tag):
                        self.address = malloc(nbytes, device, None)
                assert self.address

            def free(self):
                free = getattr(library, self.kind + "_free")
                free.restype = None
                free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
                free(self.address, self.nbytes, self.device, None)

            # The simulated driver's memory is the process's own.
            def write(self, byte):
                ctypes.memset(self.address, byte, self.nbytes)

            def holds(self, byte):
                return ctypes.string_at(self.address, self.nbytes) == bytes([byte]) * self.nbytes

        def refused(kind, call, *arguments, **named):
            try:
                call(*arguments, **named)
            except kind as error:
                return str(error)
            raise SystemExit("nothing was raised for %r %r" % (arguments, named))
"""


def test_contents_and_figures(sim):
    sim(MEMORY + """
        weights = [Block("vmm", 4 * MIB, "weights"), Block("pool", 3 * MIB, "weights"), Block("pool", 700, "weights")]
        rest = [Block("pool", 2 * MIB, "cache"), Block("pool", 2 * MIB)]
        for number, block in enumerate(weights + rest):
            block.write(number + 1)
        there = hbmalloc.residency("weights")
        assert set(there) == {"device", "host", "file", "discarded", "pinned"}
        assert there["device"] >= 7 * MIB and sum(there.values()) == there["device"]
        done = hbmalloc.sleep("weights")
        assert set(done) == {"moved", "copied", "pinned", "tags"}
        assert done["tags"] == {"weights": {name: done[name] for name in ("moved", "copied", "pinned")}}
        assert all(type(value) is int for value in done["tags"]["weights"].values())
        assert done["moved"] == there["device"] and 7 * MIB < done["copied"] <= done["moved"] and done["pinned"] == 0
        assert hbmalloc.residency("weights") == dict(there, device=0, host=done["moved"])
        assert hbmalloc.residency("cache", 0)["host"] == 0 == hbmalloc.residency(device=1)["host"]
        assert hbmalloc.host_buffer()["used"] == done["copied"]
        assert all(block.holds(number) for number, block in enumerate(rest, 4))
        nothing = {"moved": 0, "copied": 0, "pinned": 0}
        assert hbmalloc.sleep(["weights"]) == dict(nothing, tags={"weights": nothing})
        back = hbmalloc.wake(("cache", "weights"))
        assert back["moved"] == done["moved"] and back["copied"] == done["copied"]
        assert hbmalloc.wake("weights") == dict(nothing, tags={"weights": nothing})
        assert hbmalloc.residency("weights") == there and hbmalloc.host_buffer()["used"] == 0
        assert all(block.holds(number) for number, block in enumerate(weights + rest, 1))

        everything = hbmalloc.sleep()
        assert everything["moved"] > done["moved"] and hbmalloc.residency()["device"] == 0
        assert hbmalloc.residency()["host"] == everything["moved"]
        hbmalloc.wake()
        assert all(block.holds(number) for number, block in enumerate(weights + rest, 1))

        gone = hbmalloc.discard(iter(["weights"]))
        assert gone["copied"] == 0 and hbmalloc.residency("weights")["discarded"] == gone["moved"]
        assert hbmalloc.wake("weights")["copied"] == 0
        weights[0].write(9)
        assert weights[0].holds(9)
        hbmalloc.sleep("weights")
        assert hbmalloc.sleep("weights", to="discard")["moved"] == 0 == hbmalloc.host_buffer()["used"]
        for block in weights + rest:
            block.free()
    """)


def test_no_tags_are_none_and_not_all(sim):
    sim(MEMORY + """
        block = Block("vmm", 2 * MIB, "tag")
        for nothing in ([], (), iter(())):
            assert hbmalloc.sleep(nothing)["moved"] == 0
        assert hbmalloc.sleep("tag", devices=[])["moved"] == 0
        assert hbmalloc.sleep(devices=1)["moved"] == 0
        assert hbmalloc.residency("tag")["device"] == 2 * MIB
        block.free()
    """)


def test_devices(sim):
    sim(MEMORY + """
        blocks = [Block("vmm", 4 * MIB, "tag", device) for device in (0, 1)]
        for number, block in enumerate(blocks):
            block.write(number + 1)
        assert hbmalloc.sleep("tag", devices=1)["moved"] == 4 * MIB
        assert hbmalloc.residency("tag", 0)["device"] == 4 * MIB == hbmalloc.residency("tag", 1)["host"]
        assert blocks[0].holds(1)
        assert hbmalloc.sleep("tag", devices=[0, 1])["moved"] == 4 * MIB
        assert hbmalloc.residency("tag")["host"] == 8 * MIB
        assert hbmalloc.wake((tag for tag in ["tag"]), devices=(1, 0))["moved"] == 8 * MIB
        assert hbmalloc.sleep("tag")["moved"] == 8 * MIB == hbmalloc.wake("tag")["moved"]
        assert blocks[0].holds(1) and blocks[1].holds(2)
        for block in blocks:
            block.free()
    """)


def test_clean_memory_is_not_copied_again(sim):
    sim(MEMORY + """
        hbmalloc.set_option("keep_host", "64MiB")
        block = Block("pool", 4 * MIB, "tag")
        block.write(1)
        assert hbmalloc.sleep("tag", clean=True)["copied"] == 4 * MIB
        hbmalloc.wake("tag")
        assert hbmalloc.sleep("tag", clean=True)["copied"] == 0
        hbmalloc.wake("tag")
        block.write(2)
        assert hbmalloc.sleep("tag")["copied"] == 4 * MIB
        hbmalloc.wake("tag")
        assert block.holds(2)
        block.free()
    """)


def test_the_hosts_room(sim):
    sim(MEMORY + """
        assert hbmalloc.host_buffer() == {"pinned": 0, "used": 0}
        assert hbmalloc.prepare_host_buffer(5 * MIB) is None
        pinned = hbmalloc.host_buffer()["pinned"]
        assert pinned >= 5 * MIB and hbmalloc.trim_host_buffer(pinned) == 0
        block = Block("vmm", 4 * MIB, "tag")
        hbmalloc.sleep("tag")
        assert hbmalloc.host_buffer() == {"pinned": pinned, "used": 4 * MIB} and hbmalloc.trim_host_buffer() == 0
        hbmalloc.wake("tag")
        assert hbmalloc.trim_host_buffer() == pinned and hbmalloc.host_buffer()["pinned"] == 0
        hbmalloc.set_option("sleep_host_limit", "2MiB")
        for call, argument in ((hbmalloc.prepare_host_buffer, 5 * MIB), (hbmalloc.sleep, "tag")):
            assert "sleep_host_limit" in refused(hbmalloc.OutOfMemoryError, call, argument)
        refused(MemoryError, hbmalloc.prepare_host_buffer, 1 << 60)
        assert hbmalloc.residency("tag")["device"] == 4 * MIB
        block.free()
    """)


def test_pins(sim):
    sim(MEMORY + """
        block, other = Block("vmm", 4 * MIB, "tag"), Block("vmm", 2 * MIB, "tag")
        block.write(1)
        assert hbmalloc.pin(block.address, block.nbytes) is None
        assert hbmalloc.residency("tag")["pinned"] == 4 * MIB
        done = hbmalloc.sleep("tag")
        assert done["pinned"] == 4 * MIB and done["moved"] == 2 * MIB and block.holds(1)
        refused(hbmalloc.InvalidArgumentError, hbmalloc.pin, other.address, 1)
        hbmalloc.wake()
        assert hbmalloc.unpin(block.address, block.nbytes) is None
        refused(ValueError, hbmalloc.unpin, block.address, block.nbytes)
        refused(hbmalloc.InvalidArgumentError, hbmalloc.pin, block.address, 0)
        refused(hbmalloc.NotOwnedError, hbmalloc.pin, 4096, 1)
        assert hbmalloc.sleep("tag")["moved"] == 6 * MIB
        block.free(), other.free()
    """)


def test_wrong_arguments(sim):
    sim(MEMORY + """
        block = Block("vmm", 2 * MIB, "tag")
        block.write(1)
        for call in (hbmalloc.sleep, hbmalloc.wake, hbmalloc.discard):
            text = refused(hbmalloc.InvalidArgumentError, call, ["tag", "nobody's"])
            assert "nobody's" in text and "tag" in text
            refused(ValueError, call, "a\\0b")
            refused(TypeError, call, 5)
            refused(TypeError, call, [None])
            refused(ValueError, call, "tag", devices=-1)
            refused(ValueError, call, "tag", devices=[-2])
            refused(hbmalloc.InvalidArgumentError, call, "tag", devices=99)
            for wrong in (True, 1.0, "0", [None], [True]):
                refused(TypeError, call, "tag", devices=wrong)
            assert block.holds(1)
        assert "nowhere" in refused(ValueError, hbmalloc.sleep, "tag", to="nowhere")
        for wrong in (None, 0, "HOST"):
            refused(ValueError, hbmalloc.sleep, "tag", to=wrong)
        refused(hbmalloc.InvalidArgumentError, hbmalloc.residency, "nobody's")
        refused(ValueError, hbmalloc.residency, "tag", -1)
        refused(TypeError, hbmalloc.residency, "tag", True)
        refused(TypeError, hbmalloc.residency, 5)
        refused(hbmalloc.InvalidArgumentError, hbmalloc.residency, "tag", 99)
        assert hbmalloc.residency("tag")["device"] == 2 * MIB
        block.free()
    """)


@pytest.mark.parametrize("call", ["prepare_host_buffer", "trim_host_buffer"])
@pytest.mark.parametrize("wrong", ["-1", "1 << 64", "1.5", "'1'", "None"])
def test_bytes_are_a_number_that_there_is(sim, call, wrong):
    sim("""
        import hbmalloc
        try:
            hbmalloc.%s(%s)
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            raise SystemExit("%%r is taken" %% (%s,))
    """ % (call, wrong, wrong))


def test_a_wake_without_memory(sim):
    sim(MEMORY + """
        block = Block("vmm", 40 * MIB, "tag")
        block.write(1)
        hbmalloc.sleep("tag")
        other = Block("device", 40 * MIB)
        text = refused(hbmalloc.OutOfMemoryError, hbmalloc.wake, "tag")
        assert "sleeps on" in text, text
        assert hbmalloc.residency("tag")["host"] == 40 * MIB
        other.free()
        assert hbmalloc.wake("tag")["moved"] == 40 * MIB and block.holds(1)
        block.free()
    """, HBMALLOC_SIM="devices=1,memory=64MiB")


def test_a_capture_refuses(sim):
    sim(MEMORY + """
        block = Block("vmm", 2 * MIB, "tag")
        assert library.hbm_graph_begin(0, ctypes.c_uint64(0), ctypes.c_uint64(7)) == 0
        for call in (hbmalloc.sleep, hbmalloc.wake, hbmalloc.discard):
            refused(hbmalloc.CapturingError, call, "tag")
        assert library.hbm_graph_end(0, ctypes.c_uint64(0), ctypes.c_uint64(7)) == 0
        assert hbmalloc.sleep("tag")["moved"] == 2 * MIB == hbmalloc.wake("tag")["moved"]
        block.free()
    """)


def test_threads_may_sleep_and_wake_at_once(sim):
    sim(MEMORY + """
        blocks = {name: Block("pool", 2 * MIB, name) for name in ("one", "two", "three")}
        for number, block in enumerate(blocks.values()):
            block.write(number + 1)
        failures = []
        def cycle(name):
            try:
                for _ in range(20):
                    assert hbmalloc.sleep(name)["copied"] == 2 * MIB
                    assert hbmalloc.wake(name)["copied"] == 2 * MIB
            except BaseException as error:
                failures.append(error)
        threads = [threading.Thread(target=cycle, args=(name,)) for name in blocks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert all(block.holds(number) for number, block in enumerate(blocks.values(), 1))
        for block in blocks.values():
            block.free()
    """)


def test_in_a_forked_child(sim):
    sim(MEMORY + """
        import os
        block = Block("vmm", 2 * MIB, "tag")
        block.write(1)
        hbmalloc.sleep("tag")
        child = os.fork()
        if child == 0:
            for call in (hbmalloc.sleep, hbmalloc.wake, hbmalloc.discard, hbmalloc.residency):
                refused(hbmalloc.ForkedError, call, "tag")
            refused(hbmalloc.ForkedError, hbmalloc.trim_host_buffer)
            refused(hbmalloc.ForkedError, hbmalloc.prepare_host_buffer, 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        hbmalloc.wake("tag")
        assert block.holds(1)
        block.free()
    """)


def test_a_report_by_tag(sim):
    sim(MEMORY + """
        blocks = {tag: Block("vmm", size * MIB, tag) for tag, size in (("first", 2), ("second", 4), ("third", 6), (None, 8))}
        elsewhere = Block("vmm", 10 * MIB, "second", 1)
        amounts = lambda moved, copied, pinned=0: {"moved": moved * MIB, "copied": copied * MIB, "pinned": pinned * MIB}
        done = hbmalloc.sleep(["third", "first", "third"])
        assert done == dict(amounts(8, 8), tags={"third": amounts(6, 6), "first": amounts(2, 2)})
        assert list(done["tags"]) == ["third", "first"]
        hbmalloc.pin(elsewhere.address, 10 * MIB)
        done = hbmalloc.sleep(to="discard")
        assert done["tags"] == {"": amounts(8, 0), "second": amounts(4, 0, 10)}, done
        hbmalloc.unpin(elsewhere.address, 10 * MIB)
        assert hbmalloc.sleep("second")["tags"] == {"second": amounts(10, 10)}
        # One device can, the other cannot.
        path = hbmalloc.get_library_path().replace("libhbmalloc.so", "libhbmalloc_sim.so")
        simulator = ctypes.CDLL(path)
        third = ctypes.c_uint64(3), ctypes.c_int(999), ctypes.c_uint64(1)
        assert simulator.hbmsim_fail(b"cuMemCreate", *third) == 0
        try:
            hbmalloc.wake(["", "second"], devices=(1, 0))
        except hbmalloc.DriverError as error:
            assert error.report == dict(amounts(10, 10), tags={"": amounts(0, 0), "second": amounts(10, 10)})
        else:
            raise SystemExit("nothing was raised")
        simulator.hbmsim_fail_clear()
        done = hbmalloc.wake(["", "second"], devices=(1, 0))
        assert done["tags"] == {"": amounts(8, 0), "second": amounts(4, 0)}, done
        assert hbmalloc.wake()["tags"].keys() == {"first", "third"}
    """)


def test_nothing_is_in_use_yet(sim):
    sim("""
        import hbmalloc
        assert hbmalloc.sleep() == hbmalloc.wake() == hbmalloc.discard() == {
            "moved": 0, "copied": 0, "pinned": 0, "tags": {}}
        assert set(hbmalloc.residency().values()) == {0} and hbmalloc.host_buffer()["pinned"] == 0
        assert hbmalloc._library.library().hbm_driver_used() == 0
    """, HBMALLOC_DRIVER="/no/such/driver.so")


def test_the_process_may_end_while_memory_sleeps(sim):
    sim(MEMORY + """
        blocks = [Block(kind, 3 * MIB, "tag") for kind in ("vmm", "pool")]
        hbmalloc.sleep("tag")
        blocks.append(Block("pool", 3 * MIB, "tag"))
        blocks[0].free()
    """)
