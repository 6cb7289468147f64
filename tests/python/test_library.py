"""Where the library is looked for, and that only the right one is taken."""

import os
import shutil
import subprocess

import pytest


def test_the_variable_wins(run, tmp_path):
    named = tmp_path / "other.so"
    named.write_bytes(b"")
    out = run("import hbmalloc; print(hbmalloc.get_library_path())", HBMALLOC_LIBRARY=str(named))
    assert out.strip() == str(named)


def test_a_variable_that_names_nothing_is_an_error(run):
    run("""
        import hbmalloc
        try:
            hbmalloc.get_library_path()
        except hbmalloc.HbmallocError as error:
            assert "HBMALLOC_LIBRARY" in str(error) and "/nowhere/x.so" in str(error)
        else:
            raise SystemExit(5)
    """, HBMALLOC_LIBRARY="/nowhere/x.so")


def test_a_package_without_library_says_where_it_looked(run, tmp_path):
    from conftest import PYTHON

    shutil.copytree(os.path.join(PYTHON, "hbmalloc"), tmp_path / "hbmalloc", ignore=shutil.ignore_patterns("lib"))
    run("""
        import hbmalloc
        for call in (hbmalloc.get_library_path, hbmalloc.get_include):
            try:
                call()
            except hbmalloc.HbmallocError as error:
                assert "wheel" in str(error), error
            else:
                raise SystemExit(5)
    """, PYTHONPATH=str(tmp_path), HBMALLOC_LIBRARY="")


def test_the_package_finds_its_own(run, tmp_path):
    from conftest import PYTHON

    shutil.copytree(os.path.join(PYTHON, "hbmalloc"), tmp_path / "hbmalloc", ignore=shutil.ignore_patterns("lib"))
    (tmp_path / "hbmalloc" / "lib").mkdir()
    (tmp_path / "hbmalloc" / "lib" / "libhbmalloc.so.0").write_bytes(b"")
    (tmp_path / "hbmalloc" / "include").mkdir()
    (tmp_path / "hbmalloc" / "include" / "hbmalloc.h").write_text("")
    out = run("import hbmalloc; print(hbmalloc.get_library_path(), hbmalloc.get_include())",
              PYTHONPATH=str(tmp_path), HBMALLOC_LIBRARY="")
    assert out.split() == [str(tmp_path / "hbmalloc/lib/libhbmalloc.so.0"), str(tmp_path / "hbmalloc/include")]


def test_another_library_is_refused(run, tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    source, library = tmp_path / "x.c", tmp_path / "x.so"
    source.write_text("int x(void) { return 1; }")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    run("""
        import hbmalloc
        try:
            hbmalloc.options()
        except hbmalloc.HbmallocError as error:
            assert "does not export hbm_" in str(error), error
        else:
            raise SystemExit(5)
    """, HBMALLOC_LIBRARY=str(library))


def test_one_handle_and_one_path(sim):
    sim("""
        import hbmalloc
        assert hbmalloc._library.library() is hbmalloc._library.library()
        path = hbmalloc.get_library_path()
        import os; os.environ["HBMALLOC_LIBRARY"] = "/nowhere"
        assert hbmalloc.get_library_path() == path
        assert hbmalloc.library_version() == hbmalloc.__version__
    """)


def test_the_header_is_there(sim):
    import hbmalloc

    assert os.path.isfile(os.path.join(hbmalloc.get_include(), "hbmalloc.h"))


def test_every_prototype_is_in_the_header():
    import hbmalloc
    from hbmalloc import _library

    try:
        folder = hbmalloc.get_include()
    except hbmalloc.HbmallocError:
        pytest.skip("no header yet")
    with open(os.path.join(folder, "hbmalloc.h")) as handle:
        header = handle.read()
    missing = [name for name in _library.PROTOTYPES if name + "(" not in header]
    assert not missing
    for field in [name for name, _ in _library.Stats._fields_ + _library.OptionInfo._fields_]:
        assert field in header, field


def test_structures_have_the_headers_layout(sim, tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    import ctypes

    import hbmalloc
    from hbmalloc import _library

    lines = []
    for structure, name in (
            (_library.Stats, "hbm_stats_t"), (_library.OptionInfo, "hbm_option_t"), (_library.Export, "hbm_export_t")):
        lines.append("_Static_assert(sizeof(%s) == %d, \"size\");" % (name, ctypes.sizeof(structure)))
        for field, _ in structure._fields_:
            offset = getattr(structure, field).offset
            lines.append("_Static_assert(offsetof(%s, %s) == %d, \"%s\");" % (name, field, offset, field))
    source = tmp_path / "layout.c"
    source.write_text("#include <stddef.h>\n#include <hbmalloc.h>\n%s\n" % "\n".join(lines))
    subprocess.run([compiler, "-std=c11", "-fsyntax-only", "-I", hbmalloc.get_include(), source], check=True)
