import os

with open(os.environ["HBMALLOC_VLLM_CUMEM_PY"]) as _file:
    exec(compile(_file.read(), _file.name, "exec"), globals())
