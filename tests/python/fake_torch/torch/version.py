import os

__version__ = os.environ.get("FAKE_TORCH_VERSION", "2.11.0+cu130")
cuda = os.environ.get("FAKE_TORCH_CUDA", "13.0") or None
hip = None
