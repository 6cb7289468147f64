"""What PyTorch cannot do with a pluggable allocator, refused in words that name what works instead.

Torch says only that the allocator "does not yet support" a C++ function. Its own error
stays the cause of ours; every other error passes unchanged.
"""

import functools
import sys

#: How torch's own refusal reads.
NOT_SUPPORTED = "does not yet support"

SHARING = (
    "sharing CUDA tensors between processes does not work after hbmalloc.torch.install(): PyTorch hands memory to "
    "another process only from its own allocator. Leave install() out in the processes that share, and keep the "
    "tensors that are shared in PyTorch's memory or in hbmalloc.torch.memory_pool(\"device\"); "
    "or share a copy on the CPU (tensor.cpu())")

TREES = (
    "torch.compile's CUDA graph trees (mode=\"reduce-overhead\" or \"max-autotune\") do not work after "
    "hbmalloc.torch.install(): they checkpoint the state of PyTorch's own allocator. Use mode=\"default\" or "
    "\"max-autotune-no-cudagraphs\", torch.cuda.graph or torch.cuda.make_graphed_callables; "
    "or keep PyTorch's allocator and use hbmalloc.torch.memory_pool()")

HISTORY = (
    "PyTorch's memory history and snapshots do not work after hbmalloc.torch.install(), since they describe PyTorch's "
    "own allocator. torch.cuda.memory_stats(), torch.cuda.memory_summary() and hbmalloc.stats() work; "
    "or keep PyTorch's allocator and use hbmalloc.torch.memory_pool()")

POOLS = (
    "torch.cuda.MemPool does not work after hbmalloc.torch.install(), where every tensor comes from hbmalloc. "
    "For memory pools keep PyTorch's allocator and use hbmalloc.torch.memory_pool()")

#: Functions of `torch._C` that refuse, and what we say.
REFUSALS = {
    "_cuda_getCheckpointState": TREES,
    "_cuda_setCheckpointPoolState": TREES,
    "_cuda_checkPoolLiveAllocations": TREES,
    "_cuda_memorySnapshot": HISTORY,
    "_cuda_record_memory_history": HISTORY,
    "_cuda_record_memory_history_legacy": HISTORY,
    "_cuda_attach_out_of_memory_observer": HISTORY,
}


def _in_our_words(function, text):
    """`function`, with torch's refusal told as `text`."""

    @functools.wraps(function)
    def refusing(*arguments, **options):
        try:
            return function(*arguments, **options)
        except RuntimeError as error:
            if NOT_SUPPORTED not in str(error):
                raise
            raise RuntimeError(text) from error

    return refusing


def _before_a_tree(function):
    """`function`, refused where graph trees begin to warm up: they would fail only after a capture."""

    @functools.wraps(function)
    def refusing(*arguments, **options):
        if sys._getframe(1).f_globals.get("__name__") == "torch._inductor.cudagraph_trees":
            raise RuntimeError(TREES)
        return function(*arguments, **options)

    return refusing


def refuse(torch):
    """Puts our words in place of torch's; hbmalloc must be the installed allocator."""
    core = torch._C
    for name, text in REFUSALS.items():
        if hasattr(core, name):
            setattr(core, name, _in_our_words(getattr(core, name), text))
    begin = getattr(core, "_cuda_beginAllocateCurrentThreadToPool", None)
    if begin is not None:
        core._cuda_beginAllocateCurrentThreadToPool = _before_a_tree(begin)
    storage = torch.UntypedStorage
    storage._share_cuda_ = _in_our_words(storage._share_cuda_, SHARING)
    storage._new_shared_cuda = staticmethod(_in_our_words(storage._new_shared_cuda, SHARING))
    if hasattr(torch.cuda, "MemPool"):
        torch.cuda.MemPool.__init__ = _in_our_words(torch.cuda.MemPool.__init__, POOLS)
