"""Finds and opens libhbmalloc, once a process, and declares what it exports.

The search: the file that `HBMALLOC_LIBRARY` names; the one in this package; in a source
checkout, what cargo built. The same library opened from two paths would be two
libraries with two states, so everything in the process should use `get_library_path()`.
"""

import ctypes
import os
import threading
from ctypes import (
    POINTER, c_char, c_char_p, c_double, c_int32, c_int64, c_size_t, c_ssize_t, c_uint, c_uint8, c_uint16, c_uint32, c_uint64, c_ulonglong,
    c_void_p,
)

from ._errors import BY_STATUS, HbmallocError, InvalidArgumentError
from ._version import __version__

#: Where memory can come from, with the numbers of the C interface.
BACKENDS = {"pool": 4, "device": 0, "managed": 1, "async": 2, "vmm": 3, "pinned": 5}

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_CHECKOUT = os.path.dirname(os.path.dirname(_PACKAGE))

RESIDENCY_CALLBACK = ctypes.CFUNCTYPE(None, c_int32, c_void_p, c_uint64, c_int32, c_void_p)
LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_char_p, c_void_p)


def _counts(*names):
    return [("struct_size", c_size_t)] + [(name, c_uint64) for name in names]


class Stats(ctypes.Structure):
    """hbm_stats_t."""

    _fields_ = _counts(
        "requested", "allocated", "reserved",
        "peak_requested", "peak_allocated", "peak_reserved",
        "allocations", "deallocations", "failed_allocations", "rejected_frees",
        "pending_frees", "pending_bytes", "warnings",
        "total_requested", "total_allocated", "total_reserved",
        "peak_blocks", "out_of_memory", "limit",
        "segments", "peak_segments", "total_segments", "retries", "limit_used",
    )


class BlockStats(ctypes.Structure):
    """hbm_block_stats_t."""

    _fields_ = _counts(
        "requested", "allocated", "reserved",
        "peak_requested", "peak_allocated", "peak_reserved",
        "allocations", "deallocations", "peak_blocks",
        "total_requested", "total_allocated",
    )


class PoolStats(ctypes.Structure):
    """hbm_pool_stats_t."""

    _fields_ = _counts(
        "hits", "collected", "misses", "owner_changes", "stitches", "stitched_bytes",
        "creates", "releases", "chunks", "peak_chunks", "retries", "waits",
        "cached", "kept", "releasable", "largest_free", "stuck_pieces",
    )


class DriverStats(ctypes.Structure):
    """hbm_driver_stats_t."""

    _fields_ = _counts("calls", "timed_calls", "nanoseconds")


class Cell(ctypes.Structure):
    """hbm_cell_t."""

    _fields_ = _counts("serial", "address", "bytes", "handle_address") + [
        (name, c_int32) for name in ("device", "is_mapped", "is_callers", "is_asleep")
    ] + [("chunk_bytes", c_uint64)]


class CellStats(ctypes.Structure):
    """hbm_cell_stats_t."""

    _fields_ = _counts(
        "cells", "mapped", "peak_mapped", "reserves", "frees", "creates", "unmaps", "failures",
    )


class Range(ctypes.Structure):
    """hbm_range_t."""

    _fields_ = [("address", c_void_p), ("bytes", c_uint64)]


class ResidencyOfTag(ctypes.Structure):
    """hbm_residency_of_tag_t."""

    _fields_ = [("tag", c_char * 256)] + [(name, c_uint64) for name in ("moved", "copied", "pinned")]


class ResidencyRequest(ctypes.Structure):
    """hbm_residency_request_t."""

    _fields_ = [
        ("struct_size", c_size_t), ("tags", POINTER(c_char_p)), ("tag_count", c_size_t),
        ("device", c_int32), ("to", c_int32), ("flags", c_uint32), ("reserved", c_uint32),
        ("dead", POINTER(Range)), ("dead_count", c_size_t),
        ("by_tag", POINTER(ResidencyOfTag)), ("by_tag_capacity", c_size_t),
    ]


class ResidencyReport(ctypes.Structure):
    """hbm_residency_report_t."""

    _fields_ = _counts("moved", "copied", "pinned", "tag_count")


class Residency(ctypes.Structure):
    """hbm_residency_t."""

    _fields_ = _counts("device", "host", "file", "discarded", "pinned")


class HostBuffer(ctypes.Structure):
    """hbm_host_buffer_t."""

    _fields_ = _counts("pinned", "used")


class AllocatorDescriptor(ctypes.Structure):
    """hbm_allocator_desc_t."""

    _fields_ = [
        ("struct_size", c_size_t), ("kind", c_int32), ("device", c_int32), ("tag", c_char_p),
        ("location", c_int32), ("numa_node", c_int32), ("numa_policy", c_int32), ("host_flags", c_uint32),
        ("numa_nodes", c_uint64), ("page_bytes", c_uint64), ("shm_name", c_char_p),
        ("shm_attach", c_int32), ("unpinned", c_int32),
    ]


class HostBlocks(ctypes.Structure):
    """hbm_host_blocks_t."""

    _fields_ = _counts("blocks", "requested", "bytes", "pinned", "unbound")


class SlabWanted(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("bytes", c_uint64), ("initial_bytes", c_uint64), ("part_bytes", c_uint64),
                ("bytes_per_second", c_uint64), ("flags", c_uint), ("numa_node", c_int32), ("shm_name", c_char_p)]


class SlabStats(ctypes.Structure):
    _fields_ = _counts("address", "bytes", "ready", "target", "parts") + [("is_growing", c_int32), ("failure", c_int32)]


class ObjectsUsage(ctypes.Structure):
    _fields_ = _counts("used", "total", "largest_free", "objects")


class Export(ctypes.Structure):
    """hbm_export_t."""

    _fields_ = [
        ("struct_size", c_size_t), ("kind", c_int32), ("fd", c_int32), ("device", c_int32), ("reserved", c_uint32),
        ("chunk_bytes", c_uint64), ("offset", c_uint64), ("bytes", c_uint64), ("fabric", c_uint8 * 64), ("serial", c_uint64),
    ]


class PythonTensor(ctypes.Structure):
    """hbm_python_tensor_t."""

    _fields_ = [
        ("struct_size", c_size_t), ("data", c_void_p), ("owner", c_void_p), ("shape", c_void_p), ("dimensions", c_int32),
        ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16), ("is_versioned", c_int32), ("is_read_only", c_int32),
    ]


class OptionInfo(ctypes.Structure):
    """hbm_option_t."""

    _fields_ = [("struct_size", c_size_t)] + [
        (name, c_char_p) for name in ("name", "value", "default_value", "origin", "help", "accepted")
    ]


#: name: (result, arguments); a result of c_int32 is a status unless noted where it is called.
PROTOTYPES = {
    "hbm_version": (c_int32, []),
    "hbm_version_string": (c_char_p, []),
    "hbm_status_name": (c_char_p, [c_int32]),
    "hbm_last_error": (c_char_p, []),
    "hbm_last_driver_code": (c_int32, []),
    "hbm_option_set": (c_int32, [c_char_p, c_char_p]),
    "hbm_option_validate": (c_int32, [c_char_p, c_char_p]),
    "hbm_option_get": (c_int32, [c_char_p, c_char_p, c_size_t, POINTER(c_size_t)]),
    "hbm_option_count": (c_size_t, []),
    "hbm_option_describe": (c_int32, [c_size_t, POINTER(OptionInfo)]),
    "hbm_log_set_callback": (c_int32, [c_void_p, c_void_p]),
    "hbm_device_count": (c_int32, [POINTER(c_int32)]),
    "hbm_stats": (c_int32, [c_int32, c_int32, POINTER(Stats)]),
    "hbm_stats_reset_peaks": (c_int32, [c_int32]),
    "hbm_tag_stats": (c_int32, [c_int32, c_char_p, POINTER(BlockStats)]),
    "hbm_tag_count": (c_size_t, []),
    "hbm_tag_name": (c_int32, [c_size_t, c_char_p, c_size_t]),
    "hbm_stream_stats": (c_int32, [c_int32, c_void_p, POINTER(BlockStats)]),
    "hbm_stream_list": (c_int32, [c_int32, POINTER(c_void_p), c_size_t, POINTER(c_size_t)]),
    "hbm_pool_stats": (c_int32, [c_int32, POINTER(PoolStats)]),
    "hbm_driver_stats": (c_int32, [POINTER(DriverStats)]),
    "hbm_trim": (c_int32, [c_int32, c_uint64, POINTER(c_uint64)]),
    "hbm_set_limit": (c_int32, [c_int32, c_uint64]),
    "hbm_set_limit_fraction": (c_int32, [c_int32, c_double]),
    "hbm_get_limit": (c_int32, [c_int32, POINTER(c_uint64)]),
    "hbm_tag_push": (c_int32, [c_char_p]),
    "hbm_tag_place": (c_int32, [c_char_p, c_int32]),
    "hbm_tag_pop": (c_int32, []),
    "hbm_set_default_tag": (c_int32, [c_char_p]),
    "hbm_tag_current": (c_int32, [c_char_p, c_size_t]),
    "hbm_tag_of": (c_int32, [c_void_p, c_char_p, c_size_t]),
    "hbm_ensure_context": (c_int32, [c_ulonglong]),
    "hbm_create_and_map": (c_int32, [c_ulonglong, c_ssize_t, c_uint64, POINTER(c_uint64)]),
    "hbm_unmap_and_release": (c_int32, [c_ulonglong, c_ssize_t, c_uint64, POINTER(c_uint64)]),
    "hbm_cell_reserve": (c_int32, [c_int32, c_ssize_t, c_void_p, POINTER(Cell)]),
    "hbm_cell_free": (c_int32, [c_uint64]),
    "hbm_cells_discard": (c_int32, [POINTER(c_uint64), c_size_t, POINTER(c_uint64)]),
    "hbm_cells_map": (c_int32, [POINTER(c_uint64), c_size_t, POINTER(c_uint64)]),
    "hbm_cell_describe": (c_int32, [c_uint64, POINTER(Cell)]),
    "hbm_cell_list": (c_int32, [POINTER(c_uint64), c_size_t, POINTER(c_size_t)]),
    "hbm_cell_stats": (c_int32, [POINTER(CellStats)]),
    "hbm_sleep": (c_int32, [POINTER(ResidencyRequest), POINTER(ResidencyReport)]),
    "hbm_wake": (c_int32, [POINTER(ResidencyRequest), POINTER(ResidencyReport)]),
    "hbm_discard": (c_int32, [POINTER(ResidencyRequest), POINTER(ResidencyReport)]),
    "hbm_residency": (c_int32, [c_int32, c_char_p, POINTER(Residency)]),
    "hbm_residency_callback": (c_int32, [c_void_p, c_void_p]),
    "hbm_pin": (c_int32, [c_void_p, c_uint64]),
    "hbm_unpin": (c_int32, [c_void_p, c_uint64]),
    "hbm_host_buffer_prepare": (c_int32, [c_uint64]),
    "hbm_host_buffer_trim": (c_int32, [c_uint64, POINTER(c_uint64)]),
    "hbm_host_buffer": (c_int32, [POINTER(HostBuffer)]),
    "hbm_last_status": (c_int32, []),
    "hbm_alloc_pinned_ptr": (c_size_t, [c_size_t, c_uint]),
    "hbm_free_pinned_ptr": (c_int32, [c_size_t]),
    "hbm_alloc_numa_ptr": (c_size_t, [c_size_t, c_int32]),
    "hbm_free_numa_ptr": (c_int32, [c_size_t, c_size_t]),
    "hbm_alloc_pinned_numa_ptr": (c_size_t, [c_size_t, c_int32]),
    "hbm_free_pinned_numa_ptr": (c_int32, [c_size_t, c_size_t]),
    "hbm_alloc_hugepage_pinned_ptr": (c_size_t, [c_size_t, c_uint]),
    "hbm_free_hugepage_pinned_ptr": (c_int32, [c_size_t, c_size_t]),
    "hbm_alloc_hugepage_pinned_numa_ptr": (c_size_t, [c_size_t, c_int32]),
    "hbm_free_hugepage_pinned_numa_ptr": (c_int32, [c_size_t, c_size_t]),
    "hbm_alloc_shm_pinned_ptr": (c_size_t, [c_size_t, c_char_p]),
    "hbm_attach_shm_pinned_ptr": (c_size_t, [c_size_t, c_char_p]),
    "hbm_free_shm_pinned_ptr": (c_int32, [c_size_t, c_size_t, c_char_p]),
    "hbm_alloc_host_ptr": (c_size_t, [c_size_t, POINTER(AllocatorDescriptor)]),
    "hbm_free_host_ptr": (c_int32, [c_size_t, c_size_t]),
    "hbm_nearest_numa_node": (c_int32, [c_int32, POINTER(c_int32)]),
    "hbm_host_blocks": (c_int32, [POINTER(HostBlocks)]),
    "hbm_host_seams": (c_int32, [c_size_t, POINTER(c_uint64), c_size_t, POINTER(c_size_t)]),
    "hbm_slab_open": (c_int32, [POINTER(SlabWanted), POINTER(c_void_p)]),
    "hbm_slab_close": (c_int32, [c_void_p]),
    "hbm_slab_stats": (c_int32, [c_void_p, POINTER(SlabStats)]),
    "hbm_slab_seams": (c_int32, [c_void_p, POINTER(c_uint64), c_size_t, POINTER(c_size_t)]),
    "hbm_slab_wait": (c_int32, [c_void_p, c_uint64, c_int64]),
    "hbm_slab_grow": (c_int32, [c_void_p, c_uint64]),
    "hbm_slab_shrink": (c_int32, [c_void_p, c_uint64, POINTER(c_uint64)]),
    "hbm_objects_open": (c_int32, [c_void_p, c_uint64, POINTER(c_void_p)]),
    "hbm_objects_close": (c_int32, [c_void_p]),
    "hbm_objects_extend": (c_int32, [c_void_p, c_uint64]),
    "hbm_objects_allocate": (c_int32, [c_void_p, c_size_t, c_size_t, c_int64, c_void_p, c_void_p, c_void_p]),
    "hbm_objects_free": (c_int32, [c_void_p, c_void_p, c_size_t]),
    "hbm_objects_view": (c_int32, [c_void_p, c_void_p, c_size_t]),
    "hbm_objects_unview": (c_int32, [c_void_p, c_void_p, c_size_t]),
    "hbm_object_retain": (c_int32, [c_void_p, c_uint64, POINTER(c_uint)]),
    "hbm_object_release": (c_int32, [c_void_p, c_uint64, POINTER(c_uint)]),
    "hbm_object_pin": (c_int32, [c_void_p, c_uint64, c_uint64, POINTER(c_uint)]),
    "hbm_object_unpin": (c_int32, [c_void_p, c_uint64, c_uint64, POINTER(c_uint)]),
    "hbm_objects_unpin_all": (c_int32, [c_void_p, c_uint64, POINTER(c_uint)]),
    "hbm_object_counts": (c_int32, [c_void_p, c_uint64, POINTER(c_uint), POINTER(c_uint), POINTER(c_uint)]),
    "hbm_objects_usage": (c_int32, [c_void_p, POINTER(ObjectsUsage)]),
    "hbm_objects_check": (c_int32, [c_void_p]),
    "hbm_memcpy_batch": (c_int32, [c_void_p, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p]),
    "hbm_python_tensor": (c_void_p, [c_void_p]),
    "hbm_export": (c_int32, [c_void_p, POINTER(Export)]),
    "hbm_export_close": (c_int32, [c_uint64]),
    "hbm_export_send": (c_int32, [c_int32, POINTER(Export)]),
    "hbm_export_receive": (c_int32, [c_int32, POINTER(Export)]),
    "hbm_import": (c_int32, [POINTER(Export), c_int32, POINTER(c_void_p)]),
    "hbm_import_close": (c_int32, [c_void_p]),
    "hbm_torch_set_hooked": (None, [c_int32]),
    "hbm_torch_serve_cache_info": (c_int32, []),
    "hbm_torch_segment_functions": (c_int32, [c_int32, c_char_p, POINTER(c_void_p), POINTER(c_void_p)]),
    "hbm_driver_used": (c_int32, []),
    "hbm_forked": (c_int32, []),
    "hbm_torch_memory_fraction": (None, [c_double, c_int32]),
}

_lock = threading.Lock()
_opened = None


def _candidates():
    yield os.path.join(_PACKAGE, "lib", "libhbmalloc.so.0")
    if os.path.exists(os.path.join(_CHECKOUT, "Cargo.toml")):
        built = [os.environ["CARGO_TARGET_DIR"]] if os.environ.get("CARGO_TARGET_DIR") else []
        for target in built + [os.path.join(_CHECKOUT, "target")]:
            for profile in ("release", "debug"):
                yield os.path.join(target, profile, "libhbmalloc.so")


def _preloaded():
    """The file of the preload library, which is the library, where the process runs under it."""
    function = getattr(ctypes.CDLL(None), "hbm_preload_path", None)
    if function is None:
        return None
    function.restype = c_char_p
    return os.fsdecode(function())


def get_library_path():
    """The file of the shared library, for `CUDAPluggableAllocator`, linkers and other loaders."""
    if _opened is not None:
        return _opened[1]
    preloaded = _preloaded()
    if preloaded is not None:
        return preloaded
    named = os.environ.get("HBMALLOC_LIBRARY")
    if named:
        if not os.path.isfile(named):
            raise HbmallocError("HBMALLOC_LIBRARY names %r, which is not a file" % named)
        return os.path.abspath(named)
    tried = list(_candidates())
    for path in tried:
        if os.path.isfile(path):
            return path
    raise HbmallocError(
        "libhbmalloc was not found (looked for %s): install the wheel, build it with `cargo build --release`, "
        "or set HBMALLOC_LIBRARY to the file" % ", ".join(tried))


def get_include():
    """The folder of `hbmalloc.h`, for compilers."""
    for folder in (os.path.join(_PACKAGE, "include"), os.path.join(_CHECKOUT, "include")):
        if os.path.isfile(os.path.join(folder, "hbmalloc.h")):
            return folder
    raise HbmallocError("hbmalloc.h was not found beside the package; install the wheel")


def _open(path):
    handle = ctypes.CDLL(path)
    for name, (result, arguments) in PROTOTYPES.items():
        try:
            function = getattr(handle, name)
        except AttributeError:
            raise HbmallocError("%s does not export %s: it is not the library of hbmalloc %s" % (
                path, name, __version__)) from None
        function.restype, function.argtypes = result, arguments
    theirs = handle.hbm_version()
    major, minor = (int(part) for part in __version__.split(".")[:2])
    if (theirs // 10000, theirs // 100 % 100) != (major, minor):
        raise HbmallocError("%s is version %s and this package is %s: use the two of one release" % (
            path, handle.hbm_version_string().decode(), __version__))
    return handle


def library():
    """The opened library; the same object always."""
    global _opened
    if _opened is None:
        with _lock:
            if _opened is None:
                path = get_library_path()
                _opened = (_open(path), path)
    return _opened[0]


def address(name):
    """The address of an exported function, as torch wants it."""
    function = getattr(library(), name, None)
    if function is None:
        raise HbmallocError("%s does not export %s" % (get_library_path(), name))
    return ctypes.cast(function, c_void_p).value


def ask_list(function, of, operation):
    """The numbers that a function lists, asked for once more as long as they become more."""
    function, count, numbers = getattr(library(), function), c_size_t(), ()
    while True:
        check(function(of, numbers or None, len(numbers), count), operation)
        if count.value <= len(numbers):
            return list(numbers[:count.value])
        numbers = (c_uint64 * count.value)()


def check(status, operation):
    """Raises the exception of a status that is not 0."""
    if status == 0:
        return
    handle = library()
    text = (handle.hbm_last_error() or b"").decode("utf-8", "replace")
    name = (handle.hbm_status_name(status) or b"").decode("ascii", "replace") or "status %d" % status
    text = text or name
    if not text.startswith(operation + ":"):
        text = "%s: %s" % (operation, text)
    raise BY_STATUS.get(status, HbmallocError)(text, status, handle.hbm_last_driver_code())


def check_address(address, operation):
    """Raises the exception of a call that returned the address 0; the address."""
    if not address:
        check(library().hbm_last_status(), operation)
    return address


def library_version():
    """The version of the library itself, as a string."""
    return library().hbm_version_string().decode()


def encoded(what, text, error=InvalidArgumentError):
    """A text as the library takes it. Raises the exception of its other refusals for what is none, since C would end it at
    the first zero and no UTF-8 has half of a surrogate pair."""
    try:
        if "\0" not in text:
            return text.encode()
    except (AttributeError, TypeError, UnicodeEncodeError):
        pass
    raise error("%s is a text without NUL and without lone surrogates, not %r" % (what, text))


def backend_number(backend):
    """The C interface's number of a backend's name; -1 for None."""
    if backend is None:
        return -1
    try:
        return BACKENDS[backend]
    except (KeyError, TypeError):
        raise ValueError("unknown backend %r: one of %s" % (backend, ", ".join(BACKENDS))) from None
