//! Freed blocks that other work than that of their own stream may still use. They wait in groups: one
//! set of events covers every block freed since the last time somebody looked.

use super::cache::{Cache, Held};
use super::heap::Heap;
use super::waiting::Block;
use super::word::Word;
use crate::core::radix::UNIT;
use crate::core::sync::lock;
use crate::error::{Result, Status};
use crate::gpu::{Device, Fence, Stream, Uses};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After so many blocks a free looks whether some can go.
const LOOK_AT: usize = 64;

/// So many order points at a time: each costs microseconds while the device works, and none is reached before those
/// that came earlier.
const MOST_POINTS: usize = 4;

/// An order point is worth so many blocks, ...
const WORTH_BLOCKS: usize = 64;
/// ... or so many bytes: less is had sooner by making more, which stays within the slack that every pool may have.
const WORTH_BYTES: u64 = 32 << 20;

/// So many bytes, or as many as are in use where that is more, may wait before a request gives the device time: it has
/// work for as long, so that a program so far ahead of it loses nothing.
const AHEAD_BYTES: u64 = 1 << 30;

/// So much time at most, in which it looks again each moment.
const PATIENCE: Duration = Duration::from_millis(200);
const A_MOMENT: Duration = Duration::from_micros(20);

/// The blocks of one heap that wait.
#[derive(Default)]
pub struct Pending {
    /// Behind what is not recorded yet.
    waiting: Vec<Block>,
    behind: Option<Uses>,
    fenced: VecDeque<(Fence, Vec<Block>)>,
    /// Of all that waits.
    bytes: u64,
    /// A request has waited in vain since some of it was last seen done.
    has_run_out: bool,
    look_at: usize,
}

/// How far to go for a block that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Ask what is recorded already.
    Ask,
    /// Record what is not, once there is enough of it.
    Batch,
    /// Record what is not.
    Record,
    /// And wait.
    Wait,
}

impl Pending {
    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blocks that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
            + self
                .fenced
                .iter()
                .map(|(_, blocks)| blocks.len())
                .sum::<usize>()
    }

    /// The addresses of its blocks.
    pub(super) fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        let fenced = self.fenced.iter().flat_map(|(_, blocks)| blocks);
        let all = self.waiting.iter().chain(fenced);
        all.map(|(address, _)| *address)
    }

    pub(super) fn forget(&mut self, stream: Stream) {
        if let Some(uses) = &mut self.behind {
            uses.forget(stream);
        }
    }

    pub(super) fn leave_out_device(&mut self, device: &Device) {
        if let Some(uses) = &mut self.behind {
            uses.leave_out_device(device);
        }
    }

    /// Adds a block; says whether it is time to look.
    pub(super) fn add(&mut self, address: u64, word: Word, uses: Uses) -> bool {
        self.waiting.push((address, word));
        self.bytes += word.bytes();
        match &mut self.behind {
            Some(behind) => behind.join(uses),
            None => self.behind = Some(uses),
        }
        let len = self.len();
        if len < self.look_at.max(LOOK_AT) {
            return false;
        }
        self.look_at = 2 * len;
        true
    }

    /// Adds blocks that any work may still use.
    fn add_all(&mut self, blocks: Vec<Block>, uses: Uses) {
        self.bytes += bytes_of(&blocks);
        self.waiting.extend(blocks);
        self.behind.get_or_insert_default().join(uses);
    }

    /// Whether what waits behind all work is to be recorded now.
    fn is_worth_a_point(&self, effort: Effort) -> bool {
        match effort {
            Effort::Ask => false,
            Effort::Batch => {
                self.fenced.len() < MOST_POINTS
                    && (self.waiting.len() >= WORTH_BLOCKS
                        || bytes_of(&self.waiting) >= WORTH_BYTES)
            }
            Effort::Record => self.fenced.len() < MOST_POINTS,
            Effort::Wait => true,
        }
    }

    /// Whether something was; not unless `may_record`.
    fn record(&mut self, effort: Effort, may_record: impl FnOnce() -> Result<()>) -> Result<bool> {
        let Some(uses) = &self.behind else {
            return Ok(false);
        };
        if !uses.is_by_stream() && !self.is_worth_a_point(effort) {
            return Ok(false);
        }
        may_record()?;
        let fence = uses.fence()?;
        self.behind = None;
        self.fenced
            .push_back((fence, std::mem::take(&mut self.waiting)));
        Ok(true)
    }

    /// The blocks that no work uses any more. Those whose events cannot be asked wait for everything
    /// from here on, on every device that an event was of.
    fn done(&mut self, effort: Effort, device: &Arc<Device>) -> Result<Vec<Block>> {
        let (mut busy, mut done) = (Vec::new(), Vec::new());
        let mut left = VecDeque::new();
        let mut outcome = Ok(());
        while let Some((fence, blocks)) = self.fenced.pop_front() {
            let ready = match effort {
                Effort::Wait => fence.wait().map(|()| true),
                _ => fence.is_done_beside(&mut busy),
            };
            match ready {
                Ok(true) => done.extend(blocks),
                Ok(false) => left.push_back((fence, blocks)),
                Err(error) => {
                    self.waiting.extend(blocks);
                    let mut behind = self.behind.take().unwrap_or_default();
                    behind.add_device(device);
                    fence.devices().for_each(|device| behind.add_device(device));
                    self.behind = Some(behind);
                    outcome = Err(error);
                }
            }
        }
        self.fenced = left;
        self.bytes -= bytes_of(&done);
        self.has_run_out &= done.is_empty();
        match outcome {
            Err(error) if done.is_empty() => Err(error),
            _ => Ok(done),
        }
    }
}

fn bytes_of(blocks: &[Block]) -> u64 {
    blocks.iter().map(|(_, word)| word.bytes()).sum()
}

impl Heap {
    /// A freed block that other work may use. The answer is what to do about those that wait by now.
    pub(super) fn free_later(&self, address: u64, word: Word, uses: Uses) -> Option<Effort> {
        let effort = match uses.is_by_stream() {
            true => Effort::Record,
            // In a program that tells of no captures one may be open, which an order point breaks.
            false => Effort::Ask,
        };
        let is_time = lock(&self.pending).add(address, word, uses);
        is_time.then_some(effort)
    }

    /// Freed blocks that any work may use.
    pub(super) fn queue_behind_everything(&self, blocks: Vec<Block>) {
        if !blocks.is_empty() {
            let uses = Uses::everything(self.pool.device());
            lock(&self.pending).add_all(blocks, uses);
        }
    }

    /// Has a thread keep what its bins have room for. What dozes nobody keeps; what begins to is taken from the thread.
    fn keep_small(&self, cache: &Cache, held: &mut Vec<Held>) {
        let space = lock(&self.seat.small.space);
        let (awake, dozing): (Vec<Held>, Vec<Held>) = (held.drain(..))
            .partition(|held| !space.touches_dozing(held.address, held.units * UNIT));
        drop(space);
        held.extend(dozing);
        held.extend(awake.into_iter().filter(|held| !cache.keep_small(*held)));
    }

    /// How far a request goes for blocks that wait. Where all do, they are many.
    pub(super) fn effort(&self) -> Effort {
        match self.key.order.is_everywhere() && !self.pool.is_tight() {
            true => Effort::Batch,
            false => Effort::Record,
        }
    }

    fn is_far_ahead(&self) -> bool {
        if !self.key.order.is_everywhere() {
            return false;
        }
        let waits = lock(&self.pending).bytes();
        waits > AHEAD_BYTES && waits > self.pool.at(self.location()).allocated
    }

    /// Where the program is far ahead of its device, gives that some time to take blocks back; how many. Not for ever: the
    /// work may be waiting for this very thread. None while a capture is open.
    pub(super) fn catch_up(&self, cache: Option<&Cache>) -> Result<usize> {
        let is_patient = || !lock(&self.pending).has_run_out && (self.pool.none_captures)().is_ok();
        if !self.is_far_ahead() || !is_patient() {
            return Ok(0);
        }
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let settled = self.settle_pending_for(cache, self.effort())?;
            if settled > 0 {
                return Ok(settled);
            }
            std::thread::sleep(A_MOMENT);
        }
        lock(&self.pending).has_run_out = true;
        Ok(0)
    }

    /// Takes blocks back that no work uses any more; how many. Nothing while a capture is open.
    pub(super) fn settle_pending(&self, effort: Effort) -> Result<usize> {
        self.settle_pending_for(None, effort)
    }

    /// [`Heap::settle_pending`] for a thread, whose cache gets small ones first.
    pub(super) fn settle_pending_for(
        &self,
        cache: Option<&Cache>,
        effort: Effort,
    ) -> Result<usize> {
        if lock(&self.pending).len() == 0 {
            return Ok(0);
        }
        let device = self.pool.device();
        // Streams of other devices can join a capture, whose order points break it as well.
        let may_record = || match self.key.order.is_everywhere() {
            true => (self.pool.none_captures)(),
            false => Ok(()),
        };
        let done = device.outside_captures(|| {
            let _guard = device.enter()?;
            let mut pending = lock(&self.pending);
            match effort {
                Effort::Ask => pending.done(effort, device),
                Effort::Batch | Effort::Record => {
                    // What is reached makes room for another.
                    let mut done = pending.done(effort, device)?;
                    let more = match pending.record(effort, may_record) {
                        Ok(true) => pending.done(effort, device),
                        outcome => outcome.map(|_| Vec::new()),
                    };
                    match more {
                        Ok(more) => done.extend(more),
                        Err(error) if done.is_empty() => return Err(error),
                        Err(error) => self.pool.or_later(Err(error)),
                    }
                    Ok(done)
                }
                Effort::Wait => {
                    pending.record(effort, may_record)?;
                    pending.done(effort, device).or_else(|error| {
                        self.pool.or_later::<()>(Err(error));
                        pending.record(effort, may_record)?;
                        pending.done(effort, device)
                    })
                }
            }
        });
        let done = match done {
            Err(error) if error.status() == Status::Capturing => return Ok(0),
            other => other?,
        };
        let held = |(address, word): &Block| Held {
            address: *address,
            units: word.bytes() / UNIT,
        };
        let mut held: Vec<Held> = done.iter().map(held).collect();
        if let Some(cache) = cache {
            self.keep_small(cache, &mut held);
        }
        self.return_blocks(&held);
        Ok(done.len())
    }
}
