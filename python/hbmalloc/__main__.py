"""`python -m hbmalloc`: the command that the wheel carries, for shells that lack its folder on PATH."""

import os
import shutil
import sys
import sysconfig

from ._library import _CHECKOUT, get_library_path


def find_command():
    """The Rust program `hbmalloc`: of this installation, of a source checkout, or on PATH."""
    package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    places = [
        os.path.join(package_root, "bin", "hbmalloc"),  # pip install --target
        os.path.join(sysconfig.get_path("scripts"), "hbmalloc"),
        os.path.join(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")), "hbmalloc")
        if hasattr(sysconfig, "get_preferred_scheme") else None,
        os.path.join(_CHECKOUT, "target", "release", "hbmalloc"),
        os.path.join(_CHECKOUT, "target", "debug", "hbmalloc"),
        shutil.which("hbmalloc"),
    ]
    for place in places:
        if place and os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    sys.exit("hbmalloc: the command was not found; reinstall the wheel, or build it with "
             "`cargo build --release --features cli`")


def main():
    os.environ.setdefault("HBMALLOC_LIBRARY", get_library_path())
    os.environ.setdefault("HBMALLOC_PYTHON", sys.executable)
    command = find_command()
    os.execv(command, [command] + sys.argv[1:])


if __name__ == "__main__":
    main()
