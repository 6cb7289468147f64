//! Freed blocks that other work than that of their own stream may still use. They wait in groups: one
//! set of events covers every block freed since the last time somebody looked.

use super::cache::Held;
use super::heap::Heap;
use super::word::Word;
use crate::core::radix::UNIT;
use crate::core::sync::lock;
use crate::error::{Result, Status};
use crate::gpu::{Device, Fence, Stream, Uses};
use std::collections::VecDeque;
use std::sync::Arc;

type Block = (u64, Word);

/// After so many blocks a free looks whether some can go.
const LOOK_AT: usize = 64;

/// So many order points at a time: each costs microseconds while the device works, and none is reached before those
/// that came earlier.
const MOST_POINTS: usize = 4;

/// The blocks of one heap that wait.
#[derive(Default)]
pub struct Pending {
    /// Behind what is not recorded yet.
    waiting: Vec<Block>,
    behind: Option<Uses>,
    fenced: VecDeque<(Fence, Vec<Block>)>,
    look_at: usize,
}

/// How far to go for a block that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Ask what is recorded already.
    Ask,
    /// Record what is not.
    Record,
    /// And wait.
    Wait,
}

impl Pending {
    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        let fenced = self.fenced.iter().flat_map(|(_, blocks)| blocks);
        let all = self.waiting.iter().chain(fenced);
        all.map(|(_, word)| word.bytes()).sum()
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

    /// Adds a block; says whether it is time to look.
    pub(super) fn add(&mut self, address: u64, word: Word, uses: Uses) -> bool {
        self.waiting.push((address, word));
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

    /// Whether something was; by `most` order points at a time, where it is behind all work.
    fn record(&mut self, most: usize) -> Result<bool> {
        let Some(uses) = &self.behind else {
            return Ok(false);
        };
        if !uses.is_by_stream() && self.fenced.len() >= most {
            return Ok(false);
        }
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
        match outcome {
            Err(error) if done.is_empty() => Err(error),
            _ => Ok(done),
        }
    }
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

    /// Takes blocks back that no work uses any more; how many. Nothing while a capture is open.
    pub(super) fn settle_pending(&self, effort: Effort) -> Result<usize> {
        if lock(&self.pending).len() == 0 {
            return Ok(0);
        }
        let device = self.pool.device();
        let done = device.outside_captures(|| {
            let _guard = device.enter()?;
            let mut pending = lock(&self.pending);
            match effort {
                Effort::Ask => pending.done(effort, device),
                Effort::Record => {
                    // What is reached makes room for another.
                    let mut done = pending.done(effort, device)?;
                    let more = match pending.record(MOST_POINTS) {
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
                    pending.record(usize::MAX)?;
                    pending.done(effort, device).or_else(|error| {
                        self.pool.or_later::<()>(Err(error));
                        pending.record(usize::MAX)?;
                        pending.done(effort, device)
                    })
                }
            }
        });
        let done = match done {
            Err(error) if error.status() == Status::Capturing => return Ok(0),
            other => other?,
        };
        for (address, word) in &done {
            self.return_block(Held {
                address: *address,
                units: word.bytes() / UNIT,
            });
        }
        Ok(done.len())
    }
}
