//! Which addresses are blocks, and what becomes of calls with those that are not.

use super::{House, MIB};
use crate::core::size::Align;
use crate::error::{Result, Status, Warning};
use crate::gpu::Stream;
use crate::process::{AllocatorId, Demand};
use crate::selftest::Outcome;
use crate::selftest::check::{ensure, ensure_eq};
use crate::source::Kind;

/// Options, questions and frees of nothing reach no driver.
pub fn no_driver_before_use() -> Outcome {
    let house = House::plain()?;
    let sim = house.sim()?;
    let before = sim.calls("*");
    house.process.settings().set("prefetch_threshold", "all")?;
    house.process.set_hooked(true);
    ensure_eq!(
        house.process.block_of(0x1000),
        None,
        "a block at a wild address"
    );
    expect(
        house.process.deallocate(0x1000, None, None),
        Status::NotOwned,
    )?;
    house.process.trim_all()?;
    ensure_eq!(
        house.process.driver_touched(),
        false,
        "the driver was touched"
    );
    ensure_eq!(sim.calls("*"), before, "driver calls");
    let block = house.allocate(Kind::Device, 1, Stream::LEGACY)?;
    ensure_eq!(
        house.process.driver_touched(),
        true,
        "the driver was touched"
    );
    house.free(block)?;
    house.finish()
}

fn expect<T>(outcome: Result<T>, status: Status) -> Outcome {
    ensure_eq!(
        outcome.err().map(|error| error.status()),
        Some(status),
        "status"
    );
    Ok(())
}

/// Double and foreign frees, pointers inside blocks and blocks of others are told and change nothing.
pub fn wrong_frees() -> Outcome {
    let house = House::plain()?;
    let process = &house.process;
    for kind in house.kinds()? {
        let owner = AllocatorId::new();
        let owned = Demand {
            allocator: Some(owner),
            ..house.demand(kind, 3 * MIB, Stream::LEGACY)
        };
        let (live, gone) = (
            process.allocate(owned)?,
            house.allocate(kind, MIB, Stream::LEGACY)?,
        );
        house
            .machine
            .device
            .copy_from_host(live, &[7; 64], Stream::LEGACY)?;
        house.free(gone)?;
        let rejected = process.stats(0, None)?.rejected_frees;
        for address in [gone, 0xdead_0000, live + 256, u64::MAX] {
            expect(process.deallocate(address, None, None), Status::NotOwned)?;
        }
        let other = Some(AllocatorId::new());
        expect(process.deallocate(live, other, None), Status::NotOwned)?;
        expect(
            process.record_stream(live + 256, Stream::LEGACY),
            Status::NotOwned,
        )?;
        ensure_eq!(
            process.stats(0, None)?.rejected_frees,
            rejected + 5,
            "frees rejected"
        );
        ensure!(
            process.warnings().count(Warning::RejectedFree) >= 5,
            "no warning"
        );
        let mut found = [0; 64];
        house
            .machine
            .device
            .copy_to_host(&mut found, live, Stream::LEGACY)?;
        ensure_eq!(found, [7; 64], "contents of {kind:?}");
        process.deallocate(live, Some(owner), None)?;
    }
    house.finish()
}

/// No size, no device, an alignment that is too much.
pub fn bad_requests() -> Outcome {
    let house = House::plain()?;
    let stream = Stream::LEGACY;
    for kind in house.kinds()? {
        let nothing = house.demand(kind, 0, stream);
        expect(house.process.allocate(nothing), Status::InvalidArgument)?;
        for device in [-1, 99, i32::MIN, i32::MAX] {
            let elsewhere = Demand {
                device,
                ..house.demand(kind, MIB, stream)
            };
            expect(house.process.allocate(elsewhere), Status::InvalidArgument)?;
        }
        let large = Demand {
            align: Align::new(4096).ok_or("a power of two".to_owned())?,
            ..house.demand(kind, MIB, stream)
        };
        match (kind, house.process.allocate(large)) {
            (Kind::Vmm | Kind::Pool, outcome) => {
                let address = outcome?;
                ensure_eq!(address % 4096, 0, "{address:#x} of {kind:?}");
                house.free(address)?;
            }
            (_, outcome) => expect(outcome, Status::InvalidArgument)?,
        }
    }
    house.finish()
}

/// The block of any address inside it is found, and none past its end.
pub fn addresses_inside() -> Outcome {
    let house = House::plain()?;
    for kind in house.kinds()? {
        let address = house.allocate(kind, 3 * MIB, Stream::LEGACY)?;
        let (begin, bytes) = house
            .process
            .block_of(address)
            .ok_or("no block".to_owned())?;
        ensure_eq!(begin, address, "beginning of {kind:?}");
        ensure!(bytes >= 3 * MIB, "{bytes} bytes");
        for inside in [address + 1, address + bytes - 1] {
            ensure_eq!(
                house.process.block_of(inside),
                Some((begin, bytes)),
                "{inside:#x}"
            );
        }
        ensure_eq!(
            house.process.block_of(address + bytes),
            None,
            "past the end of {kind:?}"
        );
        house.free(address)?;
        ensure_eq!(
            house.process.block_of(address),
            None,
            "after the free of {kind:?}"
        );
    }
    house.finish()
}
