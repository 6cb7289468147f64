//! Blocks freed while work uses them: never taken away under it, and nobody made to wait but by the
//! sources that say so.

use super::Bench;
use crate::extent::deferral::DRAIN_ENTRIES;
use crate::gpu::Stream;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Busy;
use crate::selftest::{Outcome, Stop};
use crate::source::{Block, Freeing, Kind, LastUse};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Work of the block's own stream.
pub fn busy_stream(bench: &Bench) -> Outcome {
    let stream = bench.stream()?;
    free_under_work(
        bench,
        stream.stream(),
        stream.stream(),
        LastUse::Streams.into(),
    )
}

/// Work of a stream that was recorded for the block.
pub fn busy_recorded_stream(bench: &Bench) -> Outcome {
    let (own, other) = (bench.stream()?, bench.stream()?);
    let freeing = Freeing::behind(LastUse::Streams, &bench.machine.device, other.stream());
    free_under_work(bench, own.stream(), other.stream(), freeing)
}

/// Work nobody told of.
pub fn busy_anywhere(bench: &Bench) -> Outcome {
    bench.machine.needs_context_events()?;
    let (own, other) = (bench.stream()?, bench.stream()?);
    free_under_work(
        bench,
        own.stream(),
        other.stream(),
        LastUse::Anywhere.into(),
    )?;
    let freeing = LastUse::Unknown.into();
    free_under_work(bench, own.stream(), other.stream(), freeing)
}

fn free_under_work(bench: &Bench, own: Stream, busy_on: Stream, freeing: Freeing) -> Outcome {
    let block = bench.allocate(bench.machine.busy_bytes(), own)?;
    let third = bench.stream()?;
    // What lives beside it must not suffer either.
    let mut beside = vec![bench.allocate(4096, own)?];
    // A plain free waits for everything by itself, so it need not queue.
    let queued = freeing.last_use == LastUse::Unknown && bench.source.kind() != Kind::Device;
    let busy = bench.machine.busy(busy_on, block.address, block.bytes)?;
    let waited = free_watched(bench, &block, freeing, &busy)?;
    if queued {
        ensure_eq!(bench.state.deferral.entries(), 1, "frees queued");
    } else if bench.waits() {
        ensure!(waited, "the free did not wait for the work");
    }
    if queued || !bench.waits() {
        ensure!(
            !waited && busy.is_running()?,
            "the free waited for the work"
        );
        ensure!(
            bench.source.held().now >= block.bytes,
            "the memory has gone under the work"
        );
        // A pool may serve the block's own stream with it, which comes after the work; not others.
        let other = bench.allocate(block.bytes, third.stream())?;
        ensure!(apart(&block, &other), "memory in use was given out again");
        beside.push(other);
    }
    busy.end()?;
    for block in &beside {
        bench.free(block)?;
    }
    bench.finish()
}

fn apart(a: &Block, b: &Block) -> bool {
    a.address + a.bytes <= b.address || b.address + b.bytes <= a.address
}

/// Frees; the answer is whether it came back only once the work had ended. A free that should not
/// wait and does would wait for ever on the simulator, so somebody ends the work after a while.
fn free_watched(bench: &Bench, block: &Block, freeing: Freeing, busy: &Busy) -> Result<bool, Stop> {
    let patience = match bench.waits() && freeing.last_use != LastUse::Unknown {
        true => Duration::from_millis(25),
        false => Duration::from_secs(3),
    };
    let (back, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let step = Duration::from_millis(1);
            let mut passed = Duration::ZERO;
            while !back.load(Ordering::SeqCst) && passed < patience {
                std::thread::sleep(step);
                passed += step;
            }
            if !back.load(Ordering::SeqCst) {
                ended.store(true, Ordering::SeqCst);
                busy.stop();
            }
        });
        let freed = bench.source.deallocate(block, freeing);
        back.store(true, Ordering::SeqCst);
        let _ = watcher.join();
        freed?;
        bench.check()?;
        match bench.machine.sim {
            Some(_) => Ok(ended.load(Ordering::SeqCst)),
            None => Ok(!busy.is_running()?),
        }
    })
}

/// A program that only frees gives memory back too.
pub fn many_frees(bench: &Bench) -> Outcome {
    let stream = bench.stream()?;
    let mut blocks = Vec::new();
    for _ in 0..3 * DRAIN_ENTRIES {
        blocks.push(bench.allocate(4096, stream.stream())?);
    }
    bench.machine.synchronize()?;
    for block in &blocks {
        bench.free(block)?;
    }
    let waiting = bench.state.deferral.entries();
    ensure!(waiting <= DRAIN_ENTRIES, "{waiting} frees wait");
    Ok(())
}
