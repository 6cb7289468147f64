"""torch_memory_saver's Python over hbmalloc: its regions, pause and resume, without its own library.

`install()` has it open hbmalloc's, in both of its hook modes. `python -m hbmalloc.compat.torch_memory_saver check` shows
that this serves. Importing this imports nothing of torch_memory_saver's.
"""

from ._install import install, is_installed, preload_path, uninstall

__all__ = ["install", "is_installed", "preload_path", "uninstall"]
