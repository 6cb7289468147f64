"""The options table from Python."""


def test_every_row_is_described(sim):
    sim("""
        import hbmalloc
        table = hbmalloc.options()
        assert {"backend", "driver", "prefetch_threshold", "log"} <= set(table), table
        for name, option in table.items():
            assert option.help and option.accepted and option.origin, name
            assert hbmalloc.get_option(name) == option.value
        assert table["driver"].value == "sim" and "HBMALLOC_DRIVER" in table["driver"].origin
        assert table["backend"].value == table["backend"].default == "pool"
    """)


def test_call_over_environment_over_default(sim):
    sim("""
        import hbmalloc
        assert hbmalloc.get_option("backend") == "managed"
        hbmalloc.set_option("HBMALLOC_BACKEND", "vmm")
        assert hbmalloc.get_option("backend") == "vmm"
        assert "call" in hbmalloc.options()["backend"].origin
    """, HBMALLOC_BACKEND="managed")


def test_a_bad_value_names_value_and_what_is_accepted(sim):
    sim("""
        import hbmalloc
        for name, value, words in [("backend", "vvm", ["vvm", "managed"]), ("bakend", "vmm", ["backend"]),
                                   ("prefetch_threshold", -1, ["-1"])]:
            try:
                hbmalloc.set_option(name, value)
            except hbmalloc.OptionError as error:
                assert isinstance(error, ValueError) and error.status == 10
                for word in words:
                    assert word in str(error), error
            else:
                raise SystemExit(5)
        assert hbmalloc.get_option("backend") == "pool"
    """)


def test_many_options_are_set_all_or_none(sim):
    sim("""
        import hbmalloc
        from hbmalloc._options import set_options
        set_options({"managed_headroom": "3GiB", "prefetch_threshold": 1 << 20})
        assert hbmalloc.get_option("managed_headroom") == "3GiB"
        for bad in ({"backend": "vmm", "managed_headroom": "2GiB", "prefetch_threshold": "plenty"},
                    {"backend": "vmm", "no_such_option": "1"}):
            try:
                set_options(bad)
            except hbmalloc.OptionError:
                pass
            else:
                raise SystemExit(5)
            assert hbmalloc.get_option("backend") == "pool"
            assert hbmalloc.get_option("managed_headroom") == "3GiB"
    """)


def test_texts_that_c_cannot_have(sim):
    sim("""
    import hbmalloc
    for name, value in (("backend\\0x", "pool"), ("backend", "pool\\0x"), ("backend", "\\ud800"), ("\\udfff", "1")):
        for call in (lambda: hbmalloc.set_option(name, value), lambda: hbmalloc.get_option(name + value)):
            try:
                call()
                raise SystemExit("%r = %r was taken" % (name, value))
            except hbmalloc.OptionError as error:
                assert "without NUL" in str(error), error
    """)
