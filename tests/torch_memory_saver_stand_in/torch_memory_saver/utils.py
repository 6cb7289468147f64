def get_binary_path_from_package(stem):
    raise RuntimeError("the stand-in has no %s" % stem)
