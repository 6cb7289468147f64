"""One process of `routes.py`: route_child.py ROUTE BACKEND REFERENCE.

ROUTE is native (then REFERENCE is written), install, plain or pool.
"""

import contextlib
import gc
import json
import sys

import gpucase
from gpucase import case, check, raises

ROUTE, BACKEND, REFERENCE = sys.argv[1:4]
gpucase.install(ROUTE, BACKEND)

from hbmalloc import _transformer  # noqa: E402  (sets up cuBLAS before torch starts it)

import torch  # noqa: E402

import hbmalloc  # noqa: E402

STEPS = 30


@contextlib.contextmanager
def in_route(tag="cases"):
    """The pool, on the route that has one; the pool or None."""
    if ROUTE != "pool":
        yield None
        return
    with hbmalloc.torch.memory_pool(BACKEND, tag=tag) as pool:
        yield pool


def graph_pool(tag):
    """Keyword arguments that make a capture take its memory from hbmalloc on the pool route.

    The pool is not entered: torch refuses to capture into a pool that the thread allocates from.
    """
    if ROUTE != "pool":
        return {}
    pools.append(hbmalloc.torch.memory_pool(BACKEND, tag=tag))
    return {"pool": pools[-1].id}


pools = []


def settle():
    """Frees what can be freed, cuBLAS's workspaces (one a stream, kept by torch) included."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def stats():
    """Of all backends: `async` takes captured blocks from `vmm`."""
    return hbmalloc.stats(0)


def training():
    """30 steps with a request beyond any card in the middle of them.

    Requests that nearly fit are for out_of_memory.py, which has the card to itself.
    """
    refused = []

    def each_step(step):
        if step == 10:
            try:
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
            except torch.OutOfMemoryError as error:
                refused.append(str(error))

    with case("training"), in_route("training"):
        losses = _transformer.train("cuda", STEPS, each_step=each_step)
        if ROUTE == "native":
            with open(REFERENCE, "w") as handle:
                json.dump({"losses": losses}, handle)
        with open(REFERENCE) as handle:
            wanted = json.load(handle)["losses"]
        different = [step for step in range(STEPS) if losses[step] != wanted[step]]
        check(not different, "losses differ from native's from step %s on" % (different[:1]))
        check(float.fromhex(losses[-1]) < float.fromhex(losses[0]), "it does not learn")
    with case("out of memory, then on"):
        check(refused, "a request beyond the card was not refused")
    if ROUTE in ("install", "pool"):
        with case("statistics"):
            now = stats()
            check(now["requested"] <= now["allocated"] <= now["reserved"], now)
            check(now["peak_allocated"] > 0 and now["allocations"] > 0, now)
            check(now["failed_allocations"] >= 1 or ROUTE == "pool", now)
    if ROUTE == "install":
        with case("empty_cache"):
            settle()


def chain(x):
    """Work with temporaries that are freed while it is captured."""
    for scale in range(1, 6):
        a = torch.sin(x * scale)
        b = a @ a.transpose(-1, -2)
        del a
        x = torch.tanh(b[..., : x.shape[-1]]) + x
        del b
    return x


def graphs():
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(256, 256, generator=generator) for _ in range(4)]
    with case("graph capture and replay"):
        static = inputs[0].cuda()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            chain(static)
        torch.cuda.current_stream().wait_stream(side)
        eager = [chain(x.cuda()) for x in inputs]
        settle()
        before = stats()["allocated"] if ROUTE in ("install", "pool") else 0
        graph = torch.cuda.CUDAGraph()
        kept = torch.ones(1 << 20, device="cuda")
        with torch.cuda.graph(graph, **graph_pool("graph")):
            result = chain(static)
            doubled = result * 2
        if ROUTE != "native" and ROUTE != "plain":
            check(stats()["allocated"] > before, "the graph's memory is not ours")
        for _ in range(3):
            for x, wanted in zip(inputs, eager):
                static.copy_(x)
                graph.replay()
                noise = [torch.full((256, 256), float(n), device="cuda") for n in range(8)]
                check(torch.equal(result, wanted), "a replay differs from eager")
                check(torch.equal(doubled, wanted * 2), "a replay's second result differs from eager")
                del noise
        check(bool((kept == 1).all()), "memory outside of the graph was overwritten")
    with case("graph released"):
        del graph, result, doubled, kept
        pools.clear()
        settle()
        if ROUTE in ("install", "pool"):
            after = stats()
            check(after["allocated"] <= before, "%d bytes before the graph, %s after" % (before, after))
        check(torch.equal(chain(inputs[0].cuda()), eager[0]), "eager work differs afterwards")
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet:
        quiet(False)  # torch warns of its own warm-up here, with its own allocator too
    with case("make_graphed_callables"):
        losses = []
        for graphed in (False, True):
            _transformer.deterministic()
            torch.use_deterministic_algorithms(False)
            model = torch.nn.Sequential(
                torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256)).cuda()
            sample = inputs[0].cuda().requires_grad_()
            call = torch.cuda.make_graphed_callables(model, (sample,), **graph_pool("graphed")) if graphed else model
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            for x in inputs * 3:
                optimizer.zero_grad(set_to_none=True)
                loss = call(x.cuda().requires_grad_()).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            del model, call, sample, optimizer, loss
            pools.clear()
            settle()
        half = len(losses) // 2
        check(losses[:half] == losses[half:], "graphed %s, eager %s" % (losses[half:], losses[:half]))
    torch.use_deterministic_algorithms(False)


def streams():
    """Blocks made on one stream and used on another, dropped at once by the host."""
    rows, rounds = 1 << 18, 60
    with case("four streams with record_stream"), in_route("streams"):
        makers = [torch.cuda.Stream() for _ in range(4)]
        totals = [torch.zeros(rows, device="cuda") for _ in makers]
        torch.cuda.synchronize()
        for number in range(rounds):
            for index, maker in enumerate(makers):
                reader = makers[(index + 1) % 4]
                with torch.cuda.stream(maker):
                    block = torch.full((rows,), float(number + index), device="cuda")
                reader.wait_stream(maker)
                with torch.cuda.stream(reader):
                    if number % 8 == 0:
                        torch.cuda._sleep(2_000_000)
                    totals[index].add_(block)
                block.record_stream(reader)
                del block
                with torch.cuda.stream(maker):  # reuses too early where record_stream is not kept
                    torch.full((rows,), -1e6, device="cuda")
        torch.cuda.synchronize()
        for index, total in enumerate(totals):
            wanted = float(sum(number + index for number in range(rounds)))
            check(bool((total == wanted).all()), "stream %d read %s instead of %s" % (index, total.unique()[:4], wanted))
        del totals, total
    for name, recorded in (("weights read on another stream, recorded, freed", True),
                           ("weights read on another stream, awaited, freed", False)):
        with case(name):
            with in_route("weights"):
                side = torch.cuda.Stream()
                results = []
                for number in range(6):
                    weights = [torch.full((1024, 1024), float(number + layer), device="cuda") for layer in range(6)]
                    side.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(side):
                        torch.cuda._sleep(20_000_000)
                        results.append(sum(weight.sum(dtype=torch.float64) for weight in weights))
                    if recorded:
                        for layer in range(len(weights)):
                            weights[layer].record_stream(side)
                    else:
                        torch.cuda.current_stream().wait_stream(side)
                    weights.clear()
                    torch.full((8, 1024, 1024), -1.0, device="cuda")
            settle()  # on the pool route this gives the segments back
            for number, result in enumerate(results):
                wanted = float(sum(number + layer for layer in range(6)) * 1024 * 1024)
                check(result.item() == wanted, "round %d read %s instead of %s" % (number, result.item(), wanted))
            del results, result


def pool_lifetime():
    if ROUTE != "pool":
        return
    with case("pool freed under running work"):
        pool = hbmalloc.torch.memory_pool(BACKEND, tag="short")
        with torch.cuda.use_mem_pool(pool):
            block = torch.full((1 << 22,), 3.0, device="cuda")
        torch.cuda._sleep(50_000_000)
        total = block.sum(dtype=torch.float64)
        del block, pool
        settle()
        check(total.item() == 3.0 * (1 << 22), "read %s" % total.item())
    with case("pool dropped before its tensors"):
        pool = hbmalloc.torch.memory_pool(BACKEND, tag="outlived")
        with pool:
            block = torch.full((1 << 20,), 5.0, device="cuda")
        del pool
        settle()
        check(bool((block == 5).all()), "the tensor lost its contents")
        del block
        settle()
    with case("pools give everything back"):
        settle()
        check(stats()["allocated"] == 0, stats())


def main():
    check(torch.cuda.is_available(), "no GPU")
    with raises(torch.OutOfMemoryError), in_route("first"):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    training()
    graphs()
    streams()
    pool_lifetime()
    gpucase.finish()


if __name__ == "__main__":
    main()
