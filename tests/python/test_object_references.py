"""References to objects of the host: those of their maker, those added, and those of views, each given back by its owner."""

COMMON = """
import gc
from hbmalloc import host
def manager():
    return host.L1MemoryManager(host.L1MemoryManagerConfig(8 << 20, use_lazy=False))
def used():
    return made.get_memory_usage()[0]
made = manager()
LAYOUT = host.MemoryLayoutDesc([(4096,)], ["uint8"])
def refused(call):
    try:
        call()
    except ValueError:
        return True
"""


def test_views_keep_memory_whatever_their_maker_drops(sim):
    sim(COMMON + """
one, two = made.allocate(LAYOUT, 2)[1]
view = one.byte_array
view[0] = 7
one.ref_count_down()
assert used() == 8192 and refused(one.ref_count_down)
# Nobody knows the objects any more: what is left of them is the view.
del one, two
gc.collect()
assert used() == 4096
three = made.allocate(LAYOUT, 1)[1][0]
three.byte_array[0] = 9
assert view[0] == 7 and made.memcheck()
del view
assert used() == 4096
three.ref_count_up()
three.ref_count_up()
assert three.get_ref_count() == 3 and not three.can_evict
assert made.free([three]) == host.L1Error.SUCCESS and made.free([three]) == host.L1Error.KEY_IN_WRONG_STATE
three.ref_count_down()
assert three.get_ref_count() == 1 and used() == 4096
three.ref_count_down()
assert used() == 0 and refused(three.ref_count_down) and not three.is_valid() and made.memcheck()
""")


def test_close_while_a_view_is_there(sim):
    """The memory goes with the last view, not with the manager."""
    sim(COMMON + """
whole = made.get_vm_space()
part = made.allocate(LAYOUT, 1)[1][0].byte_array
made.close()
made.close()
assert host.blocks()["blocks"] == 1
part[0] = whole[-1] = 1
del part
gc.collect()
assert host.blocks()["blocks"] == 1
del whole
gc.collect()
assert host.blocks()["blocks"] == 0
""")


def test_tensors_of_a_batch(sim):
    """Reading them takes no reference that their reader would have to give back."""
    import importlib.util

    import pytest

    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    sim(COMMON + """
import torch
batch = made.allocate(host.MemoryLayoutDesc([torch.Size([4096])], [torch.uint8]), 4)[1]
for number, found in enumerate(batch):
    found.tensor.fill_(number)
assert all(found.can_evict and found.get_ref_count() == 1 for found in batch)
kept = batch[2].tensor
batch[0].ref_count_down()
assert int(batch[1].tensor[0]) == 1
# Tensors that were made together go together.
assert used() == 4 * 4096
del kept
gc.collect()
assert used() == 3 * 4096
for found in batch[1:]:
    found.ref_count_down()
assert used() == 0 and made.memcheck()
""")


def test_close_after_tensors_that_are_gone(sim):
    """What a batch keeps for the next who asks is no view of anybody's."""
    import pytest

    pytest.importorskip("torch")
    sim(COMMON + """
import torch
objects = made.allocate(host.MemoryLayoutDesc([torch.Size([4096])], [torch.uint8]), 4)[1]
objects[0].tensor.fill_(1)
made.close()
assert host.blocks()["blocks"] == 0, host.blocks()
assert objects[1].tensor is None
""")
