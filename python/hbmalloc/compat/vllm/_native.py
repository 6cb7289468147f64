"""The native module `cumem_allocator`: where its file is, and the module itself.

vLLM looks for a mapped file whose name begins with `cumem_allocator.`, so the file that
cargo names `libcumem_allocator.so` gets that name too, beside the first.
"""

import importlib.machinery
import importlib.util
import os
import sys
import threading

from ... import _library
from ..._errors import HbmallocError

#: As vLLM imports it.
NAME = "vllm.cumem_allocator"
FILE = "cumem_allocator.abi3.so"

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_lock = threading.Lock()
_module = None


def _named_for_vllm(built):
    """`built` under the name that vLLM looks for: a link beside it, or a copy where there can be none."""
    wanted = os.path.join(os.path.dirname(built), FILE)
    if os.path.exists(wanted) and os.path.samefile(built, wanted):
        return wanted
    made = "%s.%d" % (wanted, os.getpid())
    try:
        os.link(built, made)
        os.replace(made, wanted)
    except OSError as error:
        raise HbmallocError("%s could not be made of %s: %s" % (wanted, built, error)) from error
    return wanted


def path():
    """The file of the native module: of this installation, or beside the library that cargo built."""
    installed = os.path.join(_FOLDER, FILE)
    if os.path.isfile(installed):
        return installed
    beside = os.path.join(os.path.dirname(_library.get_library_path()), "libcumem_allocator.so")
    if os.path.isfile(beside):
        return _named_for_vllm(beside)
    raise HbmallocError(
        "the native module %s was not found (looked for %s and %s): install the wheel, or build it with "
        "`cargo build --release --workspace`" % (FILE, installed, beside))


def load():
    """The module, loaded once; it uses the library that this package has opened."""
    global _module
    with _lock:
        if _module is None:
            _library.library()
            loader = importlib.machinery.ExtensionFileLoader(NAME, path())
            spec = importlib.util.spec_from_file_location(NAME, loader.path, loader=loader)
            # What is there under the name stays for now; loading one of this kind puts it there.
            before = sys.modules.get(NAME)
            try:
                _module = importlib.util.module_from_spec(spec)
                loader.exec_module(_module)
            finally:
                sys.modules.pop(NAME, None)
                if before is not None:
                    sys.modules[NAME] = before
    return _module
