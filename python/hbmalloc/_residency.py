"""Sleep and wake: memory of a tag leaves the device and comes back, at the same addresses."""

import ctypes
import sys

from . import _library
from ._errors import CapturingError, HbmallocError
from ._tags import _encoded

#: Where contents go, with the numbers of the C interface.
PLACES = {"host": 0, "file": 1, "discard": 2}

_AMOUNTS = ("moved", "copied", "pinned")

_CLEAN = 1
_GUARD_ZERO = 2


def _names(tags):
    if tags is None:
        return None
    if isinstance(tags, str):
        tags = (tags,)
    return [_encoded(tag) for tag in tags]


def _one_device(device):
    if isinstance(device, bool) or not isinstance(device, int):
        raise TypeError("a device is an int, not %r" % (device,))
    if not 0 <= device < 1 << 31:
        raise ValueError("there is no device %d" % device)
    return device


def _device_numbers(devices):
    if devices is None:
        return [-1]
    if isinstance(devices, int):
        devices = (devices,)
    return [_one_device(device) for device in devices]


def _bytes(number):
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError("a number of bytes is an int, not %r" % (number,))
    if not 0 <= number < 1 << 64:
        raise ValueError("no number of bytes: %d" % number)
    return number


def _unused_ranges():
    """What torch's own allocator has free in its segments: it need not be saved."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    try:
        segments = torch.cuda.memory.memory_snapshot()
    except Exception:  # under install() torch's allocator has none, and its functions answer differently
        return []
    ranges = []
    for segment in segments:
        for block in segment.get("blocks", ()):
            # "active_pending_free" is in use by some stream until the order point, and by nobody after it.
            if block.get("state") == "inactive" and "address" in block:
                ranges.append((block["address"], block["size"]))
    return ranges


def _request(names, device, to=0, flags=0, dead=()):
    request = _library.ResidencyRequest(
        struct_size=ctypes.sizeof(_library.ResidencyRequest), device=device, to=to, flags=flags)
    if names is not None:
        # An array of length 0 has no address that is not NULL, which would be everything.
        request.tags = (ctypes.c_char_p * (len(names) + 1))(*names)
        request.tag_count = len(names)
    if dead:
        request.dead = (_library.Range * len(dead))(*dead)
        request.dead_count = len(dead)
    # One more than there are tags, for memory without one.
    room = _library.library().hbm_tag_count() + 1 if names is None else len(names)
    if room:
        request.by_tag = (_library.ResidencyOfTag * room)()
        request.by_tag_capacity = room
    return request


def _refuse_capture(name):
    """Captures that torch makes with its own allocator are told to nobody, and this would break them."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    if getattr(torch.cuda, "is_current_stream_capturing", bool)():
        raise CapturingError("%s: a CUDA graph is being captured on this thread's stream" % name)


def _do(name, tags, devices, **manner):
    _refuse_capture(name)
    names = _names(tags)
    done = dict.fromkeys(_AMOUNTS, 0)
    done["tags"] = {}
    for device in _device_numbers(devices):
        report = _library.ResidencyReport(struct_size=ctypes.sizeof(_library.ResidencyReport))
        request = _request(names, device, **manner)
        status = getattr(_library.library(), "hbm_" + name)(ctypes.byref(request), ctypes.byref(report))
        for of_tag in request.by_tag[:min(report.tag_count, request.by_tag_capacity)]:
            of_all = done["tags"].setdefault(of_tag.tag.decode(), dict.fromkeys(_AMOUNTS, 0))
            for field in _AMOUNTS:
                of_all[field] += getattr(of_tag, field)
        for field in _AMOUNTS:
            done[field] += getattr(report, field)
        try:
            _library.check(status, name)
        except HbmallocError as error:
            error.report = done
            raise
    return done


def sleep(tags=None, to="host", devices=None, clean=False, guard=None):
    """Gives the device's memory behind `tags` back and keeps its addresses; `wake` undoes it.

    `tags` is a tag's name, several, or None for everything; "" is memory without a tag.
    `to` says what becomes of the contents: "host", pinned memory; "file", a file a tag in the
    folder of the option `sleep_dir`; "discard", they are gone.
    `devices` is a number, several, or None for all in use, which then sleep at the same time.
    `clean` promises that nothing wrote to it since the last wake; what that kept on the host
    (option `keep_host`) is then not copied again. `guard="zero"` makes the addresses read as
    zeros until the wake, which costs both some 24 us for every 32 MiB.

    What can sleep: memory of the pool and the vmm kind, and segments of `memory_pool`. Work
    given to the device before is waited for; touching sleeping memory afterwards is a fault.
    Raises OutOfMemoryError where the host has no room, FileError where the disk has none, CapturingError
    while a CUDA graph is being captured; nothing has changed then on that device, unless the text says
    that some of it sleeps. The exception's `report` says what was done all the same. Returns a dict of bytes: `moved`, `copied`, and `pinned`, which had to stay; `tags`
    has the same for each tag, in the order of `tags`.
    """
    if to not in PLACES:
        raise ValueError("unknown place %r: one of %s" % (to, ", ".join(PLACES)))
    if guard not in (None, "zero"):
        raise ValueError("unknown guard %r: None or 'zero'" % (guard,))
    flags = (_CLEAN if clean else 0) | (_GUARD_ZERO if guard else 0)
    dead = _unused_ranges() if to != "discard" else ()
    return _do("sleep", tags, devices, to=PLACES[to], flags=flags, dead=dead)


def wake(tags=None, devices=None):
    """Brings memory of `tags` back, in their order, with what it held; see `sleep`.

    All or nothing on each device: after an OutOfMemoryError everything sleeps on and can be
    woken later. What was discarded holds anything. Returns a dict of bytes as `sleep` does.
    """
    return _do("wake", tags, devices)


def discard(tags=None, devices=None):
    """`sleep(tags, to="discard")`: the contents are gone, of what sleeps already too."""
    return _do("discard", tags, devices, to=PLACES["discard"])


def residency(tag=None, device=None):
    """Where memory of a tag is, or all memory that can sleep: a dict of bytes.

    `device` awake, `host`, `file` and `discarded` asleep, `pinned` the part of `device` that
    cannot sleep.
    """
    found = _library.Residency(struct_size=ctypes.sizeof(_library.Residency))
    number = -1 if device is None else _one_device(device)
    name = None if tag is None else _encoded(tag)
    _library.check(_library.library().hbm_residency(number, name, ctypes.byref(found)), "residency")
    return {field: getattr(found, field) for field, _ in found._fields_ if field != "struct_size"}


# Raw pointers that the C side keeps, or that a sleep still running may have taken before: these stay.
_callbacks = []


def set_residency_callback(function):
    """Calls `function(device, address, nbytes, change)` for memory that sleeps or wakes; None ends it.

    `change` is "asleep", or "remapped": awake, with other memory behind the same addresses, which
    whoever registered it (RDMA, NCCL) has to register again. It runs on the thread that called
    `sleep`, `wake` or `discard`, before that returns; what it raises is printed and ignored.
    """
    made = None
    if function is not None:
        if not callable(function):
            raise TypeError("a callback is callable or None, not %r" % (function,))

        def told(device, address, nbytes, change, _data):
            function(device, address, nbytes, "remapped" if change else "asleep")

        made = _library.RESIDENCY_CALLBACK(told)
    address = ctypes.cast(made, ctypes.c_void_p) if made else None
    _library.check(_library.library().hbm_residency_callback(address, None), "set_residency_callback")
    if made:
        _callbacks.append(made)


def pin(address, nbytes):
    """Keeps the memory behind an address where it is: what is pinned does not sleep."""
    _library.check(_library.library().hbm_pin(address, _bytes(nbytes)), "pin")


def unpin(address, nbytes):
    """Undoes one `pin` of the same stretch."""
    _library.check(_library.library().hbm_unpin(address, _bytes(nbytes)), "unpin")


def prepare_host_buffer(nbytes):
    """Pins memory of the host until `nbytes` are free, so that the first sleep need not."""
    _library.check(_library.library().hbm_host_buffer_prepare(_bytes(nbytes)), "prepare_host_buffer")


def trim_host_buffer(keep=0):
    """Gives free memory that sleep pinned back to the system, down to `keep` bytes; the bytes given back."""
    given_back = ctypes.c_uint64()
    status = _library.library().hbm_host_buffer_trim(_bytes(keep), ctypes.byref(given_back))
    _library.check(status, "trim_host_buffer")
    return given_back.value


def host_buffer():
    """What is pinned on the host for sleep: a dict of bytes, `pinned` and `used`."""
    found = _library.HostBuffer(struct_size=ctypes.sizeof(_library.HostBuffer))
    _library.check(_library.library().hbm_host_buffer(ctypes.byref(found)), "host_buffer")
    return {"pinned": found.pinned, "used": found.used}
