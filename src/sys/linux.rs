//! What is asked of Linux.

use std::sync::atomic::{AtomicBool, Ordering};

/// Registers `handler` to run in the child after every fork.
pub fn at_fork_in_child(handler: extern "C" fn()) -> bool {
    // SAFETY: the handler is a function of this library, which is never unloaded.
    unsafe { libc::pthread_atfork(None, None, Some(handler)) == 0 }
}

static FORKED: AtomicBool = AtomicBool::new(false);

/// Says that threads, and locks that they held, were lost by a fork.
pub fn note_fork() {
    FORKED.store(true, Ordering::SeqCst);
}

/// Whether that was said.
pub fn has_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Registers `handler` to run when the process exits normally.
pub fn at_exit(handler: extern "C" fn()) -> bool {
    // SAFETY: the handler is a function of this library, which is never unloaded.
    unsafe { libc::atexit(handler) == 0 }
}

/// Starts a thread that gets no signals, nor do those that it starts: they are the program's.
pub fn spawn_without_signals(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    /// Beside what calls of the driver take.
    const STACK: usize = 1 << 20;
    // SAFETY: structs of integers, for which zeros are values.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both structs are valid for the calls.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
    }
    let thread = std::thread::Builder::new().name(name.to_owned());
    let started = thread.stack_size(STACK).spawn(run);
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    started.map(|_| ())
}

/// Bytes of memory that the machine has; the most there can be where it does not say.
pub fn total_memory() -> u64 {
    // SAFETY: a struct of integers, for which zeros are values.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    match unsafe { libc::sysinfo(&mut info) } {
        0 => (info.totalram).saturating_mul(u64::from(info.mem_unit)),
        _ => u64::MAX,
    }
}

/// Bytes that the file system of `folder` has left for this user; none where it does not say, as tmpfs without a
/// limit does.
pub fn free_on(folder: &std::path::Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let folder = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: a struct of integers, for which zeros are values.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, and the pointer is valid for the call.
    if unsafe { libc::statvfs(folder.as_ptr(), &mut info) } != 0 || info.f_blocks == 0 {
        return None;
    }
    Some((info.f_bavail).saturating_mul(info.f_frsize))
}

/// How many file descriptors the process has open; 0 where that cannot be told.
pub fn open_descriptors() -> u64 {
    match std::fs::read_dir("/proc/self/fd") {
        // Looking takes one, for the folder itself.
        Ok(open) => (open.count() as u64).saturating_sub(1),
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => most_descriptors(),
        Err(_) => 0,
    }
}

/// How many it may have.
pub fn most_descriptors() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid for the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// Whether NVIDIA's driver offers the process a channel between hosts of an NVLink domain: without
/// one it makes no fabric handles (CUDA driver API, cuMemCreate; NVIDIA IMEX guide, IMEX channels).
pub fn has_imex_channel() -> bool {
    std::fs::read_dir("/dev/nvidia-caps-imex-channels")
        .is_ok_and(|mut channels| channels.next().is_some())
}

const MEMBARRIER_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Whether [`barrier_on_all_threads`] works here: Linux 4.14 and later, unless a sandbox forbids it.
pub fn has_barrier_on_all_threads() -> bool {
    static REGISTERED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED))
}

/// A full memory barrier on every running thread of the process, as if each had executed one.
/// Microseconds. Only after [`has_barrier_on_all_threads`] has said yes.
pub fn barrier_on_all_threads() {
    let done = membarrier(MEMBARRIER_PRIVATE_EXPEDITED);
    debug_assert!(done, "membarrier was registered");
}

/// Says that the cache line of a value is about to be written to, where the processor can be told.
#[inline]
pub fn announce_write<T>(value: &T) {
    let address: *const T = value;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads and writes nothing that the program can see.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags))
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pstl1keep, [{}]", in(reg) address, options(nostack, preserves_flags))
    }
}
