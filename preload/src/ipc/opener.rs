//! Memory of other processes that is open here.

use super::handle::{self, Handle, Wish};
use super::place;
use hbmalloc::error::{Error, Result, Status};
use hbmalloc::observe;
use hbmalloc::process::{self, sharing};
use hbmalloc::sys::unshared::Kept;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Memory that is mapped here.
struct Opened {
    handle: Handle,
    device: i32,
    /// How often it was opened, and not closed.
    times: u32,
}

/// The way to a process that has memory open here; while there is one, that process keeps it.
struct Connection {
    socket: Kept<UnixStream>,
    /// How much of its memory is open.
    open: usize,
}

#[derive(Default)]
struct State {
    by_address: HashMap<u64, Opened>,
    /// By the numbers that processes drew.
    connections: HashMap<u64, Connection>,
    /// Closed by the program while a stream captured, so that the work on it could not be waited for.
    left: Vec<(u64, Handle)>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maps what a handle stands for, for `device`; where it is mapped already that is what it answers.
pub fn open(handle: Handle, device: i32) -> Result<u64> {
    process::check_not_forked()?;
    close_left();
    let mut state = state();
    let known = (state.by_address.iter_mut())
        .find(|(_, opened)| opened.handle == handle && opened.device == device);
    if let Some((address, opened)) = known {
        opened.times += 1;
        return Ok(*address);
    }
    let address = state.import(handle, device)?;
    let opened = Opened {
        handle,
        device,
        times: 1,
    };
    state.by_address.insert(address, opened);
    Ok(address)
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
    let handle = opened.handle;
    state.by_address.remove(&address);
    drop(state);
    close_left();
    Some(unmap(address, handle))
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
            gone.push((*address, opened.handle));
        }
        !is_its
    });
    for (address, handle) in gone {
        if unmap(address, handle).is_err() {
            state().left.push((address, handle));
        }
    }
}

fn unmap(address: u64, handle: Handle) -> Result<()> {
    // Waits for the work on it, so without the lock.
    match observe::process().close_import(address) {
        Err(error) if matches!(error.status(), Status::Capturing | Status::Busy) => {
            state().left.push((address, handle));
        }
        Err(error) if error.status() != Status::Shutdown => return Err(error),
        _ => state().tell_closed(handle),
    }
    Ok(())
}

fn close_left() {
    let left = std::mem::take(&mut state().left);
    for (address, handle) in left {
        if unmap(address, handle).is_err() {
            state().left.push((address, handle));
        }
    }
}

impl State {
    fn import(&mut self, handle: Handle, device: i32) -> Result<u64> {
        let mut connection = match self.connections.remove(&handle.token) {
            Some(connection) => connection,
            None => Connection {
                socket: Kept::new(place::connect(handle)?.ok_or_else(|| is_gone(handle))?),
                open: 0,
            },
        };
        // A connection that fails is dropped: it cannot be told what would come next. What else is open through it
        // stays mapped; the driver keeps its memory.
        let imported = connection.import(handle, device)?;
        connection.open += usize::from(imported.is_ok());
        if connection.open > 0 {
            self.connections.insert(handle.token, connection);
        }
        imported
    }

    fn tell_closed(&mut self, handle: Handle) {
        let Some(connection) = self.connections.get_mut(&handle.token) else {
            return;
        };
        connection.open = connection.open.saturating_sub(1);
        let told = handle::send_request(connection.socket.as_fd(), Wish::Close, handle);
        if connection.open == 0 || told.is_err() {
            self.connections.remove(&handle.token);
        }
    }
}

impl Connection {
    /// The inner error leaves the connection as good as it was.
    fn import(&self, handle: Handle, device: i32) -> Result<Result<u64>> {
        let socket = self.socket.as_fd();
        let chunks = handle::send_request(socket, Wish::Open, handle)
            .and_then(|()| handle::receive_count(socket))
            .map_err(|error| is_gone(handle).also(&error.to_string()))?;
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
