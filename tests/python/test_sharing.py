"""Memory shared between processes, on the simulated driver, whose memory the host can read."""

TWO = """
        import ctypes, os, socket, hbmalloc
        MIB = 1 << 20
        def entries(backend):
            library = ctypes.CDLL(hbmalloc.get_library_path())
            malloc, free = library[backend + "_malloc"], library[backend + "_free"]
            malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
            free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
            return (lambda size: malloc(size, 0, None)), (lambda block: free(block, 0, 0, None))
"""


def test_two_processes(sim):
    for backend in ("pool", "vmm"):
        sim(TWO + """
        malloc, free = entries(%r)
        here, there = socket.socketpair()
        child = os.fork()
        if child == 0:
            with hbmalloc.receive_export(there) as export:
                assert export.kind == "fd" and export.device == 0 and export.nbytes >= MIB, export
                memory = hbmalloc.import_memory(export)
            with memory:
                assert ctypes.string_at(memory.address, MIB) == b"a" * MIB
                ctypes.memset(memory.address, ord("b"), MIB)
                there.send(b"x")
                assert there.recv(1) == b"y"
                assert ctypes.string_at(memory.address, MIB) == b"b" * MIB
                assert hbmalloc.stats(0)["reserved"] == 0
            os._exit(0)
        there.close()
        block = malloc(2 * MIB)
        inside = block + MIB // 2
        ctypes.memset(inside, ord("a"), MIB)
        with hbmalloc.export_memory(inside) as export:
            export.send(here)
            assert hbmalloc.residency()["pinned"] == export.chunk_bytes
            assert here.recv(1) == b"x"
            assert ctypes.string_at(inside, MIB) == b"b" * MIB
        assert hbmalloc.residency()["pinned"] == 0
        free(block)
        hbmalloc.trim()
        assert hbmalloc.stats(0)["reserved"] == 0
        here.send(b"y")
        assert os.waitpid(child, 0)[1] == 0
        """ % backend)


def test_objects_are_closed(sim):
    sim(TWO + """
        import gc, warnings
        malloc, free = entries("vmm")
        block = malloc(MIB)
        export = hbmalloc.export_memory(block)
        memory = hbmalloc.import_memory(export, device=1)
        assert memory.__cuda_array_interface__["data"] == (memory.address, False) and memory.nbytes == export.nbytes
        memory.close()
        memory.close()
        export.close()
        export.close()
        for use in (lambda: export.send(0), lambda: hbmalloc.import_memory(export), lambda: memory.__cuda_array_interface__):
            try:
                use()
            except ValueError as error:
                assert "closed" in str(error), error
            else:
                raise SystemExit(5)
        descriptors = len(os.listdir("/proc/self/fd"))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            export = hbmalloc.export_memory(block)
            memory = hbmalloc.import_memory(export)
            del export, memory
            gc.collect()
        assert [warning.category for warning in seen] == [ResourceWarning], seen
        assert len(os.listdir("/proc/self/fd")) <= descriptors and hbmalloc.residency()["pinned"] == 0
        late = hbmalloc.export_memory(block)
        free(block)
        hbmalloc.trim()
        late.close()
    """)


def test_what_is_wrong_is_told(sim):
    sim(TWO + """
        malloc, free = entries("device")
        def raises(kind, words, call):
            try:
                call()
            except kind as error:
                assert words in str(error), error
            else:
                raise SystemExit(5)
        plain = malloc(MIB)
        raises(hbmalloc.UnsupportedError, "vmm", lambda: hbmalloc.export_memory(plain))
        raises(hbmalloc.NotOwnedError, "live block", lambda: hbmalloc.export_memory(4096))
        here, there = socket.socketpair()
        there.settimeout(0.01)
        raises(TimeoutError, "0.01", lambda: hbmalloc.receive_export(there))
        here.send(b"n" * 200)
        raises(hbmalloc.FileError, "no export", lambda: hbmalloc.receive_export(there))
        here.close()
        there.settimeout(None)
        raises(hbmalloc.FileError, "closed", lambda: hbmalloc.receive_export(there))
        block = entries("pool")[0](MIB)
        with hbmalloc.export_memory(block) as export:
            raises(hbmalloc.FileError, "closed", lambda: export.send(there))
            raises(hbmalloc.InvalidArgumentError, "socket", lambda: export.send(0))
            raises(ValueError, "device", lambda: hbmalloc.import_memory(export, device=-1))
            raises(hbmalloc.HbmallocError, "device", lambda: hbmalloc.import_memory(export, device=7))
    """)
