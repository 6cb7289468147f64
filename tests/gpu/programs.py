"""Usual PyTorch programs under install(): what they compute equals native's to the last bit.

`programs.py cpu` only runs those that can run there, to try them out.
"""

import os
import sys
import tempfile

import gpucase


def main():
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program_child.py")
    with tempfile.TemporaryDirectory() as folder:
        reference = os.path.join(folder, "native.json")
        # Compiled once for all: what is chosen by measuring is then the same for every allocator.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(folder, "inductor"))
        if sys.argv[1:] == ["cpu"]:
            gpucase.child("cpu", [program, "cpu", reference])
            gpucase.finish()
        gpucase.child("native", [program, "native", reference])
        if not os.path.exists(reference):
            gpucase.line("FAIL", "native", "it left nothing to compare with")
            gpucase.finish()
        gpucase.children([
            dict(label="install/" + backend, arguments=[program, backend, reference])
            for backend in ("default", "async")
        ], parallel=2)
    gpucase.finish()


if __name__ == "__main__":
    main()
