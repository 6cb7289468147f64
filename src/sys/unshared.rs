//! Sockets that a forked child is not to keep: it would look like its parent to who is at the other end, and keep the
//! memory of the dead alive.

use super::linux;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

/// Of more the child keeps those that are over.
const MANY: usize = 1024;

const FREE: RawFd = -1;

/// Without a lock, which the fork might find taken.
static SOCKETS: [AtomicI32; MANY] = [const { AtomicI32::new(FREE) }; MANY];

extern "C" fn close_in_child() {
    for socket in &SOCKETS {
        let number = socket.swap(FREE, Ordering::Relaxed);
        if number != FREE {
            // SAFETY: the descriptor is open in the parent, and the child, which can use no driver, does nothing with
            // what has it.
            unsafe { libc::close(number) };
        }
    }
}

/// A socket, or a file with a lock, that this process alone has.
pub struct Kept<T: AsRawFd>(T);

impl<T: AsRawFd> Kept<T> {
    /// From here on a forked child closes it.
    pub fn new(socket: T) -> Kept<T> {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            linux::at_fork_in_child(close_in_child);
        });
        let number = socket.as_raw_fd();
        let _ = SOCKETS.iter().find(|place| {
            let taken = place.compare_exchange(FREE, number, Ordering::Relaxed, Ordering::Relaxed);
            taken.is_ok()
        });
        Kept(socket)
    }
}

impl<T: AsRawFd> std::ops::Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AsRawFd> Drop for Kept<T> {
    fn drop(&mut self) {
        let number = self.0.as_raw_fd();
        let _ = SOCKETS.iter().find(|place| {
            let given = place.compare_exchange(number, FREE, Ordering::Relaxed, Ordering::Relaxed);
            given.is_ok()
        });
    }
}
