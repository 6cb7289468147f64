//! What is asked of Linux.

/// The size of a page, asked for since coherent Arm machines have 64 KiB.
pub fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// The number of this process.
pub fn process_id() -> u32 {
    std::process::id()
}

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

/// Closes a file descriptor this process owns.
pub fn close(fd: i32) {
    // SAFETY: the caller owns the descriptor; closing one twice is an error code, not undefined.
    unsafe { libc::close(fd) };
}
