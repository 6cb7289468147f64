//! Streams of other devices, named for blocks: a peer copy reads the block there. Nothing of it is
//! given out or taken away before that stream has come so far, whatever device this library was used on.

use super::{House, MIB, graphs};
use crate::config::value::Size;
use crate::error::Status;
use crate::gpu::stream::OwnedStream;
use crate::gpu::{Device, Stream};
use crate::process::Whose;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::{CAPTURE_GLOBAL, CAPTURE_RELAXED};
use crate::selftest::simulator::Simulator;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BYTES: u64 = 4 * MIB;
pub(super) const SPEC: &str = "devices=3,memory=4GiB,poison=1";

/// Whether a free waits for the work, and has given the memory back then.
fn is_waiting(kind: Kind) -> bool {
    matches!(kind, Kind::Device | Kind::Managed | Kind::Pinned)
}

/// A process on device 0, and a stream of device 1.
pub(super) struct Scene {
    pub own: OwnedStream,
    pub other: OwnedStream,
    /// The machine's, not the process's: that has not opened it.
    pub elsewhere: Arc<Device>,
    pub sim: Simulator,
    pub house: House,
}

impl Scene {
    pub fn open(spec: &str) -> Result<Scene, Stop> {
        let house = House::open(spec, &[])?;
        let sim = house.sim()?;
        let elsewhere = house.machine.driver.device(1)?.clone();
        Ok(Scene {
            sim,
            own: house.machine.stream()?,
            other: OwnedStream::create(&elsewhere)?,
            elsewhere,
            house,
        })
    }

    /// Work that ends when it is told to.
    pub fn hold(&self, stream: Stream) {
        self.sim.spin(stream, 0, 0);
    }

    pub fn block(&self, kind: Kind) -> Result<u64, Stop> {
        self.house.allocate(kind, BYTES, self.own.stream())
    }

    /// Nothing of a block that was freed may be given out, nor may it be gone, while what it was used on
    /// is held back; afterwards it may.
    pub fn waits(&self, kind: Kind, block: u64, release: impl Fn()) -> Outcome {
        if is_waiting(kind) {
            return Ok(());
        }
        let house = &self.house;
        let streams = [house.machine.stream()?, house.machine.stream()?];
        let mut more = Vec::new();
        for stream in [self.own.stream(), streams[0].stream(), streams[1].stream()] {
            let next = house.allocate(kind, BYTES, stream)?;
            ensure!(
                next >= block + BYTES || next + BYTES <= block || self.is_ordered(kind, stream)?,
                "{kind:?} gave out what another device's stream uses"
            );
            more.push(next);
        }
        if super::MAPPED.contains(&kind) {
            ensure!(
                house.is_mapped(block)?,
                "{kind:?}: unmapped under running work"
            );
        }
        release();
        for block in more {
            house.free(block)?;
        }
        for stream in &streams {
            house.process.forget_stream(0, stream.stream())?;
        }
        Ok(())
    }

    /// The driver's pool has the stream wait by itself.
    fn is_ordered(&self, kind: Kind, stream: Stream) -> Result<bool, Stop> {
        let _guard = self.house.machine.device.enter()?;
        // SAFETY: the stream is live.
        let asked = unsafe { self.house.machine.cuda.stream_query(stream.raw()) };
        Ok(kind == Kind::Async && asked.is_err())
    }

    /// Frees a block that a held stream uses; where the free waits, it is let go after a while.
    pub fn free(
        &self,
        kind: Kind,
        free: impl FnOnce() -> Outcome,
        release: impl Fn() + Sync,
    ) -> Outcome {
        if !is_waiting(kind) {
            return free();
        }
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(25));
                released.store(true, Ordering::SeqCst);
                release();
            });
            free()?;
            let waited = released.load(Ordering::SeqCst);
            ensure!(
                waited,
                "the free of {kind:?} did not wait for another device"
            );
            Ok(())
        })
    }

    pub fn finish(&self) -> Outcome {
        self.house.machine.synchronize()?;
        self.elsewhere.synchronize()?;
        self.house.process.trim_all()?;
        ensure_eq!(self.house.process.live_blocks(), 0, "blocks recorded");
        let stats = self.house.process.stats(0, None)?;
        ensure_eq!(
            (stats.reserved, stats.pending_frees),
            (0, 0),
            "reserved, pending"
        );
        ensure_eq!(self.sim.faults(), Vec::<String>::new(), "faults");
        Ok(())
    }
}

/// Memory is not had in the order of another device's stream, which would be passed on too early.
pub fn allocated() -> Outcome {
    let scene = Scene::open(SPEC)?;
    for kind in scene.house.kinds()? {
        let other = scene.other.stream();
        let demand = scene.house.demand(kind, BYTES, other);
        let Err(error) = scene.house.process.allocate(demand) else {
            return Err(Stop::Failed(format!(
                "{kind:?} gave memory for another device's stream"
            )));
        };
        ensure_eq!(
            error.status(),
            Status::InvalidArgument,
            "status of {kind:?}"
        );
        scene.house.free(scene.block(kind)?)?;
    }
    scene.finish()
}

/// Recorded for the block, on a device that was never used here, and on one that was.
pub fn recorded() -> Outcome {
    for is_used in [false, true] {
        let scene = Scene::open(SPEC)?;
        if is_used {
            scene.house.process.device(1)?;
        }
        let other = scene.other.stream();
        for kind in scene.house.kinds()? {
            let block = scene.block(kind)?;
            scene.hold(other);
            scene.house.process.record_stream(block, other)?;
            let release = || scene.sim.spin_stop(other);
            scene.free(kind, || scene.house.free(block), release)?;
            scene.waits(kind, block, release)?;
        }
        ensure_eq!(scene.house.process.warnings().total(), 0, "warnings");
        scene.finish()?;
    }
    Ok(())
}

/// Named by the free.
pub fn named_by_the_free() -> Outcome {
    let scene = Scene::open(SPEC)?;
    let (process, other) = (&scene.house.process, scene.other.stream());
    for kind in scene.house.kinds()? {
        let block = scene.block(kind)?;
        scene.hold(other);
        let release = || scene.sim.spin_stop(other);
        let free = || Ok(process.deallocate(block, None, Some(other))?);
        scene.free(kind, free, release)?;
        scene.waits(kind, block, release)?;
    }
    ensure_eq!(process.warnings().total(), 0, "warnings");
    scene.finish()
}

/// Where memory has run out the work on the other device is waited for, and its memory had.
pub fn out_of_memory() -> Outcome {
    for kind in [Kind::Pool, Kind::Vmm] {
        let scene = Scene::open(SPEC)?;
        let (process, other) = (&scene.house.process, scene.other.stream());
        process.set_limit(0, Size::Bytes(BYTES + BYTES / 2))?;
        let block = scene.block(kind)?;
        scene.hold(other);
        process.record_stream(block, other)?;
        scene.house.free(block)?;
        let released = AtomicBool::new(false);
        let again = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                released.store(true, Ordering::SeqCst);
                scene.sim.spin_stop(other);
            });
            let third = scene.house.machine.stream()?;
            let again = scene.house.allocate(kind, BYTES, third.stream())?;
            ensure!(
                released.load(Ordering::SeqCst),
                "{kind:?}: had before the other device's stream went on"
            );
            process.forget_stream(0, third.stream())?;
            Ok::<u64, Stop>(again)
        })?;
        scene.house.free(again)?;
        scene.finish()?;
    }
    Ok(())
}

/// A trim waits for the other device too, and gives everything back then.
pub fn trimmed() -> Outcome {
    let scene = Scene::open(SPEC)?;
    let (process, other) = (&scene.house.process, scene.other.stream());
    for kind in scene
        .house
        .those_of(&[Kind::Async, Kind::Vmm, Kind::Pool])?
    {
        let block = scene.block(kind)?;
        scene.hold(other);
        process.record_stream(block, other)?;
        scene.house.free(block)?;
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(25));
                released.store(true, Ordering::SeqCst);
                scene.sim.spin_stop(other);
            });
            process.trim(0, 0)?;
            let waited = released.load(Ordering::SeqCst);
            ensure!(
                waited,
                "the trim of {kind:?} did not wait for another device"
            );
            Ok::<(), Stop>(())
        })?;
        ensure_eq!(
            process.stats(0, Some(kind))?.reserved,
            0,
            "held of {kind:?}"
        );
    }
    scene.finish()
}

/// A pool's blocks wait together, and streams of three devices are named for them.
pub fn together() -> Outcome {
    let scene = Scene::open(SPEC)?;
    let process = &scene.house.process;
    let third = scene.house.machine.driver.device(2)?.clone();
    let streams = [
        scene.house.machine.stream()?,
        OwnedStream::create(&scene.elsewhere)?,
        OwnedStream::create(&third)?,
    ];
    for held in &streams {
        let block = scene.block(Kind::Pool)?;
        for stream in &streams {
            process.record_stream(block, stream.stream())?;
        }
        scene.hold(held.stream());
        scene.house.free(block)?;
        scene.waits(Kind::Pool, block, || scene.sim.spin_stop(held.stream()))?;
        scene.house.machine.synchronize()?;
        process.trim(0, 0)?;
    }
    for (device, stream) in streams.iter().enumerate() {
        process.forget_stream(device as i32, stream.stream())?;
    }
    scene.finish()
}

/// A graph's block that another device uses stays until both are done with it.
pub fn of_graphs() -> Outcome {
    for is_freed_first in [true, false] {
        let scene = Scene::open(SPEC)?;
        scene.house.machine.needs_context_events()?;
        let (house, other) = (&scene.house, scene.other.stream());
        for (id, kind) in (1..).zip(super::MAPPED) {
            let graph = graphs::pool(id);
            let block = graphs::in_capture(house, graph, scene.own.stream(), || scene.block(kind))?;
            scene.hold(other);
            house.process.record_stream(block, other)?;
            if is_freed_first {
                house.free(block)?;
                house.process.graph_release(graph)?;
            } else {
                house.process.graph_release(graph)?;
                house.free(block)?;
            }
            scene.waits(kind, block, || scene.sim.spin_stop(other))?;
        }
        ensure_eq!(house.process.warnings().total(), 0, "warnings");
        scene.finish()?;
    }
    Ok(())
}

/// The handle of every device's legacy stream means that of the caller's context, and torch's that of
/// any device: it names one without having its device current.
pub fn legacy_streams() -> Outcome {
    for (whose, current, own_is_legacy) in [
        (Whose::Current, 1, false),
        (Whose::Current, 1, true),
        (Whose::Any, 0, false),
    ] {
        let scene = Scene::open(SPEC)?;
        let process = &scene.house.process;
        let block = match own_is_legacy {
            true => scene.house.allocate(Kind::Pool, BYTES, Stream::LEGACY)?,
            false => scene.block(Kind::Pool)?,
        };
        if own_is_legacy {
            process.device(1)?;
        }
        let on_other = |act: fn(&Simulator, Stream)| -> Outcome {
            let _guard = scene.elsewhere.enter()?;
            act(&scene.sim, Stream::LEGACY);
            Ok(())
        };
        on_other(|sim, stream| sim.spin(stream, 0, 0))?;
        {
            let device = scene.house.machine.driver.device(current)?;
            let _guard = device.enter()?;
            process.record_stream_of(block, Stream::LEGACY, whose)?;
        }
        scene.house.free(block)?;
        let own = match own_is_legacy {
            true => Stream::LEGACY,
            false => scene.own.stream(),
        };
        let next = scene.house.allocate(Kind::Pool, BYTES, own)?;
        ensure!(
            next != block,
            "given out under work of another legacy stream"
        );
        on_other(Simulator::spin_stop)?;
        scene.house.free(next)?;
        scene.finish()?;
    }
    Ok(())
}

/// The stream captures: nothing is recorded on it, and its capture holds. Drivers before 12.5 refuse to
/// say whose stream it is, and others may not know the call: then everything is waited for.
pub fn captured() -> Outcome {
    for spec in [
        "devices=2,memory=4GiB",
        "devices=2,memory=4GiB,version=12040",
        "devices=2,memory=4GiB,missing=cuStreamGetCtx+hipStreamGetDevice",
    ] {
        for mode in [CAPTURE_GLOBAL, CAPTURE_RELAXED] {
            let scene = Scene::open(spec)?;
            if scene.house.machine.driver.is_hip() {
                scene.house.machine.needs_context_events()?;
            }
            let (process, machine) = (&scene.house.process, &scene.house.machine);
            process.set_captures_told(false);
            let other = scene.other.stream();
            for kind in scene
                .house
                .those_of(&[Kind::Async, Kind::Vmm, Kind::Pool])?
            {
                let block = scene.block(kind)?;
                machine.begin_capture(other, mode)?;
                let acted = process.record_stream(block, other);
                let freed = scene.house.free(block);
                let next = scene.block(kind)?;
                machine.end_capture(other).map_err(|stop| stop.at(spec))?;
                acted?;
                freed?;
                ensure!(
                    next != block,
                    "{kind:?}: given out while a stream that uses it captures"
                );
                // Before 12.5 all work of a device cannot be told of without waiting for it.
                if !spec.contains("12040") {
                    scene.hold(other);
                    scene.waits(kind, block, || scene.sim.spin_stop(other))?;
                }
                scene.house.free(next)?;
            }
            scene.finish()?;
        }
    }
    Ok(())
}

/// Where the driver cannot say whose stream it is, all work of every device is waited for.
pub fn unknown_device() -> Outcome {
    let scene = Scene::open("devices=3,memory=4GiB,missing=cuStreamGetCtx+hipStreamGetDevice")?;
    scene.house.machine.needs_context_events()?;
    let (process, other) = (&scene.house.process, scene.other.stream());
    for kind in scene
        .house
        .those_of(&[Kind::Async, Kind::Vmm, Kind::Pool])?
    {
        let block = scene.block(kind)?;
        scene.hold(other);
        process.record_stream(block, other)?;
        scene.house.free(block)?;
        scene.waits(kind, block, || scene.sim.spin_stop(other))?;
    }
    ensure!(process.warnings().total() > 0, "nobody was warned");
    scene.finish()
}
