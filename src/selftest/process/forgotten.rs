//! Streams of other devices that are forgotten: before the free, after it, and during it.

use super::MIB;
use super::across::{SPEC, Scene};
use crate::gpu::stream::OwnedStream;
use crate::selftest::check::ensure_eq;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::sync::Barrier;

/// The stream is forgotten and destroyed before the free: all work of its device is waited for, and it
/// is not named again.
pub fn before() -> Outcome {
    let scene = Scene::open(SPEC)?;
    scene.house.machine.needs_context_events()?;
    let (process, busy) = (&scene.house.process, scene.other.stream());
    for kind in scene.house.kinds()? {
        let named = OwnedStream::create(&scene.elsewhere)?;
        let block = scene.block(kind)?;
        process.record_stream(block, named.stream())?;
        process.forget_stream(1, named.stream())?;
        drop(named);
        scene.hold(busy);
        let release = || scene.sim.spin_stop(busy);
        scene.free(kind, || scene.house.free(block), release)?;
        scene.waits(kind, block, release)?;
    }
    ensure_eq!(process.warnings().total(), 0, "warnings");
    scene.finish()
}

/// The stream is forgotten after the free, while it still uses the block.
pub fn after() -> Outcome {
    let scene = Scene::open(SPEC)?;
    scene.house.machine.needs_context_events()?;
    let process = &scene.house.process;
    for kind in scene
        .house
        .those_of(&[Kind::Async, Kind::Vmm, Kind::Pool])?
    {
        let named = OwnedStream::create(&scene.elsewhere)?;
        let block = scene.block(kind)?;
        scene.hold(named.stream());
        process.record_stream(block, named.stream())?;
        scene.house.free(block)?;
        process.forget_stream(1, named.stream())?;
        scene.waits(kind, block, || scene.sim.spin_stop(named.stream()))?;
        drop(named);
        process.trim(0, 0)?;
    }
    ensure_eq!(process.warnings().total(), 0, "warnings");
    scene.finish()
}

/// Streams are forgotten and destroyed while another thread frees what they used: each is named before
/// that or not at all. The simulated driver refuses the handle of a destroyed stream.
pub fn during() -> Outcome {
    let scene = Scene::open(SPEC)?;
    let process = &scene.house.process;
    for kind in scene.house.kinds()? {
        for round in 0..ROUNDS {
            let streams = [
                scene.house.machine.stream()?,
                scene.house.machine.stream()?,
                OwnedStream::create(&scene.elsewhere)?,
            ];
            let mut blocks = Vec::new();
            for _ in 0..8 {
                let block = scene.house.allocate(kind, MIB, streams[0].stream())?;
                for stream in &streams[1..] {
                    process.record_stream(block, stream.stream())?;
                }
                blocks.push(block);
            }
            let both = Barrier::new(2);
            std::thread::scope(|scope| {
                let freeing = scope.spawn(|| {
                    both.wait();
                    let mut freed = blocks.into_iter();
                    freed.try_for_each(|block| process.deallocate(block, None, None))
                });
                both.wait();
                // The threads meet at another place each time.
                for _ in 0..100 * (round % 50) {
                    std::hint::spin_loop();
                }
                for (stream, device) in streams.into_iter().zip([0, 0, 1]) {
                    process.forget_stream(device, stream.stream())?;
                }
                let freed = freeing.join();
                freed.map_err(|_| "a thread panicked".to_owned())??;
                Ok::<(), Stop>(())
            })
            .map_err(|stop| stop.at(kind.name()))?;
        }
        process.trim(0, 0)?;
    }
    ensure_eq!(process.warnings().total(), 0, "warnings");
    scene.finish()
}

const ROUNDS: usize = 200;
