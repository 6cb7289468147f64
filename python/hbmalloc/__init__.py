"""GPU memory for deep-learning programs: the Python face of libhbmalloc.

Importing this package loads nothing and asks no driver; the library is opened by the
first call that needs it, the driver by the first allocation. Everything here is ctypes
over the C interface of `include/hbmalloc.h`; torch is imported by `hbmalloc.torch`'s
functions only.
"""

from . import host, torch
from ._errors import (
    BusyError,
    CapturingError,
    DriverError,
    FileError,
    ForkedError,
    HbmallocError,
    InternalError,
    InvalidArgumentError,
    NoDriverError,
    NotOwnedError,
    OptionError,
    OutOfMemoryError,
    ShutdownError,
    UnsupportedError,
)
from ._library import BACKENDS, get_include, get_library_path, library_version
from ._options import Option, get_option, options, set_option
from ._residency import discard, host_buffer, pin, prepare_host_buffer, residency, set_residency_callback, sleep, trim_host_buffer, unpin, wake
from ._runtime import device_count, get_limit, set_limit, set_log_callback, trim
from ._sharing import Export, ImportedMemory, export_memory, import_memory, receive_export
from ._statistics import driver_stats, pool_stats, reset_peak_stats, stats, stats_by_stream, stats_by_tag
from ._tags import current_tag, set_default_tag, tag, tag_of
from ._version import __version__

__all__ = [
    "BACKENDS",
    "BusyError",
    "CapturingError",
    "DriverError",
    "Export",
    "FileError",
    "ForkedError",
    "HbmallocError",
    "ImportedMemory",
    "InternalError",
    "InvalidArgumentError",
    "NoDriverError",
    "NotOwnedError",
    "Option",
    "OptionError",
    "OutOfMemoryError",
    "ShutdownError",
    "UnsupportedError",
    "__version__",
    "current_tag",
    "device_count",
    "discard",
    "driver_stats",
    "export_memory",
    "get_include",
    "get_library_path",
    "get_limit",
    "get_option",
    "host",
    "host_buffer",
    "import_memory",
    "library_version",
    "options",
    "pin",
    "pool_stats",
    "prepare_host_buffer",
    "receive_export",
    "reset_peak_stats",
    "residency",
    "set_default_tag",
    "set_limit",
    "set_log_callback",
    "set_option",
    "set_residency_callback",
    "sleep",
    "stats",
    "stats_by_stream",
    "stats_by_tag",
    "tag",
    "tag_of",
    "torch",
    "trim",
    "trim_host_buffer",
    "unpin",
    "wake",
]
