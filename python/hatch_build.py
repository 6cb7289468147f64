"""Hatchling's hook: runs cargo and puts what it built into the wheel.

`HBMALLOC_WHEEL_PORTABLE=1` and `HBMALLOC_WHEEL_ARCH` come from `scripts/build-wheel`;
without them (`pip install .`) the wheel is for this machine.
"""

import os
import sys

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import build_native  # noqa: E402


class NativeHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version, build_data):
        if self.target_name != "wheel" or version == "editable":
            return  # an editable install finds target/release by itself
        files, tag = build_native.build(
            arch=os.environ.get("HBMALLOC_WHEEL_ARCH") or None,
            portable=os.environ.get("HBMALLOC_WHEEL_PORTABLE") == "1",
        )
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + tag
        for name, path in files.items():
            if name.startswith("scripts/"):
                build_data["shared_scripts"][path] = name[len("scripts/"):]
            else:
                build_data["force_include"][path] = name
