//! Memory whose owner is done with it while work already queued may not be. Entries wait behind a
//! fence and are given back by whoever comes by on a slow path: there is no thread of ours.
//!
//! An entry without a fence was freed while a stream capture was open or may have been, when no event
//! may be recorded; once an allocation shows that none is, one order point serves all such entries.

use crate::core::sync::lock;
use crate::error::{Result, Status, Warning};
use crate::gpu::{Device, Fence, Stream};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A free drains the queue itself once so many entries wait: then at the latest does a program that
/// only frees give memory back.
pub const DRAIN_ENTRIES: u64 = 64;
/// The same for bytes.
pub const DRAIN_BYTES: u64 = 256 << 20;
/// After so many refusals in a row the driver will not take an entry back: its context is gone.
const MOST_ATTEMPTS: u32 = 16;

/// Gives something back behind a fence, in the order of a stream where it has one; called again while
/// it fails, so it must carry on where it stopped.
type GiveBack = Box<dyn FnMut(&Fence, Stream) -> Result<()> + Send>;

struct Pending {
    fence: Option<Fence>,
    bytes: u64,
    give_back: GiveBack,
    /// The stream in whose order something is given back behind the fence, which then need not be
    /// done.
    ordered: Option<Stream>,
    attempts: u32,
}

/// How far to go for an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// Ask its fence.
    Ask,
    /// Take an order point for those without a fence.
    Order,
    /// And wait for the fence.
    Wait,
}

/// The queue of one device.
pub struct Deferral {
    device: Arc<Device>,
    queue: Mutex<VecDeque<Pending>>,
    /// Held while entries are looked at, so that who must wait for all of them misses none.
    draining: Mutex<()>,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Deferral {
    pub(super) fn new(device: Arc<Device>) -> Deferral {
        Deferral {
            device,
            queue: Mutex::default(),
            draining: Mutex::default(),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Queues `give_back` for `bytes` until `fence` is done; without a fence, until no capture is
    /// open and everything given to the device by then is done.
    pub fn push(
        &self,
        fence: Option<Fence>,
        bytes: u64,
        mut give_back: impl FnMut() -> Result<()> + Send + 'static,
    ) {
        self.enqueue(fence, bytes, None, Box::new(move |_, _| give_back()));
    }

    /// Queues `give_back` until no capture is open; it is then given an order point, which need not
    /// be done, and the stream to order behind it: `stream`, or the legacy one if that was forgotten.
    pub fn push_ordered(
        &self,
        bytes: u64,
        stream: Stream,
        give_back: impl FnMut(&Fence, Stream) -> Result<()> + Send + 'static,
    ) {
        self.enqueue(None, bytes, Some(stream), Box::new(give_back));
    }

    /// Names `stream` no more, since it is about to be destroyed.
    pub fn forget(&self, stream: Stream) {
        // Whoever drains holds entries that the queue does not show.
        let _turn = lock(&self.draining);
        for entry in lock(&self.queue).iter_mut() {
            if entry.ordered == Some(stream) {
                entry.ordered = Some(Stream::LEGACY);
            }
        }
    }

    fn enqueue(
        &self,
        fence: Option<Fence>,
        bytes: u64,
        ordered: Option<Stream>,
        give_back: GiveBack,
    ) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.queue).push_back(Pending {
            fence,
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

    /// Gives back what is done, if enough waits to be worth it. For frees, which may come while a
    /// capture is open that nobody told of: takes no order point.
    pub fn drain_if_full(&self) {
        if self.entries() >= DRAIN_ENTRIES || self.bytes() >= DRAIN_BYTES {
            self.try_pass(Effort::Ask);
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

    fn try_pass(&self, effort: Effort) {
        if self.entries() == 0 || self.device.capture_open() {
            return;
        }
        if let Ok(_turn) = self.draining.try_lock() {
            self.pass(effort);
        }
    }

    fn pass(&self, effort: Effort) {
        let _guard = match self.device.enter() {
            Ok(guard) => guard,
            Err(error) => return self.warn(&error),
        };
        let taken = std::mem::take(&mut *lock(&self.queue));
        let mut order_point: Option<Option<Fence>> = None;
        let mut left = VecDeque::new();
        for mut entry in taken {
            if entry.fence.is_none() && effort != Effort::Ask {
                entry.fence = order_point
                    .get_or_insert_with(|| self.take_order_point())
                    .clone();
            }
            if !self.settle(&mut entry, effort) {
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

    fn take_order_point(&self) -> Option<Fence> {
        match Fence::order_point(&self.device) {
            Ok(fence) => Some(fence),
            Err(error) if error.status() == Status::Capturing => None,
            Err(error) => {
                self.warn(&error);
                None
            }
        }
    }

    /// Whether the entry is finished with.
    fn settle(&self, entry: &mut Pending, effort: Effort) -> bool {
        let Some(fence) = &entry.fence else {
            return false;
        };
        let ready = match effort {
            _ if entry.ordered.is_some() => Ok(true),
            Effort::Wait => fence.wait().map(|()| true),
            Effort::Ask | Effort::Order => fence.is_done(),
        };
        let outcome = match ready {
            Ok(true) => {
                let stream = entry.ordered.unwrap_or(Stream::LEGACY);
                (entry.give_back)(fence, stream).map(|()| true)
            }
            other => other,
        };
        outcome.unwrap_or_else(|error| {
            self.warn(&error);
            entry.attempts += 1;
            entry.attempts >= MOST_ATTEMPTS
        })
    }

    fn warn(&self, error: &crate::error::Error) {
        self.device.warnings().warn(Warning::GiveBack, || {
            format!("memory could not be given back yet, it will be tried again: {error}")
        });
    }
}
