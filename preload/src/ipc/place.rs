//! Where processes meet: a socket of mode 0600 in a folder of mode 0700, which its maker holds a lock of while it
//! lives. The lock, unlike the number of a process, means the same in every container that shares the folder.

use super::handle::Handle;
use hbmalloc::error::{Error, Result, Status};
use hbmalloc::sys::local;
use hbmalloc::sys::unshared::Kept;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const BEGINNING: &str = "hbmalloc-ipc-";
const SOCKET: &str = "socket";

/// The longest path of a socket, with the zero behind it (unix(7)).
const LONGEST: usize = 107;

/// A process that lives answers within microseconds, but one may be stopped, or its machine busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// The folder of this process.
pub struct Place {
    folder: PathBuf,
    _lock: Kept<File>,
}

/// Where folders are looked for; the first that can be written to is where they are made.
fn parents() -> Vec<PathBuf> {
    let mut parents = Vec::new();
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    parents.extend(named.filter(|named| named.is_absolute()));
    parents.push(format!("/run/user/{}", local::user()).into());
    parents.push("/tmp".into());
    parents.dedup();
    parents
}

fn name_of(process: u32, token: u64) -> String {
    format!("{BEGINNING}{}-{process}-{token:016x}", local::user())
}

/// A place, the number in its name, and the socket that is listened at.
type Made = (u64, Place, UnixListener);

/// How often a folder is made anew whose lock its maker did not get.
const TRIES: usize = 100;

impl Place {
    /// Makes the folder and listens in it.
    pub fn make() -> Result<Made> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let mut tried = Vec::new();
        for parent in parents() {
            remove_left(&parent);
            match make_in(&parent) {
                Ok(made) => return Ok(made),
                Err(error) => last = error,
            }
            tried.push(parent.display().to_string());
        }
        Err(Error::new(Status::Io, "make a socket for other processes")
            .detail(format!("in {}: {last}", tried.join(", ")))
            .advice("Name a folder that this user may write to, by XDG_RUNTIME_DIR"))
    }

    /// Removes it, for the process's exit.
    pub fn remove(&self) {
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    let _ = fs::remove_file(folder.join(SOCKET));
    let _ = fs::remove_dir(folder);
}

/// Who cleans up may take a folder that was made just now for one that was left, and remove it. Another one then has
/// another name, since the old one's may be removed yet.
fn make_in(parent: &Path) -> io::Result<Made> {
    let mut last = io::Error::from(io::ErrorKind::WouldBlock);
    for _ in 0..TRIES {
        let token = draw();
        let folder = parent.join(name_of(std::process::id(), token));
        let path = folder.join(SOCKET);
        if path.as_os_str().as_bytes().len() > LONGEST {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        DirBuilder::new().mode(0o700).create(&folder)?;
        match listen(&folder, &path) {
            Ok((place, listener)) => return Ok((token, place, listener)),
            Err(error) => last = error,
        }
        remove(&folder);
        if !matches!(
            last.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::NotFound
        ) {
            break;
        }
    }
    Err(last)
}

fn listen(folder: &Path, path: &Path) -> io::Result<(Place, UnixListener)> {
    let opened = open_folder(folder)?;
    if !local::try_lock(&opened) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    // Fails where the folder went before it was locked.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let place = Place {
        folder: folder.to_owned(),
        _lock: Kept::new(opened),
    };
    Ok((place, listener))
}

fn open_folder(folder: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(folder)
}

/// Removes folders of this user whose makers are gone: nobody holds their locks.
fn remove_left(parent: &Path) {
    let beginning = format!("{BEGINNING}{}-", local::user());
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&beginning) {
            continue;
        }
        let folder = entry.path();
        if open_folder(&folder).is_ok_and(|opened| is_private(&opened) && local::try_lock(&opened))
        {
            remove(&folder);
        }
    }
}

/// Whether nobody else can have put something there.
fn is_private(folder: &File) -> bool {
    let found = folder.metadata();
    found.is_ok_and(|found| found.uid() == local::user() && found.mode() & 0o077 == 0)
}

/// Goes to the process that a handle is of; None where it is not to be found.
pub fn connect(handle: Handle) -> Result<Option<UnixStream>> {
    for parent in parents() {
        let folder = parent.join(name_of(handle.process, handle.token));
        if !open_folder(&folder).is_ok_and(|opened| is_private(&opened)) {
            continue;
        }
        let Ok(stream) = UnixStream::connect(folder.join(SOCKET)) else {
            continue;
        };
        check_user(&stream)?;
        be_patient(&stream)?;
        return Ok(Some(stream));
    }
    Ok(None)
}

/// The folders that were looked in, for errors.
pub fn looked_in() -> String {
    let parents: Vec<String> = parents()
        .iter()
        .map(|parent| parent.display().to_string())
        .collect();
    parents.join(", ")
}

/// No call on the socket waits for ever.
fn be_patient(stream: &UnixStream) -> Result<()> {
    (stream.set_read_timeout(Some(PATIENCE)))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(|error| Error::new(Status::Io, "set a time limit").detail(error.to_string()))
}

/// Whoever came to the socket of this process, if it is to be answered.
pub fn receive(listener: &UnixListener) -> Result<UnixStream> {
    let (stream, _) = listener.accept().map_err(|error| {
        // No descriptor is left, say; some may be given back meanwhile.
        std::thread::sleep(Duration::from_millis(10));
        Error::new(Status::Io, "accept").detail(error.to_string())
    })?;
    check_user(&stream)?;
    be_patient(&stream)?;
    Ok(stream)
}

/// Memory is for processes of the same user.
fn check_user(stream: &UnixStream) -> Result<()> {
    let there = local::user_of(stream)
        .map_err(|error| Error::new(Status::Io, "ask who is there").detail(error.to_string()))?;
    match there == local::user() {
        true => Ok(()),
        false => Err(Error::new(Status::Io, "share memory")
            .detail(format!("the process at the other end is of user {there}"))
            .advice("Only processes of one user share memory")),
    }
}

/// A number that nobody can guess.
fn draw() -> u64 {
    // The folder's mode and the user's number keep others out all the same.
    local::draw()
        .unwrap_or_else(|| u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
