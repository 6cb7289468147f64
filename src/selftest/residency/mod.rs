//! Sleep and wake: contents come back to their addresses, whatever was freed and allocated meanwhile,
//! on one device and on several, beside running work, graphs and other threads, and where memory of
//! the device or of the host runs out. After every step all books are audited.

mod budget;
mod contents;
mod devices;
mod graphs;
mod meanwhile;
mod memory;
mod random;
mod threads;
mod told;
mod work;

use super::process::House;
use crate::core::tags::TagId;
use crate::error::{Error, Status};
use crate::extent::table::Owner;
use crate::gpu::stream::OwnedStream;
use crate::gpu::{Device, Stream};
use crate::process::residency::{Request, To, Whereabouts};
use crate::process::{Demand, tags};
use crate::residency::Report;
use crate::selftest::check::ensure_eq;
use crate::selftest::{Case, Outcome, Stop, Suite};
use crate::source::{Kind, LastUse};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// Who has memory that can sleep: blocks of virtual memory, segments, the pool's blocks.
const HOLDERS: [(Kind, Owner); 4] = [
    (Kind::Vmm, Owner::Block),
    (Kind::Vmm, Owner::Segment),
    (Kind::Pool, Owner::Block),
    (Kind::Pool, Owner::Segment),
];

macro_rules! cases {
    ($($file:ident::$case:ident,)*) => {
        &[$(Case {
            name: concat!(stringify!($file), ": ", stringify!($case)),
            run: |_| $file::$case(),
        }),*]
    };
}

/// The suite.
pub const SUITE: Suite = Suite {
    name: "residency",
    about: "memory that sleeps and wakes: contents, addresses, failures, other threads",
    cases: &[cases![
        contents::of_every_size,
        contents::across_parts,
        contents::packed,
        contents::of_segments_in_part,
        contents::told_twice,
        contents::untagged,
        contents::discarded,
        meanwhile::allocated,
        meanwhile::freed,
        meanwhile::freed_and_trimmed,
        meanwhile::freed_by_other_threads,
        meanwhile::streams_that_end,
        meanwhile::figures,
        meanwhile::held,
        meanwhile::in_use_after_a_failure,
        meanwhile::not_given_on_after_a_failure,
        budget::of_the_host,
        budget::room_is_kept_and_trimmed,
        budget::clean,
        budget::kept_as_far_as_it_goes,
        budget::clean_in_the_pool,
        budget::kept_over_several_wakes,
        budget::kept_copies_make_room,
        memory::out_on_wake,
        memory::beyond_the_limit,
        memory::what_is_cached_makes_room,
        memory::pinned,
        graphs::captures_refuse,
        graphs::unseen_captures,
        graphs::replayed_after,
        graphs::with_nothing_live,
        graphs::released_asleep,
        work::that_nobody_named,
        work::in_a_program_of_its_own,
        work::of_another_device,
        devices::at_once,
        devices::one_of_two_refuses,
        devices::joined_meanwhile,
        random::cycles,
        random::cycles_without_a_pool,
        told::in_the_order_of_tags,
        told::of_every_change,
        threads::beside_sleep,
        threads::of_sources_beside_sleep,
    ]],
};

/// A process, a stream, and what cases do with them.
struct Nest {
    stream: OwnedStream,
    house: House,
}

/// A block whose contents are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Egg {
    address: u64,
    bytes: u64,
    seed: u64,
}

fn tag(name: &str) -> Result<TagId, Stop> {
    match name {
        "" => Ok(TagId::NONE),
        name => Ok(tags::table().intern(name)?),
    }
}

/// Everything on every device, or some tags of it.
fn request(tags: &[&str]) -> Request {
    Request {
        tags: (!tags.is_empty()).then(|| tags.iter().map(|tag| (*tag).to_owned()).collect()),
        device: None,
        dead: Vec::new(),
    }
}

/// What a block of `bytes` holds: every 512 bytes of every block differ from all others.
fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut all = vec![seed as u8; bytes as usize];
    for at in (0..all.len()).step_by(512) {
        let word = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (at / 512) as u64;
        let end = all.len().min(at + 8);
        all[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
    }
    all
}

fn fails_with<T: std::fmt::Debug>(
    what: &str,
    outcome: crate::error::Result<T>,
    status: Status,
) -> Result<Error, Stop> {
    match outcome {
        Err(error) if error.status() == status => Ok(error),
        other => Err(Stop::Failed(format!("{what}: {other:?}, not {status:?}"))),
    }
}

impl Nest {
    fn open(spec: &str, options: &[(&str, &str)]) -> Result<Nest, Stop> {
        let house = House::open(spec, options)?;
        if !house.has(Kind::Vmm)? {
            return Err(Stop::skip("no virtual memory management"));
        }
        house.process.set_captures_told(true);
        Ok(Nest {
            stream: house.machine.stream()?,
            house,
        })
    }

    fn plain() -> Result<Nest, Stop> {
        Nest::open("devices=2,memory=4GiB,poison=1", &[])
    }

    fn demand(&self, holder: (Kind, Owner), tag: TagId, bytes: u64) -> Demand {
        let (kind, owner) = holder;
        Demand {
            owner,
            tag,
            last_use: match owner {
                Owner::Segment => LastUse::Anywhere,
                _ => LastUse::Streams,
            },
            ..self.house.demand(kind, bytes, self.stream.stream())
        }
    }

    /// A block on device 0, of which nothing is known.
    fn allocate(&self, holder: (Kind, Owner), name: &str, bytes: u64) -> Result<u64, Stop> {
        self.ask(&self.demand(holder, tag(name)?, bytes))
    }

    /// As the exports ask: the pool for a block at hand first.
    fn ask(&self, demand: &Demand) -> Result<u64, Stop> {
        let at_hand = match (demand.kind, demand.owner) {
            (Kind::Pool, Owner::Block) => self.house.process.reuse_pooled(
                demand.device,
                demand.bytes,
                demand.stream,
                demand.allocator,
                demand.tag,
            ),
            _ => None,
        };
        match at_hand {
            Some(address) => Ok(address),
            None => Ok(self.house.process.allocate(demand.clone())?),
        }
    }

    /// One on device 0 that holds what `seed` says.
    fn lay(&self, holder: (Kind, Owner), tag: &str, bytes: u64, seed: u64) -> Result<Egg, Stop> {
        let egg = Egg {
            address: self.allocate(holder, tag, bytes)?,
            bytes,
            seed,
        };
        self.write(&egg)?;
        Ok(egg)
    }

    fn write(&self, egg: &Egg) -> Outcome {
        let bytes = pattern(egg.seed, egg.bytes);
        let device = &self.house.machine.device;
        Ok(device.copy_from_host(egg.address, &bytes, self.stream.stream())?)
    }

    fn verify(&self, egg: &Egg) -> Outcome {
        verify_on(&self.house.machine.device, egg, self.stream.stream())
    }

    fn verify_all<'a>(&self, eggs: impl IntoIterator<Item = &'a Egg>) -> Outcome {
        eggs.into_iter().try_for_each(|egg| self.verify(egg))
    }

    fn free_all(&self, eggs: impl IntoIterator<Item = Egg>) -> Outcome {
        eggs.into_iter()
            .try_for_each(|egg| self.house.free(egg.address))
    }

    fn sleep(&self, tags: &[&str]) -> Result<Report, Stop> {
        let report = self.house.process.sleep(&request(tags), To::Host.into());
        self.audit()?;
        Ok(report?)
    }

    fn discard(&self, tags: &[&str]) -> Result<Report, Stop> {
        let report = self.house.process.sleep(&request(tags), To::Nothing.into());
        self.audit()?;
        Ok(report?)
    }

    fn wake(&self, tags: &[&str]) -> Result<Report, Stop> {
        let report = self.house.process.wake(&request(tags));
        self.audit()?;
        Ok(report?)
    }

    /// Where memory of a tag is, or all of it.
    fn places(&self, tag: Option<&str>) -> Result<Whereabouts, Stop> {
        Ok(self.house.process.whereabouts(None, tag)?)
    }

    fn host_used(&self) -> u64 {
        self.house.process.host_use().used
    }

    /// Whatever contradicts itself.
    fn audit(&self) -> Outcome {
        let process = &self.house.process;
        process.audit_host()?;
        for device in 0..self.house.machine.driver.device_count() as i32 {
            process.audit_pool(device)?;
        }
        let extents = &process.device(0)?.state().extents;
        extents.audit()?;
        if let Some(sim) = self.house.machine.sim {
            ensure_eq!(sim.faults(), Vec::<String>::new(), "faults");
            let awake = self.places(None)?.device;
            ensure_eq!(sim.counters().chunk_bytes, awake, "bytes of devices");
        }
        Ok(())
    }

    /// Everything is free: nothing is left, here or on the host.
    fn finish(self) -> Outcome {
        self.house.process.trim_all()?;
        ensure_eq!(self.host_used(), 0, "bytes in use on the host");
        self.house.process.trim_host(0)?;
        ensure_eq!(
            self.house.process.host_use().pinned,
            0,
            "bytes pinned on the host"
        );
        self.house.finish()
    }
}

fn verify_on(device: &Arc<Device>, egg: &Egg, stream: Stream) -> Outcome {
    let mut found = vec![0; egg.bytes as usize];
    device.copy_to_host(&mut found, egg.address, stream)?;
    let expected = pattern(egg.seed, egg.bytes);
    if found != expected {
        let at = (0..found.len()).find(|at| found[*at] != expected[*at]);
        let at = at.unwrap_or_default();
        let count = (0..found.len()).filter(|at| found[*at] != expected[*at]);
        return Err(Stop::Failed(format!(
            "{egg:x?} has changed: {} bytes, the first at {at:#x}: {:#x}, not {:#x}",
            count.count(),
            found[at],
            expected[at]
        )));
    }
    Ok(())
}
