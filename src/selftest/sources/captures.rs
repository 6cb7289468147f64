//! Allocating and freeing while a stream capture is open: the capture stays valid, and what may not
//! be asked of the driver meanwhile waits.

use super::Bench;
use crate::error::Status;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::selftest::Outcome;
use crate::selftest::check::ensure_eq;
use crate::selftest::machine::{CAPTURE_GLOBAL, CAPTURE_RELAXED};
use crate::source::{Block, Kind, LastUse, Request};
use std::ffi::c_int;

const BYTES: u64 = 3 << 20;

/// Another stream captures, and hooks told of it.
pub fn free_in_capture(bench: &Bench) -> Outcome {
    let (own, capturing) = (bench.stream()?, bench.stream()?);
    for mode in [CAPTURE_RELAXED, CAPTURE_GLOBAL] {
        let block = bench.allocate(BYTES, own.stream())?;
        let device = &bench.machine.device;
        device.captures().begin(device, 1);
        let outcome = free_inside(bench, capturing.stream(), mode, &block);
        bench.machine.device.captures().end(1);
        outcome?;
        bench.finish()?;
    }
    Ok(())
}

/// The block's own stream captures, and nobody told of it.
pub fn free_on_capturing_stream(bench: &Bench) -> Outcome {
    let own = bench.stream()?;
    for mode in [CAPTURE_RELAXED, CAPTURE_GLOBAL] {
        let block = bench.allocate(BYTES, own.stream())?;
        free_inside(bench, own.stream(), mode, &block)?;
        bench.finish()?;
    }
    Ok(())
}

/// The block is the legacy stream's, which must not be named while a blocking stream captures.
pub fn free_beside_legacy_capture(bench: &Bench) -> Outcome {
    let capturing = OwnedStream::create_blocking(&bench.machine.device)?;
    let block = bench.allocate(BYTES, Stream::LEGACY)?;
    free_inside(bench, capturing.stream(), CAPTURE_RELAXED, &block)
}

fn free_inside(bench: &Bench, capturing: Stream, mode: c_int, block: &Block) -> Outcome {
    bench.machine.begin_capture(capturing, mode)?;
    let inside = || {
        bench.source.deallocate(block, LastUse::Streams.into())?;
        bench.check()?;
        ensure_eq!(
            bench.state.deferral.entries(),
            1,
            "frees queued in the capture"
        );
        bench.source.trim(0)?;
        ensure_eq!(
            bench.state.deferral.entries(),
            1,
            "frees queued after a trim"
        );
        Ok(())
    };
    let outcome = inside();
    bench
        .machine
        .end_capture(capturing)
        .map_err(|stop| stop.at("the capture's end"))?;
    outcome
}

/// Memory for a capturing stream; stream-ordered memory would belong to the graph and is refused.
pub fn allocate_in_capture(bench: &Bench) -> Outcome {
    let (own, capturing) = (bench.stream()?, bench.stream()?);
    let device = &bench.machine.device;
    for mode in [CAPTURE_RELAXED, CAPTURE_GLOBAL] {
        let before = bench.allocate(BYTES, own.stream())?;
        bench.machine.begin_capture(capturing.stream(), mode)?;
        let outcome = allocate_inside(bench, capturing.stream(), &before);
        bench
            .machine
            .end_capture(capturing.stream())
            .map_err(|stop| stop.at("the capture's end"))?;
        outcome?;
        ensure_eq!(device.capture_open(), false, "a capture seems open");
        bench.finish()?;
    }
    Ok(())
}

fn allocate_inside(bench: &Bench, capturing: Stream, before: &Block) -> Outcome {
    let device = &bench.machine.device;
    {
        let _guard = device.enter()?;
        ensure_eq!(device.is_capturing(capturing)?, true, "the stream captures");
    }
    let request = Request {
        capturing: true,
        ..bench.request(BYTES, capturing)
    };
    let outcome = bench.source.allocate(&request);
    bench.free(before)?;
    if bench.kind() == Kind::Async {
        let status = outcome.map_err(|error| error.status());
        ensure_eq!(
            status,
            Err(Status::Capturing),
            "stream-ordered memory in a capture"
        );
        return Ok(());
    }
    let block = outcome?;
    bench.check()?;
    bench.free(&block)?;
    ensure_eq!(
        bench.state.deferral.entries(),
        2,
        "frees queued in the capture"
    );
    Ok(())
}
