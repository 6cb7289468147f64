"""The question that convolutions ask under cudnn.benchmark, put to torch's own allocator object.

It needs torch and no GPU; tests/cache_info.rs has stand-ins of the C++ classes.
"""

import importlib.util

import pytest


def test_without_torchs_libraries_one_warning_says_what_does_not_work(fake):
    out = fake("""
        import hbmalloc
        hbmalloc.torch.install("vmm")
        assert hbmalloc.stats()["warnings"] == 1
    """)
    assert out.count("torch.backends.cudnn.benchmark") == 1 and "libc10_cuda.so" in out


def test_the_allocator_of_torch_itself_answers(sim):
    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    sim("""
        import ctypes, torch, hbmalloc
        hbmalloc.torch.install("vmm")
        def words(address, count):
            return list((ctypes.c_void_p * count).from_address(address))
        folder = torch.__path__[0] + "/lib/"
        current = ctypes.c_void_p.in_dll(ctypes.CDLL(folder + "libc10_cuda.so"),
                                         "_ZN3c104cuda20CUDACachingAllocator9allocatorE")
        known = ctypes.addressof(ctypes.c_char.in_dll(
            ctypes.CDLL(folder + "libtorch_cuda.so"),
            "_ZTVN5torch4cuda22CUDAPluggableAllocator22CUDAPluggableAllocatorE"))
        functions = ctypes.c_void_p.from_address(current.value).value
        count = 40
        ours, theirs = words(functions - 16, count), words(known, count)
        different = [place for place in range(count) if ours[place] != theirs[place]]
        assert functions != known + 16 and len(different) == 1, different
        ask = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int8, ctypes.POINTER(ctypes.c_size_t))(
            ours[different[0]])
        def largest(device):
            answer = ctypes.c_size_t(1)
            ask(current.value, device, ctypes.byref(answer))
            return answer.value
        assert largest(0) == largest(1) == 4 << 30
        torch._C._cuda_setMemoryFraction(0.25, 0)
        assert largest(0) == 1 << 30 and largest(9) == 0
        assert hbmalloc.stats()["warnings"] == 0
    """)
