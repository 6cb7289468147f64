"""Calls about the memory held now: trim, limits, devices, the log."""

import atexit
import ctypes
import re
from ctypes import byref, c_int32, c_uint64

from . import _library

_log_callback = None  # the ctypes object must live as long as the library may call it


def device_count():
    """The number of GPUs. Starts the driver, as the first allocation does."""
    count = c_int32()
    _library.check(_library.library().hbm_device_count(byref(count)), "device_count")
    return count.value


def trim(device=0, keep=0):
    """Gives a device's cached memory back to the driver, down to `keep` bytes for each backend that caches.

    `keep` is a number of bytes or a text such as "1GiB"; `trim("1GiB")` is that of device 0.
    Returns the bytes given back. Blocks in use stay. Waits for the work on freed blocks;
    does nothing while a CUDA graph is being captured on the device.
    """
    if isinstance(device, str) and keep == 0:
        device, keep = 0, device
    if isinstance(device, bool) or not isinstance(device, int):
        raise TypeError("a device is its ordinal, an int, not %r" % (device,))
    if isinstance(keep, str):
        text, keep = keep, _size(keep)
        if isinstance(keep, float):
            raise ValueError("what is kept is a size such as 1GiB, not a share: %r" % text)
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise TypeError("what is kept is a number of bytes or a text such as '1GiB', not %r" % (keep,))
    if not 0 <= keep < 1 << 64:
        raise ValueError("what is kept is 0 bytes or more: %r" % keep)
    released = c_uint64()
    _library.check(_library.library().hbm_trim(device, keep, byref(released)), "trim")
    return released.value


def set_limit(limit, device=None):
    """Limits what the library holds of a device's memory, in blocks or cached, by all backends together.

    `limit` is a number of bytes, a text such as "20GiB" or "80%" (of each device's
    memory), or None for no limit; `device` an ordinal, or None for every device. May be
    changed at any time, and set before the driver is started. Nobody is asked then which
    devices there are: of one that does not exist the first allocation there says so.
    Requests that would pass it raise OutOfMemoryError. Set below what is held, it gives
    back what is cached; blocks stay, and whatever needs more memory fails until less is held.
    """
    handle, ordinal = _library.library(), -1 if device is None else device
    if limit is None:
        return _library.check(handle.hbm_set_limit(ordinal, 0), "set_limit")
    if isinstance(limit, str):
        number = _size(limit)
        if isinstance(number, float):
            return _library.check(handle.hbm_set_limit_fraction(ordinal, number), "set_limit")
        limit = number
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError("a limit is a number of bytes, a text such as '80%%', or None, not %r" % (limit,))
    if not 0 < limit < 1 << 64:
        raise ValueError("a limit lies above 0 bytes, and None is for no limit: %r" % limit)
    _library.check(handle.hbm_set_limit(ordinal, limit), "set_limit")


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*|%)\s*", re.IGNORECASE)
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS[_letter] = _UNITS[_letter + "ib"] = 1024 ** _power
    _UNITS[_letter + "b"] = 1000 ** _power


def _size(text):
    """Bytes as an int, or a share between 0 and 1 as a float."""
    match = _SIZE.fullmatch(text)
    number, unit = match.groups() if match else ("", "none")
    if unit == "%":
        if not 0 < float(number) <= 100:
            raise ValueError("a share lies above 0%% and goes up to 100%%: %r" % text)
        return float(number) / 100
    if unit.lower() not in _UNITS or ("." in number and unit.lower() in ("", "b")):
        raise ValueError("%r is neither a size such as 20GiB nor a share such as 80%%" % text)
    scale = _UNITS[unit.lower()]
    return int(number) * scale if number.isdigit() else int(float(number) * scale)


def get_limit(device=0):
    """The limit of a device in bytes, None where it has none.

    Starts the driver where the limit is a share of a device's memory that is not in use yet.
    """
    limit = c_uint64()
    _library.check(_library.library().hbm_get_limit(device, byref(limit)), "get_limit")
    return limit.value or None


def set_log_callback(function):
    """Calls `function(level, target, message)` for each line of the library's log; None ends it.

    The callback needs Python's lock, and a thread inside an allocation may hold locks of
    torch: keep this for programs of one thread and for debugging. `HBMALLOC_LOG_FILE`
    has no such limit.
    """
    global _log_callback
    new = None
    if function is not None:

        def forward(level, target, message, _user):
            function(level, (target or b"").decode("utf-8", "replace"), (message or b"").decode("utf-8", "replace"))

        new = _library.LOG_CALLBACK(forward)
    _library.check(_library.library().hbm_log_set_callback(
        ctypes.cast(new, ctypes.c_void_p) if new else None, None), "set_log_callback")
    _retired.append(_log_callback)
    _log_callback = new


_retired = []  # earlier callbacks: another thread may still be inside one


@atexit.register
def _forget_callback():
    if _log_callback is not None:
        _library.library().hbm_log_set_callback(None, None)
