//! Fences take their events from those whose work is done.

use crate::gpu::Fence;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Machine;
use crate::selftest::{Outcome, Stop};
use std::sync::mpsc::channel;
use std::time::Duration;

/// An event is made once and recorded again; that its earlier work is done says nothing.
pub fn reuse() -> Outcome {
    let (machine, sim) = Machine::simulated("devices=1")?;
    let device = &machine.device;
    let (done, held) = (machine.stream()?, machine.stream()?);
    sim.hold(held.stream());
    for _ in 0..10 {
        let fence = Fence::behind_streams(device, &[done.stream()])?;
        fence.wait()?;
    }
    ensure_eq!(sim.calls("cuEventCreate"), 1, "events made");
    let busy = Fence::behind_streams(device, &[held.stream()])?;
    ensure_eq!(
        sim.calls("cuEventCreate"),
        1,
        "events made for another stream"
    );
    let _guard = device.enter()?;
    ensure!(!busy.is_done()?, "done because of its earlier work");
    // Given up while it waits, and recorded again: the new fence must not wait for the old work.
    drop(busy);
    let fence = Fence::behind_streams(device, &[done.stream()])?;
    fence.wait()?;
    ensure!(fence.is_done()?, "not done because of its earlier work");
    ensure_eq!(sim.calls("cuEventCreate"), 1, "events made in all");
    sim.release(held.stream());
    Ok(())
}

/// Only so many are kept, none after a trim, and none that could not be recorded.
pub fn bounds() -> Outcome {
    let (machine, sim) = Machine::simulated("devices=1")?;
    let device = &machine.device;
    let stream = machine.stream()?;
    let base = sim.counters().events;
    let alive = || sim.counters().events - base;
    let fences: Result<Vec<Fence>, Stop> = (0..1000)
        .map(|_| Ok(Fence::behind_streams(device, &[stream.stream()])?))
        .collect();
    ensure_eq!(alive(), 1000, "events in use");
    drop(fences?);
    ensure_eq!(alive(), 256, "events kept");
    sim.fail_once("cuEventRecord", 1, 700);
    ensure!(
        Fence::behind_streams(device, &[stream.stream()]).is_err(),
        "a failure was not told"
    );
    ensure_eq!(alive(), 0, "events kept after one could not be recorded");
    drop(Fence::order_point(device)?);
    ensure_eq!(alive(), 1, "events kept after an order point");
    device.drop_idle_events();
    ensure_eq!(alive(), 0, "events after a trim");
    Ok(())
}

/// An order point within what is done outside of captures, while another thread waits to begin one.
pub fn within_another() -> Outcome {
    let machine = Machine::open("devices=1")?;
    let (told, end) = channel();
    let device = machine.device.clone();
    std::thread::spawn(move || {
        let outcome = device.outside_captures(|| {
            let other = device.clone();
            let begins = std::thread::spawn(move || other.captures().begin(&other, 1));
            // So that it waits by then; if it does not, the case shows less.
            std::thread::sleep(Duration::from_millis(100));
            Fence::order_point(&device).map(|_| begins)
        });
        let outcome = outcome.map(|begins| begins.join().is_ok());
        device.captures().end(1);
        let _ = told.send(outcome);
    });
    let outcome = end.recv_timeout(Duration::from_secs(10));
    let begun = outcome.map_err(|_| "it waits for itself".to_owned())??;
    ensure!(begun, "the other thread panicked");
    Ok(())
}
