"""The managed source against `managed_reference.c`: advice and last prefetch read back from the driver.

Sizes from 4 KiB to 1 GiB on both sides of a 64 MiB threshold, one block live at a time.
Needs no torch.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile

import gpucase
from gpucase import case, check

KIB, MIB = 1 << 10, 1 << 20
THRESHOLD = 64 * MIB
SIZES = [4 * KIB, 5000, 64 * KIB, MIB, 2 * MIB, 2 * MIB + 4 * KIB, 20 * MIB, THRESHOLD - 4 * KIB, THRESHOLD - 1,
         THRESHOLD, THRESHOLD + 1, THRESHOLD + 4 * KIB, 100 * MIB, 512 * MIB, 1024 * MIB]
FIELDS = ("preferred type", "preferred id", "accessed by", "last prefetch type", "last prefetch id")
ATTRIBUTES = (5, 6, 3, 7, 8)  # of cuMemRangeGetAttribute, in the order of FIELDS


def reference():
    """What plain driver calls give: size to the five numbers."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("nvcc")
    check(compiler, "no C compiler for the reference program")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "managed_reference.c")
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "managed_reference")
        subprocess.run([compiler, "-o", program, source, "-ldl"], check=True)
        done = subprocess.run([program, str(THRESHOLD)] + [str(size) for size in SIZES],
                              stdout=subprocess.PIPE, text=True, check=True)
    rows = [[int(word) for word in text.split()] for text in done.stdout.splitlines()]
    return {row[0]: row[1:] for row in rows}


def placed(driver, library, stream, size):
    """What the library's managed source gives for one block of `size`."""
    block = library.managed_malloc(size, 0, stream)
    check(block, "managed_malloc(%d) failed: %s" % (size, library.hbm_last_error()))
    check(driver.cuStreamSynchronize(stream) == 0, "the stream failed")
    values = []
    for attribute in ATTRIBUTES:
        value = ctypes.c_int(-99)
        code = driver.cuMemRangeGetAttribute(ctypes.byref(value), 4, attribute, ctypes.c_uint64(block), ctypes.c_size_t(size))
        check(code == 0, "cuMemRangeGetAttribute answered %d" % code)
        values.append(value.value)
    library.managed_free(block, size, 0, stream)
    return values


def main():
    os.environ["HBMALLOC_PREFETCH_THRESHOLD"] = "64MiB"
    import hbmalloc

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        gpucase.line("SKIP", "managed placement", error)
        return
    wanted = {}
    with case("reference program"):
        wanted = reference()
        check(sorted(wanted) == sorted(SIZES), "it printed %s" % sorted(wanted))
    if not wanted:
        gpucase.finish()
    library = ctypes.CDLL(hbmalloc.get_library_path())
    library.managed_malloc.restype = ctypes.c_void_p
    library.managed_malloc.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    library.managed_free.restype = None
    library.managed_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    library.hbm_last_error.restype = ctypes.c_char_p
    library.hbm_torch_set_hooked(1)  # so that the entry points behave as under install()
    driver.cuStreamSynchronize.argtypes = [ctypes.c_void_p]
    context, stream = ctypes.c_void_p(), ctypes.c_void_p()
    with case("a context and a stream"):
        check(driver.cuInit(0) == 0, "cuInit")
        check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0, "cuDevicePrimaryCtxRetain")
        check(driver.cuCtxSetCurrent(context) == 0, "cuCtxSetCurrent")
        check(driver.cuStreamCreate(ctypes.byref(stream), 1) == 0, "cuStreamCreate")
    print("    size, then " + ", ".join(FIELDS))
    for size in SIZES:
        with case("placement of %d bytes" % size):
            got = placed(driver, library, stream, size)
            print("    %d %s" % (size, got))
            check(got == wanted[size], "%s, the reference %s" % (dict(zip(FIELDS, got)), wanted[size]))
            check((got[3] == 1) == (size < THRESHOLD), "the threshold does not act: %s" % got)
    with case("nothing left"):
        now = hbmalloc.stats(0, "managed")
        check(now["allocated"] == 0 and now["warnings"] == 0, now)
    gpucase.finish()


if __name__ == "__main__":
    main()
