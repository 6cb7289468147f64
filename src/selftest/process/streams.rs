//! Streams that use blocks, are forgotten, and mean something else on each thread.

use super::{House, MAPPED, MIB};
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::process::Demand;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::CAPTURE_RELAXED;
use crate::selftest::{Outcome, Stop};
use crate::source::{Kind, LastUse};
use crate::sys::cuda::Handle;
use std::sync::mpsc;

/// The handle of each thread's own default stream.
fn per_thread() -> Stream {
    Stream::from_raw(2 as Handle)
}

/// A block another stream uses is neither unmapped nor given out before that work is done.
pub fn record_stream() -> Outcome {
    let house = House::plain()?;
    let (own, other) = (house.machine.stream()?, house.machine.stream()?);
    for kind in house.those_of(&[Kind::Async, Kind::Vmm, Kind::Pool])? {
        let bytes = house.machine.busy_bytes();
        let block = house.allocate(kind, bytes, own.stream())?;
        let busy = house.machine.busy(other.stream(), block, bytes)?;
        house.process.record_stream(block, other.stream())?;
        house.free(block)?;
        ensure!(busy.is_running()?, "the free of {kind:?} waited");
        if MAPPED.contains(&kind) {
            ensure!(house.is_mapped(block)?, "unmapped under running work");
        }
        let third = house.machine.stream()?;
        let next = house.allocate(kind, bytes, third.stream())?;
        ensure!(
            next >= block + bytes || next + bytes <= block,
            "{kind:?} gave it out again"
        );
        busy.end()?;
        house.free(next)?;
        house.process.forget_stream(0, third.stream())?;
    }
    house.finish()
}

/// torch with its hooks set: a stream that nobody recorded may still read a block when it is freed.
/// The native allocator would let it read on, so it must not fault here.
pub fn unrecorded_stream() -> Outcome {
    let house = House::plain()?;
    house.machine.needs_context_events()?;
    if !house.has(Kind::Vmm)? {
        return Ok(());
    }
    let (own, other) = (house.machine.stream()?, house.machine.stream()?);
    let bytes = house.machine.busy_bytes();
    let block = house.process.allocate(Demand {
        last_use: LastUse::Told,
        ..house.demand(Kind::Vmm, bytes, own.stream())
    })?;
    let busy = house.machine.busy(other.stream(), block, bytes)?;
    house.free(block)?;
    let next = house.allocate(Kind::Vmm, bytes, own.stream())?;
    ensure!(busy.is_running()?, "something waited");
    ensure!(house.is_mapped(block)?, "unmapped under running work");
    busy.end()?;
    house.free(next)?;
    house.finish()
}

/// Blocks outlive the streams that used them.
pub fn forgotten_streams() -> Outcome {
    let house = House::plain()?;
    for kind in house.kinds()? {
        let (own, other) = (house.machine.stream()?, house.machine.stream()?);
        let blocks = [
            house.allocate(kind, 3 * MIB, own.stream())?,
            house.allocate(kind, 3 * MIB, own.stream())?,
        ];
        for block in blocks {
            house.machine.device.fill(block, 1, 3 * MIB, own.stream())?;
            house
                .machine
                .device
                .fill(block, 2, 3 * MIB, other.stream())?;
            house.process.record_stream(block, other.stream())?;
        }
        // The first is freed before the streams go, the second after.
        house.free(blocks[0])?;
        forget(&house, own)?;
        forget(&house, other)?;
        house.free(blocks[1])?;
        house.process.trim(0, 0)?;
    }
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    house.finish()
}

fn forget(house: &House, stream: OwnedStream) -> Outcome {
    Ok(house.process.forget_stream(0, stream.stream())?)
}

/// A block freed while a capture was open waits without a fence; its stream may go meanwhile.
pub fn forgotten_in_capture() -> Outcome {
    let house = House::plain()?;
    let capturing = house.machine.stream()?;
    for kind in house.kinds()? {
        let (own, other) = (house.machine.stream()?, house.machine.stream()?);
        let block = house.allocate(kind, 3 * MIB, own.stream())?;
        // The pool has a block at once that only its own stream used.
        house.process.record_stream(block, other.stream())?;
        house
            .machine
            .begin_capture(capturing.stream(), CAPTURE_RELAXED)?;
        let device = &house.process.device(0)?.state().device;
        device.captures().begin(device, 1);
        let freed = house.free(block);
        house.process.device(0)?.state().device.captures().end(1);
        house.machine.end_capture(capturing.stream())?;
        freed?;
        ensure_eq!(
            house.process.stats(0, None)?.pending_frees,
            1,
            "frees of {kind:?} that wait"
        );
        forget(&house, own)?;
        forget(&house, other)?;
        house.process.trim(0, 0)?;
        ensure_eq!(
            house.process.stats(0, None)?.pending_frees,
            0,
            "frees of {kind:?} that wait"
        );
    }
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    house.finish()
}

/// Handle 2 is another stream on every thread, so a free elsewhere cannot ask it.
pub fn per_thread_stream() -> Outcome {
    let house = House::plain()?;
    house.machine.needs_context_events()?;
    let bytes = house.machine.busy_bytes();
    for kind in house.those_of(&[Kind::Async, Kind::Vmm, Kind::Pool])? {
        let (give, take) = mpsc::channel();
        let (done, wait) = mpsc::channel();
        std::thread::scope(|scope| {
            let (house, wait) = (&house, wait);
            let user = scope.spawn(move || -> Outcome {
                let _guard = house.machine.device.enter()?;
                let block = house.allocate(kind, bytes, per_thread())?;
                let busy = house.machine.busy(per_thread(), block, bytes)?;
                let _ = give.send(block);
                let freed = wait
                    .recv()
                    .map_err(|_| "the freeing thread is gone".to_owned());
                let still = busy.is_running()?;
                busy.end()?;
                freed?;
                ensure!(still, "the free of {kind:?} waited");
                Ok(())
            });
            let block = take.recv().map_err(|_| "no block".to_owned())?;
            let outcome = house.free(block);
            if MAPPED.contains(&kind) {
                ensure!(house.is_mapped(block)?, "unmapped under running work");
            }
            let _ = done.send(());
            let user = user.join().map_err(|_| "a thread panicked".to_owned())?;
            outcome.and(user)
        })
        .map_err(|stop: Stop| stop.at(kind.name()))?;
        house.machine.synchronize()?;
        house.process.trim(0, 0)?;
    }
    house.finish()
}

/// A device that comes into use later reaches the blocks of the first.
pub fn second_device() -> Outcome {
    let house = House::plain()?;
    if house.machine.driver.device_count() < 2 {
        return Err(Stop::Skipped("needs two devices".to_owned()));
    }
    let block = house.allocate(Kind::Vmm, 3 * MIB, Stream::LEGACY)?;
    let pooled = house.allocate(Kind::Async, 3 * MIB, Stream::LEGACY)?;
    let elsewhere = house.process.allocate(Demand {
        device: 1,
        ..house.demand(Kind::Vmm, 3 * MIB, Stream::LEGACY)
    })?;
    for address in [block, elsewhere] {
        for device in [0, 1] {
            ensure_eq!(
                house.machine.access(address, device)?,
                3,
                "access of device {device}"
            );
        }
    }
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    for address in [block, pooled, elsewhere] {
        house.free(address)?;
    }
    house.finish()
}
