//! The names that this process made: gone when it ends, as far as they still are its own.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// A name that this process made and has not given back.
struct Own {
    path: PathBuf,
    file: (u64, u64),
}

/// The process that has them: a forked child has none of them.
static MAKER: AtomicU32 = AtomicU32::new(0);

fn own() -> MutexGuard<'static, Vec<Own>> {
    static OWN: Mutex<Vec<Own>> = Mutex::new(Vec::new());
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a name; it goes at exit, whether a driver is in use or not.
pub(super) fn note(path: &Path, found: &Metadata) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        crate::sys::linux::at_exit(remove_at_exit);
    });
    MAKER.store(std::process::id(), Ordering::SeqCst);
    own().push(Own {
        path: path.to_owned(),
        file: identity(found),
    });
}

extern "C" fn remove_at_exit() {
    remove_all();
}

/// Removes the names that this process has made and not given back: for its exit. What others have put under them
/// meanwhile stays.
pub fn remove_all() {
    // A child may have been forked while another thread had the lock.
    if MAKER.load(Ordering::SeqCst) != std::process::id() {
        return;
    }
    for own in std::mem::take(&mut *own()) {
        let named = std::fs::symlink_metadata(&own.path);
        if named.is_ok_and(|named| identity(&named) == own.file) {
            let _ = std::fs::remove_file(&own.path);
        }
    }
}

/// Forgets a name, which its owner removes; what the process made under it since then it does not.
pub(super) fn forget(path: &Path, file: &File) {
    let Ok(found) = file.metadata() else { return };
    own().retain(|own| own.path != path || own.file != identity(&found));
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}
