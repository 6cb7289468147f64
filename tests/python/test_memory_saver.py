"""torch_memory_saver's Python over hbmalloc: a stand-in that finds and calls its library as that does, and the installed
one where there is one, beside the stand-in for torch. Memory is the simulated driver's."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import FAKE_TORCH, PYTHON, ROOT, built_library, environment

STAND_IN = os.path.join(ROOT, "tests", "torch_memory_saver_stand_in")

COMMON = """
        import contextlib, ctypes, os, subprocess, sys, types
        import torch
        # What torch_memory_saver asks of torch besides, as far as these tests go.
        torch.Tensor, torch.get_device_module, torch.cuda.current_device = object, lambda: torch.cuda, lambda: 0
        try:
            import numpy
        except ImportError:
            sys.modules["numpy"] = types.ModuleType("numpy")
        import hbmalloc
        from hbmalloc import _library
        from hbmalloc.compat import torch_memory_saver as compat
        torch.cuda.init()
        MIB = 1 << 20

        @contextlib.contextmanager
        def refused(kind, *words):
            try:
                yield
            except kind as error:
                for word in words:
                    assert word in str(error), error
            else:
                raise AssertionError("nothing was raised")

        # The simulated driver's memory is the process's own.
        def write(address, byte, size=4 * MIB):
            ctypes.memset(address, byte, size)

        def holds(address, byte, size=4 * MIB):
            return ctypes.string_at(address, size) == bytes([byte]) * size

        def bytes_of(tag):
            return {where: count for where, count in hbmalloc.residency(tag).items() if count}
"""


def installed_saver():
    found = importlib.util.find_spec("torch_memory_saver")
    return os.path.dirname(os.path.dirname(found.origin)) if found and found.origin else None


@pytest.fixture(params=["stand-in", "installed"])
def saver(request, sim):
    """`saver(code, status=0, **environment)` beside a torch_memory_saver."""
    package = STAND_IN if request.param == "stand-in" else installed_saver()
    if package is None:
        pytest.skip("torch_memory_saver is not installed")

    def beside(code, status=0, **variables):
        # Before what else is installed there, such as a torch.
        path = os.pathsep.join([PYTHON, FAKE_TORCH, package])
        return sim(COMMON + code, status, PYTHONPATH=path, **variables)

    return beside


def test_torch_mode(saver, tmp_path):
    saver("""
        compat.install()
        assert compat.is_installed() and _library.library().hbm_driver_used() == 0
        compat.install()
        from torch_memory_saver import torch_memory_saver as saver
        saver.hook_mode = "torch"
        with saver.region(tag="weights", enable_cpu_backup=True):
            weights = torch.cuda.memory.allocate(4 * MIB)
        with saver.region(tag="cache"):
            cache = torch.cuda.memory.allocate(4 * MIB)
        saver.set_disk_backup_dir(os.environ["FOLDER"])
        with saver.region(tag="cold", enable_disk_backup=True):
            cold = torch.cuda.memory.allocate(4 * MIB)
        for number, address in enumerate((weights, cache, cold)):
            write(address, number + 1)
        assert saver._impl._binary_wrapper.cdll._name == hbmalloc.get_library_path()
        saver.pause("weights")
        assert bytes_of("tms.host.weights") == {"host": 4 * MIB} and holds(cache, 2)
        saver.pause("weights")                         # twice
        saver.resume("nobody")
        saver.pause()
        assert bytes_of("tms.none.cache") == {"discarded": 4 * MIB} and bytes_of("tms.file.cold") == {"file": 4 * MIB}
        backup = saver._impl._binary_wrapper.cdll.tms_get_cpu_backup_pointer(
            ctypes.cast(weights, ctypes.POINTER(ctypes.c_uint8)), 4 * MIB)
        assert backup and holds(ctypes.addressof(backup.contents), 1)
        saver.resume("cache")
        write(cache, 9)
        saver.resume()
        saver.resume()
        assert holds(weights, 1) and holds(cache, 9) and holds(cold, 3) and hbmalloc.residency()["device"] == 12 * MIB
        assert saver.retain_cpu_backup is False
        saver.retain_cpu_backup = True
        assert saver.retain_cpu_backup is True
        saver._impl._mem_pools.clear()
        assert _library.library().hbm_trim(0, 0, None) == 0 and hbmalloc.residency()["device"] == 0
    """, FOLDER=str(tmp_path))


def test_regions_nest_and_remember(saver):
    saver("""
        compat.install()
        from torch_memory_saver import torch_memory_saver as saver
        saver.hook_mode = "torch"
        with saver.region(tag="outer", enable_cpu_backup=True):
            with saver.region(tag="inner"):
                inner = torch.cuda.memory.allocate(2 * MIB)
            outer = torch.cuda.memory.allocate(2 * MIB)
        assert bytes_of("tms.host.outer") == bytes_of("tms.none.inner") == {"device": 2 * MIB}
        assert not saver._impl._binary_wrapper.cdll.tms_get_interesting_region()
    """)


def test_failures_raise(saver):
    saver("""
        compat.install()
        from torch_memory_saver import torch_memory_saver as saver
        saver.hook_mode = "torch"
        with saver.region(enable_cpu_backup=True):
            kept = torch.cuda.memory.allocate(4 * MIB)
        write(kept, 5)
        hbmalloc.set_option("sleep_host_limit", "1MiB")
        with refused(hbmalloc.OutOfMemoryError, "sleep_host_limit"):
            saver.pause()
        assert holds(kept, 5)
        hbmalloc.set_option("sleep_host_limit", "80%")
        saver.pause()
        simulator = ctypes.CDLL(os.path.join(os.path.dirname(hbmalloc.get_library_path()), "libhbmalloc_sim.so"))
        assert simulator.hbmsim_fail(b"cuMemCreate", ctypes.c_uint64(1), 2, ctypes.c_uint64(99)) == 0
        with refused(hbmalloc.OutOfMemoryError):
            saver.resume()
        simulator.hbmsim_fail_clear()
        saver.resume()
        assert holds(kept, 5)
    """, HBMALLOC_LOG="off")


def test_after_its_import_and_uninstall(saver):
    saver("""
        import torch_memory_saver
        from torch_memory_saver import configure_subprocess
        from torch_memory_saver.binary_wrapper import BinaryWrapper
        from torch_memory_saver.hooks import mode_preload, mode_torch
        from torch_memory_saver.hooks.mode_torch import HookUtilModeTorch
        places = [(BinaryWrapper, "__init__"), (mode_preload.HookUtilModePreload, "get_path_binary"),
                  (mode_preload, "get_binary_path_from_package"), (HookUtilModeTorch, "get_path_binary")]
        before = [getattr(*place) for place in places]
        compat.install()
        with configure_subprocess():
            assert os.environ["LD_PRELOAD"] == compat.preload_path()
        assert "LD_PRELOAD" not in os.environ
        compat.uninstall()
        compat.uninstall()
        assert [getattr(*place) for place in places] == before and not compat.is_installed()
        compat.install()
        torch_memory_saver.torch_memory_saver.hook_mode = "preload"
        with refused(RuntimeError, "hbmalloc run", "LD_PRELOAD=" + compat.preload_path(), '"torch"'):
            torch_memory_saver.torch_memory_saver.pause()
    """)


def test_refused_without_change(saver):
    saver("""
        import torch_memory_saver
        from torch_memory_saver import binary_wrapper
        from torch_memory_saver.hooks import mode_torch
        class_, init = mode_torch.HookUtilModeTorch, binary_wrapper.BinaryWrapper.__init__
        del mode_torch.HookUtilModeTorch
        with refused(RuntimeError, "mode_torch.HookUtilModeTorch.get_path_binary", "nothing was changed", "0.0.10"):
            compat.install()
        mode_torch.HookUtilModeTorch = class_

        def newer(self, path_binary):
            init(self, path_binary)
            self.cdll.tms_of_another_release

        binary_wrapper.BinaryWrapper.__init__ = newer
        with refused(RuntimeError, "tms_of_another_release", "nothing was changed"):
            compat.install()
        assert not compat.is_installed() and binary_wrapper.BinaryWrapper.__init__ is newer
    """)


def test_too_late(saver, tmp_path):
    theirs = tmp_path / "torch_memory_saver_hook_mode_torch_cu13.abi3.so"
    shutil.copy(os.path.join(os.path.dirname(built_library()), "libhbmalloc_sim.so"), theirs)
    saver("""
        import torch_memory_saver
        ctypes.CDLL(os.environ["THEIRS"])
        with refused(RuntimeError, os.environ["THEIRS"], "first use"):
            compat.install()
        assert not compat.is_installed()
    """, THEIRS=str(theirs))


def test_without_it(sim):
    sim("""
        from hbmalloc.compat import torch_memory_saver as compat
        try:
            compat.install()
        except RuntimeError as error:
            assert "cannot be imported" in str(error)
        else:
            raise AssertionError
        assert not compat.is_installed()
    """)
    done = subprocess.run([sys.executable, "-m", "hbmalloc.compat.torch_memory_saver", "check"], env=environment(),
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "is not installed" in done.stdout, done


@pytest.fixture
def preloaded(tmp_path):
    """A folder with what runs a process under the preload library: the stand-in runtime, and its environment."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    built = os.path.dirname(built_library() or "")
    library = os.path.join(built, "libhbmalloc_preload.so")
    if compiler is None or not os.path.exists(library):
        pytest.skip("needs a C compiler and the preload library")
    runtime = tmp_path / "libcudart.so.13"
    subprocess.run([compiler, "-std=gnu11", "-w", "-shared", "-fPIC", os.path.join(ROOT, "tests", "preload", "runtime.c"), "-o",
                    str(runtime), "-Wl,-soname,libcudart.so.13", "-ldl"], check=True)
    return {"STAND_IN_DRIVER": os.path.join(built, "libhbmalloc_sim.so"), "LD_LIBRARY_PATH": str(tmp_path)}


PRELOADED = """
        runtime = ctypes.CDLL("libcudart.so.13", mode=ctypes.RTLD_GLOBAL)
        everyone = ctypes.CDLL(None)
        torch.cuda.MemPool = torch.cuda.memory.MemPool = lambda allocator=None: contextlib.nullcontext()
        torch.cuda.use_mem_pool = lambda pool: contextlib.nullcontext()

        def allocate(size):
            address = ctypes.c_void_p()
            assert everyone.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)) == 0
            return address.value

        def cycle(saver):
            with saver.region(tag="weights", enable_cpu_backup=True):
                weights = allocate(4 * MIB)
                with saver.disable():
                    scratch = allocate(4 * MIB)
            plain = allocate(4 * MIB)
            for number, address in enumerate((weights, scratch, plain)):
                write(address, number + 1)
            assert hbmalloc.residency("tms.host.weights")["device"] >= 4 * MIB
            saver.pause()
            saver.pause("weights")
            assert hbmalloc.residency("tms.host.weights")["host"] >= 4 * MIB
            assert holds(scratch, 2) and holds(plain, 3)
            saver.resume()
            assert holds(weights, 1) and everyone.cudaFree(ctypes.c_void_p(weights)) == 0
"""


def test_preload_mode(saver, preloaded):
    path = saver("        print(compat.preload_path())").strip()
    assert os.path.samefile(path, os.path.join(os.path.dirname(built_library()), "libhbmalloc_preload.so"))
    saver(PRELOADED + """
        assert os.path.samefile(hbmalloc.get_library_path(), compat.preload_path())
        compat.install()
        from torch_memory_saver import torch_memory_saver as saver
        cycle(saver)
        hbmalloc.set_option("sleep_host_limit", "1MiB")
        assert hbmalloc.trim_host_buffer() > 0
        with saver.region(enable_cpu_backup=True):
            kept = allocate(8 * MIB)
        with refused(hbmalloc.OutOfMemoryError):
            saver.pause()
    """, LD_PRELOAD=path, HBMALLOC_LOG="off", **preloaded)


def test_preload_mode_without_install(saver, preloaded):
    """A process that another one started by configure_subprocess, and that knows nothing of hbmalloc."""
    child = textwrap.dedent(COMMON + PRELOADED + """
        from torch_memory_saver import torch_memory_saver as saver
        assert not compat.is_installed()
        cycle(saver)
    """)
    saver("""
        compat.install()
        from torch_memory_saver import configure_subprocess
        with configure_subprocess():
            subprocess.run([sys.executable, "-c", os.environ["CHILD"]], check=True, timeout=60)
    """, CHILD=child, **preloaded)
