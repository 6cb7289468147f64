"""Calls of hbmalloc.torch that cannot work say so, change nothing, and say what to do instead."""

import os
import sys

import gpucase
from gpucase import case, check, raises


def in_fork(function):
    """Runs `function` in a forked child; its exit status."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException as error:
            print("    in the child: %r" % error, flush=True)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def late():
    import torch

    import hbmalloc

    before = torch.ones(8, device="cuda")
    with case("install after torch used CUDA"):
        with raises(RuntimeError, "memory_pool", "before"):
            hbmalloc.torch.install()
        check(not hbmalloc.torch.is_installed(), "it says that it is installed")
        check(float((before + torch.ones(8, device="cuda")).sum()) == 16, "torch's own allocator no longer works")
    with case("memory_pool still works"):
        with hbmalloc.torch.memory_pool("vmm", tag="late"):
            check(float(torch.ones(1 << 20, device="cuda").sum()) == 1 << 20, "wrong contents")

    def child():
        with raises(RuntimeError, "fork", "spawn"):
            hbmalloc.torch.install()

    with case("install in a child forked after CUDA was used"):
        check(in_fork(child) == 0, "the child did not get the error")


def twice():
    import torch

    import hbmalloc

    with case("a bad option changes nothing"):
        before = hbmalloc.get_option("managed_headroom")
        with raises(hbmalloc.OptionError, "prefetch_threshold"):
            hbmalloc.torch.install("vmm", managed_headroom="3GiB", prefetch_threshold="plenty")
        check(hbmalloc.get_option("managed_headroom") == before, "an option stayed set")
        check(not hbmalloc.torch.is_installed(), "it says that it is installed")
    with case("an unknown backend"):
        with raises(ValueError, "vmm"):
            hbmalloc.torch.install("vmmm")
    with case("install makes no driver call and starts no CUDA"):
        hbmalloc.torch.install("vmm")
        check(not torch.cuda.is_initialized(), "torch has started CUDA")
        check(hbmalloc._library.library().hbm_driver_used() == 0, "the library has called the driver")

    def use():
        check(float(torch.ones(1 << 20, device="cuda").sum()) == 1 << 20, "wrong contents")

    with case("a child forked before the first allocation can use CUDA"):
        check(in_fork(use) == 0, "the child failed")
    with case("the same backend again"):
        hbmalloc.torch.install("vmm")
        use()
        hbmalloc.torch.install("vmm")
    with case("another backend"):
        with raises(RuntimeError, "vmm", "another process"):
            hbmalloc.torch.install("async")
    with case("memory_pool under install"):
        with raises(RuntimeError, "already"):
            hbmalloc.torch.memory_pool("vmm")

    def child():
        with raises(RuntimeError, "fork", "spawn"):
            hbmalloc.torch.install("vmm")

    with case("install in a child forked after install"):
        check(in_fork(child) == 0, "the child did not get the error")
    with case("afterwards"):
        use()


def main():
    program = os.path.abspath(__file__)
    gpucase.children([{"label": "late", "arguments": [program, "late"], "limit": 90},
                      {"label": "twice", "arguments": [program, "twice"], "limit": 90}])
    gpucase.finish()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        {"late": late, "twice": twice}[sys.argv[1]]()
        gpucase.finish()
    main()
