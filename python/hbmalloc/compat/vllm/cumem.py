"""What stands in for `vllm.device_allocator.cumem`: the same names, over hbmalloc.

The record of what there is lies in the library, not here, so torch's allocator never
waits for Python's lock. Memory that sleeps is saved and brought back by `hbmalloc.sleep`
and `hbmalloc.wake`; memory whose contents are given up is taken and put back directly.
"""

import atexit
import contextlib
import dataclasses
import gc
import logging
import sys
import threading
from typing import Any, Optional

from ... import _tags
from . import _cells, _cudart, _native, _settings

logger = logging.getLogger("vllm.hbmalloc")

#: Before vLLM's tags in hbmalloc's, so that other memory of the same tag is not vLLM's to discard.
PREFIX = "vllm."
#: The tags that a selective wake may leave asleep. Every other one always wakes.
DEFERRABLE_TAGS = ("weights", "kv_cache")
#: Memory of captured graphs: a replay uses it even where no tensor does.
GRAPHS = "cudagraph"

HandleType = tuple

_module = _native.load()
init_module = _module.init_module
python_create_and_map = _module.python_create_and_map
python_unmap_and_release = _module.python_unmap_and_release
lib_name = _module.__file__
cumem_available = True


def __getattr__(name):
    if name == "libcudart":
        globals()["libcudart"] = found = _cudart.runtime()
        return found
    raise AttributeError("module %r has no attribute %r" % (__name__, name))


@dataclasses.dataclass
class AllocationData:
    """An allocation, as `pointer_to_data` tells of it. The library keeps what it saved itself, so
    `cpu_backup_tensor` is there for programs that save by themselves."""

    handle: HandleType
    tag: str
    cpu_backup_tensor: Optional[Any] = None
    is_asleep: bool = False


def create_and_map(allocation_handle):
    """Puts new memory behind an allocation. What sleeps with its contents saved is refused: wake it."""
    python_create_and_map(*allocation_handle)


def unmap_and_release(allocation_handle):
    """Takes the memory from behind an allocation, and its contents, once all work has finished."""
    python_unmap_and_release(*allocation_handle)


def get_pluggable_allocator(python_malloc_fn=None, python_free_func=None):
    """Torch's allocator object over the native module, which tells the two functions of what it does."""
    import torch

    init_module(python_malloc_fn, python_free_func)
    return torch.cuda.memory.CUDAPluggableAllocator(lib_name, "my_malloc", "my_free")


@contextlib.contextmanager
def use_memory_pool_with_allocator(python_malloc_fn=None, python_free_func=None):
    """A new memory pool for what is allocated inside."""
    import torch

    allocator = get_pluggable_allocator(python_malloc_fn, python_free_func)
    pool = torch.cuda.memory.MemPool(allocator._allocator)
    with torch.cuda.memory.use_mem_pool(pool):
        yield pool, allocator


def _tuple(tags):
    return (tags,) if isinstance(tags, str) else tuple(tags)


def _run_hooks(name, *arguments):
    """Releases of vLLM after 0.33 let others follow sleep and wake."""
    package = sys.modules.get("vllm.device_allocator")
    hooks = getattr(package, name, None)
    if hooks is not None:
        hooks(*arguments)


def _gib(bytes_):
    return bytes_ / 1024 ** 3


class CuMemAllocator:
    """vLLM's allocator with sleep mode. One a process: `get_instance()`.

    What is allocated inside `use_memory_pool(tag)` has that tag, keeps its addresses, and
    loses its memory in `sleep` and `discard` until `wake_up`.
    """

    instance = None
    default_tag = "default"
    #: Where contents go that `sleep` saves: "host" or "file".
    offload_to = "host"

    @staticmethod
    def get_instance():
        """The only instance."""
        if CuMemAllocator.instance is None:
            CuMemAllocator.instance = CuMemAllocator()
            atexit.register(CuMemAllocator._release_at_exit)
        return CuMemAllocator.instance

    @staticmethod
    def _release_at_exit():
        try:
            CuMemAllocator.instance.release_pools()
        except Exception:
            logger.exception("hbmalloc: pools could not be released at exit")

    def __init__(self):
        self.current_tag = CuMemAllocator.default_tag
        self.allocator_and_pools = {}
        self._lock = threading.RLock()
        self._data = {}
        #: Cells by number that torch keeps and nobody will use again.
        self._over = set()
        self._open = []

    @property
    def pointer_to_data(self):
        """Every allocation by its address, as it is now."""
        return {address: data for address, (_, data) in self._known().items()}

    def _known(self):
        """Address: the cell, and what is told of it. What programs wrote there stays."""
        with self._lock:
            cells = {address: cell for address, cell in _cells.known().items() if cell.tag.startswith(PREFIX)}
            self._over &= {cell.serial for cell in cells.values()}
            before, self._data = self._data, {}
            for address, cell in cells.items():
                if cell.serial in self._over:
                    continue
                data = before.get(cell.serial) or AllocationData(cell.handle, cell.tag[len(PREFIX):])
                data.is_asleep = not cell.is_mapped
                self._data[cell.serial] = data
            return {address: (cell, self._data[cell.serial])
                    for address, cell in cells.items() if cell.serial in self._data}

    @contextlib.contextmanager
    def use_memory_pool(self, tag=None):
        """Allocates what is allocated inside under `tag`, in a pool of its own."""
        import torch

        tag = CuMemAllocator.default_tag if tag is None else tag
        if not isinstance(tag, str):
            raise TypeError("a tag is a str, not %r" % (tag,))
        with _settings.fixed_segments(torch), self._tagged(tag):
            self._trim([tag])
            with use_memory_pool_with_allocator() as made:
                # A pool that is gone takes its tensors' memory along, so they are kept.
                self.allocator_and_pools.setdefault(tag, []).append(made)
                self._open.append(made)
                try:
                    yield
                finally:
                    self._open.remove(made)
            self._trim([tag])

    @contextlib.contextmanager
    def cudagraph_pool(self):
        """Allocates captures inside under the tag "cudagraph"; the value is the graph pool's id."""
        import torch

        if GRAPHS not in self.allocator_and_pools:
            allocator = get_pluggable_allocator()
            self.allocator_and_pools[GRAPHS] = [(torch.cuda.memory.MemPool(allocator._allocator), allocator)]
        with self._tagged(GRAPHS):
            yield self.allocator_and_pools[GRAPHS][0][0].id

    use_cudagraph_pool = cudagraph_pool

    @contextlib.contextmanager
    def _tagged(self, tag):
        before, self.current_tag = self.current_tag, tag
        try:
            with _tags.tag(PREFIX + tag):
                yield
        finally:
            self.current_tag = before

    def _trim(self, tags):
        """Takes the memory of segments in which nothing lives, in pools that get nothing more.

        Torch keeps such a segment while its pool lives, and would never use it again.
        """
        over = []
        known = self._known()
        for tag in tags:
            if tag == GRAPHS:
                continue
            for entry in self.allocator_and_pools.get(tag, []):
                if entry in self._open:
                    continue
                for segment in entry[0].snapshot():
                    cell, data = known.get(segment["address"], (None, None))
                    if cell is not None and segment["allocated_size"] == 0 and not data.is_asleep:
                        over.append(cell)
        if over:
            _cells.discard(cell.handle[2] for cell in over)
            self._over.update(cell.serial for cell in over)

    def sleep(self, offload_tags=None):
        """Saves memory of `offload_tags` (a tuple or a str; the default tag where None) and gives up the
        contents of every other tag's; all of it leaves the device. Waits for the device's work.

        If saving fails, everything is awake as before. What sleeps already sleeps on as it does.
        """
        import torch

        tags = (CuMemAllocator.default_tag,) if offload_tags is None else _tuple(offload_tags)
        with self._lock:
            _run_hooks("run_before_unmap_hooks", list(self.pointer_to_data.values()))
            self._trim(list(self.allocator_and_pools))
            known = list(self._known().values())
            self._warn_of_conflicts(known, lambda cell, data: (data.tag in tags) != cell.is_asleep)
            mapped = [data for cell, data in known if cell.is_mapped]
            saved = [data for data in mapped if data.tag in tags]
            given_up = [data for data in mapped if data.tag not in tags]
            if saved:
                import hbmalloc

                hbmalloc.sleep(tags=sorted({PREFIX + data.tag for data in saved}), to=self.offload_to)
            if given_up:
                _cells.discard(data.handle[2] for data in given_up)
        sizes = [sum(data.handle[1] for data in part) for part in (mapped, saved, given_up)]
        logger.info("hbmalloc: sleep freed %.2f GiB: %.2f GiB saved to the %s, %.2f GiB discarded",
                    _gib(sizes[0]), _gib(sizes[1]), self.offload_to, _gib(sizes[2]))
        gc.collect()
        torch.cuda.empty_cache()

    def discard(self, tags):
        """Takes the memory of `tags` and its contents. Waits for the device's work. What sleeps is left."""
        tags = _tuple(tags)
        with self._lock:
            _run_hooks("run_before_unmap_hooks", list(self.pointer_to_data.values()), tags)
            known = [(cell, data) for cell, data in self._known().values() if data.tag in tags]
            self._warn_of_conflicts(known, lambda cell, data: cell.is_asleep)
            given_up = [data for cell, data in known if cell.is_mapped]
            if given_up:
                _cells.discard(data.handle[2] for data in given_up)
        logger.info("hbmalloc: discarded %.2f GiB of %s", _gib(sum(data.handle[1] for data in given_up)), tags)

    @staticmethod
    def _warn_of_conflicts(known, differs):
        kept = sum(not cell.is_mapped and differs(cell, data) for cell, data in known)
        if kept:
            logger.warning("hbmalloc: %d allocations sleep already and are left as they are, saved or discarded", kept)

    def wake_up(self, tags=None):
        """Puts memory behind everything that sleeps, or of "weights" and "kv_cache" only behind those
        that `tags` names, and brings back what was saved.

        All or nothing: out of memory, it raises and everything sleeps on, to be tried again.
        """
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        wanted = None if tags is None else _tuple(tags)
        with self._lock:
            asleep = [(cell, data) for cell, data in self._known().values() if not cell.is_mapped and (
                wanted is None or data.tag in wanted or data.tag not in DEFERRABLE_TAGS)]
            empty = [data.handle[2] for cell, data in asleep if not cell.is_asleep]
            saved = sorted({PREFIX + data.tag for cell, data in asleep if cell.is_asleep})
            # First what can be undone and loses nothing by it.
            if empty:
                _cells.back(empty)
            try:
                if saved:
                    import hbmalloc

                    hbmalloc.wake(tags=saved)
            except BaseException:
                if empty:
                    _cells.discard(empty)
                raise
            _run_hooks("run_after_map_hooks", list(self.pointer_to_data.values()))

    def get_current_usage(self):
        """Bytes of all allocations, of those that sleep too."""
        return sum(data.handle[1] for data in self.pointer_to_data.values())

    def release_pools(self):
        """Lets go of the pools, before the allocator objects that their ends need."""
        entries = [entry for part in self.allocator_and_pools.values() for entry in part]
        self.allocator_and_pools.clear()
        pools = [entry[0] for entry in entries]
        allocators = [entry[1] for entry in entries]
        entries.clear()
        pools.clear()
        gc.collect()
        allocators.clear()

    close = release_pools
