//! Fences take their events from those whose work is done.

use crate::gpu::Fence;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Machine;
use crate::selftest::{Outcome, Stop};

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
