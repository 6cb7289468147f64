//! Named memory that processes share: a file in `/dev/shm`, as shm_open(3) makes them, which nobody but its
//! user may open. Who made it holds a lock on its first byte while it has it, so that what a killed process left is
//! known as such. Others only ask for that lock, and so are never taken for its maker; who removes what was left
//! holds the lock of the second byte meanwhile.

mod life;
mod names;

use life::{LIFE, is_locked, is_taken, lock, lock_removal};
pub use names::remove_all;

use super::pages::Pages;
use crate::error::{Error, Result, Status};
use std::ffi::CString;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where shm_open(3) has its files.
pub const FOLDER: &str = "/dev/shm";
/// Its user alone may open a file; the bit that means nothing for files is this library's mark.
const MARKED: u32 = 0o1600;

/// A named segment.
#[derive(Debug)]
pub struct Segment {
    file: File,
    path: PathBuf,
    bytes: u64,
    is_maker: bool,
}

impl Segment {
    /// Makes a segment of `bytes`, full of zeros, under a name that no living process has; what a dead one left goes.
    pub fn create(
        operation: &'static str,
        folder: &Path,
        name: &str,
        bytes: u64,
    ) -> Result<Segment> {
        let path = path_of(operation, folder, name)?;
        // What was left under the name takes room too.
        remove_left(operation, &path)?;
        check_room(operation, folder, bytes)?;
        let failed = |call: &str, error: &io::Error| failed(operation, call, &path, bytes, error);
        let file = (OpenOptions::new().read(true).write(true))
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(folder)
            .map_err(|error| failed("open", &error))?;
        file.set_len(bytes)
            .and_then(|()| file.set_permissions(Permissions::from_mode(MARKED)))
            .map_err(|error| failed("ftruncate", &error))?;
        lock(&file, LIFE).map_err(|error| failed("fcntl", &error))?;
        // Locked before it has a name: nobody takes it for one that was left.
        while let Err(error) = link(&file, &path) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(failed("linkat", &error));
            }
            remove_left(operation, &path)?;
        }
        let found = file.metadata().map_err(|error| failed("fstat", &error));
        let found = found.inspect_err(|_| remove_own(&file, &path))?;
        names::note(&path, &found);
        Ok(Segment {
            file,
            path,
            bytes,
            is_maker: true,
        })
    }

    /// Opens a segment of at least `bytes` that another process made and still has.
    pub fn attach(
        operation: &'static str,
        folder: &Path,
        name: &str,
        bytes: u64,
    ) -> Result<Segment> {
        let path = path_of(operation, folder, name)?;
        let nobody = || {
            let detail = format!("nobody who lives has made {}", path.display());
            Error::invalid(operation, detail)
                .advice("Make it anew: what a process that ended left goes then")
        };
        if another_s(&path).is_some() {
            return Err(nobody());
        }
        let file = open(&path).map_err(|error| not_opened(operation, &path, bytes, &error))?;
        let found =
            (file.metadata()).map_err(|error| failed(operation, "fstat", &path, bytes, &error))?;
        let there = found.len();
        // Its maker's lock, which ends with it, is all that tells its contents from what was left.
        let lives = is_locked(&file, LIFE)
            .map_err(|error| failed(operation, "fcntl", &path, bytes, &error))?;
        if !is_ours(&found) || !lives {
            return Err(nobody());
        }
        if bytes == 0 || there < bytes {
            let detail = format!("{} has {there} bytes, not {bytes}", path.display());
            return Err(Error::invalid(operation, detail));
        }
        Ok(Segment {
            file,
            path,
            bytes,
            is_maker: false,
        })
    }

    /// Has the file system keep room for all of it now, by the policy of what is mapped of it: where it is full that is
    /// an error here, and would be a signal for who touches it later. A segment of another process has its room.
    pub fn reserve(&self, operation: &'static str) -> Result<()> {
        /// Small enough that a signal, after which a part is begun anew, does not keep it from ending.
        const PART: u64 = 256 << 20;
        let mut at = 0;
        while self.is_maker && at < self.bytes {
            let part = PART.min(self.bytes - at);
            // SAFETY: takes no pointers; the descriptor is the file's own.
            let done = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, at as i64, part as i64) };
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                _ if done == 0 => at += part,
                Some(libc::EINTR) => {}
                _ => {
                    let folder = self.path.parent().unwrap_or(Path::new(FOLDER));
                    let full = check_room(operation, folder, self.bytes - at).err();
                    let error = failed(operation, "fallocate", &self.path, self.bytes, &error);
                    return Err(full.unwrap_or(error));
                }
            }
        }
        Ok(())
    }

    /// Maps all of it.
    pub fn map(&self) -> Result<Pages> {
        Pages::map_file(&self.file, self.bytes)
    }

    /// Whether this process made it.
    pub fn is_own(&self) -> bool {
        self.is_maker
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is called so.
    pub fn is_called(&self, name: &str) -> bool {
        let name = name.strip_prefix('/').unwrap_or(name);
        self.path.file_name().is_some_and(|own| own == name)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.is_maker {
            return;
        }
        names::forget(&self.path, &self.file);
        // One that cannot be removed is known as left over from here on, since the lock goes.
        remove_own(&self.file, &self.path);
    }
}

fn remove_own(file: &File, path: &Path) {
    if is_at(file, path) {
        let _ = std::fs::remove_file(path);
    }
}

/// Whether a file is one of this library's, of this user: others lock theirs in other ways, or not at all.
fn is_ours(found: &Metadata) -> bool {
    // SAFETY: it has no arguments and cannot fail.
    found.is_file() && found.uid() == unsafe { libc::geteuid() } && found.mode() & 0o7777 == MARKED
}

/// What is there under a name, if it is another's: to open that for writing would break a lease on it, and wait for that.
fn another_s(path: &Path) -> Option<Metadata> {
    (std::fs::symlink_metadata(path).ok()).filter(|found| !is_ours(found))
}

/// A name is one of a file, with or without the leading slash that shm_open(3) wants.
fn path_of(operation: &'static str, folder: &Path, name: &str) -> Result<PathBuf> {
    let plain = name.strip_prefix('/').unwrap_or(name);
    let is_good = !plain.is_empty()
        && plain.len() <= 255
        && !plain.contains(['/', '\0'])
        && plain != "."
        && plain != "..";
    match is_good {
        true => Ok(folder.join(plain)),
        false => Err(Error::invalid(operation, format!("the name {name:?}"))
            .advice("Name it as for shm_open: up to 255 bytes without a slash but the first")),
    }
}

/// What the folder's file system has not got is not tried.
fn check_room(operation: &'static str, folder: &Path, bytes: u64) -> Result<()> {
    let Some(free) = super::linux::free_on(folder).filter(|free| *free < bytes) else {
        return Ok(());
    };
    Err(Error::new(Status::OutOfMemory, operation)
        .bytes(bytes)
        .detail(format!("{} has {free} bytes left", folder.display()))
        .advice("Have it mounted larger (mount -o remount,size=..., or docker run --shm-size)"))
}

fn open(path: &Path) -> io::Result<File> {
    (OpenOptions::new().read(true).write(true))
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(named)) = (file.metadata(), std::fs::symlink_metadata(path)) else {
        return false;
    };
    (file.dev(), file.ino()) == (named.dev(), named.ino())
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both are C strings that live through the call.
    let answer = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes what a process that ended left under a name; an error if its maker still has it. Who removes it has the
/// lock of just that file meanwhile, so nobody's new one goes.
fn remove_left(operation: &'static str, path: &Path) -> Result<()> {
    let busy = |what: &str, advice: &'static str| {
        Error::new(Status::Busy, operation)
            .detail(format!("{} {what}", path.display()))
            .advice(advice)
    };
    let failed = |call, error: io::Error| failed(operation, call, path, 0, &error);
    let strange = |found: &Metadata| {
        let whose = format!(
            "is a file of user {}, which this library did not make for this one",
            found.uid()
        );
        busy(
            &whose,
            "Choose another name, or remove it if nobody uses it",
        )
    };
    if let Some(found) = another_s(path) {
        return Err(strange(&found));
    }
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(not_opened(operation, path, 0, &error)),
    };
    let found = file.metadata().map_err(|error| failed("fstat", error))?;
    if !is_ours(&found) {
        return Err(strange(&found));
    }
    lock_removal(&file).map_err(|error| match is_taken(&error) {
        true => busy("is being removed by another process", "Try again"),
        false => failed("fcntl", error),
    })?;
    if is_locked(&file, LIFE).map_err(|error| failed("fcntl", error))? {
        let advice = "Choose another name, or attach to it";
        return Err(busy("belongs to a process that lives", advice));
    }
    if is_at(&file, path) {
        std::fs::remove_file(path).map_err(|error| failed("unlink", error))?;
        tracing::info!(
            "{} was left by a process that ended: removed",
            path.display()
        );
    }
    Ok(())
}

/// A name that this user may not open is another's.
fn not_opened(operation: &'static str, path: &Path, bytes: u64, error: &io::Error) -> Error {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return failed(operation, "open", path, bytes, error);
    }
    let owner = std::fs::symlink_metadata(path).map(|found| found.uid());
    let owner = owner.map_or_else(|_| "another user".to_owned(), |user| format!("user {user}"));
    Error::new(Status::Busy, operation)
        .detail(format!("{} belongs to {owner}: {error}", path.display()))
        .advice("Choose another name: only its own user may use it or remove it")
}

fn failed(
    operation: &'static str,
    call: &str,
    path: &Path,
    bytes: u64,
    error: &io::Error,
) -> Error {
    let status = match error.kind() {
        io::ErrorKind::NotFound => Status::InvalidArgument,
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => Status::OutOfMemory,
        _ => Status::Io,
    };
    (Error::new(status, operation).bytes(bytes))
        .detail(format!("{call} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
