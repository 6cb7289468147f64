//! Sizes, alignments, and contents that stay where they were put.

use super::{Bench, GIB, MIB};
use crate::core::size::Align;
use crate::error::Status;
use crate::gpu::Stream;
use crate::selftest::Outcome;
use crate::selftest::check::{ensure, ensure_eq};
use crate::source::{Block, LastUse, Request};

const SIZES: [u64; 16] = [
    1,
    2,
    255,
    256,
    257,
    512,
    513,
    4096,
    MIB - 1,
    MIB + 1,
    2 * MIB - 1,
    2 * MIB,
    2 * MIB + 1,
    20 * MIB,
    67 * MIB + 3,
    GIB,
];

/// Bytes looked at, at either end of a block: all of a small one, and not a whole large one, whose
/// host pages the simulator would have to find.
const EDGE: u64 = 2048;

/// Writes bytes that tell blocks apart at both ends of the range.
pub fn stamp(bench: &Bench, stream: Stream, block: &Block, seed: u64) -> Outcome {
    for (offset, count) in edges(block.bytes) {
        let bytes = pattern(seed ^ offset, count);
        bench
            .machine
            .device
            .copy_from_host(block.address + offset, &bytes, stream)?;
    }
    Ok(())
}

/// Reads them back.
pub fn verify(bench: &Bench, stream: Stream, block: &Block, seed: u64) -> Outcome {
    for (offset, count) in edges(block.bytes) {
        let mut found = vec![0; count as usize];
        bench
            .machine
            .device
            .copy_to_host(&mut found, block.address + offset, stream)?;
        ensure!(
            found == pattern(seed ^ offset, count),
            "contents of {} bytes at {:#x} + {offset:#x} have changed",
            block.bytes,
            block.address
        );
    }
    Ok(())
}

fn edges(bytes: u64) -> Vec<(u64, u64)> {
    match bytes <= 2 * EDGE {
        true => vec![(0, bytes)],
        false => vec![(0, EDGE), (bytes - EDGE, EDGE)],
    }
}

fn pattern(seed: u64, count: u64) -> Vec<u8> {
    let mix = |at: u64| (seed.wrapping_add(at)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    (0..count).map(|at| mix(at) as u8).collect()
}

/// Every size is given, rounded to the source's grain, and usable to its last byte.
pub fn sizes(bench: &Bench) -> Outcome {
    let stream = bench.stream()?;
    let grain = bench.grain()?;
    for bytes in SIZES {
        let block = bench.allocate(bytes, stream.stream())?;
        ensure_eq!(
            Some(block.bytes),
            grain.round_up(bytes),
            "size of {bytes} bytes"
        );
        stamp(bench, stream.stream(), &block, bytes)?;
        verify(bench, stream.stream(), &block, bytes)?;
        bench.free(&block)?;
    }
    Ok(())
}

/// 256 always; more from virtual memory, and a clear refusal from the others.
pub fn alignments(bench: &Bench) -> Outcome {
    let stream = bench.stream()?;
    for shift in [0, 4, 8, 9, 12, 21, 24, 30] {
        let align = Align::new(1 << shift).ok_or("a power of two".to_owned())?;
        let request = Request {
            align,
            ..bench.request(1000, stream.stream())
        };
        let wanted = shift <= 8 || bench.kind() == crate::source::Kind::Vmm;
        match bench.source.allocate(&request) {
            Ok(block) => {
                ensure!(wanted, "alignment {} was given", align.get());
                ensure!(
                    align.divides(block.address),
                    "{:#x} for {}",
                    block.address,
                    align.get()
                );
                bench.free(&block)?;
            }
            Err(error) => {
                ensure!(!wanted, "alignment {}: {error}", align.get());
                ensure_eq!(
                    error.status(),
                    Status::InvalidArgument,
                    "alignment {}",
                    align.get()
                );
                ensure!(error.to_string().contains("vmm"), "no advice: {error}");
                bench.check()?;
            }
        }
    }
    Ok(())
}

/// Many blocks live at once share nothing, also after some have gone and others have come.
pub fn contents(bench: &Bench) -> Outcome {
    let streams = [bench.stream()?, bench.stream()?];
    let mut live: Vec<(Block, u64)> = Vec::new();
    for round in 0..3u64 {
        for (index, bytes) in SIZES.iter().take(15).enumerate() {
            let stream = streams[index % 2].stream();
            let block = bench.allocate(*bytes, stream)?;
            let seed = round << 32 | index as u64;
            no_overlap(&live, &block)?;
            stamp(bench, stream, &block, seed)?;
            live.push((block, seed));
        }
        for (block, seed) in &live {
            verify(bench, block.stream, block, *seed)?;
        }
        let mut index = 0;
        let (gone, kept) = live.into_iter().partition(|_| {
            index += 1;
            index % 2 == 0
        });
        live = kept;
        free_all(bench, gone)?;
    }
    free_all(bench, live)
}

fn no_overlap(live: &[(Block, u64)], block: &Block) -> Outcome {
    for (other, _) in live {
        let apart = block.address + block.bytes <= other.address
            || other.address + other.bytes <= block.address;
        ensure!(apart, "{block:x?} overlaps {other:x?}");
    }
    Ok(())
}

fn free_all(bench: &Bench, blocks: Vec<(Block, u64)>) -> Outcome {
    for (block, seed) in blocks {
        verify(bench, block.stream, &block, seed)?;
        bench.source.deallocate(&block, LastUse::Streams.into())?;
        bench.check()?;
    }
    Ok(())
}
