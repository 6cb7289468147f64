//! What one thread does.

use super::random::Random;
use super::{Arena, STREAMS};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::process::Demand;
use crate::selftest::check::ensure;
use crate::selftest::{Outcome, Stop};
use crate::source::{ALIGN, Kind, LastUse};
use crate::sys::cuda::Handle;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// 64 MiB: several chunks' worth, and small enough that many live at once.
const LARGEST: u32 = 26;
/// More blocks than this and threads rather free.
const CROWD: usize = 256;
/// Bytes of work given to streams: enough to be still queued at the free.
const WORK: u64 = 64 << 10;
/// A mark at either end of a block.
const COOKIE: usize = 16;

/// A block of some thread.
#[derive(Clone)]
pub struct Lent {
    pub address: u64,
    pub requested: u64,
    pub bytes: u64,
    pub kind: Kind,
    /// What its ends hold, where they were written.
    cookie: Option<[u8; COOKIE]>,
}

impl Arena {
    /// Steps at random until `end`; the answer is how many.
    pub fn work(&self, mut random: Random, end: Instant) -> Result<u64, Stop> {
        let mut steps = 0;
        while Instant::now() < end && !self.over.load(Ordering::Relaxed) {
            let crowded = lock(&self.live).len() >= CROWD;
            match random.below(100) {
                0 => self.replace_stream(&mut random)?,
                1 => drop(self.process.trim_all()?),
                2..=25 => self.use_elsewhere(&mut random)?,
                26..=64 if !crowded => self.lend(&mut random)?,
                _ => self.free_one(&mut random)?,
            }
            steps += 1;
        }
        Ok(steps)
    }

    /// A stream of the shared ones, the legacy one, or the thread's own.
    fn pick(&self, streams: &[crate::gpu::stream::OwnedStream], random: &mut Random) -> Stream {
        match random.below(STREAMS + 2) {
            index if index < STREAMS => streams[index].stream(),
            STREAMS => Stream::LEGACY,
            _ => Stream::from_raw(2 as Handle),
        }
    }

    fn lend(&self, random: &mut Random) -> Outcome {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let stream = self.pick(&streams, random);
        let kind = self.kinds[random.below(self.kinds.len())];
        let requested = random.size(LARGEST);
        let last_use = match random.below(8) {
            0 => LastUse::Unknown,
            1 => LastUse::Anywhere,
            2 => LastUse::Everywhere,
            3..=4 => LastUse::Told,
            _ => LastUse::Streams,
        };
        let address = self.process.allocate(Demand {
            kind,
            device: 0,
            bytes: requested,
            align: ALIGN,
            stream,
            owner: if random.once_in(8) {
                Owner::Segment
            } else {
                Owner::Block
            },
            last_use,
            allocator: None,
            location: None,
            tag: TagId::NONE,
        })?;
        let block = self.process.block_of(address);
        let (_, bytes) = block.ok_or_else(|| format!("{address:#x} is no block"))?;
        lock(&self.shadow).gave(address, bytes)?;
        let mut lent = Lent {
            address,
            requested,
            bytes,
            kind: match (kind, last_use) {
                (Kind::Async, LastUse::Everywhere) => Kind::Device,
                _ => kind,
            },
            cookie: None,
        };
        if random.once_in(4) && requested >= 2 * COOKIE as u64 {
            let mut cookie = [0; COOKIE];
            cookie[..8].copy_from_slice(&random.number().to_le_bytes());
            cookie[8..].copy_from_slice(&address.to_le_bytes());
            let device = &self.machine.device;
            for end in lent.ends() {
                device.copy_from_host(end, &cookie, stream)?;
            }
            lent.cookie = Some(cookie);
        }
        lock(&self.live).push(lent);
        Ok(())
    }

    fn take_any(&self, random: &mut Random) -> Option<Lent> {
        let mut live = lock(&self.live);
        match live.len() {
            0 => None,
            count => Some(live.swap_remove(random.below(count))),
        }
    }

    fn free_one(&self, random: &mut Random) -> Outcome {
        match self.take_any(random) {
            Some(lent) => self.take_back(&lent, random.once_in(2)),
            None => Ok(()),
        }
    }

    /// Frees a block, its marks looked at before where `verify` says so.
    pub fn take_back(&self, lent: &Lent, verify: bool) -> Outcome {
        let _streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(cookie), true) = (lent.cookie, verify) {
            for end in lent.ends() {
                let mut found = [0; COOKIE];
                let device = &self.machine.device;
                device.copy_to_host(&mut found, end, Stream::LEGACY)?;
                ensure!(
                    found == cookie,
                    "the mark at {end:#x} is {found:x?}, not {cookie:x?}"
                );
            }
        }
        lock(&self.shadow).takes(lent.address)?;
        Ok(self.process.deallocate(lent.address, None, None)?)
    }

    /// Gives another stream work on the block, which is not waited for.
    fn use_elsewhere(&self, random: &mut Random) -> Outcome {
        let Some(lent) = self.take_any(random) else {
            return Ok(());
        };
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let stream = self.pick(&streams, random);
        let inner = lent.requested.saturating_sub(2 * COOKIE as u64).min(WORK);
        if inner > 0 {
            let from = lent.address + COOKIE as u64;
            self.machine
                .device
                .fill(from, random.number() as u8, inner, stream)?;
        }
        if random.once_in(3) {
            lock(&self.shadow).takes(lent.address)?;
            // Told with the free instead.
            self.process.deallocate(lent.address, None, Some(stream))?;
        } else {
            self.process.record_stream(lent.address, stream)?;
            lock(&self.live).push(lent);
        }
        Ok(())
    }

    fn replace_stream(&self, random: &mut Random) -> Outcome {
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        let index = random.below(STREAMS);
        self.process.forget_stream(0, streams[index].stream())?;
        streams[index] = self.machine.stream()?;
        Ok(())
    }
}

impl Lent {
    fn ends(&self) -> [u64; 2] {
        let last = self.address + self.requested - COOKIE as u64;
        [self.address, last]
    }
}
