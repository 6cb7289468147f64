import contextlib
import os

from ..utils import get_binary_path_from_package


class HookUtilModePreload:
    def get_path_binary(self):
        named = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if "torch_memory_saver" in path]
        assert len(named) == 1, "invalid LD_PRELOAD"
        return named[0]

    def get_allocator(self):
        return None


@contextlib.contextmanager
def configure_subprocess():
    before = os.environ.get("LD_PRELOAD")
    own = str(get_binary_path_from_package("torch_memory_saver_hook_mode_preload"))
    os.environ["LD_PRELOAD"] = own if before is None else own + ":" + before
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]
        if before is not None:
            os.environ["LD_PRELOAD"] = before
