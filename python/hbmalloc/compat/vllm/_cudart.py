"""The few functions of CUDA's runtime library, or of HIP's, that programs take from vLLM's class as
`libcudart`."""

import ctypes
import os


class CudaRuntime:
    """The runtime library that is loaded in this process; raises RuntimeError where a call fails."""

    def __init__(self):
        path = _loaded("libcudart", "libamdhip64")
        self._prefix = "cuda" if os.path.basename(path).startswith("libcudart") else "hip"
        self._library = ctypes.CDLL(path)
        self._function("GetErrorString").restype = ctypes.c_char_p

    def _function(self, name):
        return getattr(self._library, self._prefix + name)

    def _call(self, name, *arguments):
        status = self._function(name)(*arguments)
        if status != 0:
            text = self._function("GetErrorString")(status) or b""
            raise RuntimeError("CUDART error: " + text.decode("utf-8", "replace"))

    def cudaMemcpy(self, to, source, count):
        # 4 lets the driver see by the addresses which way it goes.
        self._call("Memcpy", ctypes.c_void_p(_number(to)), ctypes.c_void_p(_number(source)),
                   ctypes.c_size_t(count), ctypes.c_int(4))

    def cudaMemset(self, address, value, count):
        self._call("Memset", ctypes.c_void_p(_number(address)), ctypes.c_int(value), ctypes.c_size_t(count))

    def cudaDeviceSynchronize(self):
        self._call("DeviceSynchronize")


def _number(address):
    return getattr(address, "value", address)


def _loaded(*names):
    """The file of a library of one of the names which is mapped into this process."""
    begins = tuple(name + end for name in names for end in ".-")
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(None, 5)[-1].strip()
            if path.startswith("/") and os.path.basename(path).startswith(begins):
                return path
    raise RuntimeError("%s is not loaded in this process: import torch with CUDA or ROCm first" % " or ".join(names))


def runtime():
    """vLLM's own wrapper where vLLM is there, since programs know its functions; else ours."""
    try:
        from vllm.distributed.device_communicators.cuda_wrapper import CudaRTLibrary
    except ImportError:
        return CudaRuntime()
    return CudaRTLibrary()
