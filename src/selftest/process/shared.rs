//! Memory exported and imported, within one process: what another one does with it is a matter for
//! programs (tests/c/sharing.c, tests/gpu/sharing.py).

use super::{House, MAPPED, MIB};
use crate::config::value::{Location, Size};
use crate::error::{Error, Status};
use crate::gpu::{Share, Stream};
use crate::process::residency::{How, Request, To};
use crate::process::sharing::{Handle, Shared};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl House {
    /// A machine on which memory can be shared.
    fn sharing() -> Result<House, Stop> {
        let house = House::plain()?;
        if !house.has(Kind::Vmm)? {
            return Err(Stop::skip("no virtual memory management"));
        }
        let best = house.machine.device.best_chunk(Location::Device)?;
        match best.share {
            Share::None => Err(Stop::skip("the driver makes no memory that can be shared")),
            _ => Ok(house),
        }
    }

    fn import(&self, shared: &Shared<OwnedFd>) -> Result<u64, Error> {
        self.process.import(&shared.lend(), 0)
    }

    /// Whether every byte of a stretch is `byte`, for the device.
    fn holds(&self, address: u64, bytes: u64, byte: u8) -> Result<bool, Stop> {
        let mut seen = vec![0; bytes as usize];
        let device = &self.machine.device;
        device.copy_to_host(&mut seen, address, Stream::LEGACY)?;
        self.machine.synchronize()?;
        Ok(seen.iter().all(|seen| *seen == byte))
    }

    fn fill(&self, address: u64, bytes: u64, byte: u8) -> Outcome {
        let device = &self.machine.device;
        Ok(device.fill(address, byte, bytes, Stream::LEGACY)?)
    }

    fn reserved(&self) -> Result<(u64, u64), Stop> {
        let stats = self.process.stats(0, None)?;
        Ok((stats.reserved, stats.limit_used))
    }
}

fn status_of<T>(outcome: Result<T, Error>) -> Status {
    outcome.map_or_else(|error| error.status(), |_| Status::Ok)
}

/// What is imported is the same memory at another address: it counts nowhere, is no block, and ends by
/// itself.
pub fn one_memory() -> Outcome {
    for kind in MAPPED {
        let house = House::sharing()?;
        let block = house.allocate(kind, 2 * MIB, Stream::LEGACY)?;
        house.fill(block, 2 * MIB, 0x11)?;
        let before = house.reserved()?;
        let shared = house.process.export(block)?;
        ensure!(shared.chunk_bytes - shared.offset >= MIB, "{shared:?}");
        let there = house.import(&shared)?;
        let serial = shared.serial;
        drop(shared);
        ensure!(there != block, "at the same address");
        ensure!(house.holds(there, 2 * MIB, 0x11)?, "read where it came");
        house.fill(there, 2 * MIB, 0x22)?;
        ensure!(house.holds(block, 2 * MIB, 0x22)?, "read at home");
        ensure_eq!(house.reserved()?, before, "held and counted to the limit");
        for other in [there, there + MIB] {
            let freed = house.process.deallocate(other, None, None);
            ensure_eq!(status_of(freed), Status::NotOwned, "freed");
            ensure_eq!(
                status_of(house.process.export(other)),
                Status::NotOwned,
                "exported again"
            );
        }
        let elsewhere = house.process.close_import(there + 1);
        ensure_eq!(
            status_of(elsewhere),
            Status::NotOwned,
            "closed at another address"
        );
        house.process.close_import(there)?;
        let again = house.process.close_import(there);
        ensure_eq!(status_of(again), Status::NotOwned, "closed twice");
        house.process.close_export(serial)?;
        let again = house.process.close_export(serial);
        ensure_eq!(status_of(again), Status::NotOwned, "no longer exported");
        ensure!(house.holds(block, 2 * MIB, 0x22)?, "read after all");
        house.free(block)?;
        house.finish()?;
    }
    Ok(())
}

/// An address anywhere in a block is exported with its place in the chunk; a block in several chunks is
/// had chunk by chunk; what was exported outlives the block for who imported it.
pub fn inside_a_block() -> Outcome {
    for kind in MAPPED {
        let house = House::sharing()?;
        let bytes = 70 * MIB;
        let block = house.allocate(kind, bytes, Stream::LEGACY)?;
        let (mut at, mut imports, mut exports) = (block + 4096, Vec::new(), Vec::new());
        while at < block + bytes {
            let shared = house.process.export(at)?;
            exports.push(shared.serial);
            let there = house.import(&shared)?;
            house.fill(there, 1, 0x33)?;
            ensure!(house.holds(at, 1, 0x33)?, "{:#x} in the block", at - block);
            imports.push((at, there));
            at += shared.chunk_bytes - shared.offset;
        }
        for serial in exports {
            house.process.close_export(serial)?;
        }
        house.free(block)?;
        house.machine.synchronize()?;
        house.process.trim_all()?;
        ensure_eq!(house.reserved()?, (0, 0), "held by whoever exported");
        for (_, there) in imports {
            ensure!(house.holds(there, 1, 0x33)?, "after the block's end");
            house.process.close_import(there)?;
        }
        house.finish()?;
    }
    Ok(())
}

/// What is pinned stays where it is when its block is freed, whatever is trimmed and however near the limit
/// memory is looked for; unpinned it goes.
pub fn pinned_while_free() -> Outcome {
    let house = House::sharing()?;
    let process = &house.process;
    let block = house.allocate(Kind::Pool, 64 * MIB, Stream::LEGACY)?;
    house.fill(block, 64 * MIB, 0x44)?;
    let shared = process.export(block)?;
    let there = house.import(&shared)?;
    // By hbm_pin and twice, which makes no difference.
    process.pin(block, 1)?;
    house.free(block)?;
    house.machine.synchronize()?;
    process.trim(0, 0)?;
    ensure_eq!(house.reserved()?.0, shared.chunk_bytes, "after a trim");
    ensure!(house.is_mapped(block)?, "it was given back");
    let held = shared.chunk_bytes;
    process.set_limit(0, Size::Bytes(held + 80 * MIB))?;
    let mut live = Vec::new();
    for step in 1..60u64 {
        // Longer than the pinned chunk at times, and than what the limit leaves at others.
        let bytes = (step * 7 % 75 + 1) * MIB;
        let outcome = process.allocate(house.demand(Kind::Pool, bytes, Stream::LEGACY));
        match outcome {
            Ok(other) => live.push(other),
            Err(error) => ensure_eq!(error.status(), Status::OutOfMemory, "{error}"),
        }
        if live.len() > (step % 4) as usize {
            house.free(live.swap_remove(0))?;
        }
        ensure!(house.is_mapped(block)?, "it has moved");
        let extents = &process.device(0)?.state().extents;
        ensure!(extents.is_pinned(block), "its pin has gone");
        extents.audit()?;
        process.audit_pool(0)?;
    }
    for other in live {
        house.free(other)?;
    }
    house.machine.synchronize()?;
    // What fits beside it is had.
    process.trim(0, 0)?;
    let beside = house.allocate(Kind::Pool, 80 * MIB, Stream::LEGACY)?;
    house.free(beside)?;
    house.machine.synchronize()?;
    house.fill(there, MIB, 0x45)?;
    ensure!(house.holds(block, MIB, 0x45)?, "it is another chunk");
    process.close_export(shared.serial)?;
    process.trim(0, 0)?;
    ensure!(house.is_mapped(block)?, "one pin of two");
    process.unpin(block, 1)?;
    process.trim(0, 0)?;
    ensure!(!house.is_mapped(block)?, "it is still there");
    process.close_import(there)?;
    drop(shared);
    house.finish()
}

/// Where a request needs chunks to be moved, those that are pinned are not among them, and serve where they
/// are.
pub fn others_are_moved() -> Outcome {
    let house = House::sharing()?;
    if house.machine.device.findings()?.takes_descriptors {
        return Err(Stop::skip(
            "chunks are longer where each takes a file descriptor",
        ));
    }
    let process = &house.process;
    let extents = &process.device(0)?.state().extents;
    let one = 20 * MIB;
    let mut blocks = Vec::new();
    for _ in 0..8 {
        blocks.push(house.allocate(Kind::Pool, one, Stream::LEGACY)?);
    }
    // The first chunk is the longest, and so what would be moved first.
    let pinned = blocks[0];
    process.pin(pinned, 1)?;
    // What is free lies apart.
    for at in [0, 1, 3, 5] {
        house.free(blocks[at])?;
    }
    house.machine.synchronize()?;
    // Chunks at the ends of live blocks cannot move, so a part has to be made.
    process.set_limit(0, Size::Bytes(house.reserved()?.1 + 32 * MIB))?;
    let long = house.allocate(Kind::Pool, 3 * one, Stream::LEGACY)?;
    let moved = process.pool_stats(0)?.stitched_bytes;
    ensure!(moved >= one, "{moved} bytes were moved");
    let list = extents.list();
    let place = list.iter().find(|place| place.address == pinned);
    ensure!(place.is_some_and(|place| !place.alias), "it was moved");
    let last = house.allocate(Kind::Pool, 2 * one, Stream::LEGACY)?;
    ensure_eq!(last, pinned, "what is free there serves there");
    for block in [long, last, blocks[2], blocks[4], blocks[6], blocks[7]] {
        house.free(block)?;
    }
    process.unpin(pinned, 1)?;
    process.audit_pool(0)?;
    house.finish()
}

/// What is exported does not sleep, and what sleeps is not exported.
pub fn awake() -> Outcome {
    for kind in MAPPED {
        let house = House::sharing()?;
        let (request, how) = (Request::default(), How::from(To::Host));
        let block = house.allocate(kind, 8 * MIB, Stream::LEGACY)?;
        let shared = house.process.export(block)?;
        house.process.sleep(&request, how)?;
        let now = house.process.whereabouts(None, None)?;
        ensure_eq!(now.pinned, shared.chunk_bytes, "{now:?}");
        ensure!(now.device >= now.pinned, "{now:?}");
        house.fill(block, MIB, 0x55)?;
        house.process.wake(&request)?;
        ensure!(house.holds(block, MIB, 0x55)?, "after sleep and wake");
        house.process.close_export(shared.serial)?;
        house.process.sleep(&request, how)?;
        let error = house.process.export(block).err().ok_or("exported asleep")?;
        ensure_eq!(error.status(), Status::InvalidArgument, "{error}");
        ensure!(error.to_string().contains("Wake it"), "{error}");
        house.process.wake(&request)?;
        let again = house.process.export(block)?;
        house.process.close_export(again.serial)?;
        house.free(block)?;
        house.process.trim_host(0)?;
        house.finish()?;
    }
    Ok(())
}

/// Memory of other kinds, memory of the host, and what is no block.
pub fn what_cannot_be() -> Outcome {
    let house = House::sharing()?;
    let mut others = house.kinds()?;
    others.retain(|kind| !MAPPED.contains(kind));
    for kind in others {
        let block = house.allocate(kind, MIB, Stream::LEGACY)?;
        let error = house.process.export(block).err().ok_or("exported")?;
        ensure_eq!(error.status(), Status::Unsupported, "{error}");
        house.free(block)?;
    }
    if house.machine.device.host_numa()?.is_ok() {
        let mut demand = house.demand(Kind::Vmm, MIB, Stream::LEGACY);
        demand.location = Some(Location::HostNuma(0));
        let block = house.process.allocate(demand)?;
        let error = house.process.export(block).err().ok_or("exported")?;
        ensure_eq!(error.status(), Status::Unsupported, "{error}");
        house.free(block)?;
    }
    for kind in MAPPED {
        let block = house.allocate(kind, MIB, Stream::LEGACY)?;
        house.free(block)?;
        for address in [block, 0, 1 << 20, u64::MAX] {
            let outcome = house.process.export(address);
            ensure_eq!(status_of(outcome), Status::NotOwned, "{address:#x}");
            ensure!(house.process.close_export(address).is_err(), "closed");
            let outcome = house.process.close_import(address);
            ensure_eq!(status_of(outcome), Status::NotOwned, "{address:#x}");
        }
    }
    house.finish()
}

/// Lengths and handles that are not those of an export are errors, and leave nothing.
pub fn wrong_imports() -> Outcome {
    let house = House::sharing()?;
    let block = house.allocate(Kind::Vmm, 8 * MIB, Stream::LEGACY)?;
    let shared = house.process.export(block)?;
    let refused = |changed: Shared<BorrowedFd<'_>>| -> Result<Error, Stop> {
        let text = format!("{changed:?}");
        let outcome = house.process.import(&changed, 0);
        Ok(outcome.err().ok_or(text)?)
    };
    let whole = shared.chunk_bytes;
    for (chunk_bytes, offset) in [(0, 0), (whole + 1, 0), (whole, whole), (MIB, 0)] {
        let error = refused(Shared {
            chunk_bytes,
            offset,
            ..shared.lend()
        })?;
        ensure_eq!(error.status(), Status::InvalidArgument, "{error}");
    }
    for chunk_bytes in [whole / 2, 2 * whole, 1 << 60] {
        let error = refused(Shared {
            chunk_bytes,
            ..shared.lend()
        })?;
        ensure!(error.status() != Status::Internal, "{error}");
    }
    let file = std::fs::File::open("/dev/null").map_err(|error| error.to_string())?;
    let error = refused(Shared {
        handle: Handle::Fd(file.as_fd()),
        ..shared.lend()
    })?;
    ensure!(error.to_string().contains("hbm_export"), "{error}");
    refused(Shared {
        handle: Handle::Fabric([0; 64]),
        ..shared.lend()
    })?;
    for device in [-1, 64] {
        let outcome = house.process.import(&shared.lend(), device);
        ensure!(outcome.is_err(), "imported on device {device}");
    }
    house.process.close_export(shared.serial)?;
    house.free(block)?;
    house.finish()
}

/// Where the driver makes fabric handles, chunks go by these.
pub fn over_a_fabric() -> Outcome {
    let house = House::open("fabric=works", &[])?;
    house.sim()?;
    if house.machine.driver.is_hip() {
        return Err(Stop::skip("HIP has no fabric handles"));
    }
    for kind in MAPPED {
        let block = house.allocate(kind, MIB, Stream::LEGACY)?;
        house.fill(block, MIB, 0x66)?;
        let shared = house.process.export(block)?;
        ensure!(matches!(shared.handle, Handle::Fabric(_)), "{shared:?}");
        let there = house.import(&shared)?;
        ensure!(house.holds(there, MIB, 0x66)?, "read where it came");
        house.process.close_import(there)?;
        house.process.close_export(shared.serial)?;
        house.free(block)?;
    }
    house.finish()
}

/// Threads export, free and close while others make the pool move and give back what it has.
pub fn beside_others() -> Outcome {
    let house = House::sharing()?;
    let process = &house.process;
    process.set_limit(0, Size::Bytes(256 * MIB))?;
    let demand = |bytes| house.demand(Kind::Pool, bytes, Stream::LEGACY);
    let state = process.device(0)?.state();
    let sharing = || -> Outcome {
        for step in 1..60u64 {
            let block = process.allocate(demand((step % 5 + 1) * MIB))?;
            let shared = process.export(block)?;
            process.deallocate(block, None, None)?;
            let there = house.import(&shared)?;
            ensure!(state.extents.is_pinned(block - shared.offset), "no pin");
            process.close_import(there)?;
            process.close_export(shared.serial)?;
        }
        Ok(())
    };
    let moving = |seed: u64| -> Outcome {
        for step in 0..120u64 {
            let bytes = ((step * 13 + seed * 7) % 40 + 1) * MIB;
            let block = process.allocate(demand(bytes))?;
            process.deallocate(block, None, None)?;
            if step % 9 == 0 {
                process.trim(0, 0)?;
            }
        }
        Ok(())
    };
    let ended = |outcome: std::thread::Result<Outcome>| {
        outcome.unwrap_or_else(|_| Err("a thread panicked".into()))
    };
    let outcomes = std::thread::scope(|scope| {
        let threads = [
            scope.spawn(sharing),
            scope.spawn(sharing),
            scope.spawn(|| moving(1)),
            scope.spawn(|| moving(2)),
        ];
        threads.map(|thread| ended(thread.join()))
    });
    outcomes.into_iter().collect::<Outcome>()?;
    process.audit_pool(0)?;
    house.finish()
}

/// Every driver call fails once: nothing is left of an import, an export that failed pins nothing, and a close
/// can be called again.
pub fn refused_calls() -> Outcome {
    let house = House::sharing()?;
    let sim = house.sim()?;
    if house.machine.driver.is_hip() {
        return Err(Stop::skip("what HIP refuses once is tried again"));
    }
    let block = house.allocate(Kind::Vmm, 8 * MIB, Stream::LEGACY)?;
    sim.fail_once("cuMemExportToShareableHandle", 1, 999);
    ensure!(
        house.process.export(block).is_err(),
        "exported all the same"
    );
    sim.fail_clear();
    let pinned = house.process.whereabouts(None, None)?.pinned;
    ensure_eq!(pinned, 0, "pinned");
    let shared = house.process.export(block)?;
    // An event is kept once it was made.
    house.process.close_import(house.import(&shared)?)?;
    let before = sim.counters().memory();
    for call in [
        "cuMemImportFromShareableHandle",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
    ] {
        for code in [2, 999] {
            sim.fail_once(call, 1, code);
            // What cannot be undone at once is undone by the next import.
            sim.fail_once("cuMemUnmap", 1, 999);
            let error = house.import(&shared).err().ok_or(call)?;
            sim.fail_clear();
            ensure!(error.to_string().contains(call), "{call}: {error}");
            let there = house.import(&shared)?;
            house.process.close_import(there)?;
            ensure_eq!(sim.counters().memory(), before, "left after {call}");
        }
    }
    for call in ["cuMemUnmap", "cuMemRelease", "cuMemAddressFree"] {
        let there = house.import(&shared)?;
        sim.fail_once(call, 1, 999);
        let error = house.process.close_import(there).err().ok_or(call)?;
        sim.fail_clear();
        ensure!(error.to_string().contains(call), "{call}: {error}");
        house.process.close_import(there)?;
        ensure_eq!(sim.counters().memory(), before, "left after {call}");
    }
    house.process.close_export(shared.serial)?;
    house.free(block)?;
    house.finish()
}
