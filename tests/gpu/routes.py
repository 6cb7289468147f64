"""Every backend by every route against torch's own allocator.

Training, out of memory, graphs and streams run in `route_child.py`, one process a
(route, backend); the losses must equal native's to the last bit.
"""

import json
import os
import tempfile

import gpucase


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    program = os.path.join(here, "route_child.py")
    with tempfile.TemporaryDirectory() as folder:
        reference = os.path.join(folder, "native.json")
        gpucase.child("native", [program, "native", "native", reference])
        if not os.path.exists(reference):
            gpucase.line("FAIL", "native", "it left no losses to compare with")
            gpucase.finish()
        with open(reference) as handle:
            print("native losses: %s" % [float.fromhex(loss) for loss in json.load(handle)["losses"]][::29])
        gpucase.children([
            {"label": "%s/%s" % (route, backend), "arguments": [program, route, backend, reference],
             "managed": backend == "managed"}
            for backend in sorted(gpucase.BACKENDS, key="managed".__ne__)  # managed first: those wait for each other
            for route in ("install", "plain", "pool")
        ])
    gpucase.finish()


if __name__ == "__main__":
    main()
