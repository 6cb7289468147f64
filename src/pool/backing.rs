//! Where a pool's memory comes from: chunks that move between addresses, where the device has virtual
//! memory management, or whole blocks of any other source.

use crate::config::value::Location;
use crate::core::gauge::{Gauge, Holding, Reading};
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::DeviceState;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::source::{Block, Kind, LastUse, Request, Source};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};

/// The source under a pool.
pub enum Backing {
    /// Chunks, of one kind for each place where memory lives.
    Chunks,
    /// Blocks of a source, which stay where they are.
    Segments {
        /// The source.
        source: Arc<dyn Source>,
        /// What it gave, and for which tag.
        blocks: Mutex<FxHashMap<u64, (Block, u16)>>,
        /// Their bytes and number.
        held: Holding,
        /// Their bytes by tag.
        by_tag: Mutex<FxHashMap<u16, Gauge>>,
    },
}

/// Segments and chunks are multiples of this, and chunks of what the driver asks for too.
const GRAIN: Align = Align::new(2 << 20).expect("a power of two");

impl Backing {
    /// Blocks of `source`.
    pub fn segments(source: Arc<dyn Source>) -> Backing {
        Backing::Segments {
            source,
            blocks: Mutex::default(),
            held: Holding::default(),
            by_tag: Mutex::default(),
        }
    }

    /// The sizes of places in memory at `location` are multiples of this. Asks the driver at the first
    /// call for each; an error where it has no such memory.
    pub(super) fn granularity(&self, state: &DeviceState, location: Location) -> Result<Align> {
        match self {
            Backing::Chunks => Ok(state.grain(location)?.1.max(GRAIN)),
            Backing::Segments { .. } => Ok(GRAIN),
        }
    }

    /// Whether it is told where memory is to be made; a source knows by itself.
    pub fn is_placed(&self) -> bool {
        matches!(self, Backing::Chunks)
    }

    /// Whether memory made at `location` can move between addresses. Blocks of a source cannot. Nor can
    /// chunks of the host, since a block must lie in one: the driver's fills refuse to cross from one to
    /// the next.
    pub fn is_movable(&self, location: Location) -> bool {
        self.is_placed() && location == Location::Device
    }

    /// A block of the source; its address and length, which is at least `bytes`.
    pub(super) fn segment(
        &self,
        bytes: u64,
        stream: Stream,
        tag: u16,
        capturing: bool,
    ) -> Result<(u64, u64)> {
        let Backing::Segments {
            source,
            blocks,
            held,
            by_tag,
        } = self
        else {
            return Err(Error::new(Status::Internal, "allocate a segment"));
        };
        let block = source.allocate(&Request {
            bytes,
            align: crate::source::ALIGN,
            stream,
            capturing,
            owner: Owner::Segment,
            tag: TagId::from_number(tag),
        })?;
        held.add(block.bytes);
        lock(by_tag).entry(tag).or_default().add(block.bytes);
        lock(blocks).insert(block.address, (block, tag));
        Ok((block.address, block.bytes))
    }

    /// The kind of the source, and what it gave, where it is not chunks.
    pub(super) fn held_in_segments(&self) -> Option<(Kind, &Holding)> {
        match self {
            Backing::Chunks => None,
            Backing::Segments { source, held, .. } => Some((source.kind(), held)),
        }
    }

    /// What the source gave for a tag.
    pub(super) fn held_for_tag(&self, tag: u16) -> Reading {
        match self {
            Backing::Chunks => Reading::default(),
            Backing::Segments { by_tag, .. } => {
                let held = lock(by_tag).get(&tag).map(Gauge::read);
                held.unwrap_or_default()
            }
        }
    }

    /// Starts the peaks of what the source gave again.
    pub(super) fn reset_peaks(&self) {
        if let Backing::Segments { held, by_tag, .. } = self {
            held.reset_peak();
            lock(by_tag).values().for_each(Gauge::reset_peak);
        }
    }

    /// Gives places back that no work uses.
    pub(super) fn give_back(&self, state: &DeviceState, places: &[(u64, u64)]) -> GivenBack {
        match self {
            Backing::Chunks => {
                let addresses: Vec<u64> = places.iter().map(|(address, _)| *address).collect();
                match state.extents.unback(&addresses) {
                    Ok(bytes) => GivenBack {
                        bytes,
                        ..GivenBack::default()
                    },
                    Err(error) => GivenBack {
                        bytes: 0,
                        kept: state.extents.still_mapped(&addresses),
                        error: Some(error),
                    },
                }
            }
            Backing::Segments {
                source,
                blocks,
                held,
                by_tag,
            } => {
                let mut back = GivenBack::default();
                for (address, _) in places {
                    let gone = lock(blocks).remove(address);
                    if let Some((block, tag)) = gone {
                        back.bytes += block.bytes;
                        held.sub(block.bytes);
                        lock(by_tag).entry(tag).or_default().sub(block.bytes);
                        // Its stream may be gone by now and must not be named. Whatever comes of it,
                        // the block is the source's again.
                        let outcome = source.deallocate(&block, LastUse::Anywhere.into());
                        back.error = outcome.err().or(back.error);
                    }
                }
                back
            }
        }
    }
}

/// What came of giving places back.
#[derive(Default)]
pub(super) struct GivenBack {
    /// The bytes of those that are gone; 0 where not all of them are.
    pub bytes: u64,
    /// Those that are still what they were.
    pub kept: Vec<u64>,
    /// What went wrong.
    pub error: Option<Error>,
}
