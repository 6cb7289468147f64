//! Requests no device can serve, and memory that runs out for the moment.

use super::{Bench, GIB, MIB, SUBJECTS, Subject};
use crate::error::Status;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Machine;
use crate::selftest::{Outcome, Stop};
use crate::source::{Block, LastUse};
use std::sync::Arc;
use std::time::Duration;

/// A tebibyte is more than any device has; managed memory and that of the host may go beyond it, so
/// for them it takes more than there are addresses.
fn impossible(bench: &Bench) -> impl Iterator<Item = u64> {
    let lowest = match bench.is_endless() {
        true => 49,
        false => 40,
    };
    let powers = (lowest..64).map(|shift| 1u64 << shift);
    powers.chain([u64::MAX, u64::MAX - 1, u64::MAX - (2 << 20), (1 << 63) + 1])
}

/// Sizes beyond the device are out of memory, whatever the arithmetic on the way; the error names
/// the size, and nothing is left of the attempt.
pub fn beyond_the_device(bench: &Bench) -> Outcome {
    let stream = bench.stream()?;
    for bytes in impossible(bench) {
        match bench
            .source
            .allocate(&bench.request(bytes, stream.stream()))
        {
            Ok(block) => {
                let _ = bench.free(&block);
                return Err(format!("{bytes} bytes were given").into());
            }
            Err(error) => {
                ensure_eq!(
                    error.status(),
                    Status::OutOfMemory,
                    "{bytes} bytes: {error}"
                );
                let text = error.to_string();
                let grain = bench.grain()?.get();
                let told = [Some(bytes), bytes.checked_next_multiple_of(grain)]
                    .into_iter()
                    .flatten()
                    .any(|size| text.contains(&size.to_string()));
                ensure!(told, "the error does not name the size: {text}");
            }
        }
        bench.check()?;
    }
    let block = bench.allocate(MIB, stream.stream())?;
    bench.free(&block)
}

/// Blocks freed while their work still runs are waited for before memory is said to have run out.
pub fn out_of_memory_waits(bench: &Bench) -> Outcome {
    bench.sim()?;
    if bench.is_endless() {
        return Err(Stop::Skipped(
            "managed and host memory go beyond the device".to_owned(),
        ));
    }
    let machine = Arc::new(Machine::open("devices=2,memory=1GiB")?);
    let small = Bench::new(&machine, subject(bench.subject.name)?);
    fill_and_refill(&small)?;
    small.finish()
}

fn subject(name: &str) -> Result<&'static Subject, Stop> {
    let found = SUBJECTS.iter().find(|subject| subject.name == name);
    found.ok_or_else(|| Stop::Failed(format!("no source {name}")))
}

fn fill_and_refill(bench: &Bench) -> Outcome {
    const PIECE: u64 = 64 * MIB;
    let stream = bench.stream()?;
    let mut blocks: Vec<Block> = Vec::new();
    let refused = loop {
        match bench
            .source
            .allocate(&bench.request(PIECE, stream.stream()))
        {
            Ok(block) => blocks.push(block),
            Err(error) => break error,
        }
        ensure!(
            (blocks.len() as u64) < 2 * GIB / PIECE,
            "memory never ran out"
        );
    };
    ensure_eq!(refused.status(), Status::OutOfMemory, "{refused}");
    ensure!(
        refused.to_string().contains(&PIECE.to_string()),
        "{refused}"
    );
    ensure!(
        blocks.len() as u64 >= (GIB / PIECE) - 1,
        "only {} pieces",
        blocks.len()
    );
    let first = blocks[0];
    let busy = bench
        .machine
        .busy(stream.stream(), first.address, first.bytes)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            busy.stop();
        });
        for block in blocks.drain(..) {
            bench.source.deallocate(&block, LastUse::Streams.into())?;
        }
        // Stream-ordered memory comes back to its own stream at once, and to all at the end of the work.
        let again = bench.allocate(GIB / 2, stream.stream())?;
        bench.free(&again)
    })
}
