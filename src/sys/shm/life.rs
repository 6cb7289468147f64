//! Locks of single bytes of a file: who has them lives, since the system takes them back from whom it ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The byte whose lock its maker has while it lives.
pub(super) const LIFE: i64 = 0;
/// The byte whose lock it takes to remove the name of what was left.
pub(super) const REMOVAL: i64 = 1;

/// A lock of one byte that belongs to the open file, as flock(2) has one of the whole (fcntl(2), OFD locks).
fn byte_lock(byte: i64) -> libc::flock {
    // SAFETY: a struct of integers, for which zeros are values.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

/// An error of the kind `WouldBlock` where another has the lock.
pub(super) fn lock(file: &File, byte: i64) -> io::Result<()> {
    let lock = byte_lock(byte);
    // SAFETY: the descriptor is the file's own, the struct valid for the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether another has the lock; takes none.
pub(super) fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = byte_lock(byte);
    // SAFETY: as above.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } {
        0 => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the lock of the removal, which others have for as long as removing a name takes.
pub(super) fn lock_removal(file: &File) -> io::Result<()> {
    const TRIES: u32 = 100;
    for _ in 1..TRIES {
        match lock(file, REMOVAL) {
            Err(error) if is_taken(&error) => std::thread::sleep(Duration::from_millis(1)),
            outcome => return outcome,
        }
    }
    lock(file, REMOVAL)
}

pub(super) fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}
