//! Captures that nobody tells of, as in a C program: no stream of theirs is recorded on, and what they
//! kept back is had once they are over.

use super::need::{NEED, Scene, phase};
use crate::config::value::Size;
use crate::selftest::Outcome;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::{CAPTURE_GLOBAL, CAPTURE_RELAXED};
use crate::source::Kind;

const MIB: u64 = 1 << 20;

/// A freed block was used on a stream that captures by now.
pub fn recorded_stream() -> Outcome {
    for mode in [CAPTURE_GLOBAL, CAPTURE_RELAXED] {
        let scene = Scene::open("vmm", "balanced")?;
        let (process, machine) = (&scene.process, &scene.machine);
        process.set_captures_told(false);
        let block = process.allocate(scene.demand(phase(0, 0, 4 * MIB)))?;
        let used_on = scene.streams[1].stream();
        process.record_stream(block, used_on)?;
        machine.begin_capture(used_on, mode)?;
        process.deallocate(block, None, None)?;
        let more = process.allocate(scene.demand(phase(0, 0, NEED)))?;
        machine.end_capture(used_on)?;
        let again = process.allocate(scene.demand(phase(0, 0, NEED)))?;
        process.deallocate(more, None, None)?;
        process.deallocate(again, None, None)?;
        scene.gives_all_back()?;
    }
    Ok(())
}

/// The stream that memory is free for captures, and another one needs it.
pub fn own_stream() -> Outcome {
    for mode in [CAPTURE_GLOBAL, CAPTURE_RELAXED] {
        let scene = Scene::open("vmm", "balanced")?;
        let (process, machine) = (&scene.process, &scene.machine);
        process.set_captures_told(false);
        process.set_limit(0, Size::Bytes(NEED + 64 * MIB))?;
        scene.take(phase(0, 0, 64 * MIB))?;
        let captured = scene.streams[0].stream();
        machine.begin_capture(captured, mode)?;
        let refused = process.allocate(scene.demand(phase(1, 1, NEED))).is_err();
        machine.end_capture(captured)?;
        let block = process.allocate(scene.demand(phase(1, 1, NEED)))?;
        ensure!(refused, "memory of a capturing stream was given away");
        process.deallocate(block, None, None)?;
        scene.gives_all_back()?;
    }
    Ok(())
}

impl Scene {
    fn gives_all_back(&self) -> Outcome {
        self.machine.synchronize()?;
        self.process.trim(0, 0)?;
        let stats = self.process.stats(0, Some(Kind::Pool))?;
        ensure_eq!(
            (stats.reserved, stats.pending_frees),
            (0, 0),
            "held, and freed blocks that wait"
        );
        Ok(())
    }
}
