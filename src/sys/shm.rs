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
        let file = open(&path).map_err(|error| not_opened(operation, &path, bytes, &error))?;
        let found =
            (file.metadata()).map_err(|error| failed(operation, "fstat", &path, bytes, &error))?;
        let there = found.len();
        // Its maker's lock, which ends with it, is all that tells its contents from what was left.
        let lives = is_locked(&file, LIFE)
            .map_err(|error| failed(operation, "fcntl", &path, bytes, &error))?;
        if !is_ours(&found) || !lives {
            return Err(Error::invalid(
                operation,
                format!("nobody who lives has made {}", path.display()),
            )
            .advice("Make it anew: what a process that ended left goes then"));
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
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(not_opened(operation, path, 0, &error)),
    };
    let found = file.metadata().map_err(|error| failed("fstat", error))?;
    if !is_ours(&found) {
        let whose = format!(
            "is a file of user {}, which this library did not make for this one",
            found.uid()
        );
        return Err(busy(
            &whose,
            "Choose another name, or remove it if nobody uses it",
        ));
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
mod tests {
    use super::*;
    use crate::sys::pages::HUGE_PAGE;

    fn create(folder: &tempfile::TempDir, name: &str) -> Result<Segment> {
        Segment::create("test", folder.path(), name, 2 * HUGE_PAGE)
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in(FOLDER).unwrap()
    }

    fn byte(pages: &Pages) -> *mut u8 {
        (pages.address() + HUGE_PAGE) as *mut u8
    }

    #[test]
    fn two_maps_show_the_same_bytes() {
        let folder = folder();
        let made = create(&folder, "/one").unwrap();
        let other = Segment::attach("test", folder.path(), "one", HUGE_PAGE * 2).unwrap();
        let (mine, theirs) = (made.map().unwrap(), other.map().unwrap());
        mine.populate().unwrap();
        // SAFETY: inside both mappings.
        unsafe { byte(&mine).write_volatile(7) };
        // SAFETY: as above.
        assert_eq!(unsafe { byte(&theirs).read_volatile() }, 7);
        assert!(made.is_called("one") && made.is_called("/one") && !made.is_called("two"));
        drop(other);
        assert!(folder.path().join("one").exists());
        drop(made);
        assert!(!folder.path().join("one").exists());
        let gone = Segment::attach("test", folder.path(), "one", 1).unwrap_err();
        assert_eq!(gone.status(), Status::InvalidArgument);
    }

    #[test]
    fn a_name_has_one_maker() {
        let folder = folder();
        let first = create(&folder, "one").unwrap();
        let error = create(&folder, "one").unwrap_err();
        assert_eq!(error.status(), Status::Busy);
        drop(first);
        create(&folder, "one").unwrap();
    }

    #[test]
    fn what_nobody_has_any_more_goes() {
        let folder = folder();
        let path = folder.path().join("one");
        std::fs::write(&path, "another program's").unwrap();
        assert_eq!(create(&folder, "one").unwrap_err().status(), Status::Busy);
        assert!(Segment::attach("test", folder.path(), "one", 1).is_err());
        std::fs::write(&path, "left").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
        assert!(Segment::attach("test", folder.path(), "one", 1).is_err());
        let made = create(&folder, "one").unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (2 * HUGE_PAGE, 0o600));
        // Somebody else's, by now: it stays.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "new").unwrap();
        drop(made);
        assert!(path.exists());
    }

    #[test]
    fn who_asks_is_not_taken_for_a_maker() {
        let folder = folder();
        let path = folder.path().join("one");
        std::fs::write(&path, "left").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
        // Held for as long as this test runs: those that attach find nobody, and none of them stands in the way.
        let asking = open(&path).unwrap();
        assert!(!is_locked(&asking, LIFE).unwrap());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let folder = folder.path().to_owned();
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let _ = Segment::attach("test", &folder, "one", 1);
                    }
                })
            })
            .collect();
        for _ in 0..100 {
            drop(create(&folder, "one").unwrap());
            std::fs::write(&path, "left").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
        }
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn one_of_many_gets_what_was_left() {
        let folder = folder();
        let path = folder.path().join("one");
        for _ in 0..20 {
            std::fs::write(&path, "left").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
            let made: Vec<_> = std::thread::scope(|scope| {
                let make = || scope.spawn(|| create(&folder, "one"));
                let threads: Vec<_> = (0..4).map(|_| make()).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .collect()
            });
            let (one, others): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
            assert_eq!((one.len(), others.len()), (1, 3));
            for error in others.into_iter().map(Result::unwrap_err) {
                assert_eq!(error.status(), Status::Busy, "{error}");
            }
        }
    }

    #[test]
    fn another_user_s_name_is_busy() {
        let folder = folder();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        let path = folder.path().join("one");
        // SAFETY: takes no pointers.
        if unsafe { libc::geteuid() } != 0 {
            println!("SKIP: only root can be another user");
            return;
        }
        std::fs::write(&path, "root's").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
        let as_nobody = || {
            // SAFETY: takes no pointers, and changes this thread alone, which ends.
            unsafe { libc::setfsuid(65534) };
            let made = create(&folder, "one").unwrap_err();
            let attached = Segment::attach("test", folder.path(), "one", 1).unwrap_err();
            (made, attached)
        };
        let (made, attached) = std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap());
        for error in [made, attached] {
            assert_eq!(error.status(), Status::Busy);
            assert!(error.to_string().contains("belongs to user 0"), "{error}");
        }
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        let error = create(&folder, "one").unwrap_err();
        assert!(error.to_string().contains("user 65534,"), "{error}");
    }

    #[test]
    fn what_others_put_there_stays_at_exit() {
        let folder = folder();
        let (kept, gone) = (
            create(&folder, "kept").unwrap(),
            create(&folder, "gone").unwrap(),
        );
        std::fs::remove_file(kept.path()).unwrap();
        std::fs::write(kept.path(), "another's").unwrap();
        remove_all();
        assert!(kept.path().exists() && !gone.path().exists());
    }

    #[test]
    fn room_is_taken_at_once() {
        let folder = folder();
        let made = create(&folder, "one").unwrap();
        made.reserve("test").unwrap();
        let blocks = std::fs::metadata(made.path()).unwrap().blocks();
        assert_eq!(blocks * 512, 2 * HUGE_PAGE);
        let there = Segment::attach("test", folder.path(), "one", HUGE_PAGE).unwrap();
        there.reserve("test").unwrap();
    }

    #[test]
    fn links_and_odd_names_are_refused() {
        let folder = folder();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        assert!(create(&folder, "link").is_err());
        assert!(Segment::attach("test", folder.path(), "link", 1).is_err());
        let long = "x".repeat(256);
        for name in ["", "/", "a/b", "../a", ".", "..", "//", &long] {
            let error = create(&folder, name).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument, "{name}");
        }
        let much = Segment::create("test", folder.path(), "much", 1 << 50).unwrap_err();
        assert_eq!(much.status(), Status::OutOfMemory);
        let short = create(&folder, "short").unwrap();
        let error = Segment::attach("test", folder.path(), "short", 1 << 40).unwrap_err();
        assert!(error.to_string().contains("4194304 bytes"), "{error}");
        drop(short);
    }
}
