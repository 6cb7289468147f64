import os


class current_platform:
    @staticmethod
    def is_rocm():
        return os.environ.get("HBMALLOC_SIM", "").startswith("hip")
