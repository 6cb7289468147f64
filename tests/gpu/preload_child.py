"""Programs of PyTorch that know nothing of hbmalloc, for preload.py. What has to be the same under the preload library and
without goes to lines that begin with `out`; time and memory to one that begins with `cost`.

usage: preload_child.py train|graph|generate|compile|pinned|uncached|reduce|share
"""

import os
import sys
import time

import torch

MIB = 1 << 20


def cost(begun):
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    print("cost %.2f s, peak reserved %.0f MiB, %.0f MiB of the card used" % (
        time.perf_counter() - begun, torch.cuda.max_memory_reserved() / MIB, (total - free) / MIB))


def out(*values):
    print("out", *(value.hex() if isinstance(value, float) else value for value in values), flush=True)


def train():
    layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
    net = torch.nn.TransformerEncoder(layer, 4).cuda()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    for step in range(60):
        x = torch.randn(8, 128 + 16 * (step % 5), 512, device="cuda")
        loss = (net(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 9:
            out("loss", loss.item())


def graph():
    net = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024)).cuda()
    x = torch.randn(64, 1024, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            y = net(x)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        y = net(x)
    for _ in range(10):
        x.copy_(torch.randn(64, 1024, device="cuda"))
        captured.replay()
        out(y.double().sum().item())
    # Memory of others comes and goes, and what the graph writes to is still its own.
    for _ in range(3):
        junk = [torch.full((10 << 20,), 7.0, device="cuda") for _ in range(20)]
        del junk
        torch.cuda.empty_cache()
        captured.replay()
    out(y.double().sum().item())


def generate():
    from transformers import GPT2Config, GPT2LMHeadModel

    net = GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=512, n_head=8)).cuda().eval()
    with torch.no_grad():
        ids = net.generate(torch.arange(32, device="cuda")[None], max_new_tokens=64, do_sample=False, pad_token_id=0)
    out(ids[0].tolist())


def compiled():
    net = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512)).cuda()
    step = torch.compile(net, mode="reduce-overhead")
    for _ in range(8):
        x = torch.randn(64, 512, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        out(step(x).double().sum().item())


def pinned():
    memory = torch.empty(64 * MIB, dtype=torch.uint8, pin_memory=True)
    memory.fill_(3)
    there = memory.to("cuda", non_blocking=True)
    out(int(there.sum()), memory.is_pinned(), bool((there.cpu() == memory).all()))
    try:
        torch.empty(400 << 30, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        out("out of memory, as it should be")
    out(float((torch.ones(1000, device="cuda") * 2).sum()))


def uncached():
    """With PYTORCH_NO_CUDA_MEMORY_CACHING=1: every tensor is a cudaMalloc, while four streams are at work."""
    streams = [torch.cuda.Stream() for _ in range(4)]
    wrong, kept = torch.zeros((), device="cuda", dtype=torch.int64), []
    for number in range(4000):
        place = number % 4
        with torch.cuda.stream(streams[place]):
            tensor = torch.full((1 << 18,), number, dtype=torch.int32, device="cuda")
            kept.append((place, tensor * 1, number))
            if len(kept) > 8:
                where, old, value = kept.pop(0)
                with torch.cuda.stream(streams[where]):
                    differs = (old != value).sum()
                torch.cuda.current_stream().wait_stream(streams[where])
                wrong = wrong + differs
    torch.cuda.synchronize()
    out("wrong", int(wrong))


def _reduce(rank):
    import torch.distributed as distributed

    begun = time.perf_counter()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", rank=rank, world_size=2)
    torch.manual_seed(rank)
    for count in (1000, MIB, 64 * MIB):
        tensor = torch.randn(count, device="cuda")
        distributed.all_reduce(tensor)
        out("rank", rank, count, tensor.double().sum().item())
    cost(begun)
    distributed.destroy_process_group()


def reduce():
    import torch.multiprocessing as processes

    ranks = [processes.get_context("spawn").Process(target=_reduce, args=(rank,)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    out("ended", [process.exitcode for process in ranks])


def _share(queue, back):
    small, big, part = queue.get()
    out("child", small.double().sum().item(), big.double().sum().item(), part.tolist())
    big.add_(1)
    torch.cuda.synchronize()
    back.put("done")
    del small, big, part


def share():
    import torch.multiprocessing as processes

    context = processes.get_context("spawn")
    queue, back = context.Queue(), context.Queue()
    process = context.Process(target=_share, args=(queue, back))
    process.start()
    small, big = torch.randn(1000, device="cuda"), torch.randn(50 * MIB, device="cuda")
    part = torch.arange(100, device="cuda")[10:20]
    before = big.double().sum().item()
    queue.put((small, big, part))
    out("parent", back.get(timeout=60), round(big.double().sum().item() - before))
    process.join()
    out("ended", process.exitcode)
    junk = torch.empty(100 * MIB, device="cuda")
    del small, big, part, junk
    torch.cuda.empty_cache()


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    programs = {"compile": compiled}
    start = time.perf_counter()
    programs.get(sys.argv[1], globals().get(sys.argv[1]))()
    if sys.argv[1] != "reduce":
        cost(start)
