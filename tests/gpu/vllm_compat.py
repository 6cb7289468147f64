"""vLLM's sleep mode on a real card: our class, and vLLM's own class over our native module.

vLLM's class is that of the installed vLLM, or of the file that HBMALLOC_VLLM_CUMEM_PY names
(vllm/device_allocator/cumem.py of some release), which then runs beside a stand-in for the
rest of vLLM. Where there is neither, that part is skipped.
"""

import gc
import importlib.util
import os
import sys

import gpucase
from gpucase import case, check, raises

MIB = 1 << 20
#: Beyond 10 MiB torch gives a tensor a segment of its own, rounded up to 2 MiB.
SIZE = 64 * MIB
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: What the output of no part may have. Callbacks that raise leave tracebacks.
QUIET = [" WARN ", "terminate called", "Fatal Python error"]
STAND_IN = os.path.join(ROOT, "tests", "vllm_stand_in")


def free_bytes():
    import torch

    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


def filled(value, size=SIZE):
    import torch

    return torch.full((size,), value, dtype=torch.uint8, device="cuda")


def whole(tensor, value):
    return bool((tensor == value).all())


class Counted:
    """What our native module did since."""

    def __init__(self, compat):
        self.compat, self.before = compat, compat.counters()

    def __getitem__(self, name):
        return self.compat.counters()[name] - self.before[name]


def save_and_wake(allocator, compat):
    with case("saved memory comes back at its address, discarded memory can be used"):
        counted = Counted(compat)
        with allocator.use_memory_pool("weights"):
            weights = filled(7)
        with allocator.use_memory_pool("kv_cache"):
            cache = filled(8)
        check(allocator.get_current_usage() == 2 * SIZE, "%d bytes are known" % allocator.get_current_usage())
        check(compat.counters()["mapped"] == 2 * SIZE, "%d bytes are mapped" % compat.counters()["mapped"])
        address = weights.data_ptr()
        for _ in range(3):
            before = free_bytes()
            allocator.sleep(("weights",))
            check(free_bytes() - before >= 2 * SIZE, "%d bytes more are free" % (free_bytes() - before))
            check(allocator.get_current_usage() == 2 * SIZE, "sleeping bytes are not counted")
            allocator.wake_up(["weights"])
            check(before + SIZE <= free_bytes() + 2 * MIB, "the cache is awake too")
            check(weights.data_ptr() == address and whole(weights, 7), "the weights changed")
            allocator.wake_up(["kv_cache"])
            cache.fill_(9)
            check(whole(cache, 9), "the cache cannot be used")
        check(counted["reserves"] == 2 and counted["unmaps"] >= 3, "our module did not serve: %s" % compat.counters())


def tags(allocator, compat):
    with case("nested and re-entered tags, other tags always wake, discard"):
        with allocator.use_memory_pool("outer"):
            first = filled(1)
            with allocator.use_memory_pool("weights"):
                second = filled(2)
            third = filled(3)
        with allocator.use_memory_pool("weights"):
            fourth = filled(4)
        known = {data.handle[2]: data.tag for data in allocator.pointer_to_data.values()}
        wanted = {first.data_ptr(): "outer", second.data_ptr(): "weights", third.data_ptr(): "outer",
                  fourth.data_ptr(): "weights"}
        check(wanted.items() <= known.items(), "tags are %s" % known)
        allocator.sleep(("outer", "weights"))
        allocator.wake_up(["kv_cache"])
        check(whole(first, 1) and whole(third, 3), "memory of a tag that is not deferred sleeps on")
        check(allocator.pointer_to_data[second.data_ptr()].is_asleep, "the weights woke")
        allocator.wake_up()
        check(whole(second, 2) and whole(fourth, 4), "the weights changed")
        before = free_bytes()
        allocator.discard("outer")
        check(free_bytes() - before >= 2 * SIZE, "discard freed nothing")
        allocator.wake_up()
        first.fill_(5)
        check(whole(first, 5) and whole(second, 2), "memory is not usable after a discard")


def failures(allocator, compat):
    import torch

    with case("allocation after one that failed"):
        with allocator.use_memory_pool("weights"):
            before = len(allocator.pointer_to_data)
            with raises(torch.OutOfMemoryError):
                torch.empty(1 << 44, dtype=torch.uint8, device="cuda")
            check(len(allocator.pointer_to_data) == before, "the failed one is in the record")
            kept = filled(6)
        allocator.sleep("weights")
        allocator.wake_up()
        check(whole(kept, 6), "contents changed")
    with case("out of memory on wake, and again"):
        with allocator.use_memory_pool("weights"):
            large = filled(1, 2048 * MIB)
        allocator.sleep("weights")
        # Torch's own memory, away from the allocator.
        blocker = torch.empty(free_bytes() - 1024 * MIB, dtype=torch.uint8, device="cuda")
        with raises((RuntimeError, MemoryError), "out of memory"):
            allocator.wake_up()
        del blocker
        torch.cuda.empty_cache()
        allocator.wake_up()
        check(whole(large, 1) and whole(kept, 6), "contents changed")
    with case("freed while asleep"):
        with allocator.use_memory_pool("weights"):
            gone = filled(2)
        allocator.sleep("weights")
        del gone
        gc.collect()
        allocator.wake_up()
        check(whole(kept, 6), "contents changed")


def work_in_flight(allocator, compat):
    import torch

    with case("work on a side stream is waited for"):
        with allocator.use_memory_pool("weights"):
            matrix = torch.eye(2048, device="cuda")
            target = torch.zeros(2048, 2048, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(200):
                torch.matmul(matrix, matrix, out=target)
        allocator.discard("weights")
        allocator.wake_up()
        torch.cuda.synchronize()
        target.fill_(1)
        check(float(target.sum()) == 2048 * 2048, "memory is not usable")


def graphs(allocator, compat):
    import torch

    with case("a captured graph replays after sleep and wake"):
        static = torch.ones(1 << 20, device="cuda")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with allocator.cudagraph_pool() as pool:
            with torch.cuda.graph(graph, pool=pool):
                result = (static * 3).square() + static
        graph.replay()
        check(float(result.sum()) == 10 * (1 << 20), "the graph computes otherwise")
        allocator.sleep(("cudagraph",))
        allocator.wake_up([])
        static.fill_(2)
        graph.replay()
        check(float(result.sum()) == 38 * (1 << 20), "the graph computes otherwise after a wake")
        torch.cuda.synchronize()


def callbacks(compat):
    import torch

    with case("callbacks that raise"):
        from hbmalloc.compat.vllm import cumem

        def raising(argument):
            raise ValueError("a callback of the test")

        before = compat.counters()["cells"]
        with raises(torch.OutOfMemoryError):
            with cumem.use_memory_pool_with_allocator(raising, raising):
                filled(1)
        check(compat.counters()["cells"] == before, "addresses are left")
        cumem.init_module()


def one(which):
    if which == "own" and not importlib.util.find_spec("vllm"):
        sys.path.insert(0, STAND_IN)
    from hbmalloc.compat import vllm as compat

    compat.install(native_only=which == "own")
    if which == "own":
        from vllm.device_allocator.cumem import CuMemAllocator
        check(CuMemAllocator.__module__ == "vllm.device_allocator.cumem", "it is not vLLM's class")
    else:
        from hbmalloc.compat.vllm.cumem import CuMemAllocator
    allocator = CuMemAllocator.get_instance()
    for part in (save_and_wake, tags, failures, work_in_flight, graphs):
        # What an earlier part left, its end takes along.
        part(allocator, compat)
        gc.collect()
        allocator.wake_up()
    if which != "own":
        callbacks(compat)
    with case("nothing is left when the pools go"):
        allocator.release_pools()
        gc.collect()
        gpucase.check(compat.counters()["cells"] == 0, "%s" % compat.counters())


def main():
    gpucase.child("class", [__file__, "class"], limit=150, forbid=QUIET)
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    gpucase.child("class, expandable segments", [__file__, "class"], limit=150, forbid=QUIET)
    del os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    if os.environ.get("HBMALLOC_VLLM_CUMEM_PY") or importlib.util.find_spec("vllm"):
        gpucase.child("vLLM's own class", [__file__, "own"], limit=150, forbid=QUIET)
    else:
        gpucase.line("SKIP", "vLLM's own class", "vLLM is not installed and HBMALLOC_VLLM_CUMEM_PY names no file")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(sys.argv[1])
    else:
        main()
    gpucase.finish()
