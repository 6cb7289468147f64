//! The threads that hand out what this process exports. An opener keeps its connection while it has something open, so
//! that its end is seen, however it ends.

use super::exports::{self, Span};
use super::handle::{self, BYTES, Handle, Wish};
use super::place::{self, Place};
use hbmalloc::error::{Error, Result, Status};
use hbmalloc::observe;
use hbmalloc::process::{self, sharing};
use hbmalloc::sys::unshared::Kept;
use hbmalloc::sys::{linux, local};
use once_cell::sync::OnceCell;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where others find this process, and the number that it drew. Known without a lock: at exit, and after a fork, one may
/// be held for ever.
static SERVER: OnceCell<(u64, Place)> = OnceCell::new();

/// The handle of the memory that an address lies in, for other processes of the user.
pub fn export(address: u64) -> Result<[u8; BYTES]> {
    exports::export(address, || {
        let (token, _) = SERVER.get_or_try_init(start_server)?;
        Ok(*token)
    })
}

/// Whether `handle` is of this process.
pub fn is_own(handle: Handle) -> bool {
    handle.process == std::process::id()
        && matches!(SERVER.get(), Some((token, _)) if *token == handle.token)
}

/// The process whose folder it is: a forked child leaves it alone.
static MAKER: AtomicUsize = AtomicUsize::new(0);

fn start_server() -> Result<(u64, Place)> {
    let (token, place, listener) = Place::make()?;
    start(listener).inspect_err(|_| place.remove())?;
    MAKER.store(std::process::id() as usize, Ordering::SeqCst);
    linux::at_exit(at_exit);
    Ok((token, place))
}

extern "C" fn at_exit() {
    if MAKER.load(Ordering::SeqCst) != std::process::id() as usize {
        return;
    }
    if let Some((_, place)) = SERVER.get() {
        place.remove();
    }
}

fn start(listener: UnixListener) -> Result<()> {
    let listener = Kept::new(listener);
    linux::spawn_without_signals(THREAD, move || serve(&listener)).map_err(|error| {
        Error::new(Status::Io, "start a thread for other processes").detail(error.to_string())
    })
}

const THREAD: &str = "hbmalloc-ipc";

/// A process that has memory of this one open.
struct Visitor {
    socket: Arc<Kept<UnixStream>>,
    /// How often, by the numbers of the exports.
    open: HashMap<u64, u32>,
}

impl Drop for Visitor {
    fn drop(&mut self) {
        for (number, times) in self.open.drain() {
            exports::closed(number, times);
        }
        SERVED.fetch_sub(1, Ordering::SeqCst);
    }
}

/// So many are served at a time, each by a thread of its own: one that is stopped keeps nobody else waiting. More are
/// told that there is no room.
const MOST: usize = 1024;

static SERVED: AtomicUsize = AtomicUsize::new(0);

fn serve(listener: &UnixListener) {
    loop {
        let Ok(socket) = place::receive(listener) else {
            continue;
        };
        let socket = Arc::new(Kept::new(socket));
        let is_served = SERVED.load(Ordering::SeqCst) < MOST && {
            let visitor = Visitor::new(socket.clone());
            linux::spawn_without_signals(THREAD, move || visitor.serve()).is_ok()
        };
        if !is_served {
            let _ = handle::send_count(socket.as_fd(), handle::NO_ROOM);
        }
    }
}

impl Visitor {
    fn new(socket: Arc<Kept<UnixStream>>) -> Visitor {
        SERVED.fetch_add(1, Ordering::SeqCst);
        Visitor {
            socket,
            open: HashMap::new(),
        }
    }

    fn serve(mut self) {
        loop {
            local::wait_to_read(self.socket.as_fd());
            if process::is_exiting() {
                // The driver may be gone.
                std::mem::forget(self);
                return;
            }
            if self.answer().is_err() {
                return;
            }
        }
    }

    /// After an error the connection is of no more use.
    fn answer(&mut self) -> Result<()> {
        let (wish, handle) = handle::receive_request(self.socket.as_fd())?;
        let number = handle.export;
        match wish {
            Wish::Close => {
                let times = self.open.get_mut(&number);
                if let Some(times) = times.filter(|times| **times > 0) {
                    *times -= 1;
                    exports::closed(number, 1);
                }
                Ok(())
            }
            Wish::Open => {
                let Some((span, chunks)) = exports::opened(handle) else {
                    return handle::send_count(self.socket.as_fd(), 0);
                };
                *self.open.entry(number).or_default() += 1;
                handle::send_count(self.socket.as_fd(), chunks as u64)?;
                self.send(span)
            }
        }
    }

    fn send(&self, span: Span) -> Result<()> {
        let process = observe::process();
        let mut at = span.begin;
        while at < span.end {
            let chunk = process.export_chunk(at)?;
            let sent = sharing::send(self.socket.as_fd(), &chunk.lend());
            // Pinned it is by the export that was asked for.
            let _ = process.close_export(chunk.serial);
            sent?;
            at += chunk.chunk_bytes - chunk.offset;
        }
        Ok(())
    }
}
