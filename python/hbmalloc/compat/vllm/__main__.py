"""`python -m hbmalloc.compat.vllm check`: shows that vLLM's sleep mode works over hbmalloc here."""

import argparse
import sys

from ..._errors import HbmallocError
from .._checking import size_of
from . import _check


def main():
    parser = argparse.ArgumentParser(prog="python -m hbmalloc.compat.vllm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="check")
    for name, text in (("check", "finds vLLM, sleeps and wakes memory through its class, says which module served"),
                       ("try", argparse.SUPPRESS)):
        command = commands.add_parser(name, help=text)
        command.add_argument("--bytes", default="1GiB", help="how much memory, such as 1GiB")
        if name == "try":
            command.add_argument("--native-only", action="store_true")
    arguments = parser.parse_args()
    try:
        size = size_of(parser, arguments.bytes, 2)
        if arguments.command == "try":
            return _check.try_once(size, arguments.native_only)
        return _check.check(size)
    except HbmallocError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
