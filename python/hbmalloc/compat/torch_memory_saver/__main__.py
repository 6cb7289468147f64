"""`python -m hbmalloc.compat.torch_memory_saver check`: shows that torch_memory_saver's Python works over hbmalloc here;
`path` prints what LD_PRELOAD is to name for its hook mode "preload"."""

import argparse
import sys

from ..._errors import HbmallocError
from .._checking import size_of
from . import _check, preload_path


def main():
    parser = argparse.ArgumentParser(prog="python -m hbmalloc.compat.torch_memory_saver", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="check | path")
    for name, text in (("check", "pauses and resumes memory in both hook modes, says which library served"),
                       ("try", argparse.SUPPRESS)):
        command = commands.add_parser(name, help=text)
        command.add_argument("--bytes", default="256MiB", help="how much memory, such as 256MiB")
        if name == "try":
            command.add_argument("--mode", choices=_check.MODES, required=True)
    commands.add_parser("path", help="the preload library's file")
    arguments = parser.parse_args()
    try:
        if arguments.command == "path":
            return print(preload_path())
        size = size_of(parser, arguments.bytes, 2)
        if arguments.command == "try":
            return _check.try_once(size, arguments.mode)
        return _check.check(size)
    except (HbmallocError, RuntimeError) as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
