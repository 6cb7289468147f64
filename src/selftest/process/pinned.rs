//! Pinned memory of the host: one address for host and device, nothing of the device's limit, and the
//! pool over it.

use super::{House, MIB};
use crate::config::value::{Placement, Size};
use crate::error::Status;
use crate::gpu::Stream;
use crate::process::{placement, tags};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

/// By a block's own kind, and by the pool over it.
const WAYS: [(Kind, &str); 2] = [(Kind::Pinned, "vmm"), (Kind::Pool, "pinned")];

/// The processor reads at a block's address what the device wrote there, and the other way round.
pub fn one_address() -> Outcome {
    for (kind, source) in WAYS {
        let house = House::open("devices=1", &[("pool_source", source)])?;
        let device = &house.machine.device;
        let block = house.allocate(kind, 3 * MIB, Stream::LEGACY)?;
        device.fill(block, 0x5a, 3 * MIB, Stream::LEGACY)?;
        house.machine.synchronize()?;
        let last = (block + 3 * MIB - 1) as *mut u8;
        // SAFETY: the block is live, of the host, and no work uses it.
        ensure_eq!(unsafe { last.read() }, 0x5a, "what the device wrote");
        // SAFETY: as above.
        unsafe { last.write(0xa5) };
        let mut seen = [0u8; 2];
        device.copy_to_host(&mut seen, last as u64 - 1, Stream::LEGACY)?;
        house.machine.synchronize()?;
        ensure_eq!(seen, [0x5a, 0xa5], "what the processor wrote");
        house.free(block)?;
        house.finish()?;
    }
    Ok(())
}

/// It counts to no limit of the device, and its statistics are the simulator's.
pub fn limits() -> Outcome {
    for (kind, source) in WAYS {
        let house = House::open("memory=64MiB", &[("pool_source", source)])?;
        let sim = house.sim()?;
        house.process.set_limit(0, Size::Bytes(32 * MIB))?;
        let block = house.allocate(kind, 256 * MIB, Stream::LEGACY)?;
        let stats = house.process.stats(0, Some(kind))?;
        ensure_eq!(stats.reserved, sim.counters().pinned_bytes, "reserved");
        ensure!(stats.allocated <= stats.reserved, "{stats:?}");
        let of_limit = house.process.stats(0, None)?.limit_used;
        ensure_eq!(of_limit, 0, "counted to the limit");
        let beside = house.allocate(Kind::Vmm, 32 * MIB, Stream::LEGACY)?;
        house.free(beside)?;
        house.free(block)?;
        house.finish()?;
    }
    Ok(())
}

/// Where the device knows the memory by another address, or the driver has no more, nothing is given
/// out and nothing left.
pub fn refused() -> Outcome {
    for (call, code, status) in [
        ("cuMemHostGetDevicePointer_v2", 801, Status::Unsupported),
        ("cuMemHostAlloc", 2, Status::OutOfMemory),
    ] {
        let house = House::open("devices=1", &[])?;
        let sim = house.sim()?;
        for nth in 1..=2 {
            sim.fail_once(call, nth, code);
        }
        let refused = house
            .process
            .allocate(house.demand(Kind::Pinned, MIB, Stream::LEGACY));
        sim.fail_clear();
        let error = refused.err().ok_or("it was allocated")?;
        ensure_eq!(error.status(), status, "{error}");
        let of_host = error.to_string().contains("memory of the host");
        ensure_eq!(of_host, status == Status::OutOfMemory, "{error}");
        ensure_eq!(sim.counters().pinned_bytes, 0, "left");
        house.free(house.allocate(Kind::Pinned, MIB, Stream::LEGACY)?)?;
        house.finish()?;
    }
    let house = House::open("devices=1", &[])?;
    house.sim()?;
    let refused = house
        .process
        .allocate(house.demand(Kind::Pinned, 1 << 50, Stream::LEGACY));
    let error = refused.err().ok_or("a pebibyte was had")?;
    ensure_eq!(error.status(), Status::OutOfMemory, "{error}");
    house.finish()
}

/// A tag may say that it is the host's, or nothing; that it is the device's is refused.
pub fn placed() -> Outcome {
    for (kind, source) in WAYS {
        let house = House::open("devices=1", &[("pool_source", source)])?;
        let tag = format!("pinned by {}", kind.name());
        let allocate = |placed| -> Result<_, Stop> {
            placement::place(&tag, placed)?;
            let mut demand = house.demand(kind, MIB, Stream::LEGACY);
            demand.tag = tags::table().intern(&tag)?;
            Ok(house.process.allocate(demand))
        };
        let error = allocate(Some(Placement::Device))?.err();
        let error = error.ok_or("it was placed on the device")?;
        ensure_eq!(error.status(), Status::Unsupported, "{error}");
        ensure!(error.to_string().contains(&tag), "{error}");
        for placed in [Some(Placement::Host), Some(Placement::None), None] {
            let block = allocate(placed)??;
            house.free(block)?;
        }
        house.finish()?;
    }
    Ok(())
}
