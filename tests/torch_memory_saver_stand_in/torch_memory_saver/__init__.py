"""Stands in for torch_memory_saver 0.0.10's Python in tests: where it finds its library, which of its functions it binds,
and in what order a region calls them. It has no library of its own."""

from .entrypoint import Saver
from .hooks.mode_preload import configure_subprocess  # noqa: F401

torch_memory_saver = Saver()
