"""Two GPUs. Data-parallel training by torchrun, one process a GPU: losses equal native's to the last bit.
And one process with both: memory of the one read by a stream of the other.

`distributed.py cpu` runs the training on the CPU, to try it out.
"""

import json
import os
import sys
import tempfile

import gpucase

MODES = ("ddp", "fsdp", "fully_shard")
# Their frees do not wait for the work.
ACROSS = ("native", "pool", "vmm", "async")


def launch(label, mode, allocator, out):
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "distributed_child.py")
    gpucase.child("%s %s" % (label, mode), [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program, mode, allocator, out], limit=120)


def main():
    import torch

    on_cpu = sys.argv[1:] == ["cpu"]
    if not on_cpu and torch.cuda.device_count() < 2:
        for name in ("data-parallel training", "streams of another device"):
            gpucase.line("SKIP", name, "it needs two GPUs and there are %d" % torch.cuda.device_count())
        gpucase.finish()
    if not on_cpu:
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "across_devices.py")
        for label in ACROSS:
            gpucase.child("across devices " + label, [program, label], limit=60)
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
