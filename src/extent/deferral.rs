//! Memory whose owner is done with it while work already queued may not be. Entries wait behind a
//! fence and are given back by whoever comes by on a slow path: there is no thread of ours.
//!
//! An entry may come without a fence, because a stream capture is open, when nothing may be recorded, or
//! because one fence can serve many entries; then the next slow path takes one for all of them.

use crate::core::sync::lock;
use crate::error::{Result, Status, Warning};
use crate::gpu::fence::Reach;
use crate::gpu::{Device, Fence, Stream, Uses};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// A free drains the queue itself once so many entries wait: then at the latest does a program that
/// only frees give memory back.
pub const DRAIN_ENTRIES: u64 = 64;
/// The same for bytes.
pub const DRAIN_BYTES: u64 = 256 << 20;
/// After so many refusals in a row an entry is tried at every sixteenth pass only: its context may be
/// gone for good.
const PATIENCE: u32 = 16;

/// What an entry waits for.
pub enum Behind {
    /// This.
    Fence(Fence),
    /// All work of these devices, by order points to be taken when no capture is open there.
    Everything(Uses),
}

/// Gives something back behind a fence, in the order of a stream where it has one; called again while
/// it fails, so it must carry on where it stopped.
type GiveBack = Box<dyn FnMut(&Fence, Stream) -> Result<()> + Send>;

struct Pending {
    behind: Behind,
    bytes: u64,
    give_back: GiveBack,
    /// The stream in whose order something is given back behind the fence, which then need not be
    /// done.
    ordered: Option<Stream>,
    attempts: u32,
}

impl Pending {
    /// Whether it has failed so often that this pass leaves it alone.
    fn is_resting(&mut self) -> bool {
        if self.attempts < PATIENCE || self.attempts % PATIENCE == 0 {
            return false;
        }
        self.attempts += 1;
        true
    }
}

/// How far to go for an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// Ask its fence, where it has one.
    Ask,
    /// Take an order point where it needs one.
    Order,
    /// And wait for the fence.
    Wait,
}

/// What a pass over the queue has learnt.
#[derive(Default)]
struct Pass {
    /// The order point of each device, taken for all entries that need one; none inside when it could
    /// not be had.
    order_points: FxHashMap<i32, Option<Fence>>,
    busy: Vec<Reach>,
}

/// The queue of one device.
pub struct Deferral {
    device: Arc<Device>,
    queue: Mutex<VecDeque<Pending>>,
    /// Held while entries are looked at, so that who must wait for all of them misses none.
    draining: Mutex<()>,
    entries: AtomicU64,
    bytes: AtomicU64,
    /// At how many entries a free looks at the queue.
    next_drain: AtomicU64,
}

impl Deferral {
    pub(super) fn new(device: Arc<Device>) -> Deferral {
        Deferral {
            device,
            queue: Mutex::default(),
            draining: Mutex::default(),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            next_drain: AtomicU64::new(DRAIN_ENTRIES),
        }
    }

    /// Queues `give_back` for `bytes` until what it stands behind is done.
    pub fn push(
        &self,
        behind: Behind,
        bytes: u64,
        mut give_back: impl FnMut() -> Result<()> + Send + 'static,
    ) {
        self.enqueue(behind, bytes, None, Box::new(move |_, _| give_back()));
    }

    /// Queues `give_back` until the fence can be had; it is then given the fence, which need not be
    /// done, and the stream to order behind it: `stream`, or the legacy one if that was forgotten.
    pub fn push_ordered(
        &self,
        behind: Behind,
        bytes: u64,
        stream: Stream,
        give_back: impl FnMut(&Fence, Stream) -> Result<()> + Send + 'static,
    ) {
        self.enqueue(behind, bytes, Some(stream), Box::new(give_back));
    }

    /// Names `stream` no more, since it is about to be destroyed.
    pub fn forget(&self, stream: Stream) {
        // Whoever drains holds entries that the queue does not show.
        let _turn = lock(&self.draining);
        for entry in lock(&self.queue).iter_mut() {
            if entry.ordered == Some(stream) {
                entry.ordered = Some(Stream::LEGACY);
            }
            if let Behind::Everything(uses) = &mut entry.behind {
                uses.forget(stream);
            }
        }
    }

    fn enqueue(&self, behind: Behind, bytes: u64, ordered: Option<Stream>, give_back: GiveBack) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.queue).push_back(Pending {
            behind,
            bytes,
            give_back,
            ordered,
            attempts: 0,
        });
    }

    /// Entries waiting.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Gives back what is done. Never waits; does nothing while a capture is open or another thread
    /// is at it. For paths that know the stream they serve does not capture.
    pub fn drain(&self) {
        self.try_pass(Effort::Order);
    }

    /// Gives back what is done, if enough waits to be worth it. For frees: takes an order point only
    /// where `captures_told`, since elsewhere a capture may be open that nobody told of.
    pub fn drain_if_full(&self, captures_told: bool) {
        if self.entries() >= self.next_drain.load(Ordering::Relaxed) || self.bytes() >= DRAIN_BYTES
        {
            self.try_pass(match captures_told {
                true => Effort::Order,
                false => Effort::Ask,
            });
            // What could not go now is not looked at again at every single free.
            let next = DRAIN_ENTRIES.max(2 * self.entries());
            self.next_drain.store(next, Ordering::Relaxed);
        }
    }

    /// Waits for everything queued and gives it back. Returns the bytes given back: none while a
    /// capture is open.
    pub fn wait(&self) -> u64 {
        if self.entries() == 0 || self.device.capture_open() {
            return 0;
        }
        let _turn = lock(&self.draining);
        let before = self.bytes();
        self.pass(Effort::Wait);
        before.saturating_sub(self.bytes())
    }

    /// Nothing is given back until the result is dropped; what is freed meanwhile waits.
    pub fn pause(&self) -> MutexGuard<'_, ()> {
        lock(&self.draining)
    }

    fn try_pass(&self, effort: Effort) {
        if self.entries() == 0 || self.device.capture_open() {
            return;
        }
        match self.draining.try_lock() {
            Ok(_turn) => self.pass(effort),
            Err(TryLockError::Poisoned(turn)) => {
                let _turn = turn.into_inner();
                self.pass(effort);
            }
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn pass(&self, effort: Effort) {
        let _guard = match self.device.enter() {
            Ok(guard) => guard,
            Err(error) => return self.warn(&error),
        };
        let taken = std::mem::take(&mut *lock(&self.queue));
        let mut pass = Pass::default();
        let mut left = VecDeque::new();
        for mut entry in taken {
            if !self.settle(&mut entry, effort, &mut pass) {
                left.push_back(entry);
                continue;
            }
            self.entries.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
        }
        let mut queue = lock(&self.queue);
        left.append(&mut queue);
        *queue = left;
    }

    /// What the entry waits for, if it can be had now.
    fn fence_for(&self, behind: &Behind, effort: Effort, pass: &mut Pass) -> Option<Fence> {
        match behind {
            Behind::Fence(fence) => Some(fence.clone()),
            Behind::Everything(_) if effort == Effort::Ask => None,
            Behind::Everything(uses) => {
                let mut all = self.have(uses.fence_by_stream())?;
                for device in uses.whole_devices() {
                    let taken = pass.order_points.entry(device.ordinal());
                    let point = taken.or_insert_with(|| self.have(Fence::order_point(device)));
                    all.join(point.clone()?);
                }
                Some(all)
            }
        }
    }

    fn have(&self, fence: Result<Fence>) -> Option<Fence> {
        match fence {
            Ok(fence) => Some(fence),
            Err(error) if error.status() == Status::Capturing => None,
            Err(error) => {
                self.warn(&error);
                None
            }
        }
    }

    /// Whether the entry is finished with.
    fn settle(&self, entry: &mut Pending, effort: Effort, pass: &mut Pass) -> bool {
        let Some(fence) = self.fence_for(&entry.behind, effort, pass) else {
            return false;
        };
        let ready = match effort {
            _ if entry.ordered.is_some() => Ok(true),
            Effort::Wait => fence.wait().map(|()| true),
            Effort::Ask | Effort::Order => fence.is_done_beside(&mut pass.busy),
        };
        let outcome = match ready {
            Ok(true) if entry.is_resting() => Ok(false),
            Ok(true) => {
                let stream = entry.ordered.unwrap_or(Stream::LEGACY);
                (entry.give_back)(&fence, stream).map(|()| true)
            }
            other => other,
        };
        entry.behind = Behind::Fence(fence);
        outcome.unwrap_or_else(|error| {
            self.warn(&error);
            entry.attempts += 1;
            false
        })
    }

    fn warn(&self, error: &crate::error::Error) {
        self.device.warnings().warn(Warning::GiveBack, || {
            format!("memory could not be given back yet, it will be tried again: {error}")
        });
    }
}
