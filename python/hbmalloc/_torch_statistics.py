"""What PyTorch asks its allocator about memory, answered from hbmalloc's counts.

Under a pluggable allocator torch refuses these questions. All of its public functions,
in `torch.cuda`, `torch.cuda.memory` and `torch.accelerator`, ask through a few functions
of `torch._C`; those are replaced here, so that the public ones work by whatever name a
program has imported them. Counts that hbmalloc does not keep are 0.

A segment is what the driver gave by one call: a chunk of the pool or of vmm, a whole block
of device, managed and pinned memory; the driver's own pool tells of none. `num_device_alloc` and
`num_device_free` count them. Inactive splits are free pieces beside blocks in the same
chunk; they have no history, so what there is is also their peak.
"""

from . import _library, _statistics

#: What `limit` says where there is none.
NO_LIMIT = 2**64 - 1

#: What torch's `allocated` and `freed` fields count from; reset by `reset_accumulated`.
TOTALS = ("total_allocated", "allocated", "total_requested", "requested", "total_reserved", "reserved",
          "allocations", "deallocations", "out_of_memory", "total_segments", "segments", "retries", "waits")

_resets = {}  # device: the statistics at the last reset of the accumulated counts


def _stat(current=0, peak=0, allocated=0, freed=0):
    # Counts are read one after the other beside running threads, so their order is seen to here.
    return {"current": current, "peak": max(peak, current), "allocated": allocated, "freed": max(freed, 0)}


def _by_pool(stat):
    """hbmalloc has no small and large pools: as with cudaMallocAsync, all is in `all`."""
    return {"all": stat, "small_pool": _stat(), "large_pool": _stat()}


def _now(device):
    """The statistics of the device, with how often the pool has waited for all work, and the pool's own."""
    now, pool = _statistics.stats(device), _statistics.pool_stats(device)
    now["waits"] = pool["waits"]
    return now, pool


def memory_stats(device):
    """The nested dictionary of `torch.cuda.memory_stats_as_nested_dict`."""
    now, pool = _now(device)
    since = _resets.get(device) or dict.fromkeys(TOTALS, 0)

    def gained(name):
        return now[name] - since[name]

    def amount(name):
        added = gained("total_" + name)
        return _stat(now[name], now["peak_" + name], added, added - gained(name))

    blocks = now["allocations"] - now["deallocations"]
    count = _stat(blocks, now["peak_blocks"], gained("allocations"), gained("deallocations"))
    # A freed block that running work may still use is active in torch's words.
    waiting, waiting_bytes = now["pending_frees"], now["pending_bytes"]
    active = _stat(blocks + waiting, now["peak_blocks"], count["allocated"], count["freed"] - waiting)
    in_use = amount("allocated")
    active_bytes = _stat(in_use["current"] + waiting_bytes, in_use["peak"],
                         in_use["allocated"], in_use["freed"] - waiting_bytes)
    taken = gained("total_segments")
    given_back = taken - gained("segments")
    segments = _stat(now["segments"], now["peak_segments"], taken, given_back)
    split_bytes = max(pool["cached"] - pool["kept"] - pool["releasable"], 0)
    return {
        "num_alloc_retries": gained("retries"),
        "num_ooms": gained("out_of_memory"),
        "max_split_size": -1,  # torch's word for: any block may be split
        "num_sync_all_streams": gained("waits"),
        "num_device_alloc": taken,
        "num_device_free": max(given_back, 0),
        "allocated_bytes": _by_pool(in_use),
        "reserved_bytes": _by_pool(amount("reserved")),
        "active_bytes": _by_pool(active_bytes),
        "requested_bytes": _by_pool(amount("requested")),
        "allocation": _by_pool(count),
        "segment": _by_pool(segments),
        "active": _by_pool(active),
        "inactive_split": _by_pool(_stat(pool["stuck_pieces"])),
        "inactive_split_bytes": _by_pool(_stat(split_bytes)),
        # torch's own limit on what may be split, which hbmalloc has not.
        "oversize_allocations": _stat(),
        "oversize_segments": _stat(),
    }


def reset_accumulated(device):
    """Starts the `allocated` and `freed` and the `num_` counts again from 0; hbmalloc's own totals go on."""
    now, _ = _now(device)
    _resets[device] = {name: now[name] for name in TOTALS}


def reset_peaks(device):
    """Starts every peak again from what there is now; hbmalloc's own too."""
    _statistics.reset_peak_stats(device)


def _within_limit(memory_info):
    """`memory_info(device)`, a pair of free and total bytes, with what the limit leaves as free."""

    def mem_get_info(device):
        free, total = memory_info(device)
        now = _statistics.stats(int(device))
        if now["limit"] != NO_LIMIT:
            free = min(free, max(now["limit"] - now["limit_used"], 0))
        return free, total

    return mem_get_info


def _memory_fraction(memory_info):
    def get_memory_fraction(device):
        limit = _statistics.stats(device)["limit"]
        return 1.0 if limit == NO_LIMIT else limit / memory_info(device)[1]

    return get_memory_fraction


def serve(torch):
    """Has torch's questions answered by hbmalloc, which must be the installed allocator."""
    core = torch._C
    _replace(core, {
        "_cuda_memoryStats": memory_stats,
        "_cuda_resetAccumulatedMemoryStats": reset_accumulated,
        "_cuda_resetPeakMemoryStats": reset_peaks,
        "_cuda_isHistoryEnabled": lambda: False,
        # These ask the native allocator, which stays registered for torch.accelerator.
        "_accelerator_isAllocatorInitialized": lambda: torch.cuda.is_initialized(),
        "_accelerator_emptyCache": lambda: core._cuda_emptyCache(),
        "_accelerator_getDeviceStats": memory_stats,
        "_accelerator_resetAccumulatedStats": reset_accumulated,
        "_accelerator_resetPeakStats": reset_peaks,
    })
    runtime = getattr(core, "_cudart", None)
    if runtime is not None:
        memory_info = runtime.cudaMemGetInfo
        _replace(core, {"_cuda_getMemoryFraction": _memory_fraction(memory_info)})
        _replace(runtime, {"cudaMemGetInfo": _within_limit(memory_info)})
    if hasattr(core, "_accelerator_getMemoryInfo"):
        _replace(core, {"_accelerator_getMemoryInfo": _within_limit(core._accelerator_getMemoryInfo)})


def _replace(module, answers):
    for name, answer in answers.items():
        if hasattr(module, name):  # not every release of torch asks by every name
            setattr(module, name, answer)
