//! Stream capture: whether one is open, and driver calls that must not disturb it.

use super::device::{Device, undo};
use super::stream::Stream;
use crate::core::sync::lock;
use crate::error::{DriverCode, Error, Result, Status, Warning};
use crate::sys::cuda::Cuda;
use rustc_hash::FxHashSet;
use std::cell::Cell;
use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, TryLockError};
use std::thread::{self, ThreadId};

/// Asking the legacy stream while another blocking stream captures answers this code.
const IMPLICIT_CAPTURE: DriverCode = DriverCode(906);

/// What a driver that checks handles answers for a stream that is gone.
const INVALID_HANDLE: DriverCode = DriverCode(400);

const MODE_RELAXED: c_int = 2;

/// A stream as one thread means it: the per-thread stream is another one on each.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Met {
    stream: Stream,
    owner: Option<ThreadId>,
}

impl Met {
    fn here(stream: Stream) -> Met {
        Met {
            stream,
            owner: stream.is_per_thread().then(|| thread::current().id()),
        }
    }

    /// Whether this thread can ask the driver about it.
    fn can_be_asked(self) -> bool {
        self.owner
            .is_none_or(|owner| owner == thread::current().id())
    }
}

/// A capture that a hook told us of.
struct Told {
    token: u64,
    thread: ThreadId,
    /// The stream that showed it, by capturing while it was open.
    shown_by: Option<Met>,
}

#[derive(Default)]
struct Open {
    told: Vec<Told>,
    /// Streams met while they captured. Only these are ever asked again: the driver crashes on the
    /// handle of a destroyed stream, and a stream is not destroyed while it captures.
    met: FxHashSet<Met>,
}

thread_local! {
    /// The gate that this thread holds, by its address; 0 for none.
    static BEHIND: Cell<usize> = const { Cell::new(0) };
}

/// This thread holds a gate; the one it held before.
struct Behind(usize);

impl Behind {
    /// None where the thread holds this very gate already.
    fn enter(gate: &RwLock<()>) -> Option<Behind> {
        let address = std::ptr::from_ref(gate) as usize;
        let before = BEHIND.replace(address);
        (before != address).then_some(Behind(before))
    }

    /// Whether the thread holds no gate of another device.
    fn is_first(&self) -> bool {
        self.0 == 0
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        BEHIND.set(self.0);
    }
}

/// The captures known to be open on a device.
#[derive(Default)]
pub struct Captures {
    open: Mutex<Open>,
    /// Whether there may be any that hooks told of: spares allocations the lock.
    any_told: AtomicBool,
    /// Written while a capture begins, read while something is done that no capture may be open for.
    gate: RwLock<()>,
    /// How often it was seen to change whether the legacy stream counts as capturing: odd while it
    /// does.
    implicit: AtomicU64,
}

impl Captures {
    /// A capture that will be called `token` is about to begin on this thread. What this thread told
    /// of earlier and no stream ever showed has failed.
    pub fn begin(&self, device: &Device, token: u64) {
        self.begin_after(device, token, || self.abandon_hidden());
    }

    /// [`Captures::begin`] of one that this thread may have told of already, under another token.
    pub fn begin_again(&self, device: &Device, token: u64) {
        self.begin_after(device, token, || {});
    }

    fn begin_after(&self, device: &Device, token: u64, before: impl FnOnce()) {
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        before();
        device.capture_open();
        lock(&self.open).told.push(Told {
            token,
            thread: thread::current().id(),
            shown_by: None,
        });
        self.any_told.store(true, Ordering::Relaxed);
    }

    /// The capture `token` is over.
    pub fn end(&self, token: u64) {
        let mut open = lock(&self.open);
        if let Some(index) = open.told.iter().position(|told| told.token == token) {
            if let Some(met) = open.told.swap_remove(index).shown_by {
                open.met.remove(&met);
            }
        }
    }

    /// `stream`, which captures, belongs to the capture `token`.
    pub fn show(&self, token: u64, stream: Stream) {
        let mut open = lock(&self.open);
        if let Some(told) = open.told.iter_mut().find(|told| told.token == token) {
            told.shown_by = Some(Met::here(stream));
        }
    }

    /// Gives up captures that this thread told of and that no stream ever showed: they must have
    /// failed before anything was allocated in them. For when this thread shows that it does not
    /// capture: it begins another, or allocates on a stream that does not.
    pub fn abandon_hidden(&self) {
        if self.any_told.load(Ordering::Relaxed) {
            let here = thread::current().id();
            let mut open = lock(&self.open);
            open.told
                .retain(|told| told.thread != here || told.shown_by.is_some());
            self.any_told
                .store(!open.told.is_empty(), Ordering::Relaxed);
        }
    }

    /// Whether the capture `token` is open, as far as was seen when somebody asked last.
    pub fn is_told(&self, token: u64) -> bool {
        lock(&self.open).told.iter().any(|told| told.token == token)
    }

    fn note_legacy(&self, is_captured: bool) {
        let seen = self.implicit.load(Ordering::Relaxed);
        if is_captured != (seen % 2 == 1) {
            // Who was faster saw the same.
            let (before, after) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = (self.implicit).compare_exchange(seen, seen + 1, before, after);
        }
    }

    /// Never asks about `stream` again: it is about to be destroyed.
    pub fn forget(&self, stream: Stream) {
        let mut open = lock(&self.open);
        open.met.retain(|met| met.stream != stream);
        for told in &mut open.told {
            if told.shown_by.is_some_and(|met| met.stream == stream) {
                told.shown_by = None;
            }
        }
    }
}

impl Device {
    /// Whether `stream`, which must be live, is part of a capture, valid or already broken. The
    /// legacy stream counts as one while any stream that orders with it captures. Needs the
    /// device's context current.
    pub fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let capturing = self.asks_capturing(stream)?;
        if capturing {
            lock(&self.captures().open).met.insert(Met::here(stream));
        }
        Ok(capturing)
    }

    /// A number of the capture that `stream`, which must be live, is part of, which no other capture
    /// of the process has had; 0 where it is part of none or of one that is broken. The legacy stream
    /// beside captures of other streams gets a number for as long as it was seen in that state without
    /// a break. Needs the device's context current.
    pub fn capture_number(&self, stream: Stream) -> Result<u64> {
        let (mut status, mut number): (c_int, u64) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: two valid out-pointers; the driver leaves out what is asked for by null.
        let asked = unsafe {
            self.cuda().stream_capture_info(
                stream.raw(),
                &mut status,
                &mut number,
                none,
                none.cast(),
                none.cast(),
            )
        };
        match asked {
            Ok(()) => Ok(number),
            // The driver's own count up.
            Err(refusal) if refusal.code == Some(IMPLICIT_CAPTURE) => {
                Ok(u64::MAX - self.captures().implicit.load(Ordering::Relaxed))
            }
            Err(refusal) => Err(self.cuda().error(refusal)),
        }
    }

    /// Whether a capture is open on this device, as far as hooks told or streams met show. A capture
    /// told of whose stream no longer captures is over: it failed, or its end will be told soon.
    pub fn capture_open(&self) -> bool {
        let mut open = lock(&self.captures().open);
        if open.told.is_empty() && open.met.is_empty() {
            return false;
        }
        let _guard = match self.enter() {
            Ok(guard) => guard,
            Err(error) => return self.capture_unknown(error),
        };
        open.told
            .retain(|told| told.shown_by.is_none_or(|met| self.still_captures(met)));
        open.met.retain(|met| self.still_captures(*met));
        !open.told.is_empty() || !open.met.is_empty()
    }

    /// Does what must not be done while a capture is open on this device, and lets none that hooks
    /// tell of begin meanwhile. Refused while one is open. May be done within itself.
    pub fn outside_captures<R>(&self, act: impl FnOnce() -> Result<R>) -> Result<R> {
        let gate = &self.captures().gate;
        // Who waits to write lets no more readers in, this thread not either.
        let Some(behind) = Behind::enter(gate) else {
            return act();
        };
        let refused =
            || Error::new(Status::Capturing, "order point").advice("End the stream capture first");
        let _gate = match behind.is_first() {
            true => gate.read().unwrap_or_else(PoisonError::into_inner),
            // Two threads could wait for each other's devices, with captures about to begin on both.
            false => match gate.try_read() {
                Ok(gate) => gate,
                Err(TryLockError::Poisoned(gate)) => gate.into_inner(),
                Err(TryLockError::WouldBlock) => return Err(refused()),
            },
        };
        if self.capture_open() {
            return Err(refused());
        }
        act()
    }

    /// An error where one of `streams`, which must be live, captures: an event recorded there would
    /// be the graph's. Needs the device's context current.
    pub fn none_captures(&self, streams: &[Stream]) -> Result<()> {
        for stream in streams {
            if self.is_capturing(*stream)? {
                return Err(Error::new(Status::Capturing, "record an event")
                    .advice("End the stream capture first"));
            }
        }
        Ok(())
    }

    fn still_captures(&self, met: Met) -> bool {
        if !met.can_be_asked() {
            return true;
        }
        match self.asks_capturing(met.stream) {
            Err(error) if error.code() == Some(INVALID_HANDLE) => false,
            Err(error) => self.capture_unknown(error),
            Ok(capturing) => capturing,
        }
    }

    fn capture_unknown(&self, error: Error) -> bool {
        self.warnings().warn(Warning::GiveBack, || {
            format!("whether a capture is open is unknown, so freed memory waits: {error}")
        });
        true
    }

    fn asks_capturing(&self, stream: Stream) -> Result<bool> {
        let mut status: c_int = 0;
        // SAFETY: `status` is a valid out-pointer; the caller vouches for the handle.
        let asked = unsafe { self.cuda().stream_is_capturing(stream.raw(), &mut status) };
        let capturing = match asked {
            Ok(()) => status != 0,
            Err(refusal) if refusal.code == Some(IMPLICIT_CAPTURE) => true,
            Err(refusal) => return Err(self.cuda().error(refusal)),
        };
        if stream == Stream::LEGACY {
            self.captures().note_legacy(capturing);
        }
        Ok(capturing)
    }
}

/// While it lives, calls of this thread that a capture would forbid (creating, mapping, querying)
/// are allowed and do not break it.
pub struct RelaxedCapture<'a> {
    cuda: &'a Cuda,
    previous: Option<c_int>,
    _of_this_thread: PhantomData<*const ()>,
}

impl<'a> RelaxedCapture<'a> {
    /// Relaxes the calling thread.
    pub fn enter(cuda: &'a Cuda) -> RelaxedCapture<'a> {
        let mut mode = MODE_RELAXED;
        // SAFETY: `mode` is a valid in- and out-pointer.
        let exchanged = unsafe { cuda.exchange_capture_mode(&mut mode) }.is_ok();
        RelaxedCapture {
            cuda,
            previous: exchanged.then_some(mode),
            _of_this_thread: PhantomData,
        }
    }
}

impl Drop for RelaxedCapture<'_> {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            undo(|| {
                let mut mode = previous;
                // SAFETY: `mode` is a valid in- and out-pointer.
                unsafe { self.cuda.exchange_capture_mode(&mut mode) }
            });
        }
    }
}
