"""PyTorch's allocator settings, of which only `expandable_segments` is our business.

A setter of PyTorch's resets whatever the text it is given does not name, so the whole
text is read, one word of it changed, and all of it written back afterwards.
"""

import contextlib
import os

#: Where the text comes from at the start, in PyTorch's order.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
OPTION = "expandable_segments"

#: How many are inside `fixed_segments`. Where PyTorch does not tell its settings, they are known once only.
_inside = 0


def _fields(text):
    return [field.strip() for field in text.split(",") if field.strip()]


def _read(torch):
    """The text in effect: what PyTorch says it is, else that of the environment."""
    try:
        settings = torch.cuda.memory._snapshot().get("allocator_settings") or {}
    except Exception:  # older releases and pluggable allocators have no snapshot
        settings = {}
    for source in (settings, os.environ):
        for name in VARIABLES:
            if source.get(name):
                return source[name]
    return ""


def _write(torch, text):
    setter = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (setter or torch.cuda.memory._set_allocator_settings)(text)


def _is_on(text):
    for field in _fields(text):
        name, _, value = field.partition(":")
        if name.strip() == OPTION:
            return value.strip().lower() in ("true", "1")
    return False


def _switched_off(text):
    kept = [field for field in _fields(text) if field.partition(":")[0].strip() != OPTION]
    return ",".join(kept + [OPTION + ":False"])


@contextlib.contextmanager
def fixed_segments(torch):
    """Without expandable segments, which no memory pool can have; all settings as before afterwards."""
    global _inside
    before = "" if _inside else _read(torch)
    changes = _is_on(before)
    if changes:
        _write(torch, _switched_off(before))
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1
        if changes:
            _write(torch, before)
