//! Memory of other processes that is open here.

use super::handle::{self, Handle, Wish};
use super::place;
use hbmalloc::error::{Error, Result, Status, Warning};
use hbmalloc::observe;
use hbmalloc::process::{self, sharing};
use hbmalloc::sys::local;
use hbmalloc::sys::unshared::Kept;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Memory that is mapped here.
struct Opened {
    handle: Handle,
    device: i32,
    /// How often it was opened, and not closed.
    times: u32,
    way: Way,
}

/// The way to a process that has memory open here; while there is one, that process keeps it. Who waits for its answer
/// has this lock, and not that of the state, which comes after it: a process that is stopped keeps others' memory from
/// nobody.
type Way = Arc<Mutex<Connection>>;

#[derive(Default)]
struct Connection {
    /// Once somebody needed it, and while it works.
    socket: Option<Kept<UnixStream>>,
    /// How much of its memory is open.
    open: usize,
    /// Whether whoever finds it has to look for another.
    is_left: bool,
}

#[derive(Default)]
struct State {
    by_address: HashMap<u64, Opened>,
    /// By the numbers that processes drew.
    ways: HashMap<u64, Way>,
    /// Closed by the program, but mapped yet: while a stream captures, say, work on it cannot be waited for.
    left: Vec<(u64, Handle, Way)>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn held(way: &Way) -> MutexGuard<'_, Connection> {
    way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maps what a handle stands for, for `device`; where it is mapped already that is what it answers.
pub fn open(handle: Handle, device: i32) -> Result<u64> {
    process::check_not_forked()?;
    close_left();
    loop {
        let way = {
            let mut state = state();
            if let Some(address) = state.open_again(handle, device) {
                return Ok(address);
            }
            state.ways.entry(handle.token).or_default().clone()
        };
        let mut connection = held(&way);
        if connection.is_left {
            continue;
        }
        // Another thread may have been faster.
        if let Some(address) = state().open_again(handle, device) {
            return Ok(address);
        }
        let imported = connection.import(handle, device);
        let mut state = state();
        if let Ok(address) = imported {
            let opened = Opened {
                handle,
                device,
                times: 1,
                way: way.clone(),
            };
            state.by_address.insert(address, opened);
        }
        state.leave_idle(handle.token, &mut connection);
        return imported;
    }
}

/// Undoes one [`open`]; None where the address is not from one.
pub fn close(address: u64) -> Option<Result<()>> {
    if let Err(error) = process::check_not_forked() {
        return Some(Err(error));
    }
    let mut state = state();
    let opened = state.by_address.get_mut(&address)?;
    opened.times -= 1;
    if opened.times > 0 {
        return Some(Ok(()));
    }
    let opened = state.by_address.remove(&address)?;
    drop(state);
    close_left();
    Some(unmap(address, opened.handle, opened.way))
}

/// What is mapped for a device goes with its context.
pub fn forget_device(device: i32) {
    if process::has_forked() {
        return;
    }
    let mut gone = Vec::new();
    state().by_address.retain(|address, opened| {
        let is_its = opened.device == device;
        if is_its {
            gone.push((*address, opened.handle, opened.way.clone()));
        }
        !is_its
    });
    unmap_all(gone);
}

fn unmap_all(gone: Vec<(u64, Handle, Way)>) {
    for (address, handle, way) in gone {
        let _ = unmap(address, handle, way);
    }
}

/// What cannot be unmapped now is tried again: the program is told of it, and does not come again.
fn unmap(address: u64, handle: Handle, way: Way) -> Result<()> {
    // Waits for the work on it, so without the lock.
    let outcome = observe::process().close_import(address);
    let failed = outcome.as_ref().err().map(Error::status);
    match failed {
        None | Some(Status::Shutdown | Status::NotOwned) => tell_closed(handle, &way),
        Some(_) => state().left.push((address, handle, way)),
    }
    match failed {
        Some(Status::Capturing | Status::Busy | Status::Shutdown) => Ok(()),
        _ => outcome,
    }
}

fn close_left() {
    let left = std::mem::take(&mut state().left);
    unmap_all(left);
}

fn tell_closed(handle: Handle, way: &Way) {
    let mut connection = held(way);
    if connection.is_left {
        return;
    }
    connection.open = connection.open.saturating_sub(1);
    let told = match &connection.socket {
        Some(socket) => handle::send_request(socket.as_fd(), Wish::Close, handle),
        None => Ok(()),
    };
    if told.is_err() {
        connection.socket = None;
    }
    state().leave_idle(handle.token, &mut connection);
}

impl State {
    /// Counts one more of what is mapped already.
    fn open_again(&mut self, handle: Handle, device: i32) -> Option<u64> {
        let (address, opened) = (self.by_address.iter_mut())
            .find(|(_, opened)| opened.handle == handle && opened.device == device)?;
        opened.times += 1;
        Some(*address)
    }

    /// A connection through which nothing is open ends, and one that failed is no more.
    fn leave_idle(&mut self, token: u64, connection: &mut Connection) {
        if connection.open == 0 || connection.socket.is_none() {
            connection.is_left = true;
            connection.socket = None;
            self.ways.remove(&token);
        }
    }
}

impl Connection {
    /// What fails in a way that leaves open what would come next ends the connection. What else is open through it
    /// stays mapped; the driver keeps its memory.
    fn import(&mut self, handle: Handle, device: i32) -> Result<u64> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Kept::new(place::connect(handle)?.ok_or_else(|| is_gone(handle))?),
        };
        let imported = import(&socket, handle, device)?;
        self.socket = Some(socket);
        self.open += usize::from(imported.is_ok());
        imported
    }
}

/// The inner error leaves the connection as good as it was.
fn import(socket: &UnixStream, handle: Handle, device: i32) -> Result<Result<u64>> {
    let socket = socket.as_fd();
    let asked = handle::send_request(socket, Wish::Open, handle);
    let chunks = match asked {
        // Who is refused may find the other end closed, and the word of it here.
        Err(error) if !local::can_read(socket) => Err(error),
        _ => handle::receive_count(socket),
    };
    let chunks = chunks.map_err(|error| is_gone(handle).also(&error.to_string()))?;
    if chunks == handle::NO_ROOM {
        return Err(is_full(handle));
    }
    if chunks == 0 {
        return Ok(Err(Error::new(Status::NotOwned, OPEN)
            .detail(format!(
                "the memory that process {} exported was freed",
                handle.process
            ))
            .advice("Keep it until the other processes have opened it")));
    }
    let mut parts = (0..chunks).map(|_| sharing::receive(socket));
    let imported = observe::process().import_all(parts.by_ref(), device);
    if imported.is_err() {
        parts.try_for_each(|part| part.map(|_| ()))?;
        handle::send_request(socket, Wish::Close, handle)?;
    }
    Ok(imported)
}

const OPEN: &str = "open memory of another process";

fn is_gone(handle: Handle) -> Error {
    Error::new(Status::NotOwned, OPEN)
        .detail(format!(
            "process {} that exported it is not to be found in {}",
            handle.process,
            place::looked_in()
        ))
        .advice("It must live, be of this user and see the same XDG_RUNTIME_DIR, or /tmp where neither has one")
}

fn is_full(handle: Handle) -> Error {
    let error = Error::new(Status::Io, OPEN)
        .detail(format!(
            "process {} serves no more processes at a time than have memory of it open now",
            handle.process
        ))
        .advice("Close what is needed no more, or open it in fewer processes");
    observe::process()
        .warnings()
        .warn(Warning::NotServed, || error.to_string());
    error
}
