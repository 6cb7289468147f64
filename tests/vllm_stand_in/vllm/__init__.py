"""A stand-in for the parts of vLLM that its memory allocator imports, so that its class runs without vLLM
itself. `HBMALLOC_VLLM_CUMEM_PY` names the file of vLLM's class."""
