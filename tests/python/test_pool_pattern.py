"""The GPU check of blocks' contents, in the form that the simulated driver can run."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import built_library, environment

SCRIPT = Path(__file__).parent.parent / "gpu" / "pool_pattern.py"


def test_blocks_hold_what_was_written():
    if built_library() is None:
        pytest.skip("libhbmalloc is not built")
    variables = environment(HBMALLOC_DRIVER="sim", HBMALLOC_CHECK_SECONDS="3")
    done = subprocess.run([sys.executable, "-u", str(SCRIPT)], env=variables, capture_output=True, text=True, timeout=100)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(line.startswith("PASS ") for line in lines) == 3, done.stdout
