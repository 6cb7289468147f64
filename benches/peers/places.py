"""Where other allocators are installed, for the compiler: a line each, `what TAB key TAB value`.

Nothing is imported; a package that is not there has a line with the key `missing`.
"""

import glob
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys


def tell(what, key, value):
    print("%s\t%s\t%s" % (what, key, value))


def folders(package):
    """The folders of a package, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    return list(spec.submodule_search_locations or []) if spec else []


def version(*names):
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return ""


def toolkits():
    """Roots of CUDA toolkits: torch's own wheels first, so that the headers are of its version."""
    for folder in folders("nvidia"):
        yield from sorted(glob.glob(os.path.join(folder, "*")), reverse=True)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield os.environ[variable]
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))
    yield "/usr/local/cuda"
    for folder in folders("triton"):
        yield os.path.join(folder, "backends", "nvidia")
    yield sys.prefix
    yield os.path.join(sys.prefix, "targets", "x86_64-linux")


def tell_cuda():
    roots = list(toolkits())
    headers = ("cuda_runtime.h", os.path.join("crt", "host_config.h"))
    chosen = []
    # A wheel may lack crt/, which then comes from where it is; most places have both.
    for header in headers:
        has = [root for root in roots if os.path.isfile(os.path.join(root, "include", header))]
        whole = [root for root in has
                 if all(os.path.isfile(os.path.join(root, "include", other)) for other in headers)]
        if not has:
            tell("cuda", "missing", "no %s in %s" % (header, ", ".join(roots)))
            break
        chosen.append((whole or has)[0])
    else:
        for root in dict.fromkeys(chosen):
            tell("cuda", "include", os.path.join(root, "include"))
    for root in roots:
        for lib in ("lib", "lib64"):
            found = sorted(glob.glob(os.path.join(root, lib, "libcudart.so.1[0-9]")), reverse=True)
            if found:
                tell("cudart", "file", found[0])
                return
    tell("cudart", "missing", "no libcudart.so in %s" % ", ".join(roots))


def tell_torch():
    found = folders("torch")
    if not found:
        return tell("torch", "missing", "PyTorch is not installed for %s" % sys.executable)
    with open(os.path.join(found[0], "version.py")) as file:
        values = dict(re.findall(r"^(__version__|cuda)\b.*=\s*'([^']+)'", file.read(), re.MULTILINE))
    if "cuda" not in values:
        return tell("torch", "missing", "this PyTorch was built without CUDA")
    if not os.path.isfile(os.path.join(found[0], "include", "c10", "cuda", "CUDACachingAllocator.h")):
        return tell("torch", "missing", "this PyTorch has no headers")
    tell("torch", "version", values.get("__version__", "?").split("+")[0])
    tell("torch", "include", os.path.join(found[0], "include"))
    tell("torch", "lib", os.path.join(found[0], "lib"))


def tell_rmm():
    header = os.path.join("include", "rmm", "mr", "pool_memory_resource.hpp")
    roots = folders("librmm") + folders("rapids_logger")
    if not roots and os.path.isfile(os.path.join(sys.prefix, header)):
        roots = [sys.prefix]
    if not any(os.path.isfile(os.path.join(root, header)) for root in roots):
        return tell("rmm", "missing", "RMM is not installed for %s" % sys.executable)
    tell("rmm", "version", version("librmm-cu13", "librmm-cu12", "rmm-cu13", "rmm-cu12", "rmm") or "?")
    for root in roots:
        for include in ("include", os.path.join("include", "rapids")):
            if os.path.isdir(os.path.join(root, include)):
                tell("rmm", "include", os.path.join(root, include))
        for lib in ("lib64", "lib"):
            if glob.glob(os.path.join(root, lib, "librmm.so*")) or glob.glob(os.path.join(root, lib, "librapids_logger.so*")):
                tell("rmm", "lib", os.path.join(root, lib))


tell_cuda()
tell_torch()
tell_rmm()
