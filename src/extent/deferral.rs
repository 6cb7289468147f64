//! Memory whose owner is done with it while work already queued may not be. Entries wait behind a
//! fence and are given back by whoever comes by on a slow path: there is no thread of ours.
//!
//! An entry without a fence was freed while a stream capture was open, when no event may be
//! recorded; once the capture is over, one order point serves all such entries.

use crate::core::sync::lock;
use crate::error::{Result, Status, Warning};
use crate::gpu::{Device, Fence};
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

/// Gives something back; called again while it fails, so it must carry on where it stopped.
pub type GiveBack = Box<dyn FnMut() -> Result<()> + Send>;

struct Pending {
    fence: Option<Fence>,
    bytes: u64,
    give_back: GiveBack,
    attempts: u32,
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

    /// Queues `give_back` for `bytes` until `fence` is done; without a fence, until the open capture
    /// has ended and everything given to the device by then is done.
    pub fn push(&self, fence: Option<Fence>, bytes: u64, give_back: GiveBack) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.queue).push_back(Pending {
            fence,
            bytes,
            give_back,
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
    /// is at it.
    pub fn drain(&self) {
        if self.entries() == 0 || self.device.capture_open() {
            return;
        }
        let Ok(_turn) = self.draining.try_lock() else {
            return;
        };
        self.pass(false);
    }

    /// [`Deferral::drain`], if enough waits to be worth it.
    pub fn drain_if_full(&self) {
        if self.entries() >= DRAIN_ENTRIES || self.bytes() >= DRAIN_BYTES {
            self.drain();
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
        self.pass(true);
        before.saturating_sub(self.bytes())
    }

    fn pass(&self, wait: bool) {
        let Ok(_guard) = self.device.enter() else {
            return;
        };
        let taken = std::mem::take(&mut *lock(&self.queue));
        let mut order_point: Option<Option<Fence>> = None;
        let mut left = VecDeque::new();
        for mut entry in taken {
            if entry.fence.is_none() {
                entry.fence = order_point
                    .get_or_insert_with(|| self.take_order_point())
                    .clone();
            }
            if !self.settle(&mut entry, wait) {
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
    fn settle(&self, entry: &mut Pending, wait: bool) -> bool {
        let Some(fence) = &entry.fence else {
            return false;
        };
        let done = if wait {
            fence.wait().map(|()| true)
        } else {
            fence.is_done()
        };
        match done.and_then(|done| {
            if done {
                (entry.give_back)()?;
            }
            Ok(done)
        }) {
            Ok(done) => done,
            Err(error) => {
                self.warn(&error);
                entry.attempts += 1;
                entry.attempts >= MOST_ATTEMPTS
            }
        }
    }

    fn warn(&self, error: &crate::error::Error) {
        self.device.warnings().warn(Warning::GiveBack, || {
            format!("memory could not be given back yet, it will be tried again: {error}")
        });
    }
}
