//! What is asked of Linux.

/// Registers `handler` to run in the child after every fork.
pub fn at_fork_in_child(handler: extern "C" fn()) -> bool {
    // SAFETY: the handler is a function of this library, which is never unloaded.
    unsafe { libc::pthread_atfork(None, None, Some(handler)) == 0 }
}

/// Registers `handler` to run when the process exits normally.
pub fn at_exit(handler: extern "C" fn()) -> bool {
    // SAFETY: the handler is a function of this library, which is never unloaded.
    unsafe { libc::atexit(handler) == 0 }
}
