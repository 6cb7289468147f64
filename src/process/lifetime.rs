//! Fork and exit. After a fork the driver answers 3 and locks may be held for ever by threads that
//! are not there; at exit the driver may be gone before the last tensor is. From then on frees do
//! nothing, and in a forked child allocating is an error.

use crate::error::{Error, Result, Status, Warning, Warnings};
use crate::sys::{library, linux, scratch, shm};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static EXITING: AtomicBool = AtomicBool::new(false);

/// Whether there is a driver to lose: it is initialised, or a thread is about to.
static AT_STAKE: AtomicBool = AtomicBool::new(false);

/// From here on, forks are noticed. Called before the driver is initialised, since a child forked
/// meanwhile would wait for a thread that it does not have.
pub(super) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        linux::at_fork_in_child(note_fork);
    });
    AT_STAKE.store(true, Ordering::SeqCst);
}

/// Whether this process was forked from one that had memory of the host.
static LOST_HOST_MEMORY: AtomicBool = AtomicBool::new(false);

/// How many [`HostStake`]s there are.
static HOST_STAKES: AtomicUsize = AtomicUsize::new(0);

/// Memory of the host that is there, is being made, or is looked at under a lock: a child that is forked meanwhile
/// has lost it.
pub struct HostStake(());

impl HostStake {
    pub(super) fn take() -> HostStake {
        static ONCE: Once = Once::new();
        HOST_STAKES.fetch_add(1, Ordering::SeqCst);
        ONCE.call_once(|| {
            linux::at_fork_in_child(note_lost_host_memory);
        });
        HostStake(())
    }
}

impl Drop for HostStake {
    fn drop(&mut self) {
        HOST_STAKES.fetch_sub(1, Ordering::SeqCst);
    }
}

extern "C" fn note_lost_host_memory() {
    if HOST_STAKES.load(Ordering::SeqCst) > 0 {
        OF_PARENT.store(true, Ordering::SeqCst);
        LOST_HOST_MEMORY.store(true, Ordering::SeqCst);
    }
}

/// Whether the host's memory that the process's records tell of is its parent's.
pub(super) fn has_lost_host_memory() -> bool {
    LOST_HOST_MEMORY.load(Ordering::Relaxed)
}

/// Either of the two ways in which a child has lost what its records tell of.
static OF_PARENT: AtomicBool = AtomicBool::new(false);

/// Whether locks may be held by threads that only the parent has: of the driver's memory, or of the host's.
#[inline]
pub fn is_of_parent() -> bool {
    OF_PARENT.load(Ordering::Relaxed)
}

/// The driver could not be initialised: a child forked from here on has lost nothing.
pub(super) fn nothing_at_stake() {
    AT_STAKE.store(false, Ordering::SeqCst);
}

/// From here on, the exit is noticed. Called after the driver is initialised, so that our handler
/// runs before the driver's.
pub(super) fn watch_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        linux::at_exit(note_exit);
    });
}

/// The same library loaded from two files is two libraries, with two sets of options, limits and
/// blocks that neither frees for the other.
pub(super) fn warn_of_other_copy(warnings: &Warnings) {
    if let Some(other) = library::other_with(c"hbm_allocator_create") {
        warnings.warn(Warning::LoadedTwice, || {
            format!(
                "the library is in this process twice, the other from {}; neither knows the other's blocks, options and limits, so load one file everywhere",
                other.display()
            )
        });
    }
}

extern "C" fn note_fork() {
    if AT_STAKE.load(Ordering::SeqCst) {
        OF_PARENT.store(true, Ordering::SeqCst);
        linux::note_fork();
    }
}

extern "C" fn note_exit() {
    EXITING.store(true, Ordering::SeqCst);
    // A forked child has them from its parent, which goes on.
    if !has_forked() {
        if !has_lost_host_memory() {
            super::slabs::stop_growing();
        }
        scratch::remove_all();
        shm::remove_all();
    }
}

/// Whether this process was forked from one that had initialised the driver.
pub fn has_forked() -> bool {
    linux::has_forked()
}

/// Whether the process is running its exit handlers.
pub fn is_exiting() -> bool {
    EXITING.load(Ordering::Relaxed)
}

/// An error in a process that was forked from one that had initialised the driver. Comes before any
/// lock that a thread of the parent may have held.
pub fn check_not_forked() -> Result<()> {
    if !has_forked() {
        return Ok(());
    }
    Err(Error::new(Status::Forked, "fork")
        .detail("this process was forked after the GPU driver was initialised, and the driver does not work in the child")
        .advice("Start the process by 'spawn' or 'forkserver', or fork before the first GPU allocation"))
}
