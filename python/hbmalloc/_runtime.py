"""Calls about the memory held now: statistics, trim, devices, the log."""

import atexit
import ctypes
from ctypes import byref, c_int32, c_uint64

from . import _library

_log_callback = None  # the ctypes object must live as long as the library may call it


def device_count():
    """The number of GPUs. Starts the driver, as the first allocation does."""
    count = c_int32()
    _library.check(_library.library().hbm_device_count(byref(count)), "device_count")
    return count.value


def stats(device=0, backend=None):
    """Bytes and counts of one device, of one backend or of all together, as a dict.

    `requested` <= `allocated` <= `reserved`: what callers asked for, what their blocks
    hold, what is held from the driver. Peaks are since the start or `reset_peak_stats`;
    `limit` is 2**64 - 1 where none is set.
    """
    out = _library.Stats(struct_size=ctypes.sizeof(_library.Stats))
    _library.check(_library.library().hbm_stats(device, _library.backend_number(backend), byref(out)), "stats")
    return {name: getattr(out, name) for name, _ in out._fields_[1:]}


def reset_peak_stats(device=0):
    """Starts every peak of a device's statistics again from what there is now."""
    _library.check(_library.library().hbm_stats_reset_peaks(device), "reset_peak_stats")


def trim(device=0, keep=0):
    """Gives cached memory beyond `keep` bytes back to the driver; returns the bytes given back."""
    released = c_uint64()
    _library.check(_library.library().hbm_trim(device, keep, byref(released)), "trim")
    return released.value


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
