"""Putting hbmalloc's library in the place of torch_memory_saver's own.

Its Python finds a library by two classes, one a hook mode, and starts processes under one by a third function; these
answer with ours. All the rest of it stays as it is.
"""

import contextlib
import functools
import importlib
import os
import sys
import threading

from ... import _library

_PACKAGE = "torch_memory_saver"
_BINDING = _PACKAGE + ".binary_wrapper"
_PRELOAD = _PACKAGE + ".hooks.mode_preload"
_TORCH = _PACKAGE + ".hooks.mode_torch"

#: What torch_memory_saver must have, by module.
_NEEDED = {
    _PACKAGE: ("torch_memory_saver", "configure_subprocess"),
    _BINDING: ("BinaryWrapper.__init__",),
    _PRELOAD: ("HookUtilModePreload.get_path_binary", "get_binary_path_from_package", "configure_subprocess"),
    _TORCH: ("HookUtilModeTorch.get_path_binary",),
}
_KNOWN = "0.0.10"
#: How the files of its own library begin.
_THEIR_FILES = "torch_memory_saver_hook_mode_"
#: What takes the LD_PRELOAD that its Python looks for is known by this word.
_WORD = "torch_memory_saver"
_FOLDER = os.path.dirname(os.path.realpath(__file__))

_lock = threading.RLock()
#: What undoes what was done; None where nothing is installed.
_installed = None


def preload_path():
    """The preload library's file, for LD_PRELOAD, by a path in which torch_memory_saver's Python finds its name.

    Processes under it use hbmalloc in the hook mode "preload", with `install()` or without. Without it a pause or a
    resume that fails is logged only, since torch_memory_saver does not look at what they return.
    """
    library = os.path.realpath(_library.get_library_path())
    path = os.path.join(os.path.dirname(library), "libhbmalloc_preload.so")
    if not os.path.isfile(path):
        raise RuntimeError("the preload library %s is not there: install the wheel, or build it with "
                           "`cargo build --release --workspace`" % path)
    # The long way round, through a folder of that name.
    named = os.path.join(_FOLDER, os.path.relpath(path, _FOLDER))
    if any(character in named for character in ": \t\n"):
        raise RuntimeError("%s cannot be in LD_PRELOAD, where spaces and colons separate files: install hbmalloc in a folder "
                           "without" % named)
    return named


def _preloaded(_hook):
    path = _library._preloaded()
    if path is None:
        raise RuntimeError(
            "torch_memory_saver's hook mode \"preload\" needs hbmalloc's preload library under the process: start it by "
            "`hbmalloc run -- ...` or with LD_PRELOAD=%s, or set torch_memory_saver.hook_mode = \"torch\"" % preload_path())
    return path


def _opened(_hook):
    _library.library()
    return _library.get_library_path()


def _find(modules, module, name):
    found = modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _mapped_theirs():
    """A file of torch_memory_saver's own library that is loaded in this process."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(None, 5)[-1].strip()
            if os.path.basename(path).startswith(_THEIR_FILES):
                return path
    return None


def _check():
    """torch_memory_saver's modules, or the RuntimeError that says why they cannot be served."""
    modules, missing = {}, []
    try:
        modules[_PACKAGE] = importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise RuntimeError("hbmalloc.compat.torch_memory_saver.install(): torch_memory_saver cannot be imported (%s): install "
                           "it and PyTorch in %s" % (error, sys.executable)) from error
    for module, names in _NEEDED.items():
        try:
            modules[module] = importlib.import_module(module)
        except ImportError as error:
            missing.append("%s (%s)" % (module, error))
            continue
        missing += ["%s.%s" % (module, name) for name in names if _find(modules, module, name) is None]
    if missing:
        raise RuntimeError("hbmalloc.compat.torch_memory_saver.install(): this torch_memory_saver has not got %s; nothing was "
                           "changed. Known to work: %s" % (", ".join(missing), _KNOWN))
    theirs = _mapped_theirs()
    if theirs is not None:
        raise RuntimeError(
            "hbmalloc.compat.torch_memory_saver.install() in a process that has loaded %s: memory may be in use that hbmalloc "
            "does not know. Call it before torch_memory_saver's first use, and start without that file in LD_PRELOAD" % theirs)
    try:
        modules[_BINDING].BinaryWrapper(path_binary=_opened(None))
    except (AttributeError, TypeError) as error:
        raise RuntimeError("hbmalloc.compat.torch_memory_saver.install(): this torch_memory_saver asks for what hbmalloc has not "
                           "got (%s); nothing was changed. Known to work: %s" % (error, _KNOWN)) from error
    return modules


def _raising(operation):
    def check(status, _function, _arguments):
        _library.check(status, "torch_memory_saver.%s" % operation)
        return status
    return check


def _wrapped(theirs):
    """Its binding, whose pause and resume raise: its own library ends the process, so nobody asks what they return."""
    @functools.wraps(theirs)
    def bind(self, *arguments, **named):
        theirs(self, *arguments, **named)
        for operation in ("pause", "resume"):
            getattr(self.cdll, "tms_" + operation).errcheck = _raising(operation)
    return bind


def _put(undo, owner, name, ours):
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, ours)


def install():
    """Has torch_memory_saver's Python, which is imported, use hbmalloc's library, in both hook modes.

    Before its first use, that is before the first region, pause or setting, whether it was imported or not; later it
    raises RuntimeError, as it does with nothing changed where this version lacks what is replaced. Calling it again
    does nothing. Makes no driver call. Any thread.
    """
    global _installed
    if is_installed():
        return
    # Before the lock: who imports a module may wait for another thread that calls this.
    modules = _check()
    with _lock:
        if is_installed():
            return
        with contextlib.ExitStack() as undo:
            binding, preload = modules[_BINDING].BinaryWrapper, modules[_PRELOAD]
            _put(undo, binding, "__init__", _wrapped(binding.__init__))
            _put(undo, preload.HookUtilModePreload, "get_path_binary", _preloaded)
            _put(undo, preload, "get_binary_path_from_package", lambda _stem: preload_path())
            _put(undo, modules[_TORCH].HookUtilModeTorch, "get_path_binary", _opened)
            _installed = undo.pop_all()


def uninstall():
    """Has torch_memory_saver's Python look for its own library again. What has used hbmalloc's meanwhile keeps to it."""
    global _installed
    with _lock:
        if is_installed():
            undo, _installed = _installed, None
            undo.close()


def is_installed():
    """Whether torch_memory_saver's Python is to use hbmalloc's library."""
    return _installed is not None
