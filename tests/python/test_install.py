"""`make install` and what C and C++ programs find by it: the files, pkg-config's and CMake's.

A debug build is installed (`BUILT=`). The programs are those of examples/, on the simulated driver.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import pytest
from conftest import ROOT, environment

with open(os.path.join(ROOT, "Cargo.toml")) as cargo:
    VERSION = re.search(r'^version = "(.*)"', cargo.read(), re.MULTILINE).group(1)
MULTIARCH = "lib/%s-linux-gnu" % platform.machine()
EXAMPLES = os.path.join(ROOT, "examples")
NOBODY = 65534


def call(command, status=0, **arguments):
    """Runs a command without the variables of an outer make; its output, after checking its exit status."""
    variables = environment()
    for name in ("HBMALLOC_LIBRARY", "PYTHONPATH", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "LD_LIBRARY_PATH",
                 "PREFIX", "DESTDIR", "LIBDIR", "BUILT", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH"):
        variables.pop(name, None)
    variables.update(arguments.pop("variables", {}))
    done = subprocess.run([str(part) for part in command], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=120, **arguments)
    assert (done.returncode == 0) == (status == 0), done.stdout
    return done.stdout


def tool(name):
    """A program on the path or in the environment of the tests."""
    found = shutil.which(name, path=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    if found is None:
        pytest.skip("%s is not installed" % name)
    return found


@pytest.fixture
def place():
    """A folder that everyone can reach, and nobody needs to be root to write to."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make(installable):
    """`make(goal, PREFIX=...)`, with the rights of a user."""
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    if user and subprocess.run(["test", "-r", os.path.join(ROOT, "Makefile")], **user).returncode != 0:
        pytest.skip("the user nobody cannot read the repository")

    def called(goal, status=0, umask=0o022, **variables):
        variables = dict({"BUILT": installable}, **variables)
        return call(["make", "-C", ROOT, goal] + ["%s=%s" % pair for pair in variables.items()], status, umask=umask, **user)

    return called


def listed(folder):
    """Everything in a folder, by its path there: a link's text, or a file's rights."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(where, name)
            rights = os.readlink(path) if os.path.islink(path) else "%o" % (os.stat(path).st_mode & 0o777)
            found[os.path.relpath(path, folder)] = rights
    return found


def only_files(found):
    return {name: rights for name, rights in found.items() if rights != "755" or "." in name or name == "bin/hbmalloc"}


def headers():
    for where, _, names in os.walk(os.path.join(ROOT, "include")):
        for name in names:
            if name.endswith((".h", ".hpp")):
                yield os.path.relpath(os.path.join(where, name), ROOT)


def test_files_are_laid_out_and_taken_away(make, place):
    prefix = os.path.join(place, "usr/local")
    make("install", DESTDIR=place, umask=0o077)
    first = listed(prefix)
    expected = dict.fromkeys(headers(), "644")
    expected.update({
        "bin/hbmalloc": "755",
        "lib/libhbmalloc.a": "644",
        "lib/libhbmalloc.so": "libhbmalloc.so.0",
        "lib/libhbmalloc.so.0": "libhbmalloc.so." + VERSION,
        "lib/libhbmalloc.so." + VERSION: "755",
        "lib/libhbmalloc_sim.so": "755",
        "lib/libhbmalloc_preload.so": "755",
        "lib/pkgconfig/hbmalloc.pc": "644",
        "lib/pkgconfig/hbmalloc-static.pc": "644",
        "lib/cmake/hbmalloc/hbmallocConfig.cmake": "644",
        "lib/cmake/hbmalloc/hbmallocConfigVersion.cmake": "644",
    })
    assert only_files(first) == expected
    assert all(rights == "755" for name, rights in first.items() if name not in expected)

    make("install", DESTDIR=place)
    assert listed(prefix) == first
    make("uninstall", DESTDIR=place)
    assert listed(prefix) == {}


def test_a_quote_in_the_name_of_the_folder(make, place):
    prefix = os.path.join(place, "it's \"here\"")
    make("install", PREFIX=prefix)
    assert listed(prefix)["lib/libhbmalloc.so.0"] == "libhbmalloc.so." + VERSION
    make("uninstall", PREFIX=prefix)
    assert listed(prefix) == {}


def test_an_older_version_goes_and_what_is_not_ours_stays(make, place):
    theirs = ["lib/libhbmalloc.so.0.0.9", "lib/libhbmalloc_other.so", "include/hbmalloc/mine.h", "lib/pkgconfig/other.pc"]
    for name in theirs:
        os.makedirs(os.path.join(place, os.path.dirname(name)), exist_ok=True)
        open(os.path.join(place, name), "w").close()
    if os.getuid() == 0:
        call(["chown", "-R", str(NOBODY), place])
    make("install", PREFIX=place)
    assert "lib/libhbmalloc.so.0.0.9" not in listed(place)
    make("uninstall", PREFIX=place)
    assert [name for name in sorted(theirs) if name in listed(place)] == sorted(theirs[1:])
    assert set(listed(place)) == set(theirs[1:]) | {"lib", "include", "include/hbmalloc", "lib/pkgconfig"}


@pytest.mark.parametrize("wrong", [
    {"PREFIX": "some/folder"}, {"PREFIX": "~/folder"}, {"LIBDIR": "/opt/lib"}, {"LIBDIR": "../lib"}, {"LIBDIR": "."},
    {"BUILT": "/nonexistent"},
], ids=str)
def test_wrong_folders_are_named_and_nothing_is_installed(make, place, wrong):
    said = make("install", status=1, **dict({"DESTDIR": place, "PREFIX": "/usr"}, **wrong))
    assert re.search("hbmalloc: .*%s" % re.escape(next(iter(wrong.values()))), said), said
    assert listed(place) == {}


def test_pkg_config_in_a_folder_with_spaces_that_was_moved(make, place, tmp_path):
    tool("pkg-config")
    make("install", PREFIX=os.path.join(place, "first place"))
    prefix = os.path.join(place, "another place")
    os.rename(os.path.join(place, "first place"), prefix)
    said = call(["make", "-C", os.path.join(EXAMPLES, "pkg-config"), "run", "OUT=%s" % tmp_path, "CFLAGS=-Wall -Wextra -Werror",
                 "CXXFLAGS=-Wall -Wextra -Werror"], variables={"PKG_CONFIG_PATH": prefix + "/lib/pkgconfig"})
    assert said.count("the device had: to the device and back") == 2, said
    assert said.count("60 MiB requested, 64 MiB held of 64") == 2, said
    links = {name: "libhbmalloc.so.0" in call(["ldd", tmp_path / name]) for name in ("blocks", "blocks-static")}
    assert links == {"blocks": True, "blocks-static": False}
    make("uninstall", PREFIX=prefix)
    assert listed(prefix) == {}


@pytest.mark.parametrize("compiler, source", [("cc", "c/blocks.c"), ("c++", "cpp/limit.cpp")])
def test_pkg_config_says_what_the_archive_alone_needs(make, place, tmp_path, compiler, source):
    """Where only libhbmalloc.a is there, --static is all that a static link takes. The folder is a multiarch one."""
    tool("pkg-config")
    make("install", PREFIX=place, LIBDIR=MULTIARCH)
    library = os.path.join(place, MULTIARCH)
    for name in ("libhbmalloc.so", "libhbmalloc.so.0", "libhbmalloc.so." + VERSION):
        os.remove(os.path.join(library, name))
    variables = {"PKG_CONFIG_PATH": library + "/pkgconfig"}
    flags = shlex.split(call(["pkg-config", "--static", "--cflags", "--libs", "hbmalloc"], variables=variables))
    call([tool(compiler), os.path.join(EXAMPLES, source), "-o", tmp_path / "program"] + flags)
    simulator = call(["pkg-config", "--variable=simulator", "hbmalloc"], variables=variables).strip()
    call([tmp_path / "program"], variables={"HBMALLOC_DRIVER": simulator})
    assert call(["pkg-config", "--modversion", "hbmalloc"], variables=variables).strip() == VERSION


@pytest.mark.parametrize("libdir", ["lib", "lib64", MULTIARCH])
def test_the_installed_command_finds_the_simulator(make, place, libdir):
    make("install", PREFIX=place, LIBDIR=os.path.join(place, libdir))
    said = call([os.path.join(place, "bin/hbmalloc"), "doctor"], variables={"HBMALLOC_DRIVER": "sim"}, cwd="/")
    assert "Device 0: Simulated" in said, said
    make("uninstall", PREFIX=place, LIBDIR=libdir)
    assert listed(place) == {}


@pytest.mark.parametrize("libdir", ["lib", "lib64", MULTIARCH])
def test_the_installed_command_runs_programs_on_its_own_library(make, place, tmp_path, libdir):
    """Moved after it was staged, and with another of a wheel where python3 looks."""
    make("install", DESTDIR=os.path.join(place, "stage"), PREFIX="/usr", LIBDIR=libdir)
    prefix = os.path.join(place, "moved")
    os.rename(os.path.join(place, "stage/usr"), prefix)
    (tmp_path / "hbmalloc.py").write_text("def get_library_path(): return '/of/a/wheel/libhbmalloc.so.0'")
    wheel = {"PYTHONPATH": str(tmp_path)}
    said = call([os.path.join(prefix, "bin/hbmalloc"), "run", "--", "sh", "-c", "echo $LD_PRELOAD"], variables=wheel)
    assert said.strip() == os.path.realpath(os.path.join(prefix, libdir, "libhbmalloc_preload.so"))
    os.rename(os.path.join(prefix, libdir), os.path.join(prefix, "elsewhere"))
    said = call([os.path.join(prefix, "bin/hbmalloc"), "run", "true"], status=1, variables=wheel)
    assert "/of/a/wheel/libhbmalloc_preload.so" in said


@pytest.mark.parametrize("libdir", ["lib", MULTIARCH])
def test_cmake_finds_a_staged_folder_that_was_moved(make, place, tmp_path, libdir):
    cmake = tool("cmake")
    make("install", DESTDIR=os.path.join(place, "stage"), PREFIX="/usr", LIBDIR=libdir)
    prefix = os.path.join(place, "moved here")
    os.rename(os.path.join(place, "stage/usr"), prefix)
    said = call([cmake, "-S", os.path.join(EXAMPLES, "cmake"), "-B", tmp_path, "-DCMAKE_PREFIX_PATH=" + prefix,
                 "-DCMAKE_LIBRARY_ARCHITECTURE=%s" % os.path.basename(MULTIARCH)])
    assert "Warning" not in said, said
    call([cmake, "--build", tmp_path, "--parallel", "2"])
    call([os.path.join(os.path.dirname(cmake), "ctest"), "--output-on-failure"], cwd=tmp_path)
    said = call([tmp_path / "blocks-hbmalloc"], variables={"HBMALLOC_DRIVER": "sim"})
    assert "the device had: to the device and back" in said, said
    assert "libhbmalloc" not in call(["ldd", tmp_path / "blocks-static"])

    call([cmake, "--install", tmp_path, "--prefix", tmp_path / "installed"])
    call([tmp_path / "installed/bin/limit-hbmalloc"], variables={"HBMALLOC_DRIVER": "sim"})


def test_cmake_takes_older_versions_of_the_same_major_number(make, place, tmp_path):
    cmake = tool("cmake")
    make("install", PREFIX=place)
    wanted = {"": True, "0": True, "0.1": True, "0.0.9": True, "%s EXACT" % VERSION: True, "0.0.9 EXACT": False,
              "0.1...<1": True, "0.0.1...0.0.9": False, "0.1...%s" % VERSION: True, "0.0.1...<%s" % VERSION: False,
              "0.99": False, "1": False, "1...2": False}
    lines = ["cmake_minimum_required(VERSION 3.19)", "project(versions LANGUAGES NONE)"]
    for version, answer in wanted.items():
        lines += ["unset(hbmalloc_DIR CACHE)", "find_package(hbmalloc %s QUIET)" % version,
                  'if(NOT "${hbmalloc_FOUND}" EQUAL %d)' % answer,
                  '  message(SEND_ERROR "%s: ${hbmalloc_FOUND} ${hbmalloc_VERSION}")' % version, "endif()"]
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines) + "\n")
    call([cmake, "-S", tmp_path, "-B", tmp_path / "build", "-DCMAKE_PREFIX_PATH=" + place])
