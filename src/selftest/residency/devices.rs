//! Several devices at once.

use super::{Egg, MIB, Nest, fails_with, request, tag, verify_on};
use crate::error::Status;
use crate::extent::table::Owner;
use crate::gpu::Device;
use crate::gpu::stream::OwnedStream;
use crate::process::Demand;
use crate::process::residency::{Request, To};
use crate::registry::GraphPool;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::sync::Arc;

/// A second device of the machine.
struct Second {
    stream: OwnedStream,
    device: Arc<Device>,
}

impl Second {
    fn of(nest: &Nest) -> Result<Second, Stop> {
        if nest.house.machine.driver.device_count() < 2 {
            return Err(Stop::skip("one device"));
        }
        let device = nest.house.machine.driver.device(1)?.clone();
        Ok(Second {
            stream: OwnedStream::create(&device)?,
            device,
        })
    }

    fn lay(&self, nest: &Nest, kind: Kind, name: &str, bytes: u64, seed: u64) -> Result<Egg, Stop> {
        let demand = Demand {
            device: 1,
            stream: self.stream.stream(),
            ..nest.demand((kind, Owner::Block), tag(name)?, bytes)
        };
        let egg = Egg {
            address: nest.ask(&demand)?,
            bytes,
            seed,
        };
        let contents = super::pattern(seed, bytes);
        self.device
            .copy_from_host(egg.address, &contents, self.stream.stream())?;
        Ok(egg)
    }

    fn verify(&self, egg: &Egg) -> Outcome {
        verify_on(&self.device, egg, self.stream.stream())
    }

    fn finish(self, nest: Nest) -> Outcome {
        self.device.synchronize()?;
        drop(self);
        nest.house.process.trim_all()?;
        let held = nest.house.process.stats(1, None)?.reserved;
        ensure_eq!(held, 0, "held of device 1");
        nest.finish()
    }
}

fn on(device: i32, tags: &[&str]) -> Request {
    Request {
        device: Some(device),
        ..request(tags)
    }
}

/// A tag on two devices goes and comes on both, or on the one that is named.
pub fn at_once() -> Outcome {
    let nest = Nest::plain()?;
    let second = Second::of(&nest)?;
    let process = &nest.house.process;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for (seed, kind) in (1..).zip([Kind::Vmm, Kind::Pool]) {
        // More than a part of the host's room, so that both ask for more at the same time.
        here.push(nest.lay((kind, Owner::Block), "tag", 70 * MIB, seed)?);
        there.push(second.lay(&nest, kind, "tag", 75 * MIB, 10 + seed)?);
    }
    for _ in 0..3 {
        nest.sleep(&["tag"])?;
        for device in [0, 1] {
            let at = process.whereabouts(Some(device), Some("tag"))?;
            ensure!(at.device == 0 && at.host >= 140 * MIB, "{device}: {at:?}");
        }
        process.wake(&on(1, &["tag"]))?;
        nest.audit()?;
        there.iter().try_for_each(|egg| second.verify(egg))?;
        let at = process.whereabouts(Some(0), Some("tag"))?;
        ensure_eq!(at.device, 0, "awake on device 0");
        process.sleep(&on(1, &["tag"]), To::Host.into())?;
        nest.wake(&["tag"])?;
        nest.verify_all(&here)?;
        there.iter().try_for_each(|egg| second.verify(egg))?;
    }
    nest.free_all(here)?;
    nest.free_all(there)?;
    second.finish(nest)
}

/// What one device refuses the other does, and the error says which is which.
pub fn one_of_two_refuses() -> Outcome {
    let nest = Nest::plain()?;
    let second = Second::of(&nest)?;
    let process = &nest.house.process;
    let here = nest.lay((Kind::Pool, Owner::Block), "tag", 8 * MIB, 1)?;
    let there = second.lay(&nest, Kind::Pool, "tag", 8 * MIB, 2)?;
    let graphs = GraphPool {
        device: 1,
        id: (0, 3),
    };
    for asleep in [false, true] {
        if asleep {
            nest.sleep(&[])?;
        }
        process.graph_begin(graphs)?;
        let outcome = match asleep {
            false => process.sleep(&request(&[]), To::Host.into()),
            true => process.wake(&request(&[])),
        };
        let error = fails_with("with a capture on device 1", outcome, Status::Capturing)?;
        let text = error.to_string();
        ensure!(text.contains("device 1"), "which device? {text}");
        process.graph_end(graphs)?;
        process.graph_release(graphs)?;
        nest.audit()?;
        nest.wake(&[])?;
        nest.verify(&here)?;
        second.verify(&there)?;
    }
    fails_with(
        "a device that is not there",
        process.sleep(&on(99, &[]), To::Host.into()),
        Status::InvalidArgument,
    )?;
    nest.free_all([here, there])?;
    second.finish(nest)
}

/// A device that comes into use while memory of another sleeps can reach it when it is awake again.
pub fn joined_meanwhile() -> Outcome {
    let nest = Nest::plain()?;
    let second = Second::of(&nest)?;
    let mut eggs = Vec::new();
    for (seed, kind) in (1..).zip([Kind::Vmm, Kind::Pool]) {
        eggs.push(nest.lay((kind, Owner::Block), "tag", 8 * MIB, seed)?);
    }
    nest.sleep(&["tag"])?;
    let there = second.lay(&nest, Kind::Vmm, "there", 4 * MIB, 3)?;
    nest.audit()?;
    nest.wake(&["tag"])?;
    nest.verify_all(&eggs)?;
    let fresh = nest.lay((Kind::Vmm, Owner::Block), "fresh", 4 * MIB, 4)?;
    let usual = nest.house.machine.access(fresh.address, 1)?;
    for egg in &eggs {
        let found = nest.house.machine.access(egg.address, 1)?;
        ensure_eq!(found, usual, "access of device 1 to {egg:x?}");
    }
    nest.free_all(eggs)?;
    nest.free_all([there, fresh])?;
    second.finish(nest)
}
