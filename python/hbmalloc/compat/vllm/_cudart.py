"""The few functions of CUDA's runtime library that programs take from vLLM's class as `libcudart`."""

import ctypes
import os


class CudaRuntime:
    """The runtime library that is loaded in this process; raises RuntimeError where a call fails."""

    def __init__(self):
        self._library = ctypes.CDLL(_loaded("libcudart"))
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def _check(self, status):
        if status != 0:
            text = self._library.cudaGetErrorString(status) or b""
            raise RuntimeError("CUDART error: " + text.decode("utf-8", "replace"))

    def cudaMemcpy(self, to, source, count):
        # 4 lets the driver see by the addresses which way it goes.
        self._check(self._library.cudaMemcpy(
            ctypes.c_void_p(_number(to)), ctypes.c_void_p(_number(source)), ctypes.c_size_t(count), ctypes.c_int(4)))

    def cudaMemset(self, address, value, count):
        self._check(self._library.cudaMemset(
            ctypes.c_void_p(_number(address)), ctypes.c_int(value), ctypes.c_size_t(count)))

    def cudaDeviceSynchronize(self):
        self._check(self._library.cudaDeviceSynchronize())


def _number(address):
    return getattr(address, "value", address)


def _loaded(name):
    """The file of a library of that name which is mapped into this process."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(None, 5)[-1].strip()
            file = os.path.basename(path)
            if path.startswith("/") and (file.startswith(name + ".") or file.startswith(name + "-")):
                return path
    raise RuntimeError("%s is not loaded in this process: import torch with CUDA first" % name)


def runtime():
    """vLLM's own wrapper where vLLM is there, since programs know its functions; else ours."""
    try:
        from vllm.distributed.device_communicators.cuda_wrapper import CudaRTLibrary
    except ImportError:
        return CudaRuntime()
    return CudaRTLibrary()
