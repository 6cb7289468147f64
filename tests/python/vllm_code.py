"""What the tests of vLLM's modules run first, in an interpreter of their own on the simulated driver,
whose device memory can be read and written like any other."""

#: The machines that vLLM's class is tested on.
MACHINES = {
    "cuda": {},
    "rocm": {"HBMALLOC_SIM": "hip=6.4,devices=2,memory=4GiB,hip_stale=1,hip_holds=1",
             "HBMALLOC_ROCM_CHUNK_SIZE": "2MiB"},
}

COMMON = """
        import contextlib, ctypes, os, sys, threading
        import hbmalloc
        from hbmalloc import _library
        from hbmalloc.compat import vllm
        MIB = 1 << 20

        def driver():
            return ctypes.CDLL(os.path.join(os.path.dirname(_library.get_library_path()), "libhbmalloc_sim.so"))

        def physical(device=0):
            used = ctypes.c_uint64()
            assert driver().hbmsim_physical(device, ctypes.byref(used), None) == 0
            return used.value

        def fail(name, nth=1, code=2, times=1):
            arguments = name, ctypes.c_uint64(nth), ctypes.c_int(code), ctypes.c_uint64(times)
            assert driver().hbmsim_fail(*arguments) == 0

        def healthy():
            driver().hbmsim_fail_clear()

        def faults():
            text = ctypes.create_string_buffer(4096)
            driver().hbmsim_faults.restype = ctypes.c_uint64
            return driver().hbmsim_faults(text, ctypes.c_uint64(4096)), text.value

        def moved(before):
            now = vllm.counters()
            return {name: now[name] - before[name] for name in now if now[name] != before[name]}

        def shown(handle):                       # of several chunks the first one's
            place = handle[3] if isinstance(handle[3], int) else handle[3][0][0]
            return ctypes.c_uint64.from_address(place).value

        def write(address, byte, size):
            ctypes.memset(address, byte, size)

        def holds(address, byte, size):
            return ctypes.string_at(address, size) == bytes([byte]) * size

        @contextlib.contextmanager
        def refused(kind, *words):
            try:
                yield
            except kind as error:
                for word in words:
                    assert word in str(error), error
            else:
                raise AssertionError("nothing was raised")
"""

MODULE = COMMON + """
        from hbmalloc.compat.vllm import _native
        module = _native.load()
        so = ctypes.CDLL(module.__file__)
        so.my_malloc.restype = ctypes.c_void_p
        so.my_malloc.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
        so.my_free.restype = None
        so.my_free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
        malloc = lambda size, device=0: so.my_malloc(size, device, None)
        free = lambda address: so.my_free(address, 0, 0, None)

        known = {}
        def on_malloc(handle):
            known[handle[2]] = handle
        def on_free(address):
            return known.pop(address)
"""

#: Behind what says whose class it is.
CLASS_OF = """
        import torch
        torch.cuda.init()
        from torch.cuda.memory import allocate, drop, release
        from vllm.device_allocator.cumem import CuMemAllocator
        allocator = CuMemAllocator.get_instance()

        def filled(size, byte):
            address = allocate(size)
            write(address, byte, size)
            return address

        def pool(tag, number=-1):
            return allocator.allocator_and_pools[tag][number][0]
"""

CLASS = COMMON + CLASS_OF.replace("vllm.device_allocator", "hbmalloc.compat.vllm")
