//! What callers want that have no allocator object.

use super::Demand;
use crate::core::tags::TagId;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::source::{ALIGN, Kind, LastUse};

impl Demand {
    /// A block of so many bytes on a device, for use on a stream first and then by what `last_use` says.
    pub fn of_block(
        kind: Kind,
        (device, bytes): (i32, u64),
        (stream, last_use): (Stream, LastUse),
        tag: TagId,
    ) -> Demand {
        Demand {
            kind,
            device,
            bytes,
            align: ALIGN,
            stream,
            owner: Owner::Block,
            last_use,
            allocator: None,
            location: None,
            tag,
        }
    }
}
