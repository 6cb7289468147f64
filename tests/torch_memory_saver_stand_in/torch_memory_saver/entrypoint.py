import collections
import contextlib

from .binary_wrapper import BinaryWrapper
from .hooks.mode_preload import HookUtilModePreload
from .hooks.mode_torch import HookUtilModeTorch

MODES = {"preload": HookUtilModePreload, "torch": HookUtilModeTorch}


class Made:
    """What is made at the first use."""

    def __init__(self, hook_mode):
        import torch

        self._hook = MODES[hook_mode]()
        self._binary_wrapper = BinaryWrapper(path_binary=self._hook.get_path_binary())
        self._mem_pools = collections.defaultdict(lambda: torch.cuda.MemPool(allocator=self._hook.get_allocator()))


class Saver:
    def __init__(self):
        self._mode, self._impl = "preload", None

    @property
    def hook_mode(self):
        raise AttributeError

    @hook_mode.setter
    def hook_mode(self, mode):
        self._mode = mode

    def _library(self):
        if self._impl is None:
            self._impl = Made(self._mode)
        return self._impl._binary_wrapper.cdll

    @contextlib.contextmanager
    def region(self, tag="default", enable_cpu_backup=False, enable_disk_backup=False):
        import torch

        library = self._library()
        names = ("current_tag", "interesting_region", "enable_cpu_backup", "enable_disk_backup")
        before = [getattr(library, "tms_get_" + name)() for name in names]

        def say(values):
            for name, value in zip(names, values):
                getattr(library, "tms_set_" + name)(value)

        with torch.cuda.use_mem_pool(self._impl._mem_pools[tag, enable_cpu_backup, enable_disk_backup]):
            wanted = [tag.encode(), True, enable_cpu_backup, enable_disk_backup]
            say(wanted)
            try:
                yield
            finally:
                assert [getattr(library, "tms_get_" + name)() for name in names] == wanted
                say(before)

    @contextlib.contextmanager
    def disable(self):
        self._library().tms_set_interesting_region(False)
        try:
            yield
        finally:
            self._library().tms_set_interesting_region(True)

    def pause(self, tag=None):
        self._library().tms_pause(tag.encode() if tag else None)

    def resume(self, tag=None):
        self._library().tms_resume(tag.encode() if tag else None)

    @property
    def retain_cpu_backup(self):
        return self._library().tms_get_retain_cpu_backup()

    @retain_cpu_backup.setter
    def retain_cpu_backup(self, value):
        self._library().tms_set_retain_cpu_backup(value)

    def set_disk_backup_dir(self, path):
        self._library().tms_set_disk_backup_dir(path.encode())
