//! Where large chunks are refused, as on ROCm, a block is several chunks of the size that the option
//! `rocm_chunk_size` names.
#![allow(missing_docs)]

use hbmalloc::core::size::Align;
use hbmalloc::core::tags::TagId;
use hbmalloc::error::Status;
use hbmalloc::extent::table::Owner;
use hbmalloc::gpu::Stream;
use hbmalloc::process::{Demand, Process};
use hbmalloc::source::{Kind, LastUse};

fn demand(bytes: u64) -> Demand {
    Demand {
        kind: Kind::Vmm,
        device: 0,
        bytes,
        align: Align::new(256).unwrap(),
        stream: Stream::LEGACY,
        owner: Owner::Block,
        last_use: LastUse::Streams,
        allocator: None,
        location: None,
        tag: TagId::NONE,
    }
}

#[test]
fn a_block_is_several_chunks() {
    const CHUNK: u64 = 256 << 20;
    let process = Process::current();
    process.settings().set("driver", "sim").unwrap();
    process.settings().set("sim", "rocm=256MiB").unwrap();

    let address = process.allocate(demand(3 * CHUNK + 1)).unwrap();
    let extents = &process.device(0).unwrap().state().extents;
    let sizes: Vec<u64> = extents.list().iter().map(|extent| extent.bytes).collect();
    assert_eq!(sizes, [CHUNK, CHUNK, CHUNK, 2 << 20]);
    extents.audit().unwrap();

    let fixed = process.settings().set("rocm_chunk_size", "512MiB");
    assert_eq!(fixed.unwrap_err().status(), Status::Busy);

    process.deallocate(address, None, None).unwrap();
    process.trim(0, 0).unwrap();
    assert!(extents.list().is_empty());
    assert_eq!(extents.physical().now, 0);
}
