//! What processes of one machine that meet at a socket ask of the system.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The number of the user that the process runs as.
pub fn user() -> u32 {
    // SAFETY: takes no pointers and cannot fail.
    unsafe { libc::geteuid() }
}

/// The number of the user at the other end, as it was when the connection was made.
pub fn user_of(stream: &UnixStream) -> io::Result<u32> {
    let mut who = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are valid for the call, which writes at most so many bytes.
    let answer = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut who).cast(),
            &mut bytes,
        )
    };
    match answer {
        0 => Ok(who.uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the lock of a file or folder that one process has at a time, if nobody has it.
pub fn try_lock(file: &File) -> bool {
    // SAFETY: the descriptor is open; takes no pointers.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// Waits until a socket has something to read, or is closed.
pub fn wait_to_read(socket: BorrowedFd<'_>) {
    // Whatever ends it, the next call on the socket says the rest.
    poll_to_read(socket, -1);
}

/// Whether a socket has something to read now, or is closed.
pub fn can_read(socket: BorrowedFd<'_>) -> bool {
    poll_to_read(socket, 0)
}

fn poll_to_read(socket: BorrowedFd<'_>, milliseconds: i32) -> bool {
    let mut polled = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one struct, valid for the call.
    unsafe { libc::poll(&mut polled, 1, milliseconds) > 0 }
}

/// A number that nobody can guess, where the system has one.
pub fn draw() -> Option<u64> {
    let mut number = [0; 8];
    // SAFETY: so many bytes, valid for the call.
    let drawn = unsafe { libc::getrandom(number.as_mut_ptr().cast(), number.len(), 0) };
    (drawn == 8).then(|| u64::from_ne_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_lock_is_one_holders() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (File::open(folder.path()), File::open(folder.path()));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(try_lock(&one) && !try_lock(&other));
        drop(one);
        assert!(try_lock(&other));
    }

    #[test]
    fn the_other_end_is_known_and_waited_for() {
        let (here, there) = UnixStream::pair().unwrap();
        assert_eq!(user_of(&here).unwrap(), user());
        let closer = std::thread::spawn(move || drop(there));
        wait_to_read(here.as_fd());
        closer.join().unwrap();
    }

    #[test]
    fn numbers_differ() {
        assert_ne!(draw(), draw());
    }
}
