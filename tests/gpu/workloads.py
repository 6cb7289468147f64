"""Usual PyTorch programs, small: each returns what it computed as exact text.

Deterministic, so that two runs on one machine agree to the last bit whatever the
allocator. Those that need no CUDA feature run on the CPU too. `Missing` says what a
machine lacks for one.
"""

import contextlib
import importlib.util
import os
import shutil
import sysconfig
import threading

os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # choices by timing would differ from run to run

from hbmalloc._transformer import Transformer, batches, deterministic, loss_of, train  # noqa: E402

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


class Missing(Exception):
    """What a program needs is not on this machine."""


def need(module):
    if importlib.util.find_spec(module) is None:
        raise Missing("%s is not installed" % module)


def exact(values):
    return [float(value).hex() for value in values]


def transformer(device):
    return train(device, steps=12, width=384, heads=6, layers=4)


def mixed_precision(device):
    """bfloat16 under autocast, gradients of three batches added up, batches of different sizes."""
    deterministic()
    model = Transformer(width=256, heads=4, layers=3).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for size in (4, 16, 8, 32):
        for tokens in batches(3, size):
            with torch.autocast(device, torch.bfloat16):
                loss = loss_of(model, tokens.to(device)) / 3
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return exact(losses)


class Residual(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.shortcut = nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        return functional.relu(self.body(x) + self.shortcut(x))


def small_resnet():
    return nn.Sequential(
        nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def image_training(model, device, steps):
    generator = torch.Generator().manual_seed(11)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        side, count = (64, 96, 128)[step % 3], (16, 8, 12)[step % 3]
        images = torch.randn(count, 3, side, side, generator=generator).to(device)
        labels = torch.randint(0, 10, (count,), generator=generator).to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return exact(losses)


def resnet(device):
    deterministic()
    return image_training(small_resnet().to(device), device, 9)


def torchvision_resnet(device):
    need("torchvision")
    import torchvision

    deterministic()
    return image_training(torchvision.models.resnet18(num_classes=10).to(device), device, 6)


class Decoder(nn.Module):
    """One token at a time over keys and values that grow by it."""

    def __init__(self, width=256, heads=4, layers=4, vocabulary=512):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(vocabulary, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.mlp = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
                                 for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens, cache):
        x = self.tokens(tokens)
        for layer, (qkv, mlp) in enumerate(zip(self.qkv, self.mlp)):
            batch, length, width = x.shape
            q, k, v = qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            if cache[layer] is not None:
                k, v = torch.cat([cache[layer][0], k], 2), torch.cat([cache[layer][1], v], 2)
            cache[layer] = (k, v)
            scores = (q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
            x = x + mlp(x)
        return self.head(x[:, -1])


@torch.no_grad()
def generation(device):
    deterministic()
    model, generator = Decoder().to(device).eval(), torch.Generator().manual_seed(5)
    results = []
    for batch, prompt, steps in ((4, 48, 64), (16, 160, 32), (1, 300, 96)):
        cache = [None] * len(model.qkv)
        tokens = torch.randint(0, 512, (batch, prompt), generator=generator).to(device)
        for _ in range(steps):
            logits = model(tokens, cache)
            tokens = logits.argmax(-1, keepdim=True)
            results.append(logits.double().sum() + tokens.sum())
    return exact(results)


@torch.no_grad()
def transformers_generation(device):
    need("transformers")
    import transformers

    deterministic()
    config = transformers.GPT2Config(vocab_size=500, n_positions=256, n_embd=128, n_layer=3, n_head=4,
                                     bos_token_id=0, eos_token_id=499, pad_token_id=499)
    model = transformers.GPT2LMHeadModel(config).to(device).eval()
    tokens = torch.randint(0, 499, (4, 40), generator=torch.Generator().manual_seed(5)).to(device)
    made = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=48, do_sample=False)
    return exact(made.double().sum(0)) + exact([model(made).logits.double().sum()])


def compiled(device):
    """torch.compile in its default mode, recompiled for a second shape."""
    if device == "cuda":
        need("triton")
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")):
        raise Missing("no C compiler, which torch.compile needs")
    if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
        raise Missing("no Python.h, which torch.compile needs")
    deterministic()
    model = Transformer(width=128, heads=4, layers=2).to(device)
    fast = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for size in (8, 12):
        for tokens in batches(4, size):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(fast, tokens.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return exact(losses)


def perceptron(width=256):
    torch.manual_seed(21)
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width), nn.Linear(2 * width, width))


def inputs(count, rows=128, width=256):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(rows, width, generator=generator) for _ in range(count)]


def captured_step(device):
    """Forward, backward and optimizer captured once by torch.cuda.graph, replayed with new inputs."""
    deterministic()
    torch.use_deterministic_algorithms(False)
    model, data = perceptron().to(device), inputs(12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True)
    static = data[0].to(device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = (model(static) - static).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    losses = []
    for batch in data:
        static.copy_(batch)
        graph.replay()
        losses.append(result.clone())
        torch.randn(1 << 20, device=device)  # may not land where a replay writes
    return exact(losses)


def graphed_callables(device):
    deterministic()
    torch.use_deterministic_algorithms(False)
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet:
        quiet(False)  # torch warns of its own warm-up
    first, second, data = perceptron().to(device), perceptron().to(device), inputs(10)
    sample = data[0].to(device).requires_grad_()
    first, second = torch.cuda.make_graphed_callables((first, second), ((sample,), (sample.detach().requires_grad_(),)))
    optimizer = torch.optim.SGD(list(first.parameters()) + list(second.parameters()), lr=0.05)
    losses = []
    for batch in data:
        x = batch.to(device).requires_grad_()
        optimizer.zero_grad(set_to_none=True)
        loss = (second(torch.tanh(first(x))) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return exact(losses)


def threads(device):
    """Backward on four threads at a time, each with a model and a stream of its own."""
    deterministic()
    models = [perceptron().to(device) for _ in range(4)]
    data, losses, errors = inputs(8, rows=512), [[] for _ in models], []

    def work(model, index):
        try:
            stream = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else contextlib.nullcontext()
            with stream:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
                for number, batch in enumerate(data):
                    x = batch[: 512 - 64 * ((index + number) % 4)].to(device)
                    optimizer.zero_grad(set_to_none=True)
                    loss = (model(x) - x).square().mean()
                    loss.backward()
                    optimizer.step()
                    losses[index].append(loss.detach())
                losses[index] = exact(losses[index])
        except Exception as error:
            errors.append(error)

    if device == "cuda":
        torch.cuda.synchronize()  # the models' weights were copied on another stream
    workers = [threading.Thread(target=work, args=(model, index)) for index, model in enumerate(models)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return sum(losses, [])


ANYWHERE = [transformer, mixed_precision, resnet, torchvision_resnet, generation, transformers_generation, threads,
            compiled]
WITH_CUDA = [captured_step, graphed_callables]
