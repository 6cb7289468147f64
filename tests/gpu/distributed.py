"""Data-parallel training by torchrun, one process a GPU, on two GPUs: losses equal native's to the last bit.

`distributed.py cpu` runs the same on the CPU, to try it out.
"""

import json
import os
import sys
import tempfile

import gpucase

MODES = ("ddp", "fsdp", "fully_shard")


def launch(label, mode, allocator, out):
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "distributed_child.py")
    gpucase.child("%s %s" % (label, mode), [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program, mode, allocator, out], limit=120)


def main():
    import torch

    on_cpu = sys.argv[1:] == ["cpu"]
    if not on_cpu and torch.cuda.device_count() < 2:
        gpucase.line("SKIP", "data-parallel training", "it needs two GPUs and there are %d" % torch.cuda.device_count())
        gpucase.finish()
    os.environ.setdefault("OMP_NUM_THREADS", "4")  # torchrun would warn and take 1
    with tempfile.TemporaryDirectory() as folder:
        for mode in MODES:
            results = {}
            for label in ["cpu"] if on_cpu else ["native", "default", "async"]:
                out = os.path.join(folder, "%s-%s.json" % (mode, label))
                launch(label, mode, label, out)
                if os.path.exists(out):
                    with open(out) as handle:
                        results[label] = json.load(handle)
            for label, result in results.items():
                same = result == results.get("native", result)
                gpucase.line("PASS" if same else "FAIL", "%s %s losses" % (label, mode), "" if same else "they differ from native's")
    gpucase.finish()


if __name__ == "__main__":
    main()
