//! How captures end: between their end and the word of it, without a word, and beside other captures.

use super::House;
use super::graphs::{BYTES, write};
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::CAPTURE_RELAXED;
use crate::selftest::{Outcome, Stop};

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
