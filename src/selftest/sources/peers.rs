//! Devices that come into use reach what the others hold.

use super::Bench;
use crate::selftest::check::ensure_eq;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const READ_WRITE: u64 = 3;

/// A mapping made before a device came into use is widened for it, and later ones are made so.
pub fn admits_peers(bench: &Bench) -> Outcome {
    if bench.kind() != Kind::Vmm {
        return Err(Stop::Skipped("only mappings name their peers".to_owned()));
    }
    if bench.machine.driver.device_count() < 2 {
        return Err(Stop::Skipped("needs two devices".to_owned()));
    }
    let stream = bench.stream()?;
    let before = bench.allocate(9 << 20, stream.stream())?;
    if bench.machine.sim.is_some() {
        ensure_eq!(
            bench.machine.access(before.address, 1)?,
            0,
            "access before device 1 is in use"
        );
    }
    bench.machine.driver.device(1)?;
    bench.state.extents.admit_peer(1);
    let after = bench.allocate(9 << 20, stream.stream())?;
    for block in [&before, &after] {
        for address in [block.address, block.address + block.bytes - 1] {
            for device in [0, 1] {
                ensure_eq!(
                    bench.machine.access(address, device)?,
                    READ_WRITE,
                    "access of device {device}"
                );
            }
        }
    }
    bench.free(&before)?;
    bench.free(&after)
}
