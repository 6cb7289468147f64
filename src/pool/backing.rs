//! Where a pool's memory comes from: chunks that move between addresses, where the device has virtual
//! memory management, or whole blocks of any other source.

use crate::core::gauge::Gauge;
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::DeviceState;
use crate::extent::range::RangeSpec;
use crate::extent::table::Owner;
use crate::gpu::{ChunkSpec, Stream};
use crate::source::{Block, Held, Kind, LastUse, Request, Source};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};

/// The source under a pool.
pub enum Backing {
    /// Chunks of one kind, of these granules.
    Chunks {
        /// The kind.
        spec: ChunkSpec,
        /// Their sizes are multiples of this.
        granularity: Align,
    },
    /// Blocks of a source, which stay where they are.
    Segments {
        /// The source.
        source: Arc<dyn Source>,
        /// What it gave.
        blocks: Mutex<FxHashMap<u64, Block>>,
        /// Their bytes.
        held: Gauge,
    },
}

/// Segments are multiples of this, as chunks are.
const SEGMENT_GRAIN: Align = Align::new(2 << 20).expect("a power of two");

impl Backing {
    /// Blocks of `source`.
    pub fn segments(source: Arc<dyn Source>) -> Backing {
        Backing::Segments {
            source,
            blocks: Mutex::default(),
            held: Gauge::default(),
        }
    }

    /// The sizes of places are multiples of this.
    pub fn granularity(&self) -> Align {
        match self {
            Backing::Chunks { granularity, .. } => *granularity,
            Backing::Segments { .. } => SEGMENT_GRAIN,
        }
    }

    /// The sources's blocks, if that is what it is.
    pub(super) fn is_movable(&self) -> bool {
        matches!(self, Backing::Chunks { .. })
    }

    /// Reserves addresses for chunks.
    pub(super) fn reserve(&self, state: &DeviceState, bytes: u64, tag: u16) -> Result<u64> {
        let Backing::Chunks { spec, granularity } = self else {
            return Err(Error::new(Status::Internal, "reserve addresses"));
        };
        state.extents.reserve(&RangeSpec {
            bytes,
            align: granularity.get(),
            chunk: *spec,
            tag: TagId::from_number(tag),
        })
    }

    /// A block of the source.
    pub(super) fn segment(
        &self,
        bytes: u64,
        stream: Stream,
        tag: u16,
        capturing: bool,
    ) -> Result<u64> {
        let Backing::Segments {
            source,
            blocks,
            held,
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
        lock(blocks).insert(block.address, block);
        Ok(block.address)
    }

    /// The kind of the source, and what it gave, where it is not chunks.
    pub(super) fn held_in_segments(&self) -> Option<(Kind, Held)> {
        match self {
            Backing::Chunks { .. } => None,
            Backing::Segments { source, held, .. } => Some((source.kind(), held.read())),
        }
    }

    /// The length of a segment.
    pub(super) fn length(&self, address: u64) -> u64 {
        match self {
            Backing::Chunks { .. } => 0,
            Backing::Segments { blocks, .. } => {
                lock(blocks).get(&address).map_or(0, |block| block.bytes)
            }
        }
    }

    /// Gives places back that no work uses; the bytes.
    pub(super) fn give_back(&self, state: &DeviceState, places: &[(u64, u64)]) -> Result<u64> {
        match self {
            Backing::Chunks { .. } => {
                let addresses: Vec<u64> = places.iter().map(|(address, _)| *address).collect();
                state.extents.unback(&addresses)
            }
            Backing::Segments {
                source,
                blocks,
                held,
            } => {
                let mut bytes = 0;
                for (address, _) in places {
                    if let Some(block) = lock(blocks).remove(address) {
                        bytes += block.bytes;
                        held.sub(block.bytes);
                        // Its stream may be gone by now and must not be named.
                        source.deallocate(&block, LastUse::Anywhere)?;
                    }
                }
                Ok(bytes)
            }
        }
    }
}
