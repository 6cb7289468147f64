def find_loaded_library(name):
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line[line.find("/"):].strip()
            if path.rpartition("/")[2].startswith((name + ".", name + "-")):
                return path
    return None
