//! Files that hold memory for a while: written and read past the page cache where the file system lets us,
//! readable by their owner alone, gone with whoever made them. What a process that was killed left behind is
//! removed by the next one that uses the folder.

use crate::error::{Error, Result, Status};
use std::ffi::c_int;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Positions, lengths and addresses of direct transfers are multiples of this; blocks of disks are not longer.
pub const BLOCK: u64 = 4096;

const BEGINNING: &str = "hbmalloc-";
const ENDING: &str = ".sleep";

/// The files that are there now, to be removed when the process exits.
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn live() -> MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file, removed when dropped.
pub struct Scratch {
    file: File,
    path: PathBuf,
    is_direct: bool,
}

impl Scratch {
    /// Makes a file in `folder` whose name tells `what` is in it, with mode 0600.
    pub fn create(folder: &Path, what: &str) -> Result<Scratch> {
        remove_left(folder);
        let name = |number: usize| {
            let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let what: String = what.chars().take(64).map(safe).collect();
            format!("{BEGINNING}{}-{number}-{what}{ENDING}", std::process::id())
        };
        let mut number = 0;
        loop {
            let path = folder.join(name(number));
            match open_new(&path) {
                Ok((file, is_direct)) => {
                    // Says that its process lives.
                    lock_file(&file);
                    live().push(path.clone());
                    return Ok(Scratch {
                        file,
                        path,
                        is_direct,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 10_000 => {
                    number += 1;
                }
                Err(error) => return Err(failed("create a file for sleep", &path, 0, &error)),
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether transfers pass the page cache by.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Makes room for `bytes` from `at` on, so that a full disk shows now.
    pub fn reserve(&self, at: u64, bytes: u64) -> Result<()> {
        // SAFETY: the descriptor is open; takes no pointers.
        let outcome = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, at as i64, bytes as i64) };
        let error = io::Error::last_os_error();
        match outcome {
            0 => Ok(()),
            // Some file systems cannot: then it shows while writing.
            _ if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            _ => Err(failed(
                "make room in a file for sleep",
                &self.path,
                bytes,
                &error,
            )),
        }
    }

    /// Cuts the file off at `bytes`.
    pub fn shorten(&self, bytes: u64) {
        if let Err(error) = self.file.set_len(bytes) {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }

    /// Writes `bytes` from `from` at `at`: multiples of [`BLOCK`].
    pub fn write(&self, at: u64, from: &[u8]) -> Result<()> {
        (self.file.write_all_at(from, at)).map_err(|error| {
            failed(
                "write a file for sleep",
                &self.path,
                from.len() as u64,
                &error,
            )
        })
    }

    /// Reads into `to` from `at` on: multiples of [`BLOCK`].
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<()> {
        let bytes = to.len() as u64;
        (self.file.read_exact_at(to, at))
            .map_err(|error| failed("read a file of sleep", &self.path, bytes, &error))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        live().retain(|path| *path != self.path);
        remove(&self.path);
    }
}

/// Removes all files that this process has made and not removed: for its exit.
pub fn remove_all() {
    for path in std::mem::take(&mut *live()) {
        remove(&path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!("{}: {error}", path.display());
    }
}

fn open_new(path: &Path) -> io::Result<(File, bool)> {
    let open = |flags: c_int| {
        (OpenOptions::new().read(true).write(true).create_new(true))
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
    };
    match open(libc::O_DIRECT | libc::O_CLOEXEC) {
        // The file system cannot; some have made the file all the same.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let _ = fs::remove_file(path);
            open(libc::O_CLOEXEC).map(|file| (file, false))
        }
        outcome => outcome.map(|file| (file, true)),
    }
}

fn lock_file(file: &File) -> bool {
    // SAFETY: the descriptor is open; takes no pointers.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// Removes files of ours whose process is gone: nobody holds their locks.
fn remove_left(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    // SAFETY: takes no pointers and cannot fail.
    let user = unsafe { libc::geteuid() };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = name.starts_with(BEGINNING) && name.ends_with(ENDING);
        if !is_ours || entry.metadata().map(|data| data.uid()).ok() != Some(user) {
            continue;
        }
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(entry.path());
        if file.is_ok_and(|file| lock_file(&file)) {
            tracing::info!("{}: removed, its process is gone", entry.path().display());
            remove(&entry.path());
        }
    }
}

fn failed(operation: &'static str, path: &Path, bytes: u64, error: &io::Error) -> Error {
    let is_full = matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG)
    );
    let advice = match is_full {
        true => "Name a folder with more room by the option `sleep_dir`",
        false => "Name another folder by the option `sleep_dir`",
    };
    let failed = Error::new(Status::Io, operation);
    let failed = match bytes {
        0 => failed,
        bytes => failed.bytes(bytes),
    };
    (failed.detail(format!("{}: {error}", path.display()))).advice(advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("hbmalloc-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_file_is_private_and_goes_with_its_owner() {
        let folder = folder("private");
        let scratch = Scratch::create(&folder, "de ad/beef").unwrap();
        let mode = fs::metadata(scratch.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        scratch.reserve(0, 2 * BLOCK).unwrap();
        let second = Scratch::create(&folder, "de ad/beef").unwrap();
        assert_ne!(scratch.path(), second.path());
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists() && second.path().exists());
        remove_all();
        assert!(!second.path().exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_nobody_holds_is_removed() {
        let folder = folder("left");
        let left = folder.join("hbmalloc-1-0-x.sleep");
        let other = folder.join("hbmalloc-notes.txt");
        fs::write(&left, "x").unwrap();
        fs::write(&other, "x").unwrap();
        let live = Scratch::create(&folder, "a").unwrap();
        assert!(!left.exists() && other.exists());
        let _second = Scratch::create(&folder, "b").unwrap();
        assert!(live.path().exists());
        let error = Scratch::create(&folder.join("none"), "a").err().unwrap();
        assert_eq!(error.status(), Status::Io);
        fs::remove_dir_all(folder).unwrap();
    }
}
