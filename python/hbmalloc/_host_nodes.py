"""Nodes of memory and kinds of pages as callers name them, and the descriptors that say them to the library."""

import ctypes

from . import _library

POLICIES = {"bind": 1, "preferred": 2, "interleave": 3}
# Of hbm_kind.
NUMA, PINNED_NUMA, HUGEPAGE = 7, 8, 9


def nearest_node(device):
    """The number of the node nearest to a device, named by its number or as "gpu:0". Raises UnsupportedError
    where neither the system nor the driver knows it."""
    kind, _, number = device.partition(":") if isinstance(device, str) else ("gpu", ":", device)
    if isinstance(number, str) and number.isascii() and number.isdigit():
        number = int(number)
    if kind != "gpu" or isinstance(number, bool) or not isinstance(number, int) or not -1 << 31 <= number < 1 << 31:
        raise ValueError('a device is its number or "gpu:0", not %r' % (device,))
    node = ctypes.c_int32()
    _library.check(_library.library().hbm_nearest_numa_node(number, ctypes.byref(node)), "nearest_node")
    return node.value


def node_of(numa_node):
    if isinstance(numa_node, str):
        return nearest_node(numa_node)
    if isinstance(numa_node, bool) or not isinstance(numa_node, int) or not -1 << 31 <= numa_node < 1 << 31:
        raise ValueError('numa_node is the number of a node or "gpu:0", not %r' % (numa_node,))
    return numa_node


def page_bytes(huge_pages):
    """0 for ordinary pages."""
    sizes = {False: 0, True: 2 << 20, "2MiB": 2 << 20, "1GiB": 1 << 30, 2 << 20: 2 << 20, 1 << 30: 1 << 30}
    if not isinstance(huge_pages, (bool, str, int)) or huge_pages not in sizes or (huge_pages in (0, 1) and not isinstance(huge_pages, bool)):
        raise ValueError('huge_pages is True, "2MiB", "1GiB" or False, not %r' % (huge_pages,))
    return sizes[huge_pages]


def describe(kind, numa_node, policy, page_bytes=0):
    """A descriptor of hbm_alloc_host_ptr."""
    if policy not in POLICIES:
        raise ValueError("a policy is 'bind', 'preferred' or 'interleave', not %r" % (policy,))
    descriptor = _library.AllocatorDescriptor(
        struct_size=ctypes.sizeof(_library.AllocatorDescriptor), kind=kind, page_bytes=page_bytes)
    if numa_node is None:
        if policy != "bind":
            raise ValueError("the policy %r needs a numa_node" % (policy,))
        return descriptor
    descriptor.numa_policy = POLICIES[policy]
    if isinstance(numa_node, (list, tuple)):
        nodes = [node_of(node) for node in numa_node]
        if not nodes or not all(0 <= node < 64 for node in nodes):
            raise ValueError("several nodes are of 0 to 63, not %r" % (numa_node,))
        descriptor.numa_nodes = sum(1 << node for node in set(nodes))
    else:
        descriptor.numa_node = node_of(numa_node)
    return descriptor
