"""What `python -m hbmalloc.compat.X check` of all X share."""

import importlib.metadata
import importlib.util
import subprocess
import sys

from .._runtime import _size

_LIMIT_SECONDS = 300


def installed_version(name, module):
    """The version of what is installed as `module`; None, after saying so, where there is none. Does not import it."""
    if importlib.util.find_spec(module) is None:
        print("%s is not installed in %s: install it there, or run this with the Python that %s is installed in" % (
            name, sys.executable, name))
        return None
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def size_of(parser, text, least_mib):
    """The bytes that `--bytes` says, from so many MiB on; else the parser's error."""
    size = _size(text)
    if isinstance(size, float) or size < least_mib << 20:
        parser.error("--bytes: a size from %dMiB on, not %s" % (least_mib, text))
    return size


def fails_apart(arguments, environment):
    """Whether `python -m ...`, in a process of its own, does not end well; it says so, beside what that printed."""
    try:
        status = subprocess.run([sys.executable, "-m"] + arguments, env=environment, timeout=_LIMIT_SECONDS).returncode
    except subprocess.TimeoutExpired:
        status = "no end in %d s" % _LIMIT_SECONDS
    return status != 0 and failed(status)


def failed(why):
    """Says that something failed; True."""
    print("  FAIL (%s)" % why, flush=True)
    return True


def require(condition, text):
    """Ends the process with `text` where the condition does not hold."""
    if not condition:
        sys.exit("  " + text)
