//! Memory of the host that grows: addresses for all of it from the start, a first part of memory before the
//! first use, the rest part by part from a thread behind it, at a pace. Every part is registered as a whole,
//! and a copy may not cross from one into the next.

mod growth;

use super::host::{self, PageKind, Wanted};
use crate::error::{Error, Result, Status, Warnings};
use crate::gpu::{Device, Registered};
use crate::sys::pages::{HUGE_PAGE, Pages};
use crate::sys::policy::Binding;
use std::ffi::c_uint;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// A slab that is wanted.
pub struct SlabWanted<'a> {
    /// Who asks, in errors.
    pub operation: &'static str,
    /// Its length once it is grown.
    pub bytes: u64,
    /// What is there before the first use, up to `bytes`.
    pub first: u64,
    /// The most that is registered at once by growing, until more is needed in one piece; 0 for 256 MiB.
    pub part: u64,
    /// Bytes a second that growing takes on while nobody waits for it; 0 for [`PACE`].
    pub pace: u64,
    /// The pages behind it; shared ones are all there from the start.
    pub pages: PageKind<'a>,
    /// The nodes that it is to be on.
    pub binding: Option<Binding>,
    /// The device whose driver pins it, and the driver's flags.
    pub pinned: Option<(Arc<Device>, c_uint)>,
}

/// What growing takes on in a second while nobody waits for it.
pub const PACE: u64 = 8 << 30;
/// Other calls wait while the driver registers: some 25 ms for a GiB.
const PART: u64 = 256 << 20;
/// Threads that unregister at the end.
const THREADS_AT_THE_END: usize = 4;

/// A part that is there: its first address and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
}

enum Memory {
    Pinned(Registered),
    Plain(Pages),
}

impl Memory {
    fn place(&self) -> Part {
        match self {
            Memory::Pinned(part) => Part {
                address: part.address(),
                bytes: part.bytes(),
            },
            Memory::Plain(pages) => Part {
                address: pages.address(),
                bytes: pages.bytes(),
            },
        }
    }

    fn into_pages(self) -> std::result::Result<Pages, (Memory, Error)> {
        match self {
            Memory::Plain(pages) => Ok(pages),
            Memory::Pinned(part) => part
                .into_pages()
                .map_err(|(part, error)| (Memory::Pinned(part), error)),
        }
    }
}

#[derive(Default)]
struct State {
    parts: Vec<Memory>,
    /// Addresses behind which nothing is yet.
    rest: Option<Pages>,
    ready: u64,
    target: u64,
    is_growing: bool,
    must_stop: bool,
    waiting: usize,
    /// What somebody who waits, or waited last, needs in one piece.
    needed: u64,
    failure: Option<Error>,
}

/// How far a slab is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Bytes that are there.
    pub ready: u64,
    /// Bytes that it grows to.
    pub target: u64,
    /// In how many parts the bytes are.
    pub parts: usize,
    /// Whether it grows now.
    pub is_growing: bool,
    /// Why it stopped growing before the target.
    pub failure: Option<Error>,
}

struct Shared {
    operation: &'static str,
    address: u64,
    bytes: u64,
    /// The most that growing registers at once, until more is needed in one piece.
    part: u64,
    pace: u64,
    processors: Vec<usize>,
    /// Where its memory must be, unless the system refused.
    binding: Option<Binding>,
    is_unbound: bool,
    /// All of it was reserved.
    is_shared: bool,
    pinned: Option<(Arc<Device>, c_uint)>,
    /// The length of its pages, if they were set aside; all of them were reserved.
    set_aside: Option<u64>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Memory of the host that grows. Given back when dropped.
pub struct Slab {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Slab {
    /// Makes what is wanted; growing has begun when this returns.
    pub fn open(wanted: SlabWanted<'_>, warnings: &Warnings) -> Result<Slab> {
        let operation = wanted.operation;
        let mut block = Wanted {
            operation,
            bytes: wanted.bytes,
            pages: wanted.pages,
            binding: wanted.binding.as_ref(),
            pinned: None,
        };
        let bytes = host::length(&block)?;
        let is_shared = matches!(wanted.pages, PageKind::Shared(_));
        let set_aside = match wanted.pages {
            PageKind::SetAside(page) => Some(page),
            _ => None,
        };
        block.bytes = match is_shared {
            true => bytes,
            false => wanted.first.clamp(1, bytes),
        };
        let first = host::length(&block)?.next_multiple_of(HUGE_PAGE).min(bytes);
        let at_once = if set_aside.is_some() { bytes } else { first };
        host::check_left(Path::new("/"), &block, at_once)?;
        let (pages, is_bound) = host::map_bound(&block, bytes, warnings)?;
        let shared = Shared {
            operation,
            address: pages.address(),
            bytes,
            part: part_of(wanted.part, set_aside.unwrap_or(HUGE_PAGE)),
            pace: if wanted.pace == 0 { PACE } else { wanted.pace },
            processors: (wanted.binding.as_ref()).map_or(Vec::new(), Binding::processors),
            is_unbound: wanted.binding.is_some() && !is_bound,
            binding: wanted.binding.filter(|_| is_bound),
            is_shared,
            pinned: wanted.pinned,
            set_aside,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        shared.lock().rest = Some(pages);
        let slab = Slab {
            shared: Arc::new(shared),
            thread: Mutex::default(),
        };
        slab.shared.add_part(first, None)?;
        slab.grow(bytes)?;
        Ok(slab)
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.shared.address
    }

    /// Its length once it is grown.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.shared.lock().progress()
    }

    /// The parts that are there, but for the first `known`.
    pub fn parts_from(&self, known: usize) -> Vec<Part> {
        let state = self.shared.lock();
        state.parts.iter().skip(known).map(Memory::place).collect()
    }

    /// Grows up to `target` bytes, in the background; goes on after a failure.
    pub fn grow(&self, target: u64) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let page = self.shared.set_aside.unwrap_or(HUGE_PAGE);
        let whole = target.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        let mut state = self.shared.lock();
        state.target = whole.clamp(state.ready, self.shared.bytes);
        if state.is_growing || state.must_stop || state.target == state.ready {
            return Ok(());
        }
        state.failure = None;
        state.is_growing = true;
        drop(state);
        if let Some(ended) = thread.take() {
            // It has let go of the state for good.
            let _ = ended.join();
        }
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new()
            .name("hbmalloc-slab".to_owned())
            .spawn(move || shared.grow_unless_it_panics());
        match spawned {
            Ok(spawned) => *thread = Some(spawned),
            Err(error) => {
                let error = Error::new(Status::OutOfMemory, self.shared.operation)
                    .detail(format!("no thread could be started to grow: {error}"));
                let mut state = self.shared.lock();
                state.failure = Some(error.clone());
                self.shared.end(state);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits until there are more than `known` parts or no more are coming, at most until `deadline`; growing
    /// makes haste meanwhile, by parts that are as long as `bytes` in one piece need. How many there are then.
    pub fn wait_for_part(&self, known: usize, bytes: u64, deadline: Option<Instant>) -> usize {
        let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
        let needed = match is_over {
            true => 0,
            false => part_of(bytes.max(1), self.shared.set_aside.unwrap_or(HUGE_PAGE)),
        };
        self.shared
            .wait(needed, deadline, |state| state.parts.len() > known);
        self.shared.lock().parts.len()
    }

    /// Waits until `bytes` are there, at most until `deadline`. The failure that stopped it, if one did.
    pub fn wait_for_bytes(&self, bytes: u64, deadline: Option<Instant>) -> Result<Progress> {
        self.shared.wait(0, deadline, |state| state.ready >= bytes);
        let progress = self.progress();
        match progress.failure {
            Some(error) if progress.ready < bytes => Err(error),
            _ => Ok(progress),
        }
    }

    /// Stops growing where it is; returns once the thread is out of the driver.
    pub fn stop_growing(&self) {
        drop(self.shared.at_rest());
    }

    /// It is about to be closed: growing stops, and nobody waits for it any more.
    pub fn shut(&self) {
        self.shared.lock().must_stop = true;
        self.shared.changed.notify_all();
    }

    /// Gives whole parts back, which nobody uses, from the end, while `least` bytes stay and at least the first part; stops
    /// growing. The bytes given back.
    pub fn shrink_to(&self, least: u64) -> Result<u64> {
        let mut given_back = 0;
        loop {
            match self.give_back_last(least, None) {
                Ok(0) => return Ok(given_back),
                Ok(bytes) => given_back += bytes,
                Err(error) => return Err(after(given_back, error)),
            }
        }
    }

    /// Gives the last part back, which nobody uses, where `least` bytes stay without it and it lies at `address`, if one is
    /// given; stops growing. Its length, or 0. Its addresses stay.
    pub fn give_back_last(&self, least: u64, address: Option<u64>) -> Result<u64> {
        let mut state = self.shared.at_rest();
        let is_last = |part: &Memory| {
            let place = part.place();
            address.is_none_or(|address| address == place.address)
                && state.ready - place.bytes >= least
        };
        if state.parts.len() < 2 || !state.parts.last().is_some_and(is_last) {
            return Ok(0);
        }
        let Some(last) = state.parts.pop() else {
            return Ok(0);
        };
        match last.into_pages() {
            Ok(pages) => {
                let bytes = pages.bytes();
                pages.empty();
                state.ready -= bytes;
                state.target = state.ready;
                state.give_to_rest(pages);
                Ok(bytes)
            }
            Err((last, error)) => {
                state.parts.push(last);
                Err(error)
            }
        }
    }

    /// Gives everything back, and grows no more. Parts that the driver does not let go of stay, for another try.
    pub fn close(&self) -> Result<()> {
        self.shut();
        let thread = (self.thread.lock().unwrap_or_else(PoisonError::into_inner)).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        let parts = Mutex::new(std::mem::take(&mut self.shared.lock().parts));
        let kept = Mutex::new((Vec::new(), Ok(())));
        let give_back = || {
            let take = || parts.lock().unwrap_or_else(PoisonError::into_inner).pop();
            while let Some(part) = take() {
                if let Err((part, error)) = part.into_pages() {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.0.push(part);
                    kept.1 = Err(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..THREADS_AT_THE_END {
                // Who cannot be had leaves it to the others.
                let _ = std::thread::Builder::new().spawn_scoped(scope, give_back);
            }
            give_back();
        });
        let (mut kept, outcome) = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        kept.sort_by_key(|part| part.place().address);
        let mut state = self.shared.lock();
        state.ready = kept.iter().map(|part| part.place().bytes).sum();
        state.target = state.ready;
        state.parts = kept;
        outcome.map_err(|error| {
            error
                .also(&format!("{} bytes are still there", state.ready))
                .advice("Close it again")
        })
    }

    /// Whether it was to be on some nodes, and the system refused.
    pub fn is_unbound(&self) -> bool {
        self.shared.is_unbound
    }
}

/// An error after parts were given back.
pub fn after(given_back: u64, error: Error) -> Error {
    match given_back {
        0 => error,
        bytes => error.also(&format!("{bytes} bytes were given back before")),
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

fn part_of(wanted: u64, page: u64) -> u64 {
    let part = if wanted == 0 { PART } else { wanted };
    let whole = part.checked_next_multiple_of(page);
    whole.map_or(host::MOST_REGISTERED, |part| {
        part.min(host::MOST_REGISTERED)
    })
}
