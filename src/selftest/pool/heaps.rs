//! Streams, threads and graphs that come and go, many of each: a thread has what it freed again on
//! every stream.

use super::run::demand_of;
use crate::core::tags::TagId;
use crate::gpu::stream::OwnedStream;
use crate::process::Process;
use crate::selftest::check::ensure_eq;
use crate::selftest::machine::Machine;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const SPEC: &str = "devices=1,memory=4GiB";

pub(super) fn open() -> Result<(Machine, Process), Stop> {
    let machine = Machine::open(SPEC)?;
    machine.set_context(None)?;
    let process = machine.process(&[("sim", SPEC)])?;
    process.set_captures_told(true);
    Ok((machine, process))
}

/// What a thread has freed on one of hundreds of streams it has again at once, whichever stream's turn it is.
pub(super) fn many_streams_in_turn() -> Outcome {
    let (machine, process) = open()?;
    let streams = (0..300).map(|_| machine.stream());
    let streams = streams.collect::<Result<Vec<OwnedStream>, _>>()?;
    let mut blocks = Vec::new();
    for stream in &streams {
        let mut demand = demand_of(Kind::Pool, 4096);
        demand.stream = stream.stream();
        let block = process.allocate(demand)?;
        process.deallocate(block, None, None)?;
        blocks.push(block);
    }
    for _ in 0..3 {
        for (stream, block) in streams.iter().zip(&blocks) {
            let again = process.reuse_pooled(0, 4096, stream.stream(), None, TagId::NONE);
            ensure_eq!(again, Some(*block), "of 300 streams");
            process.deallocate(*block, None, None)?;
        }
    }
    Ok(())
}
