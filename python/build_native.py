"""Builds what a wheel carries beside Python: the libraries, the simulator, the command.

Two ways. *Portable* links through zig against glibc 2.28, the one of torch's wheels, so
that a wheel made on a new machine runs on an old one; it is what `make wheel` does and
the only way across architectures. *Local* uses the machine's own linker, for
`pip install .`, and the wheel's tag then says what the machine really has.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig

GLIBC = "2.28"
RUST_ARCHES = ("x86_64", "aarch64")
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


class Unavailable(Exception):
    """A tool that this build needs is not on the machine; the text says which and how to get it."""


def say(text):
    print("hbmalloc: " + text, file=sys.stderr, flush=True)


def host_arch():
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def triple(arch):
    return arch + "-unknown-linux-gnu"


def zig_program():
    """Zig, as the `ziglang` package of this interpreter or as a program on the path."""
    named = os.environ.get("HBMALLOC_ZIG")
    if named:
        return named
    beside = os.path.join(sysconfig.get_path("purelib"), "ziglang", "zig")
    if os.path.exists(beside):
        return beside
    return shutil.which("zig")


def standard_library(rustc, arch):
    """Whether this compiler has a standard library for `arch`."""
    try:
        sysroot = subprocess.run([rustc, "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return False
    folder = os.path.join(sysroot, "lib", "rustlib", triple(arch), "lib")
    return os.path.isdir(folder) and any(name.startswith("libstd-") for name in os.listdir(folder))


def compiler_for(arch):
    """A rustc that can compile for `arch`: the one in use, rustup's target, or the distribution's."""
    if standard_library("rustc", arch):
        return "rustc"
    if shutil.which("rustup"):
        say("asking rustup for the target " + triple(arch))
        done = subprocess.run(["rustup", "target", "add", triple(arch)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode == 0 and standard_library("rustc", arch):
            return "rustc"
    if standard_library("/usr/bin/rustc", arch):
        say("rustup has no %s here; using the distribution's compiler" % triple(arch))
        return "/usr/bin/rustc"
    raise Unavailable(
        "no Rust standard library for %s: `rustup target add %s` where rustup can fetch it, or `make setup-%s` "
        "as root on Debian" % (triple(arch), triple(arch), arch))


def portable_environment(arch, work):
    """Variables that make cargo link through zig, or None where zig is not to be had."""
    zig = zig_program()
    if not zig:
        return None
    import gcc_s_stub

    target = "%s-linux-gnu.%s" % (arch, GLIBC)
    say("linking through zig for glibc " + GLIBC)
    stub = gcc_s_stub.build(zig, target, os.path.join(work, "gcc_s-" + arch))
    linker = os.path.join(ROOT, "scripts", "zig-cc")
    return {
        "HBMALLOC_ZIG": zig,
        "HBMALLOC_ZIG_TARGET": target,
        "HBMALLOC_GCC_S_STUB": stub,
        "CARGO_TARGET_%s_LINKER" % triple(arch).upper().replace("-", "_"): linker,
    }


def host_glibc():
    name, version = platform.libc_ver()
    return version if name == "glibc" else None


def without_build_paths(environment):
    """Compiler flags that keep this machine's folders out of panic messages and of the files."""
    home = environment.get("CARGO_HOME") or os.path.join(os.path.expanduser("~"), ".cargo")
    flags = [environment["RUSTFLAGS"]] if environment.get("RUSTFLAGS") else []
    for path, name in ((ROOT, "hbmalloc"), (os.path.join(home, "registry", "src"), "crates")):
        flags.append("--remap-path-prefix=%s=/%s" % (path, name))
    return " ".join(flags)


def cargo(arguments, environment):
    say("cargo " + " ".join(arguments))
    subprocess.run(["cargo"] + arguments, cwd=ROOT, env=environment, check=True)


def headers():
    """Those of `include/` by their names in a wheel."""
    include = os.path.join(ROOT, "include")
    found = (os.path.relpath(os.path.join(folder, name), include)
             for folder, _, names in os.walk(include) for name in names)
    return {"hbmalloc/include/" + name: os.path.join(include, name) for name in found if name.endswith((".h", ".hpp"))}


def build(arch=None, portable=False):
    """Builds, and returns the files by their name in a wheel, and the wheel's platform tag."""
    arch = arch or host_arch()
    if arch not in RUST_ARCHES:
        raise Unavailable("wheels are for x86_64 and aarch64, not " + arch)
    if not shutil.which("cargo"):
        raise Unavailable("cargo is not on the path; see https://rustup.rs")
    target_dir = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
    # That of the standard library is stripped; ours is not made.
    environment = dict(os.environ, CARGO_TARGET_DIR=target_dir, CARGO_PROFILE_RELEASE_STRIP="debuginfo",
                       CARGO_PROFILE_RELEASE_DEBUG="false")
    environment["RUSTFLAGS"] = without_build_paths(environment)
    compiler = compiler_for(arch)
    if compiler != "rustc":
        environment["RUSTC"] = compiler
        target_dir = environment["CARGO_TARGET_DIR"] = os.path.join(target_dir, "distribution-rustc")

    cross = arch != host_arch()
    linking = portable_environment(arch, target_dir) if portable or cross else None
    if linking is not None:
        environment.update(linking)
        tag = "manylinux_%s_%s" % (GLIBC.replace(".", "_"), arch)
    elif cross:
        linker = shutil.which(arch + "-linux-gnu-gcc")
        if not linker:
            raise Unavailable("no linker for %s: install the Python package ziglang, or %s-linux-gnu-gcc" % (arch, arch))
        environment["CARGO_TARGET_%s_LINKER" % triple(arch).upper().replace("-", "_")] = linker
        tag = "linux_" + arch
    else:
        if portable:
            say("no zig: this wheel needs this machine's glibc, %s, or a newer one" % host_glibc())
        tag = "linux_" + arch
        if portable and host_glibc():
            tag = "manylinux_%s_%s" % (host_glibc().replace(".", "_"), arch)

    place = ["--release", "--locked", "--target", triple(arch)]
    libraries = ("hbmalloc", "hbmalloc-sim", "hbmalloc-cumem", "hbmalloc-preload")
    cargo(["build", "--lib"] + [part for name in libraries for part in ("--package", name)] + place, environment)
    cargo(["build", "--package", "hbmalloc", "--features", "cli", "--bin", "hbmalloc"] + place, environment)
    built = os.path.join(target_dir, triple(arch), "release")
    return {
        "hbmalloc/lib/libhbmalloc.so.0": os.path.join(built, "libhbmalloc.so"),
        "hbmalloc/lib/libhbmalloc_preload.so": os.path.join(built, "libhbmalloc_preload.so"),
        "hbmalloc/lib/libhbmalloc_sim.so": os.path.join(built, "libhbmalloc_sim.so"),
        "hbmalloc/compat/vllm/cumem_allocator.abi3.so": os.path.join(built, "libcumem_allocator.so"),
        "scripts/hbmalloc": os.path.join(built, "hbmalloc"),
        **headers(),
    }, tag
