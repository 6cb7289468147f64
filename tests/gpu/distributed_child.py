"""One process of a torchrun by `distributed.py`: distributed_child.py MODE ALLOCATOR OUT."""

import json
import os
import sys

import gpucase

MODE, ALLOCATOR, OUT = sys.argv[1:4]
DEVICE = "cpu" if ALLOCATOR == "cpu" else "cuda"
if ALLOCATOR not in ("native", "cpu"):
    gpucase.install("install", None if ALLOCATOR == "default" else ALLOCATOR)

from hbmalloc._transformer import Transformer, batches, deterministic, loss_of  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402


def wrapped(model):
    if MODE == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)
    if MODE == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        return FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({type(model.blocks[0])}),
                                        use_orig_params=True, device_id=torch.device(DEVICE))
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def main():
    rank = int(os.environ["RANK"])
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    deterministic()
    model = Transformer(width=256, heads=4, layers=4)
    model = wrapped(model if MODE == "fsdp" else model.to(DEVICE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for tokens in batches(10, 32):
        mine = tokens.chunk(2)[rank].to(DEVICE)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, mine)
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        losses.append(whole)
    losses = [loss.item().hex() for loss in losses]
    gpucase.check(float.fromhex(losses[-1]) < float.fromhex(losses[0]), "it does not learn")
    if rank == 0:
        with open(OUT, "w") as handle:
            json.dump(losses, handle)
    if ALLOCATOR not in ("native", "cpu"):
        used = torch.cuda.memory_allocated()
        gpucase.check(used > 0 and torch.cuda.max_memory_allocated() > used, "the tensors are not hbmalloc's")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
