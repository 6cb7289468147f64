"""`python -m hbmalloc.compat.lmcache check`: shows that LMCache's host memory is hbmalloc's here; `bench` measures both."""

import argparse
import sys

from ..._errors import HbmallocError
from .._checking import size_of
from . import _bench, _check


def main():
    parser = argparse.ArgumentParser(prog="python -m hbmalloc.compat.lmcache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="check | bench")
    command = commands.add_parser("check", help="finds LMCache, allocates and frees through its names, says what served")
    command.add_argument("--bytes", default="256MiB", help="how much memory, such as 256MiB")
    commands.add_parser("bench", help="objects and addresses of LMCache's and of hbmalloc's, side by side")
    arguments = parser.parse_args()
    try:
        if arguments.command == "bench":
            return _bench.bench()
        size = size_of(parser, arguments.bytes, 16)
        return _check.check(size)
    except HbmallocError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
