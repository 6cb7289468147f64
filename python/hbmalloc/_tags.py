"""Tags: names that group memory for statistics, limits and placement."""

import contextlib
import ctypes

from . import _library

#: Where memory of a tag may live, with the numbers of the C interface.
PLACEMENTS = {"device": 1, "host": 2, "none": 3}

_NAME_BYTES = 256  # holds every name and its final zero


def _encoded(name):
    if not isinstance(name, str):
        raise TypeError("a tag is a str, not %r" % (name,))
    return _library.encoded("a tag's name", name)


class tag(contextlib.ContextDecorator):
    """What this thread allocates inside has the tag `name`: `with hbmalloc.tag("weights"): ...`

    Also a decorator of functions. Tags nest, the innermost counts; a pool or an allocator
    that has a tag of its own keeps it. Other threads, autograd's among them, do not
    inherit it: `set_default_tag` is for those. A coroutine that awaits inside may find
    another's tag, since a tag belongs to the thread. Makes no driver call.

    `name` has 1 to 255 bytes; a process can have 65535 names.

    `placement` says where memory of this tag lives, in the whole process and from the
    first use of the tag on: "device"; "host", pinned and mapped for the device, taking
    nothing of its limit; "none", where the driver thinks best. It beats the option
    `placement`; None leaves things as they are. The pool's, managed and vmm memory can be
    placed on the host; with device and async memory, and the pool over device, allocating is
    an UnsupportedError then; pinned memory is the host's alone. What is allocated already,
    or cached by the pool for the tag, stays where it is; the pool asks once, at the tag's
    first block on a stream, so place a tag before it is used.
    """

    def __init__(self, name, placement=None):
        self.name = name
        self.placement = placement
        self._bytes = _encoded(name)
        if placement is not None and placement not in PLACEMENTS:
            raise ValueError("unknown placement %r: one of %s" % (placement, ", ".join(PLACEMENTS)))

    def __enter__(self):
        if self.placement is not None:
            number = PLACEMENTS[self.placement]
            _library.check(_library.library().hbm_tag_place(self._bytes, number), "tag")
        _library.check(_library.library().hbm_tag_push(self._bytes), "tag")
        return self

    def __exit__(self, *exception):
        _library.check(_library.library().hbm_tag_pop(), "tag")
        return False

    def __repr__(self):
        if self.placement is None:
            return "hbmalloc.tag(%r)" % self.name
        return "hbmalloc.tag(%r, placement=%r)" % (self.name, self.placement)


def set_default_tag(name):
    """Sets the tag of memory that threads without a tag of their own allocate; None for no tag."""
    encoded = None if name is None else _encoded(name)
    _library.check(_library.library().hbm_set_default_tag(encoded), "set_default_tag")


def current_tag():
    """The tag that this thread's next block gets; None for no tag."""
    room = ctypes.create_string_buffer(_NAME_BYTES)
    _library.check(_library.library().hbm_tag_current(room, len(room)), "current_tag")
    return room.value.decode() or None


def tag_of(address):
    """The tag of the block that begins at `address` (a tensor's `data_ptr()`); None for no tag."""
    room = ctypes.create_string_buffer(_NAME_BYTES)
    _library.check(_library.library().hbm_tag_of(address, room, len(room)), "tag_of")
    return room.value.decode() or None
