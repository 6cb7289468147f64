"""Writes a stand-in for libgcc_s.so.1 to link against: its name, its symbols, no code.

The names and versions are the unwinder's public interface, the same on x86-64 and
AArch64 and unchanged since GCC 4.2, so a library linked against the stub takes the
real libgcc_s of whatever machine it is loaded on.
"""

import os
import subprocess

VERSIONS = {
    "GCC_3.0": (
        "DeleteException ForcedUnwind GetDataRelBase GetGR GetIP GetLanguageSpecificData "
        "GetRegionStart GetTextRelBase RaiseException Resume SetGR SetIP"
    ),
    "GCC_3.3": "Backtrace FindEnclosingFunction GetCFA Resume_or_Rethrow",
    "GCC_4.2.0": "GetIPInfo",
}


def sources():
    """The C file and the version script, as text."""
    code, script, parent = [], [], ""
    for version, names in VERSIONS.items():
        symbols = ["_Unwind_" + name for name in names.split()]
        code += ["void %s(void) {}" % symbol for symbol in symbols]
        script.append("%s { global: %s; %s}%s;" % (
            version, "; ".join(symbols), "" if parent else "local: *; ", " " + parent if parent else ""))
        parent = version
    return "\n".join(code) + "\n", "\n".join(script) + "\n"


def build(zig, target, folder):
    """The path of the stub, made in `folder`."""
    os.makedirs(folder, exist_ok=True)
    code, script = sources()
    paths = [os.path.join(folder, name) for name in ("gcc_s_stub.c", "gcc_s_stub.map", "libgcc_s.so.1")]
    for path, text in zip(paths, (code, script)):
        with open(path, "w") as handle:
            handle.write(text)
    subprocess.run(
        [zig, "cc", "-target", target, "-shared", "-nostdlib", "-o", paths[2], paths[0],
         "-Wl,--version-script=" + paths[1], "-Wl,-soname,libgcc_s.so.1"],
        check=True,
    )
    return paths[2]
