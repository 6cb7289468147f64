"""Names of shared memory that LMCache itself has left.

The library takes names that its own processes left, which carry its mark, and no others. LMCache removes what has
its prefix whether it is in use or not, so that a server that was killed can start again under the same name; here that
goes for files that nobody writes to. The kernel is asked, since a user may be in another container: it grants a lease
for reading where no process has the file open or mapped for writing, as all of LMCache's have.
"""

import fcntl
import logging
import os
import signal
import stat

logger = logging.getLogger("hbmalloc")

#: Of the names that LMCache removes.
PREFIX = "lmcache_l1_pool_"
_FOLDER = "/dev/shm"


def remove_left(name):
    """Removes LMCache's file of that name if it is this user's and nobody uses it. What stays is the library's to refuse."""
    bare = name.lstrip("/")
    if not bare.startswith(PREFIX) or "/" in bare:
        return
    path = os.path.join(_FOLDER, bare)
    try:
        # What is opened for reading breaks nobody's lease.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return
    try:
        found = os.fstat(file)
        is_marked = found.st_mode & stat.S_ISVTX
        if not stat.S_ISREG(found.st_mode) or is_marked or found.st_uid != os.geteuid():
            return
        # One at a time looks and removes, so that nobody's new file goes.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who opens the file while it is leased has this process told, by default with a signal that ends it.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        if os.path.samestat(found, os.lstat(path)):
            os.unlink(path)
            logger.warning("hbmalloc: %s was left by LMCache, nobody uses it: removed", path)
    except OSError:
        return
    finally:
        os.close(file)
