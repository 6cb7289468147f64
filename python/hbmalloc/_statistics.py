"""Statistics: of a device, a backend, a tag, a stream, of the pool, and of the driver's calls."""

import ctypes
from ctypes import byref, c_size_t, c_void_p

from . import _library
from ._tags import _NAME_BYTES, _encoded


def _asked(kind, operation, call):
    """The struct that `call` fills in, as a dict."""
    out = kind(struct_size=ctypes.sizeof(kind))
    _library.check(call(byref(out)), operation)
    return {name: getattr(out, name) for name, _ in out._fields_[1:]}


def stats(device=0, backend=None, *, tag=None, stream=None):
    """Bytes and counts of one device, as a dict: of one backend, one tag or one stream, or of all together.

    `requested` <= `allocated` <= `reserved`: what callers asked for, what their blocks
    hold, what is held from the driver. Peaks are since the start or `reset_peak_stats`;
    `limit` is 2**64 - 1 where none is set.

    `tag` is a name, or "" for what has no tag; `stream` a CUDA stream of torch, or a
    handle as an int (0 is the legacy stream). These have fewer keys, and a stream's
    `reserved` is 0, since streams share what is held. A stream's counts are those of its
    handle, whichever streams have had it. Any thread may ask; the driver is not started.
    """
    if (backend is not None) + (tag is not None) + (stream is not None) > 1:
        raise ValueError("statistics are of a backend, a tag or a stream, not of several of these at once")
    handle = _library.library()
    if tag is not None:
        name = _encoded(tag) or None
        return _asked(_library.BlockStats, "stats", lambda out: handle.hbm_tag_stats(device, name, out))
    if stream is not None:
        raw = getattr(stream, "cuda_stream", stream)
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise TypeError("a stream is one of torch.cuda or its handle as an int, not %r" % (stream,))
        return _asked(_library.BlockStats, "stats", lambda out: handle.hbm_stream_stats(device, raw, out))
    number = _library.backend_number(backend)
    return _asked(_library.Stats, "stats", lambda out: handle.hbm_stats(device, number, out))


def stats_by_tag(device=0):
    """`stats(device, tag=...)` of every tag that has had blocks there, by name; "" is what has no tag."""
    handle, room = _library.library(), ctypes.create_string_buffer(_NAME_BYTES)
    names = [""]
    for index in range(handle.hbm_tag_count()):
        _library.check(handle.hbm_tag_name(index, room, len(room)), "stats_by_tag")
        names.append(room.value.decode())
    found = {name: stats(device, tag=name) for name in names}
    return {name: of for name, of in found.items() if of["allocations"] or of["reserved"]}


def stats_by_stream(device=0):
    """`stats(device, stream=...)` of every stream that blocks were allocated on, by its handle."""
    handle, count = _library.library(), c_size_t()
    _library.check(handle.hbm_stream_list(device, None, 0, byref(count)), "stats_by_stream")
    room = (c_void_p * (count.value + 16))()  # one may come in between
    _library.check(handle.hbm_stream_list(device, room, len(room), byref(count)), "stats_by_stream")
    handles = sorted(raw or 0 for raw in room[:min(count.value, len(room))])
    return {raw: stats(device, stream=raw) for raw in handles}


def pool_stats(device=0):
    """What the caching pool of a device did, as a dict.

    Every request is one of `hits` (served by what was at hand: no driver call), `collected`
    (by what other streams or threads were done with) and `misses` (memory was moved or
    made). `stitches` are chunks moved to another address, `creates` and `releases` chunks
    made and given back. Of the bytes `cached`, threads have `kept` some for requests of the
    same size and `releasable` ones could go back to the device.

    Looks through the free memory of the pool: not for inner loops.
    """
    call = _library.library().hbm_pool_stats
    return _asked(_library.PoolStats, "pool_stats", lambda out: call(device, out))


def driver_stats():
    """Calls of the driver by hbmalloc in this process, as a dict.

    `calls` counts all but those that cost the driver next to nothing. While
    `set_option("driver_timing", "on")` holds, `timed_calls` and `nanoseconds` count too: the
    time callers spent in them, over all threads, at two looks at the clock a call.
    """
    call = _library.library().hbm_driver_stats
    return _asked(_library.DriverStats, "driver_stats", call)


def reset_peak_stats(device=0):
    """Starts every peak of a device's statistics, by tag and by stream too, again from what there is now."""
    _library.check(_library.library().hbm_stats_reset_peaks(device), "reset_peak_stats")
