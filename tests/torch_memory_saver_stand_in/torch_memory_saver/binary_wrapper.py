import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_int, c_uint8, c_uint64

FLAGS = ("interesting_region", "enable_cpu_backup", "enable_disk_backup", "retain_cpu_backup")
TEXTS = ("current_tag", "cpu_backup_backend")


class BinaryWrapper:
    def __init__(self, path_binary):
        self.cdll = library = ctypes.CDLL(path_binary)
        for kind, names in ((c_bool, FLAGS), (c_char_p, TEXTS)):
            for name in names:
                getattr(library, "tms_set_" + name).argtypes = [kind]
                getattr(library, "tms_get_" + name).restype = kind
        for name in ("tms_pause", "tms_resume"):
            getattr(library, name).argtypes, getattr(library, name).restype = [c_char_p], c_int
        library.tms_set_disk_backup_dir.argtypes = [c_char_p]
        library.set_memory_margin_bytes.argtypes = [c_uint64]
        library.tms_get_cpu_backup_pointer.argtypes = [POINTER(c_uint8), c_uint64]
        library.tms_get_cpu_backup_pointer.restype = POINTER(c_uint8)
