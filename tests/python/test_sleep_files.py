"""Sleep to a disk that is really full: a small file system of its own, mounted for one interpreter."""

import os
import subprocess
import sys
import textwrap

import pytest
from conftest import built_library, environment
from test_residency import MEMORY

#: What mounts one, for root and, where the kernel lets them, for users.
WAYS = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
MOUNT = 'mount -t tmpfs -o size=48m,mode=700 none "$0" && exec "$@"'


def on_a_small_disk(folder, command, **variables):
    """Runs a command for which `folder` is a disk of 48 MiB; None where nothing can be mounted."""
    for way in WAYS:
        try:
            probe = subprocess.run(way + ["sh", "-c", MOUNT, folder, "true"], capture_output=True, timeout=60)
        except OSError:
            continue
        if probe.returncode == 0:
            return subprocess.run(way + ["sh", "-c", MOUNT, folder] + command, env=environment(**variables),
                                  capture_output=True, text=True, timeout=120)
    return None


@pytest.mark.skipif(built_library() is None, reason="libhbmalloc is not built")
def test_a_full_disk(tmp_path):
    code = textwrap.dedent(MEMORY + """
        import os, sys
        folder = sys.argv[1]
        hbmalloc.set_option("sleep_dir", folder)
        small, large = Block("vmm", 20 * MIB, "small"), Block("vmm", 40 * MIB, "large")
        other = Block("pool", 3 * MIB, "large")
        for number, block in enumerate((small, large, other)):
            block.write(number + 1)
        intact = lambda: small.holds(1) and large.holds(2) and other.holds(3)
        # Together they are too much: the first one's file is had, and goes again.
        text = refused(hbmalloc.FileError, hbmalloc.sleep, ["small", "large"], to="file")
        assert "No space left" in text and "sleep_dir" in text and folder in text and "asked for" in text, text
        assert intact() and os.listdir(folder) == []
        assert hbmalloc.residency()["file"] == 0 == hbmalloc.host_buffer()["used"]
        # One after the other: what sleeps keeps its file.
        hbmalloc.sleep("small", to="file")
        refused(hbmalloc.FileError, hbmalloc.sleep, "large", to="file")
        assert len(os.listdir(folder)) == 1 and large.holds(2) and other.holds(3)
        hbmalloc.sleep("large")                                     # the host has room
        hbmalloc.wake()
        assert intact() and os.listdir(folder) == []
        # Others fill the disk.
        with open(os.path.join(folder, "others"), "wb") as others:
            others.write(bytes(40 * MIB))
        refused(hbmalloc.FileError, hbmalloc.sleep, "small", to="file")
        os.remove(others.name)
        hbmalloc.sleep("small", to="file")
        hbmalloc.wake()
        assert intact() and os.listdir(folder) == []
        for block in (small, large, other):
            block.free()
        print("done")
    """)
    done = on_a_small_disk(str(tmp_path), [sys.executable, "-c", code, str(tmp_path)],
                           HBMALLOC_DRIVER="sim", HBMALLOC_SIM="devices=2,memory=4GiB")
    if done is None:
        pytest.skip("no file system can be mounted here (unshare --mount)")
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr
