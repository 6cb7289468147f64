//! Memory that this process exports, and the thread that hands it out.
//!
//! What is exported is pinned until its block is freed and nobody has it open. An opener keeps its connection while it
//! has something open, so that its end is seen, however it ends.

use super::handle::{self, BYTES, Handle, Wish};
use super::place::{self, Place};
use hbmalloc::error::{Error, Result, Status};
use hbmalloc::observe;
use hbmalloc::process::{self, Process, sharing};
use hbmalloc::sys::unshared::Kept;
use hbmalloc::sys::{linux, local};
use once_cell::sync::OnceCell;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// A stretch of memory that is exported.
struct Export {
    handle: Handle,
    span: Span,
    /// The numbers of the exports that pin its chunks.
    pins: Vec<u64>,
    /// How often others have it open.
    openers: u32,
    /// The program has freed it; that is done once nobody has it open.
    is_freed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    begin: u64,
    end: u64,
    /// Whether it is a block, which may be freed.
    is_block: bool,
}

#[derive(Default)]
struct State {
    by_number: HashMap<u64, Export>,
    /// By where they begin, and whether they are blocks.
    by_span: HashMap<(u64, bool), u64>,
    last: u64,
}

/// Where others find this process, and the number that it drew. Known without a lock: at exit, and after a fork, one may
/// be held for ever.
static SERVER: OnceCell<(u64, Place)> = OnceCell::new();

/// How much is exported: while nothing is, a free need not look.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What becomes of a block that the program frees.
pub enum Freeing {
    /// It can be given back.
    Now,
    /// It is given back once no other process has it open.
    Later,
    /// The program had freed it before.
    Again,
}

/// The handle of the memory that an address lies in, which begins with the block, or, where the address is that of a
/// chunk, which is what the driver takes for an allocation, with that.
pub fn export(address: u64) -> Result<[u8; BYTES]> {
    process::check_not_forked()?;
    let process = observe::process();
    let span = span_of(process, address)?;
    let mut state = state();
    let known = state.by_span.get(&(span.begin, span.is_block));
    let known = known.and_then(|number| state.by_number.get(number));
    match known.map(|export| (export.handle, export.span == span, export.is_freed)) {
        Some((_, _, true)) => return Err(gone(address)),
        Some((handle, true, _)) => return Ok(handle.to_bytes()),
        // Another block, had and given back by other names than the runtime's.
        Some((handle, false, _)) => _ = state.remove(handle.export),
        None => {}
    }
    let (token, _) = SERVER.get_or_try_init(start_server)?;
    let (pins, device) = pin(process, span)?;
    state.last += 1;
    let handle = Handle {
        process: std::process::id(),
        token: *token,
        export: state.last,
        device,
        bytes: span.end - span.begin,
    };
    state
        .by_span
        .insert((span.begin, span.is_block), handle.export);
    let export = Export {
        handle,
        span,
        pins,
        openers: 0,
        is_freed: false,
    };
    state.by_number.insert(handle.export, export);
    COUNT.fetch_add(1, Ordering::SeqCst);
    Ok(handle.to_bytes())
}

fn gone(address: u64) -> Error {
    Error::new(Status::NotOwned, "export").detail(format!("the memory at {address:#x} was freed"))
}

fn span_of(process: &Process, address: u64) -> Result<Span> {
    let block = process.block_of(address);
    // The driver may refuse, and it says where the chunk is.
    let chunk = process.export_chunk(address)?;
    process.close_export(chunk.serial)?;
    let end_of = |block: Option<(u64, u64)>| block.map_or(0, |(begin, bytes)| begin + bytes);
    match block {
        Some((begin, bytes)) if begin == address || chunk.offset > 0 => Ok(Span {
            begin,
            end: begin + bytes,
            is_block: true,
        }),
        None if chunk.offset > 0 => Err(gone(address)),
        block => {
            let chunk_end = address + chunk.chunk_bytes;
            let last = process.block_of(chunk_end - 1);
            Ok(Span {
                begin: address,
                end: chunk_end.max(end_of(block)).max(end_of(last)),
                is_block: false,
            })
        }
    }
}

/// Pins the chunks of a stretch; the numbers of the pins, and the device.
fn pin(process: &Process, span: Span) -> Result<(Vec<u64>, i32)> {
    let (mut pins, mut at, mut device) = (Vec::new(), span.begin, 0);
    while at < span.end {
        match process.export_chunk(at) {
            Ok(chunk) => {
                pins.push(chunk.serial);
                at += chunk.chunk_bytes - chunk.offset;
                device = chunk.device;
            }
            Err(error) => {
                unpin(process, &pins);
                return Err(error);
            }
        }
    }
    Ok((pins, device))
}

fn unpin(process: &Process, pins: &[u64]) {
    for pin in pins {
        // What is gone needs no pin.
        let _ = process.close_export(*pin);
    }
}

/// A block is about to be freed by the program.
pub fn freeing(address: u64) -> Freeing {
    if COUNT.load(Ordering::Relaxed) == 0 || process::has_forked() {
        return Freeing::Now;
    }
    let mut state = state();
    let Some(number) = state.by_span.get(&(address, true)).copied() else {
        return Freeing::Now;
    };
    match state.by_number.get_mut(&number) {
        Some(export) if export.is_freed => Freeing::Again,
        Some(export) if export.openers > 0 => {
            export.is_freed = true;
            Freeing::Later
        }
        _ => {
            state.remove(number);
            Freeing::Now
        }
    }
}

/// The memory of a device is about to go. Other processes that have some open keep it.
pub fn forget_device(device: i32) {
    if process::has_forked() {
        return;
    }
    let mut state = state();
    let its = (state.by_number.iter()).filter(|(_, export)| export.handle.device == device);
    for number in its.map(|(number, _)| *number).collect::<Vec<_>>() {
        state.remove(number);
    }
}

/// Whether `handle` is of this process.
pub fn is_own(handle: Handle) -> bool {
    handle.process == std::process::id()
        && matches!(SERVER.get(), Some((token, _)) if *token == handle.token)
}

impl State {
    /// Forgets an export and undoes its pins; its block, if the program has freed that.
    fn remove(&mut self, number: u64) -> Option<u64> {
        let export = self.by_number.remove(&number)?;
        let Span {
            begin, is_block, ..
        } = export.span;
        self.by_span.remove(&(begin, is_block));
        COUNT.fetch_sub(1, Ordering::SeqCst);
        unpin(observe::process(), &export.pins);
        export.is_freed.then_some(begin)
    }
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
    socket: Kept<UnixStream>,
    /// How often, by the numbers of the exports.
    open: HashMap<u64, u32>,
}

impl Drop for Visitor {
    fn drop(&mut self) {
        for (number, times) in self.open.drain() {
            closed(number, times);
        }
    }
}

fn serve(listener: &UnixListener) {
    let mut visitors: Vec<Visitor> = Vec::new();
    loop {
        let sockets = || {
            std::iter::once(listener.as_fd())
                .chain(visitors.iter().map(|visitor| visitor.socket.as_fd()))
        };
        let ready = local::wait_to_read(&sockets().collect::<Vec<_>>());
        if process::is_exiting() {
            // The driver may be gone.
            std::mem::forget(visitors);
            return;
        }
        let mut at = 0;
        visitors.retain_mut(|visitor| {
            at += 1;
            !ready[at] || visitor.answer().is_ok()
        });
        if ready[0] {
            visitors.extend(place::receive(listener).map(Visitor::new));
        }
    }
}

impl Visitor {
    fn new(socket: UnixStream) -> Visitor {
        Visitor {
            socket: Kept::new(socket),
            open: HashMap::new(),
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
                    closed(number, 1);
                }
                Ok(())
            }
            Wish::Open => {
                let Some((span, chunks)) = opened(handle) else {
                    return handle::send_count(self.socket.as_fd(), 0);
                };
                *self.open.entry(number).or_default() += 1;
                handle::send_count(self.socket.as_fd(), chunks)?;
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

/// Counts an opener; where the memory is, and in how many chunks.
fn opened(handle: Handle) -> Option<(Span, usize)> {
    let mut state = state();
    let export = state.by_number.get_mut(&handle.export)?;
    if export.handle != handle || export.is_freed {
        return None;
    }
    export.openers += 1;
    Some((export.span, export.pins.len()))
}

fn closed(number: u64, times: u32) {
    let mut state = state();
    let Some(export) = state.by_number.get_mut(&number) else {
        return;
    };
    export.openers = export.openers.saturating_sub(times);
    if export.openers > 0 || !export.is_freed {
        return;
    }
    let freed = state.remove(number);
    drop(state);
    if let Some(block) = freed {
        if let Err(error) = observe::process().deallocate(block, None, None) {
            hbmalloc::error::last::remember(error);
        }
    }
}
