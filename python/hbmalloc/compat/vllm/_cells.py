"""The cells that the library knows: addresses that stay, with memory behind them or none."""

import ctypes
from ctypes import byref, c_size_t, c_uint64
from typing import NamedTuple

from ... import _library
from ..._errors import NotOwnedError

# A name has 255 bytes at most.
_NAME = 256


class Cell(NamedTuple):
    """A cell; `handle` is what vLLM knows it by."""

    serial: int
    handle: tuple
    tag: str
    is_mapped: bool
    is_asleep: bool


def _describe(address):
    handle = _library.library()
    cell = _library.Cell(ctypes.sizeof(_library.Cell))
    _library.check(handle.hbm_cell_describe(address, byref(cell)), "cells")
    name = ctypes.create_string_buffer(_NAME)
    _library.check(handle.hbm_tag_of(address, name, _NAME), "cells")
    if cell.is_callers:
        return None
    return Cell(cell.serial, (cell.device, cell.bytes, cell.address, _shown(cell)),
                name.value.decode(), bool(cell.is_mapped), bool(cell.is_asleep))


def _shown(cell):
    # As the native module says it: with ROCm a list, a place for each chunk.
    at, each = cell.handle_address, cell.chunk_bytes
    if not each:
        return at
    return [(at + 8 * index, min(each, cell.bytes - offset))
            for index, offset in enumerate(range(0, cell.bytes, each))]


def known():
    """Every cell whose addresses the library reserved, by its address."""
    handle, count, room = _library.library(), c_size_t(), 256
    while True:
        addresses = (c_uint64 * room)()
        _library.check(handle.hbm_cell_list(addresses, room, byref(count)), "cells")
        if count.value <= room:
            break
        room = count.value + 64
    found = {}
    for address in addresses[:count.value]:
        try:
            cell = _describe(address)
        except NotOwnedError:  # freed meanwhile
            continue
        if cell is not None:
            found[address] = cell
    return found


def _all_of(function, addresses, operation):
    bytes_ = c_uint64()
    array = (c_uint64 * len(addresses))(*addresses)
    _library.check(function(array, len(addresses), byref(bytes_)), operation)
    return bytes_.value


def discard(addresses):
    """Takes the memory from behind cells, all behind one wait for the work of each device; the bytes."""
    return _all_of(_library.library().hbm_cells_discard, list(addresses), "discard")


def back(addresses):
    """Puts new memory behind cells that have none, behind all or none of them; the bytes."""
    return _all_of(_library.library().hbm_cells_map, list(addresses), "wake_up")


def counters():
    """What was done with cells in this process, as a dict: `creates` and `unmaps` tell that it was we."""
    stats = _library.CellStats(ctypes.sizeof(_library.CellStats))
    _library.check(_library.library().hbm_cell_stats(byref(stats)), "counters")
    return {name: getattr(stats, name) for name, _ in stats._fields_ if name != "struct_size"}
