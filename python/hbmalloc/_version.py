"""The one place where the Python package keeps its version."""

__version__ = "0.1.0"
