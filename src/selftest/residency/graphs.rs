//! Captures and graphs: nothing sleeps or wakes while one is open, and what was captured before replays
//! after.

use super::{Egg, MIB, Nest, fails_with, request};
use crate::error::Status;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::process::residency::To;
use crate::registry::GraphPool;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::{CAPTURE_GLOBAL, CAPTURE_RELAXED, Machine};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use crate::sys::cuda::Handle;

const KINDS: [Kind; 2] = [Kind::Vmm, Kind::Pool];

fn pool(id: u64) -> GraphPool {
    GraphPool {
        device: 0,
        id: (4, id),
    }
}

/// A captured graph, ready to be launched.
struct Replay<'a> {
    machine: &'a Machine,
    executable: Handle,
}

impl<'a> Replay<'a> {
    /// Ends the capture on `stream`.
    fn end(machine: &'a Machine, stream: Stream) -> Result<Replay<'a>, Stop> {
        let _guard = machine.device.enter()?;
        let (mut graph, mut executable): (Handle, Handle) =
            (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: `graph` is a valid out-pointer.
        machine.check(unsafe { machine.cuda.stream_end_capture(stream.raw(), &mut graph) })?;
        // SAFETY: the graph is live until it is destroyed, and `executable` a valid out-pointer.
        let made = unsafe {
            let made = machine.cuda.graph_instantiate(&mut executable, graph, 0);
            machine.check(machine.cuda.graph_destroy(graph))?;
            made
        };
        machine.check(made)?;
        Ok(Replay {
            machine,
            executable,
        })
    }

    fn launch(&self, stream: Stream) -> Outcome {
        {
            let _guard = self.machine.device.enter()?;
            // SAFETY: graph and stream are live.
            let launched = unsafe {
                self.machine
                    .cuda
                    .graph_launch(self.executable, stream.raw())
            };
            self.machine.check(launched)?;
        }
        self.machine.synchronize()
    }
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `end`, and destroyed once.
        let _ = unsafe { self.machine.cuda.graph_executable_destroy(self.executable) };
    }
}

/// Neither sleeps nor wakes anything while a capture is open, told of or not, and the capture stays
/// valid.
pub fn captures_refuse() -> Outcome {
    for kind in KINDS {
        let nest = Nest::plain()?;
        let process = &nest.house.process;
        let egg = nest.lay((kind, Owner::Block), "tag", 6 * MIB, 1)?;
        for asleep in [false, true] {
            if asleep {
                nest.sleep(&["tag"])?;
            }
            let before = nest.places(None)?;
            process.graph_begin(pool(1))?;
            let stream = nest.house.machine.stream()?;
            nest.house
                .machine
                .begin_capture(stream.stream(), CAPTURE_GLOBAL)?;
            let outcomes = [
                process.sleep(&request(&[]), To::Host.into()),
                process.sleep(&request(&["tag"]), To::Nothing.into()),
                process.wake(&request(&["tag"])),
            ];
            nest.house.machine.end_capture(stream.stream())?;
            process.graph_end(pool(1))?;
            process.graph_release(pool(1))?;
            for outcome in outcomes {
                fails_with("in a capture", outcome, Status::Capturing)?;
            }
            nest.audit()?;
            ensure_eq!(nest.places(None)?, before, "where memory is");
        }
        nest.wake(&["tag"])?;
        nest.verify(&egg)?;
        nest.free_all([egg])?;
        nest.finish()?;
    }
    untold()
}

/// A capture that was told of by nobody, but seen when memory was asked for on its stream.
fn untold() -> Outcome {
    let nest = Nest::plain()?;
    let process = &nest.house.process;
    process.set_captures_told(false);
    let egg = nest.lay((Kind::Pool, Owner::Block), "tag", 6 * MIB, 1)?;
    let before = nest.places(None)?;
    let stream = nest.house.machine.stream()?;
    nest.house
        .machine
        .begin_capture(stream.stream(), CAPTURE_RELAXED)?;
    let mut demand = nest.demand(
        (Kind::Pool, Owner::Block),
        crate::core::tags::TagId::NONE,
        700,
    );
    demand.stream = stream.stream();
    let seen = process.allocate(demand);
    let refused = process.sleep(&request(&["tag"]), To::Host.into());
    nest.house
        .machine
        .end_capture(stream.stream())
        .map_err(|stop| stop.at("the capture's end"))?;
    fails_with("in an untold capture", refused, Status::Capturing)?;
    ensure_eq!(
        nest.places(Some("tag"))?.device,
        before.device,
        "awake bytes"
    );
    nest.verify(&egg)?;
    nest.house.free(seen?)?;
    nest.sleep(&["tag"])?;
    nest.wake(&["tag"])?;
    nest.verify(&egg)?;
    nest.free_all([egg])
}

/// A capture of which nothing was told or seen: sleep is refused and nothing has changed. The capture may be
/// broken by then, which is why captures are to be told of.
pub fn unseen_captures() -> Outcome {
    for mode in [CAPTURE_GLOBAL, CAPTURE_RELAXED] {
        let nest = Nest::plain()?;
        nest.house.process.set_captures_told(false);
        let egg = nest.lay((Kind::Pool, Owner::Block), "tag", 6 * MIB, 1)?;
        let stream = nest.house.machine.stream()?;
        nest.house.machine.begin_capture(stream.stream(), mode)?;
        let refused = (nest.house.process).sleep(&request(&["tag"]), To::Host.into());
        let _ = nest.house.machine.end_capture(stream.stream());
        fails_with("in an unseen capture", refused, Status::Capturing)?;
        ensure_eq!(nest.places(None)?.host, 0, "asleep after a refusal");
        nest.verify(&egg)?;
        nest.free_all([egg])?;
        nest.finish()?;
    }
    Ok(())
}

/// Captures a graph that fills two temporaries, copies one over the other, and that to `out`.
fn capture<'a>(
    nest: &'a Nest,
    kind: Kind,
    out: &Egg,
    stream: Stream,
    id: u64,
) -> Result<(Replay<'a>, [u64; 2]), Stop> {
    let process = &nest.house.process;
    let device = &nest.house.machine.device;
    process.graph_begin(pool(id))?;
    nest.house.machine.begin_capture(stream, CAPTURE_GLOBAL)?;
    let body = || -> Result<[u64; 2], Stop> {
        let mut demand = nest.demand((kind, Owner::Block), super::tag("graph")?, out.bytes);
        demand.stream = stream;
        let first = process.allocate(demand.clone())?;
        device.fill(first, 3, out.bytes, stream)?;
        let second = process.allocate(demand)?;
        device.copy_on_device(second, first, out.bytes, stream)?;
        nest.house.free(first)?;
        device.copy_on_device(out.address, second, out.bytes, stream)?;
        Ok([first, second])
    };
    let temporaries = body();
    let replay = Replay::end(&nest.house.machine, stream);
    process.graph_end(pool(id))?;
    Ok((replay?, temporaries?))
}

fn ensure_filled(nest: &Nest, out: &Egg, byte: u8) -> Outcome {
    let mut found = vec![0; out.bytes as usize];
    let device = &nest.house.machine.device;
    device.copy_to_host(&mut found, out.address, nest.stream.stream())?;
    if found != vec![byte; found.len()] {
        let wrong = found.iter().filter(|other| **other != byte).count();
        ensure_eq!(wrong, 0, "bytes that are not {byte}");
    }
    Ok(())
}

/// A graph whose memory sleeps, saved or not, replays right after the wake.
pub fn replayed_after() -> Outcome {
    for kind in KINDS {
        for to in [To::Host, To::Nothing] {
            let nest = Nest::plain()?;
            let process = &nest.house.process;
            let out = nest.lay((kind, Owner::Block), "out", 5 * MIB, 1)?;
            let stream = nest.house.machine.stream()?;
            let (replay, [_, second]) = capture(&nest, kind, &out, stream.stream(), 1)?;
            replay.launch(stream.stream())?;
            ensure_filled(&nest, &out, 3)?;
            for _ in 0..3 {
                nest.write(&out)?;
                process.sleep(&request(&["graph"]), to.into())?;
                nest.sleep(&["out"])?;
                let there = nest.places(None)?;
                ensure_eq!(there.device, 0, "awake");
                nest.wake(&["graph", "out"])?;
                nest.verify(&out)?;
                replay.launch(stream.stream())?;
                ensure_filled(&nest, &out, 3)?;
            }
            nest.house.free(second)?;
            drop(replay);
            process.graph_release(pool(1))?;
            nest.free_all([out])?;
            nest.audit()?;
            nest.finish()
                .map_err(|stop| stop.at(format_args!("{kind:?}")))?;
        }
    }
    Ok(())
}

/// The same of one all of whose temporaries are free: there is nothing to save, and every chunk is
/// mapped again.
pub fn with_nothing_live() -> Outcome {
    for kind in KINDS {
        let nest = Nest::plain()?;
        let process = &nest.house.process;
        let out = nest.lay((kind, Owner::Block), "out", 20 * MIB, 1)?;
        let stream = nest.house.machine.stream()?;
        let (replay, temporaries) = capture(&nest, kind, &out, stream.stream(), 1)?;
        nest.house.free(temporaries[1])?;
        for tags in [&["graph"][..], &[]] {
            nest.write(&out)?;
            let asleep = nest.sleep(tags)?;
            ensure!(asleep.total().moved >= 20 * MIB, "{asleep:?}");
            if kind == Kind::Pool && !tags.is_empty() {
                ensure_eq!(asleep.total().copied, 0, "bytes copied of nothing");
            }
            let back = nest.wake(tags)?;
            ensure_eq!(
                back.total().moved,
                asleep.total().moved,
                "bytes had again by {kind:?}"
            );
            for address in temporaries {
                ensure!(nest.house.is_mapped(address)?, "a temporary is not mapped");
            }
            replay.launch(stream.stream())?;
            nest.audit()?;
            ensure_filled(&nest, &out, 3)?;
        }
        drop(replay);
        process.graph_release(pool(1))?;
        nest.free_all([out])?;
        nest.finish()
            .map_err(|stop| stop.at(format_args!("{kind:?}")))?;
    }
    Ok(())
}

/// Graphs are released while their memory sleeps, others are captured and released after them.
pub fn released_asleep() -> Outcome {
    for kind in KINDS {
        let nest = Nest::plain()?;
        let process = &nest.house.process;
        let out = nest.lay((kind, Owner::Block), "out", 3 * MIB, 1)?;
        let stream = nest.house.machine.stream()?;
        let mut live = Vec::new();
        for id in 1..9 {
            let (replay, [_, second]) = capture(&nest, kind, &out, stream.stream(), id)?;
            match id % 3 {
                0 => live.push(second),
                _ => nest.house.free(second)?,
            }
            nest.sleep(&["graph"])?;
            drop(replay);
            if id % 2 == 0 {
                process.graph_release(pool(id))?;
                process.graph_release(pool(id - 1))?;
                nest.audit()?;
            }
            let more = nest.lay((kind, Owner::Block), "graph", 4 * MIB, id)?;
            if id % 4 == 0 {
                nest.wake(&["graph"])?;
            }
            nest.verify(&more)?;
            nest.free_all([more])?;
        }
        nest.wake(&[])?;
        let mut device_bytes = vec![0; out.bytes as usize];
        let device = &nest.house.machine.device;
        for address in &live {
            device.copy_to_host(&mut device_bytes, *address, stream.stream())?;
            nest.house.free(*address)?;
        }
        nest.free_all([out])?;
        nest.audit()?;
        nest.finish()
            .map_err(|stop| stop.at(format_args!("{kind:?}")))?;
    }
    Ok(())
}
