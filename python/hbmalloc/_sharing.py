"""Memory shared between processes: exported by one, sent over a socket, imported by another."""

import contextlib
import ctypes
import os
import select
import warnings

from . import _library
from ._errors import HbmallocError, NotOwnedError
from ._residency import _one_device

_FABRIC = 2


def _descriptor(socket):
    return socket if isinstance(socket, int) else socket.fileno()


class _Closable:
    """Closed by `close()` or at the end of a `with`, at the latest when nobody has it any more."""

    _is_open = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
        return False

    def __del__(self):
        if self._is_open:
            warnings.warn("%r was never closed" % (self,), ResourceWarning, source=self)
            with contextlib.suppress(HbmallocError, OSError):
                self.close()

    def close(self):
        """Ends it; a second call does nothing."""
        if self._is_open:
            self._close()
            self._is_open = False

    def _check_open(self):
        if not self._is_open:
            raise ValueError("%r is closed" % (self,))


class Export(_Closable):
    """A chunk of memory that another process can have; from `export_memory` or `receive_export`.

    `nbytes` from the exported address on, to the end of the chunk, are shared for use, though
    the other process sees the `chunk_bytes` of all of it. `device` is the number that the
    exporting process has for the device, `kind` "fd" or "fabric".
    """

    def __init__(self, struct, address=None):
        self._struct, self._address, self._is_open = struct, address, True

    @property
    def device(self):
        return self._struct.device

    @property
    def kind(self):
        return "fabric" if self._struct.kind == _FABRIC else "fd"

    @property
    def nbytes(self):
        return self._struct.bytes

    @property
    def chunk_bytes(self):
        return self._struct.chunk_bytes

    @property
    def offset(self):
        return self._struct.offset

    def send(self, socket):
        """Sends it over a connected Unix-domain stream socket, to a `receive_export` at the other end."""
        self._check_open()
        status = _library.library().hbm_export_send(_descriptor(socket), ctypes.byref(self._struct))
        _library.check(status, "send")

    def _close(self):
        if self._struct.fd >= 0:
            descriptor, self._struct.fd = self._struct.fd, -1
            os.close(descriptor)
        if self._address is not None:
            # What was freed and unmapped since is pinned no more.
            with contextlib.suppress(NotOwnedError):
                _library.check(_library.library().hbm_export_close(self._struct.serial), "close")

    def __repr__(self):
        return "<hbmalloc export of %d bytes of device %d>" % (self.nbytes, self.device)


class ImportedMemory(_Closable):
    """Memory of another process, mapped here at `address`, `nbytes` long; from `import_memory`.

    `torch.as_tensor(memory, device="cuda")` is a tensor of bytes over it, which keeps it open
    until it is gone, unless it is closed before. Closing waits for the device's work.
    """

    def __init__(self, address, nbytes, device):
        self.address, self.nbytes, self.device, self._is_open = address, nbytes, device, True

    @property
    def __cuda_array_interface__(self):
        self._check_open()
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "strides": None, "version": 3}

    def __del__(self):
        # A tensor over it that goes is no mistake.
        with contextlib.suppress(HbmallocError):
            self.close()

    def _close(self):
        _library.check(_library.library().hbm_import_close(self.address), "close")

    def __repr__(self):
        return "<hbmalloc import of %d bytes at %#x>" % (self.nbytes, self.address)


def _empty():
    return _library.Export(struct_size=ctypes.sizeof(_library.Export), fd=-1)


def export_memory(address):
    """Exports the chunk of memory that an address lies in (a tensor's `data_ptr()`): an `Export`.

    For memory of the pool and the vmm kind, and segments of `memory_pool`. Until the export is
    closed the chunk is pinned: it stays behind the address, even if the block is freed, and does
    not sleep. A block can lie in several chunks; export it again from `nbytes` further on. Blocks
    of the pool share chunks, so the other process sees the neighbours too. Wait for work on
    the memory before another process is told of it.
    """
    found = _empty()
    _library.check(_library.library().hbm_export(address, ctypes.byref(found)), "export_memory")
    return Export(found, address)


def receive_export(socket):
    """Receives what `Export.send` sent over a connected Unix-domain stream socket: an `Export`.

    Waits for it, for as long as the socket's `settimeout` says, and raises TimeoutError then.
    """
    timeout = None if isinstance(socket, int) else socket.gettimeout()
    waiting = select.poll()
    waiting.register(_descriptor(socket), select.POLLIN)
    # Here, and not in the library, since it can be interrupted.
    if not waiting.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError("no export came within %g s" % timeout)
    found = _empty()
    _library.check(_library.library().hbm_export_receive(_descriptor(socket), ctypes.byref(found)), "receive_export")
    return Export(found)


def import_memory(export, device=0):
    """Maps what was exported, for a device and its peers: `ImportedMemory`. The export may be closed then.

    `device` is the one that has the memory, as this process counts them. It counts to no limit
    and no statistics here, and is no block that could be freed.
    """
    export._check_open()
    address = ctypes.c_void_p()
    status = _library.library().hbm_import(ctypes.byref(export._struct), _one_device(device), ctypes.byref(address))
    _library.check(status, "import_memory")
    return ImportedMemory(address.value, export.nbytes, device)
