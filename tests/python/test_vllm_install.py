"""Putting our modules in place of vLLM's: before it is imported, after, and too late."""

import os
import subprocess
import sys

import pytest
from conftest import FAKE_TORCH, PYTHON, ROOT, built_library, environment
from vllm_code import COMMON

STAND_IN = os.path.join(ROOT, "tests", "vllm_stand_in")
pytestmark = pytest.mark.skipif(
    not os.path.exists(os.path.join(os.path.dirname(built_library() or ""), "libcumem_allocator.so")),
    reason="the native module is not built beside the library")

#: A module with the names of vLLM's, which must not be the one that serves.
THEIRS = """
init_module = python_create_and_map = python_unmap_and_release = create_and_map = unmap_and_release = None
lib_name, cumem_available, libcudart = None, False, "theirs"


class CuMemAllocator:
    instance = None

    @staticmethod
    def get_instance():
        CuMemAllocator.instance = CuMemAllocator()
        return CuMemAllocator.instance
"""

OURS = """
        def is_ours(module):
            native = sys.modules["vllm.cumem_allocator"]
            assert "hbmalloc" in module.__name__ or module.cumem_available
            assert module.python_create_and_map is native.python_create_and_map
            assert module.CuMemAllocator.get_instance() is ours.CuMemAllocator.get_instance()
            assert module.create_and_map is ours.create_and_map
"""


@pytest.fixture
def beside(sim, tmp_path):
    theirs = tmp_path / "theirs.py"
    theirs.write_text(THEIRS)

    def beside_vllm(code, **variables):
        path = os.pathsep.join([PYTHON, FAKE_TORCH, STAND_IN])
        return sim(COMMON + OURS + code, PYTHONPATH=path, HBMALLOC_VLLM_CUMEM_PY=str(theirs), **variables)

    return beside_vllm


def test_before_vllm_is_imported(beside):
    beside("""
        assert not vllm.is_installed()
        vllm.install()
        assert vllm.is_installed() and "vllm" not in sys.modules and _library.library().hbm_driver_used() == 0
        vllm.install()
        from hbmalloc.compat.vllm import cumem as ours
        import vllm.device_allocator.cumem as module
        from vllm.device_allocator.cumem import CuMemAllocator, create_and_map, unmap_and_release
        from vllm.cumem_allocator import init_module, python_create_and_map, python_unmap_and_release
        assert module is ours and CuMemAllocator is ours.CuMemAllocator
        assert module.__spec__.name == module.__name__ == "hbmalloc.compat.vllm.cumem"
        import vllm.device_allocator as package
        assert package.cumem is ours and package.DEFERRABLE_TAGS
        is_ours(module)
    """)


def test_after_vllm_is_imported(beside):
    beside("""
        import vllm.device_allocator.cumem as module
        from vllm.device_allocator.cumem import CuMemAllocator as taken
        from hbmalloc.compat import vllm as compat
        compat.install()
        from hbmalloc.compat.vllm import cumem as ours
        is_ours(module)                                  # whoever keeps their module finds our names there
        assert taken.get_instance() is ours.CuMemAllocator.get_instance()
        import vllm
        assert vllm.device_allocator.cumem is ours and sys.modules["vllm.device_allocator.cumem"] is ours
        assert vllm.cumem_allocator is sys.modules["vllm.cumem_allocator"]
        compat.install()
    """)


def test_too_late(beside):
    beside("""
        import vllm.device_allocator.cumem as module
        from hbmalloc.compat import vllm as compat
        module.CuMemAllocator.get_instance()
        for native_only in (False, True):
            with refused(RuntimeError, "after vLLM's CuMemAllocator was made", "HBMALLOC_VLLM=1"):
                compat.install(native_only=native_only)
        assert sys.modules["vllm.device_allocator.cumem"] is module and not compat.is_installed()
        assert "vllm.cumem_allocator" not in sys.modules and module.cumem_available is False
    """)


def test_native_module_alone(beside):
    beside("""
        import vllm.device_allocator.cumem as module
        from hbmalloc.compat import vllm as compat
        compat.install(native_only=True)
        from vllm import cumem_allocator as native
        assert module.init_module is native.init_module and module.lib_name == native.__file__ and module.cumem_available
        assert sys.modules["vllm.device_allocator.cumem"] is module and not compat.is_installed()
        compat.install(native_only=True)
        compat.install()                                 # the class may follow
        assert compat.is_installed()
        with refused(RuntimeError, "class is installed already"):
            compat.install(native_only=True)
    """)


def test_native_module_after_theirs_was_loaded(beside):
    beside("""
        import types
        sys.modules["vllm.cumem_allocator"] = theirs = types.ModuleType("vllm.cumem_allocator")
        with refused(RuntimeError, "after vllm.cumem_allocator was imported"):
            vllm.install(native_only=True)
        assert sys.modules["vllm.cumem_allocator"] is theirs
        vllm.install()                                   # our class does not look for the file
        assert vllm.is_installed()
    """)


def test_a_missing_native_module_is_no_silent_fallback(beside):
    beside("""
        from hbmalloc.compat.vllm import _native
        _native.path = lambda: "/nowhere/cumem_allocator.abi3.so"
        with refused(ImportError, "/nowhere"):
            vllm.plugin()
        assert "vllm.cumem_allocator" not in sys.modules
    """, HBMALLOC_VLLM="1")


@pytest.mark.parametrize("value, installed", [("", False), ("0", False), ("1", True), ("native", False)])
def test_plugin(beside, value, installed):
    beside("""
        vllm.plugin()
        vllm.plugin()
        assert vllm.is_installed() is %s
        try:
            from vllm import cumem_allocator
        except ImportError:
            cumem_allocator = None
        assert (cumem_allocator is not None) is %s
        hbmalloc.device_count()                          # no warning of an unknown variable
    """ % (installed, value in ("1", "native")), HBMALLOC_VLLM=value)


def test_plugin_with_a_wrong_value(beside):
    beside("""
        with refused(ValueError, "HBMALLOC_VLLM", "'yes'", "1 for"):
            vllm.plugin()
    """, HBMALLOC_VLLM="yes")


def test_compat_imports_nothing(run):
    run("""
        import sys
        import hbmalloc.compat.vllm
        assert "torch" not in sys.modules and "vllm" not in sys.modules
        assert "hbmalloc.compat.vllm.cumem" not in sys.modules
    """)


def command(*arguments, **variables):
    done = subprocess.run([sys.executable, "-m", "hbmalloc.compat.vllm", *arguments], capture_output=True, text=True,
                          env=environment(**variables), timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_check_without_vllm():
    status, out = command("check")
    assert status == 1 and "vLLM is not installed" in out, out
    status, out = command("check", "--bytes", "plenty")
    assert status != 0 and "plenty" in out


def test_check_fails_where_nothing_can_run():
    path = os.pathsep.join([PYTHON, STAND_IN])
    status, out = command("check", PYTHONPATH=path, HBMALLOC_VLLM_CUMEM_PY="/nowhere")
    assert status == 1 and out.count("FAIL") == 2 and "cumem_allocator.abi3.so" in out, out
