//! How captures end: between their end and the word of it, without a word, and beside other captures.

use super::graphs::{BYTES, in_capture, on_each_mapped, pool, write};
use super::{House, MIB};
use crate::error::Status;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::{CAPTURE_GLOBAL, CAPTURE_RELAXED};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

/// Runs `body` on a thread of its own.
fn elsewhere<T: Send>(body: impl FnOnce() -> Result<T, Stop> + Send) -> Result<T, Stop> {
    std::thread::scope(|scope| scope.spawn(body).join())
        .unwrap_or_else(|_| Err("the thread panicked".to_owned().into()))
}

/// A capture into `pool` that has ended, of which nobody has told yet; a block it freed.
fn ended(house: &House, kind: Kind, id: u64, stream: Stream) -> Result<u64, Stop> {
    house.process.graph_begin(pool(id))?;
    house.machine.begin_capture(stream, CAPTURE_RELAXED)?;
    let block = house.allocate(kind, 5 * BYTES, stream)?;
    house.free(block)?;
    house.machine.end_capture(stream)?;
    Ok(block)
}

/// The end of `ended` is told: the graph has what it captured, until its release.
fn told(house: &House, id: u64, block: u64, stream: Stream) -> Outcome {
    house.process.graph_end(pool(id))?;
    house.process.trim_all()?;
    ensure!(house.is_mapped(block)?, "the graph lost its memory");
    write(house, block, stream)?;
    house.process.graph_release(pool(id))?;
    house.process.trim_all()?;
    ensure!(!house.is_mapped(block)?, "kept after its release");
    Ok(())
}

/// Between the end of a capture and the word of it trim takes what no graph uses, and nothing else.
pub fn not_told_yet() -> Outcome {
    on_each_mapped(|house, kind| {
        let (own, capturing) = (house.machine.stream()?, house.machine.stream()?);
        let outside = house.allocate(kind, BYTES, own.stream())?;
        let block = ended(house, kind, 1, capturing.stream())?;
        house.free(outside)?;
        let reserved = house.process.stats(0, Some(kind))?.reserved;
        let given_back = house.process.trim_all()?;
        ensure_eq!(given_back, reserved - 5 * BYTES, "trimmed of {reserved}");
        ensure!(!house.is_mapped(outside)?, "trim left what no graph uses");
        told(house, 1, block, capturing.stream())
    })
}

/// The same while another thread allocates.
pub fn not_told_yet_to_others() -> Outcome {
    on_each_mapped(|house, kind| {
        let (own, capturing) = (house.machine.stream()?, house.machine.stream()?);
        let block = ended(house, kind, 1, capturing.stream())?;
        elsewhere(|| {
            let other = house.allocate(kind, 7 * BYTES, own.stream())?;
            ensure!(
                other + 7 * BYTES <= block || block + 5 * BYTES <= other,
                "another has a graph's memory"
            );
            house.free(other)?;
            house.process.trim_all()?;
            Ok(())
        })?;
        ensure!(house.is_mapped(block)?, "another thread gave it up");
        told(house, 1, block, capturing.stream())
    })
}

/// The end is told by another thread than that which began, after others have allocated.
pub fn told_elsewhere() -> Outcome {
    on_each_mapped(|house, kind| {
        let capturing = house.machine.stream()?;
        let block = elsewhere(|| ended(house, kind, 1, capturing.stream()))?;
        let other = house.allocate(kind, BYTES, Stream::LEGACY)?;
        house.free(other)?;
        // Another capture, which says nothing of the first.
        in_capture(house, pool(2), capturing.stream(), || {
            house.allocate(kind, BYTES, capturing.stream())
        })
        .and_then(|inside| house.free(inside))?;
        house.process.graph_release(pool(2))?;
        told(house, 1, block, capturing.stream())
    })
}

/// A capture that fails: torch tells of no end and, since there is no graph, of no release. Its
/// thread's next allocation that is in no capture shows it; what the capture had comes back.
pub fn failed() -> Outcome {
    on_each_mapped(|house, kind| {
        let (own, capturing) = (house.machine.stream()?, house.machine.stream()?);
        for (id, shown) in [(1, true), (2, false)] {
            house.process.graph_begin(pool(id))?;
            house
                .machine
                .begin_capture(capturing.stream(), CAPTURE_GLOBAL)?;
            if shown {
                let block = house.allocate(kind, BYTES, capturing.stream())?;
                house.free(block)?;
            }
            house.machine.end_capture(capturing.stream())?;
            // Here torch raises, and calls neither end nor release.
            let block = house.allocate(kind, BYTES, own.stream())?;
            house.free(block)?;
            house.process.trim_all()?;
            let stats = house.process.stats(0, Some(kind))?;
            ensure_eq!(
                (stats.pending_frees, stats.reserved),
                (0, 0),
                "shown: {shown}"
            );
        }
        Ok(())
    })
}

/// The next capture of its thread shows it too.
pub fn failed_before_another() -> Outcome {
    on_each_mapped(|house, kind| {
        let capturing = house.machine.stream()?;
        let failed = ended(house, kind, 1, capturing.stream())?;
        let block = in_capture(house, pool(2), capturing.stream(), || {
            house.allocate(kind, BYTES, capturing.stream())
        })?;
        house.process.trim_all()?;
        ensure!(
            house.is_mapped(block)? && !house.is_mapped(failed)?,
            "{kind:?}"
        );
        house.free(block)?;
        house.process.graph_release(pool(2))?;
        Ok(())
    })
}

/// A capture taken for failed, because its thread allocated beside it before anything in it, that ends
/// well after all: its release must not take the place of the other graph's in the pool.
pub fn given_up_too_soon() -> Outcome {
    on_each_mapped(|house, kind| {
        let (capturing, beside) = (house.machine.stream()?, house.machine.stream()?);
        let block = in_capture(house, pool(1), capturing.stream(), || {
            house.allocate(kind, BYTES, capturing.stream())
        })?;
        house.free(block)?;
        house.process.graph_begin(pool(1))?;
        let other = house.allocate(kind, BYTES, beside.stream())?;
        house.process.trim_all()?;
        house
            .machine
            .begin_capture(capturing.stream(), CAPTURE_GLOBAL)?;
        house.machine.end_capture(capturing.stream())?;
        house.process.graph_end(pool(1))?;
        house.process.graph_release(pool(1))?;
        house.process.trim_all()?;
        ensure!(house.is_mapped(block)?, "the first graph lost its memory");
        house.process.graph_release(pool(1))?;
        house.free(other)?;
        Ok(())
    })
}

/// A stream whose capture nobody has ended by word captures for another thread: what is allocated
/// there belongs to the second capture.
pub fn stream_captures_again() -> Outcome {
    on_each_mapped(|house, kind| {
        let (capturing, own) = (house.machine.stream()?, house.machine.stream()?);
        let failed = ended(house, kind, 1, capturing.stream())?;
        let block = elsewhere(|| {
            in_capture(house, pool(2), capturing.stream(), || {
                house.allocate(kind, BYTES, capturing.stream())
            })
        })?;
        house.free(block)?;
        // This thread shows that its capture failed.
        let other = house.allocate(kind, BYTES, own.stream())?;
        house.free(other)?;
        house.process.trim_all()?;
        ensure!(house.is_mapped(block)?, "the second graph lost its memory");
        ensure!(!house.is_mapped(failed)?, "a failed capture's memory stays");
        house.process.graph_release(pool(2))?;
        Ok(())
    })
}

/// A program that allocates before it tells of the end gave its graph's memory away, and hears so;
/// release still counts.
pub fn told_too_late() -> Outcome {
    on_each_mapped(|house, kind| {
        let (own, capturing) = (house.machine.stream()?, house.machine.stream()?);
        ended(house, kind, 1, capturing.stream())?;
        let block = house.allocate(kind, BYTES, own.stream())?;
        let late = house.process.graph_end(pool(1)).map_err(|error| {
            let text = error.to_string();
            (
                error.status(),
                text.contains("before the thread that began"),
            )
        });
        ensure_eq!(late, Err((Status::NotOwned, true)), "the late end");
        house.process.graph_release(pool(1))?;
        let again = house.process.graph_release(pool(1));
        let again = again.map_err(|error| error.status());
        ensure_eq!(again, Err(Status::InvalidArgument), "a second release");
        house.free(block)
    })
}

/// A capture begins into a pool while the last graph of it is released on another thread: it has what
/// it captures to itself.
pub fn begun_beside_the_last_release() -> Outcome {
    let house = House::plain()?;
    if !house.has(Kind::Pool)? {
        return Err(Stop::skip("no virtual memory management"));
    }
    let rounds = || -> Outcome {
        let stream = house.machine.stream()?;
        for round in 0..250 {
            house.process.graph_begin(pool(1))?;
            house
                .machine
                .begin_capture(stream.stream(), CAPTURE_RELAXED)?;
            let block = house.allocate(Kind::Pool, MIB, stream.stream());
            house.machine.end_capture(stream.stream())?;
            house.process.graph_end(pool(1))?;
            let block = block?;
            house.free(block)?;
            house.process.trim_all()?;
            ensure!(
                house.is_mapped(block)?,
                "round {round}: {block:#x} was given back before its release"
            );
            house.process.graph_release(pool(1))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(rounds), scope.spawn(rounds)];
        let outcomes = threads.map(|thread| thread.join());
        outcomes.into_iter().try_for_each(|outcome| {
            outcome.unwrap_or_else(|_| Err("the thread panicked".to_owned().into()))
        })
    })?;
    house.finish()
}

/// The legacy stream counts as capturing while a blocking stream does, of which nobody told: its blocks
/// are had all the same, are kept, and the capture stays valid.
pub fn legacy_beside_untold() -> Outcome {
    let house = House::plain()?;
    let untold = |kind| -> Result<u64, Stop> {
        let capturing = OwnedStream::create_blocking(&house.machine.device)?;
        house
            .machine
            .begin_capture(capturing.stream(), CAPTURE_RELAXED)?;
        let block = house.allocate(kind, BYTES, Stream::LEGACY);
        house
            .machine
            .end_capture(capturing.stream())
            .map_err(|stop| stop.at("the capture's end"))?;
        let block = block.map_err(|stop| stop.at(format_args!("{kind:?}")))?;
        house.free(block)?;
        house.process.trim_all()?;
        ensure!(house.is_mapped(block)?, "unmapped while its graph may live");
        write(&house, block, Stream::LEGACY)?;
        Ok(block)
    };
    for kind in house.those_of(&super::MAPPED)? {
        let (first, second) = (untold(kind)?, untold(kind)?);
        ensure!(first != second, "{kind:?}: two graphs have one block");
    }
    ensure_eq!(house.process.live_blocks(), 0, "blocks");
    Ok(())
}
