//! Work that runs when sleep is called, on streams that this library was never told of.

use super::{Egg, HOLDERS, MIB, Nest, request};
use crate::error;
use crate::extent::table::Owner;
use crate::gpu::stream::OwnedStream;
use crate::process::residency::To;
use crate::residency::Report;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Long enough for a call that does not wait to have come back.
const A_WHILE: Duration = Duration::from_millis(60);

/// Runs `act` and `release` in a while; whether `act` came back only then.
fn waits<R>(release: impl FnOnce() + Send, act: impl FnOnce() -> R) -> (R, bool) {
    let released = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(A_WHILE);
            released.store(true, Ordering::SeqCst);
            release();
        });
        let outcome = act();
        (outcome, released.load(Ordering::SeqCst))
    })
}

/// Sleep waits for work on any stream, and what that wrote is saved.
pub fn that_nobody_named() -> Outcome {
    for holder in HOLDERS {
        for to in [To::Host, To::Nothing] {
            let nest = Nest::plain()?;
            let bytes = nest.house.machine.busy_bytes();
            let address = nest.allocate(holder, "tag", bytes)?;
            let beside = nest.lay(holder, "tag", 5 * MIB, 1)?;
            let untold = nest.house.machine.stream()?;
            let device = &nest.house.machine.device;
            let busy = (nest.house.machine).busy(untold.stream(), address, bytes)?;
            // Behind it, what the contents are in the end.
            device.fill(address, 9, bytes, untold.stream())?;
            let (slept, waited) = waits(
                || busy.stop(),
                || nest.house.process.sleep(&request(&["tag"]), to.into()),
            );
            slept?;
            nest.audit()?;
            ensure!(waited || nest.house.machine.sim.is_none(), "no wait");
            ensure!(!busy.is_running()?, "asleep while work runs");
            nest.wake(&["tag"])?;
            if to == To::Host {
                let mut found = vec![0; bytes as usize];
                device.copy_to_host(&mut found, address, untold.stream())?;
                ensure!(found.iter().all(|byte| *byte == 9), "not what was written");
                nest.verify(&beside)?;
            }
            nest.free_all([beside])?;
            nest.house.free(address)?;
            nest.finish()?;
        }
    }
    Ok(())
}

/// The same where captures are told of by nobody, and blocks were freed and lent to other streams before.
pub fn in_a_program_of_its_own() -> Outcome {
    let nest = Nest::plain()?;
    nest.house.process.set_captures_told(false);
    let pool = (Kind::Pool, Owner::Block);
    let bytes = nest.house.machine.busy_bytes();
    let address = nest.allocate(pool, "tag", bytes)?;
    let kept = nest.lay(pool, "tag", 5 * MIB, 1)?;
    let lent_to = nest.house.machine.stream()?;
    let busy = (nest.house.machine).busy(lent_to.stream(), address, bytes)?;
    nest.house
        .process
        .record_stream(address, lent_to.stream())?;
    nest.house.free(address)?;
    let sleep = || -> error::Result<Report> {
        (nest.house.process).sleep(&request(&["tag"]), To::Host.into())
    };
    let (slept, _) = waits(|| busy.stop(), sleep);
    slept?;
    nest.audit()?;
    nest.wake(&["tag"])?;
    nest.verify(&kept)?;
    nest.free_all([kept])?;
    nest.finish()
}

/// Work of another device's stream uses the memory, and the block says so: `record_stream` named it.
pub fn of_another_device() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        let sim = nest.house.sim()?;
        let elsewhere = nest.house.machine.driver.device(1)?.clone();
        let other = OwnedStream::create(&elsewhere)?;
        nest.house.process.device(0)?;
        nest.house.process.device(1)?;
        let egg = nest.lay(holder, "tag", 4 * MIB, 1)?;
        nest.house
            .process
            .record_stream(egg.address, other.stream())?;
        sim.spin(other.stream(), 0, 0);
        let end = || {
            sim.spin_stop(other.stream());
        };
        let device = Some(0);
        let mut wanted = request(&["tag"]);
        wanted.device = device;
        let (slept, waited) = waits(end, || nest.house.process.sleep(&wanted, To::Host.into()));
        slept?;
        elsewhere.synchronize()?;
        nest.audit()?;
        ensure!(waited, "{holder:?}: asleep while device 1 works with it");
        nest.wake(&[])?;
        nest.verify(&egg)?;
        nest.free_all([egg])?;
        nest.finish()?;
    }
    both_at_once()
}

/// Where both devices sleep at once, each waits for the other's work too.
fn both_at_once() -> Outcome {
    let nest = Nest::plain()?;
    let sim = nest.house.sim()?;
    let elsewhere = nest.house.machine.driver.device(1)?.clone();
    let other = OwnedStream::create(&elsewhere)?;
    nest.house.process.device(1)?;
    let egg: Egg = nest.lay((Kind::Vmm, Owner::Block), "tag", 4 * MIB, 1)?;
    nest.house
        .process
        .record_stream(egg.address, other.stream())?;
    sim.spin(other.stream(), egg.address, egg.bytes);
    let (slept, waited) = waits(
        || sim.spin_stop(other.stream()),
        || nest.house.process.sleep(&request(&[]), To::Host.into()),
    );
    slept?;
    elsewhere.synchronize()?;
    ensure_eq!(sim.faults(), Vec::<String>::new(), "faults");
    ensure!(waited, "asleep while device 1 works with it");
    nest.wake(&[])?;
    nest.verify(&egg)?;
    nest.free_all([egg])?;
    Ok::<(), Stop>(())
}
