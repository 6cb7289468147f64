"""A small transformer and its training loop, the workload of the demo and the GPU tests.

Deterministic: one seed, deterministic kernels, data made on the CPU. So two runs of one
machine give the same losses to the last bit, whatever the allocator; it also runs on the
CPU. Import only where torch is.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

VOCABULARY, CONTEXT = 512, 128


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(
            batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        attended = scores.masked_fill(mask, float("-inf")).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class Transformer(nn.Module):
    def __init__(self, width=256, heads=4, layers=4):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))

    def forward(self, tokens):
        return self.head(self.blocks(self.tokens(tokens) + self.places[: tokens.shape[1]]))


def deterministic(seed=1234):
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False


def batches(count, size, seed=7):
    """Token sequences with something to learn: each token follows from the two before it."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        tokens = torch.randint(0, VOCABULARY, (size, CONTEXT + 1), generator=generator)
        for place in range(2, CONTEXT + 1):
            tokens[:, place] = (3 * tokens[:, place - 1] + tokens[:, place - 2]) % 61
        yield tokens


def loss_of(model, tokens):
    logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))


def train(device, steps=30, size=16, each_step=None, **shape):
    """Trains, and returns the losses as exact hexadecimal text."""
    deterministic()
    model = Transformer(**shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step, tokens in enumerate(batches(steps, size)):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, tokens.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
        if each_step:
            each_step(step)
    return losses
