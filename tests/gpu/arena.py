"""Arenas over memory of a device by the C++ header, and what their pairs cost here. Needs a C++ compiler, no header of CUDA's."""

import os
import shutil
import subprocess
import tempfile

import gpucase
import hbmalloc
from gpucase import case, check

HERE = os.path.dirname(os.path.abspath(__file__))
BENCHES = os.path.join(HERE, "..", "..", "benches")
LIBRARY = os.path.realpath(hbmalloc.get_library_path())


def built(source, folder):
    program = os.path.join(folder, os.path.basename(os.path.dirname(source)) + "-" + os.path.basename(source)[:-4])
    command = ["c++", "-O2", "-std=c++17", "-pthread", "-I" + hbmalloc.get_include(), source, LIBRARY, "-o", program,
               "-Wl,-rpath," + os.path.dirname(LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode == 0, done.stderr[-2000:])
    return program


def ran(program):
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    print("   " + done.stdout.replace("\n", "\n   "), flush=True)
    check(done.returncode == 0, done.stderr[-2000:])


if __name__ == "__main__":
    if shutil.which("c++") is None:
        gpucase.line("SKIP", "arenas", "no C++ compiler")
    else:
        with tempfile.TemporaryDirectory() as folder:
            with case("blocks of arenas hold what was written to them"):
                ran(built(os.path.join(HERE, "arena.cpp"), folder))
            for name in ("arena", "cpp"):
                with case("host time of pairs, benches/%s" % name):
                    ran(built(os.path.join(BENCHES, name, "pairs.cpp"), folder))
    gpucase.finish()
