from hbmalloc.compat.vllm import _settings

EXPANDABLE_SEGMENTS = _settings.OPTION


def current_alloc_conf():
    import torch

    return _settings._read(torch)


def set_alloc_conf(text):
    import torch

    _settings._write(torch, text)


def conf_flag_enabled(text, name):
    return _settings._is_on(text)


def with_conf_flag(text, name, enabled):
    assert not enabled
    return _settings._switched_off(text)
