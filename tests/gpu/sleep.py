"""Sleep and wake with PyTorch: results stay the same to the last bit, graphs captured before replay after,
memory is given back while a model sleeps, and a wake that finds none can be tried again."""

import os
import random
import sys
import threading
import time

import gpucase
from gpucase import case, check, raises

MIB = 1 << 20
#: What may stay taken of a model that sleeps: the driver's own, and what is not tagged.
SLACK = 64 * MIB
TAGS = ("weights", "cache", "scratch")
CYCLES = 50


class Memory:
    """Where tensors of a tag come from: the installed allocator, or a memory pool of each tag."""

    def __init__(self, route, backend):
        import torch

        import hbmalloc

        gpucase.install(route, backend)
        self.torch, self.hbmalloc = torch, hbmalloc
        self.pools = None
        if route == "pool":
            self.pools = {tag: hbmalloc.torch.memory_pool(backend, tag=tag) for tag in TAGS}

    def of(self, tag):
        return self.hbmalloc.tag(tag) if self.pools is None else self.pools[tag]

    def of_graphs(self, tag):
        """What torch.cuda.graph is told, so that a graph's memory is of the tag."""
        return {} if self.pools is None else {"pool": self.pools[tag].id}

    def driver_free(self):
        """By the driver's own count, whatever answers torch's question."""
        import ctypes

        self.torch.cuda.synchronize()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        code = ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        check(code == 0, "cuMemGetInfo answered %d" % code)
        return free.value


def model_of(memory):
    from hbmalloc._transformer import Transformer, batches, deterministic

    deterministic()
    with memory.of("weights"):
        model = Transformer(width=1024, heads=16, layers=16).to("cuda").eval()
    tokens = next(iter(batches(1, 8)))[:, :-1].to("cuda")
    return model, tokens


def logits_of(memory, model, tokens):
    with memory.torch.no_grad(), memory.of("scratch"):
        return model(tokens).float().cpu()


def addresses_of(model):
    return [parameter.data_ptr() for parameter in model.parameters()]


def whole_models(memory):
    torch, hbmalloc = memory.torch, memory.hbmalloc
    model, tokens = model_of(memory)
    before, places = logits_of(memory, model, tokens), addresses_of(model)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with case("a model sleeps and wakes, its logits are the same"):
        for number in range(3):
            awake = memory.driver_free()
            done = hbmalloc.sleep("weights")
            asleep = memory.driver_free()
            check(done["copied"] >= weights and done["pinned"] == 0, "%r of %d bytes" % (done, weights))
            check(asleep - awake >= weights - SLACK, "%d bytes of %d came back" % (asleep - awake, weights))
            check(hbmalloc.residency("weights")["device"] == 0, "awake: %r" % hbmalloc.residency("weights"))
            back = hbmalloc.wake("weights")
            check(back["moved"] == done["moved"], "%r, then %r" % (done, back))
            check(addresses_of(model) == places, "addresses have changed")
            check(torch.equal(logits_of(memory, model, tokens), before), "other logits, round %d" % number)
    with case("everything sleeps"):
        empty_before = memory.driver_free() + hbmalloc.residency()["device"]
        hbmalloc.sleep()
        check(memory.driver_free() >= empty_before - SLACK, "%d bytes stay" % (empty_before - memory.driver_free()))
        hbmalloc.wake()
        check(torch.equal(logits_of(memory, model, tokens), before), "other logits")
    with case("clean weights sleep without a copy"):
        hbmalloc.set_option("keep_host", "50%")
        hbmalloc.sleep("weights", clean=True)
        hbmalloc.wake("weights")
        check(hbmalloc.sleep("weights", clean=True)["copied"] == 0, "copied though it was kept")
        hbmalloc.wake("weights")
        check(torch.equal(logits_of(memory, model, tokens), before), "other logits")
        hbmalloc.set_option("keep_host", "0")
        hbmalloc.sleep("weights")
        hbmalloc.wake("weights")
        check(hbmalloc.host_buffer()["used"] == 0, "%r" % hbmalloc.host_buffer())
    with case("discarded, and loaded anew"):
        saved = [parameter.detach().cpu() for parameter in model.parameters()]
        check(hbmalloc.discard("weights")["copied"] == 0, "copied")
        hbmalloc.wake("weights")
        with torch.no_grad():
            for parameter, contents in zip(model.parameters(), saved):
                parameter.copy_(contents)
        check(addresses_of(model) == places, "addresses have changed")
        check(torch.equal(logits_of(memory, model, tokens), before), "other logits")
    with case("training goes on"):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            with memory.of("scratch"):
                model(tokens).float().square().mean().backward()
            optimizer.step()
            hbmalloc.sleep()
            hbmalloc.wake()
        check(all(bool(parameter.isfinite().all()) for parameter in model.parameters()), "weights are lost")


def graphs(memory):
    torch, hbmalloc = memory.torch, memory.hbmalloc
    with memory.of("weights"):
        weight = torch.randn(2048, 2048, device="cuda")
    with memory.of("cache"):
        given, result = torch.randn(64, 2048, device="cuda"), torch.zeros(64, 2048, device="cuda")

    def step():
        # Every one of the graph's temporaries is free at its end.
        result.copy_(torch.relu(given @ weight).softmax(-1) @ weight)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), memory.of("scratch"):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    with case("a graph captured before sleep replays after"):
        graph = torch.cuda.CUDAGraph()
        with hbmalloc.tag("scratch"), torch.cuda.graph(graph, **memory.of_graphs("scratch")):
            step()
        graph.replay()
        torch.cuda.synchronize()
        expected = result.cpu()
        for tags in (["scratch"], ["weights", "cache", "scratch"], None, ["cache"]):
            hbmalloc.sleep(tags)
            hbmalloc.wake(tags)
            result.zero_()
            graph.replay()
            torch.cuda.synchronize()
            check(torch.equal(result.cpu(), expected), "another result after %r" % (tags,))
        hbmalloc.discard("scratch")
        hbmalloc.wake("scratch")
        graph.replay()
        check(torch.equal(result.cpu(), expected), "another result after its temporaries were discarded")
    if memory.pools is not None:
        return  # torch's own allocator tells nobody of its captures
    with case("nothing sleeps or wakes in a capture"):
        second = torch.cuda.CUDAGraph()
        with torch.cuda.graph(second):
            for call in (hbmalloc.sleep, hbmalloc.wake, hbmalloc.discard):
                with raises(hbmalloc.CapturingError):
                    call("weights")
            step()
        second.replay()
        check(torch.equal(result.cpu(), expected), "the capture is not what it was")


def running_work(memory):
    torch, hbmalloc = memory.torch, memory.hbmalloc
    with case("work on a side stream that nobody named"):
        with memory.of("weights"):
            block = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        for number in range(1, 6):
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                torch.cuda._sleep(200_000_000)
                block.add_(1)
            began = time.monotonic()
            hbmalloc.sleep("weights")
            print("    slept after %.0f ms" % (1e3 * (time.monotonic() - began)))
            check(side.query(), "asleep while work runs")
            hbmalloc.wake("weights")
            check(int(block.min()) == number == int(block.max()), "not what the side stream wrote")


def cycles(memory):
    torch, hbmalloc = memory.torch, memory.hbmalloc
    seed = int(os.environ.get("HBMALLOC_TEST_SEED", time.time_ns() & 0xFFFF_FFFF))
    choose = random.Random(seed)
    asleep, tensors = set(), []

    def verify(tag, address, tensor, number):
        check(tensor.data_ptr() == address, "an address has changed")
        # What was allocated into a sleeping tag is awake, but is not told from the rest here.
        if tag not in asleep:
            contents = tensor.cpu()
            right = bool((contents == number).all())
            check(right, "%d bytes of %s are %r, not %d" % (tensor.nbytes, tag, contents[:4].tolist(), number))

    with case("%d cycles at random, HBMALLOC_TEST_SEED=%d" % (CYCLES, seed)):
        for cycle in range(CYCLES):
            for _ in range(choose.randrange(12)):
                # What torch has cached of a sleeping tag it would give out, so there tensors are freed only.
                tag = choose.choice(TAGS)
                if choose.random() < 0.6 and (tag not in asleep or memory.pools is None) and len(tensors) < 80:
                    size = choose.choice((1, 700, 40_000, 3 * MIB, choose.randrange(1, 40 * MIB)))
                    with memory.of(tag):
                        tensor = torch.full((size,), cycle % 251, dtype=torch.uint8, device="cuda")
                    tensors.append((tag, tensor.data_ptr(), tensor, cycle % 251))
                elif tensors:
                    entry = tensors.pop(choose.randrange(len(tensors)))
                    verify(*entry)
                    del entry
            chosen = choose.sample(TAGS, choose.randrange(1, len(TAGS) + 1))
            if choose.random() < 0.5:
                hbmalloc.sleep(chosen)
                asleep.update(chosen)
            else:
                hbmalloc.wake(chosen)
                asleep.difference_update(chosen)
            if choose.random() < 0.2:
                torch.cuda.empty_cache()
            for entry in tensors:
                verify(*entry)
            entry = None
        hbmalloc.wake()
        asleep.clear()
        for entry in tensors:
            verify(*entry)
        check(hbmalloc.host_buffer()["used"] == 0, "%r" % hbmalloc.host_buffer())


def out_of_memory(memory):
    torch, hbmalloc = memory.torch, memory.hbmalloc
    with case("a wake without memory, and again"):
        with memory.of("weights"):
            kept = torch.arange(1 << 29, dtype=torch.int32, device="cuda")  # 2 GiB
        expected = int(kept[::4097].sum())
        hbmalloc.sleep("weights")
        there, filler = hbmalloc.residency("weights"), []
        step = 1 << 30
        # Of torch's own pools' memory nothing would be given back while the pools live.
        while step >= 64 * MIB:
            try:
                filler.append(torch.empty(step, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                step //= 2
        for _ in range(2):
            with raises(hbmalloc.OutOfMemoryError, "sleeps on"):
                hbmalloc.wake("weights")
            check(hbmalloc.residency("weights") == there, "%r, then %r" % (there, hbmalloc.residency("weights")))
        filler.clear()
        torch.cuda.empty_cache()
        hbmalloc.wake("weights")
        check(int(kept[::4097].sum()) == expected, "contents have changed")
        del kept
    with case("the host's room is given back"):
        check(hbmalloc.trim_host_buffer() > 0 and hbmalloc.host_buffer() == {"pinned": 0, "used": 0},
              "%r" % hbmalloc.host_buffer())


def other_threads(memory):
    torch, hbmalloc = memory.torch, memory.hbmalloc
    over, failures = threading.Event(), []

    def work():
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream), memory.of("scratch"):
                while not over.is_set():
                    tensor = torch.full((random.randrange(1, 4 * MIB),), 7, dtype=torch.uint8, device="cuda")
                    check(int(tensor.min()) == 7 == int(tensor.max()), "another tag's tensor has changed")
        except BaseException as error:
            failures.append(error)

    with case("other threads work in another tag meanwhile"):
        with memory.of("weights"):
            kept = torch.full((300 * MIB,), 3, dtype=torch.uint8, device="cuda")
        threads = [threading.Thread(target=work) for _ in range(1 if memory.pools else 4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                hbmalloc.sleep("weights")
                hbmalloc.wake("weights")
                check(int(kept.min()) == 3 == int(kept.max()), "contents have changed")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        check(not failures, failures)


def one(route, backend):
    memory = Memory(route, backend)
    for part in (whole_models, graphs, running_work, cycles, other_threads, out_of_memory):
        part(memory)
        memory.torch.cuda.empty_cache()
    gpucase.finish()


def main():
    program = os.path.abspath(__file__)
    for route, backend in (("install", "pool"), ("install", "vmm"), ("pool", "vmm")):
        gpucase.child("%s/%s" % (route, backend), [program, route, backend], limit=150)
    gpucase.finish()


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
