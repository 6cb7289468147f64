"""Sleep to pinned host memory and wake, side by side with what others have for it; needs a GPU and torch.

    python -m hbmalloc.bench_sleep                    # a table; every row is a process of its own
    python -m hbmalloc.bench_sleep --only pool,vllm --json

A row makes tensors of one size, sleeps and wakes them, looks at every element afterwards. GB/s is
the bytes that left the card, or came back, by the time of the call. Who is not installed is
named with the reason.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

GIB, MIB = 1 << 30, 1 << 20

#: name: bytes in all, bytes of a tensor
CASES = {
    "16 GiB in 1 GiB": (16 * GIB, GIB),
    "16 GiB in 256 MiB": (16 * GIB, 256 * MIB),
    "4 GiB in 4 MiB": (4 * GIB, 4 * MIB),
}

ROWS = {
    "pool": "hbmalloc, installed",
    "memory_pool": "hbmalloc, MemPool",
    "compat": "hbmalloc, CuMemAllocator",
    "vllm-over-ours": "vLLM's class, our module",
    "vllm": "vLLM",
    "torch_memory_saver": "torch_memory_saver",
}

TAG = "weights"


class Unfit(Exception):
    """This row cannot be measured here; the text says why."""


class Ours:
    """What sleeps by hbmalloc.sleep; `clean` sleeps too."""

    has_clean = has_devices = True

    def __init__(self, row):
        import hbmalloc

        self.hbmalloc, self.row = hbmalloc, row
        if row == "pool":
            hbmalloc.torch.install("pool")

    def region(self):
        return self.hbmalloc.tag(TAG) if self.row == "pool" else self.hbmalloc.torch.memory_pool(tag=TAG)

    def sleep(self):
        self.hbmalloc.sleep(TAG)

    def wake(self):
        self.hbmalloc.wake(TAG)

    def keep(self):
        self.hbmalloc.set_option("keep_host", "1TiB")

    def sleep_clean(self):
        self.hbmalloc.sleep(TAG, clean=True)


class Class:
    """What has the interface of vLLM's CuMemAllocator."""

    has_clean = has_devices = False

    def __init__(self, row):
        if row == "compat":
            from hbmalloc.compat.vllm.cumem import CuMemAllocator
        else:
            if row == "vllm-over-ours":
                import hbmalloc.compat.vllm

                hbmalloc.compat.vllm.install(native_only=True)
            try:
                from vllm.device_allocator.cumem import CuMemAllocator
            except ImportError as error:
                raise Unfit("vLLM cannot be imported: %s" % error) from error
        self.allocator = CuMemAllocator.get_instance()

    def region(self):
        return self.allocator.use_memory_pool(tag=TAG)

    def sleep(self):
        self.allocator.sleep(offload_tags=(TAG,))

    def wake(self):
        self.allocator.wake_up()


class Saver:
    """torch_memory_saver, by its hook on torch's MemPool."""

    has_clean = has_devices = False

    def __init__(self, row):
        try:
            from torch_memory_saver import torch_memory_saver
        except ImportError as error:
            raise Unfit("it cannot be imported: %s" % error) from error
        torch_memory_saver.hook_mode = "torch"
        self.saver = torch_memory_saver

    def region(self):
        return self.saver.region(tag=TAG, enable_cpu_backup=True)

    def sleep(self):
        self.saver.pause(TAG)

    def wake(self):
        self.saver.resume(TAG)


MAKERS = {"pool": Ours, "memory_pool": Ours, "compat": Class, "vllm-over-ours": Class, "vllm": Class,
          "torch_memory_saver": Saver}


def numbers(torch, index, count):
    """What the tensor of this index holds."""
    return torch.arange(index, index + count, device="cuda", dtype=torch.int32)


def wait(torch):
    for device in range(torch.cuda.device_count()):
        torch.cuda.synchronize(device)


def timed(torch, act):
    wait(torch)
    begin = time.perf_counter()
    act()
    wait(torch)
    return time.perf_counter() - begin


def measure(row, case, cycles, devices):
    """One row of one case, in this process; as much on each device, and all of them at once."""
    import torch

    total, size = CASES[case]
    under_test = MAKERS[row](row)
    if devices > 1 and not under_test.has_devices:
        raise Unfit("it sleeps one device at a time")
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    empty = torch.cuda.mem_get_info()[0]
    tensors = []
    for device in range(devices):
        with torch.cuda.device(device), under_test.region():
            tensors += [numbers(torch, index, size // 4) for index in range(total // size)]
    total *= devices
    addresses = [tensor.data_ptr() for tensor in tensors]
    sleeps, wakes, left = [], [], 0
    for _ in range(cycles + 1):
        sleeps.append(timed(torch, under_test.sleep))
        left = max(left, empty - torch.cuda.mem_get_info()[0])
        wakes.append(timed(torch, under_test.wake))
    found = {"first": total / sleeps[0] / 1e9, "sleep": total / statistics.median(sleeps[1:]) / 1e9,
             "wake": total / statistics.median(wakes) / 1e9, "left_mib": left / MIB}
    if under_test.has_clean:
        under_test.keep()
        under_test.sleep()
        under_test.wake()
        found["clean_ms"] = 1e3 * min(clean(torch, under_test) for _ in range(3))
    whole = all(is_whole(torch, tensor, index % (len(tensors) // devices)) for index, tensor in enumerate(tensors))
    if not whole or addresses != [tensor.data_ptr() for tensor in tensors]:
        raise Unfit("contents or addresses changed")
    return found


def is_whole(torch, tensor, index):
    with torch.cuda.device(tensor.device):
        return torch.equal(tensor, numbers(torch, index, tensor.numel()))


def clean(torch, under_test):
    took = timed(torch, under_test.sleep_clean)
    under_test.wake()
    return took


def run(row, case, cycles, devices):
    """One row of one case, in a process of its own."""
    command = [sys.executable, "-m", "hbmalloc.bench_sleep", "--row", row, "--case", case, "--cycles", str(cycles),
               "--devices", str(devices)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    text = (done.stderr.strip().splitlines() or ["it ended with %d" % done.returncode])[-1]
    return {"skipped": text}


def child(row, case, cycles, devices):
    try:
        found = measure(row, case, cycles, devices)
    except Exception as error:  # whatever a peer raises is the reason
        reason = str(error).splitlines()[0] if str(error) else ""
        found = {"skipped": "%s: %s" % (type(error).__name__, reason)}
    print(json.dumps(found), flush=True)
    os._exit(0)  # peers that fail at exit have been measured all the same


def figure(found, name, form):
    return form % found[name] if name in found else "-"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m hbmalloc.bench_sleep")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, of %s" % ", ".join(ROWS))
    parser.add_argument("--cycles", type=int, default=5, help="sleeps after the first one")
    parser.add_argument("--devices", type=int, default=1, help="as much on each of so many devices, all at once")
    parser.add_argument("--json", action="store_true", help="a line of JSON a row and case")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        return child(options.row, options.case, options.cycles, options.devices)
    rows = options.only.split(",")
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        parser.error("no row %s; there are %s" % (", ".join(unknown), ", ".join(ROWS)))
    import torch

    if not torch.cuda.is_available():
        print("hbmalloc.bench_sleep: torch sees no GPU", file=sys.stderr)
        return 3
    if not options.json:
        print("%d x %s, torch %s; GB/s, medians of %d" % (
            options.devices, torch.cuda.get_device_name(), torch.__version__, options.cycles))
        print("The first row shows what the first sleep takes where the host's memory was not touched before.\n")
        print("| %-18s | %-26s | %11s | %6s | %6s | %9s | %8s |" % (
            "tensors", "allocator", "first sleep", "sleep", "wake", "clean, ms", "left MiB"))
        print("| --- | --- | --- | --- | --- | --- | --- |")
    for case, row in [("16 GiB in 1 GiB", rows[0])] + [(case, row) for case in CASES for row in rows]:
        found = run(row, case, options.cycles, options.devices)
        if options.json:
            print(json.dumps(dict(found, row=row, case=case)), flush=True)
        elif "skipped" in found:
            print("| %-18s | %-26s | not measured: %s" % (case, ROWS[row], found["skipped"]), flush=True)
        else:
            print("| %-18s | %-26s | %11s | %6s | %6s | %9s | %8s |" % (
                case, ROWS[row], figure(found, "first", "%.1f"), figure(found, "sleep", "%.1f"),
                figure(found, "wake", "%.1f"), figure(found, "clean_ms", "%.2f"),
                figure(found, "left_mib", "%.0f")), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
