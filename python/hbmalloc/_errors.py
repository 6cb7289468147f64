"""One exception class a status of the C interface.

Each also derives from the built-in exception that fits, so that a program which knows
nothing of hbmalloc still catches a MemoryError or a ValueError.
"""


class HbmallocError(RuntimeError):
    """A call into the library failed; `status` and `driver_code` are the library's numbers."""

    def __init__(self, message, status=None, driver_code=None):
        super().__init__(message)
        self.status = status
        self.driver_code = driver_code


class InvalidArgumentError(HbmallocError, ValueError):
    """An argument that the call does not take."""


class OutOfMemoryError(HbmallocError, MemoryError):
    """The device, or the limit set for it, has no room for the request."""


class UnsupportedError(HbmallocError, NotImplementedError):
    """This machine or its driver has not got what the call needs."""


class NoDriverError(HbmallocError):
    """No GPU driver was found; the text says what was looked for."""


class DriverError(HbmallocError):
    """The GPU driver refused a call; `driver_code` is its number."""


class NotOwnedError(HbmallocError, ValueError):
    """An address that the library did not give out, or that was freed before."""


class CapturingError(HbmallocError):
    """The call must wait and a CUDA graph is being captured."""


class ForkedError(HbmallocError):
    """The process is a child forked after the driver was used."""


class ShutdownError(HbmallocError):
    """The driver has been shut down: the process is ending."""


class OptionError(HbmallocError, ValueError):
    """An unknown option, or a value that it does not take."""


class BusyError(HbmallocError):
    """What the call would change is in use."""


class InternalError(HbmallocError):
    """A fault in the library itself."""


class FileError(HbmallocError, OSError):
    """A file could not be made, written or read, or does not hold what was written."""


BY_STATUS = {
    1: InvalidArgumentError,
    2: OutOfMemoryError,
    3: UnsupportedError,
    4: NoDriverError,
    5: DriverError,
    6: NotOwnedError,
    7: CapturingError,
    8: ForkedError,
    9: ShutdownError,
    10: OptionError,
    11: BusyError,
    12: InternalError,
    13: FileError,
}
