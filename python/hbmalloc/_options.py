"""The library's one table of options, read and written from Python."""

import ctypes
from ctypes import byref
from typing import NamedTuple

from . import _library
from ._errors import OptionError


class Option(NamedTuple):
    """One row of the table; `origin` says where the value came from."""

    value: str
    default: str
    origin: str
    help: str
    accepted: str


def options():
    """Every option by name."""
    handle = _library.library()
    table = {}
    for index in range(handle.hbm_option_count()):
        row = _library.OptionInfo(struct_size=ctypes.sizeof(_library.OptionInfo))
        _library.check(handle.hbm_option_describe(index, byref(row)), "options")
        name, *rest = [(getattr(row, field) or b"").decode() for field, _ in row._fields_[1:]]
        table[name] = Option(*rest)
    return table


def _encoded(text):
    return _library.encoded("an option's name or value", text, OptionError)


def get_option(name):
    """The value of one option, as text."""
    handle, needed = _library.library(), ctypes.c_size_t()
    _library.check(handle.hbm_option_get(_encoded(name), None, 0, byref(needed)), "option " + name)
    room = ctypes.create_string_buffer(needed.value + 1)
    _library.check(handle.hbm_option_get(_encoded(name), room, len(room), byref(needed)), "option " + name)
    return room.value.decode()


def as_text(value):
    """A Python value in the words of the options table."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


def set_option(name, value):
    """Sets one option; a value it does not take is an OptionError and changes nothing."""
    _library.check(_library.library().hbm_option_set(_encoded(name), _encoded(as_text(value))), "option " + name)


def set_options(values):
    """Sets all of `values`, or none: every one is checked before the first is set."""
    handle = _library.library()
    texts = {name: as_text(value) for name, value in values.items()}
    for name, text in texts.items():
        _library.check(handle.hbm_option_validate(_encoded(name), _encoded(text)), "option " + name)
    for name, text in texts.items():
        set_option(name, text)
