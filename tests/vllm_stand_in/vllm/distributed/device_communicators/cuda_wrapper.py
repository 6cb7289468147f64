import ctypes


class CudaRTLibrary:
    """The runtime library where it is loaded; the simulated device's memory can be copied like any other."""

    def __init__(self):
        from hbmalloc.compat.vllm import _cudart

        try:
            self._runtime = _cudart.CudaRuntime()
        except RuntimeError:
            self._runtime = None

    def cudaMemcpy(self, to, source, count):
        if self._runtime is not None:
            return self._runtime.cudaMemcpy(to, source, count)
        ctypes.memmove(to, source, count)

    def cudaMemset(self, to, byte, count):
        ctypes.memset(to, byte, count)
