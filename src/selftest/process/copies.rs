//! Copies of many pieces: cut where registrations of the host meet, which the driver does not cross.

use super::{House, MIB};
use crate::gpu::{OwnedStream, Way};
use crate::process::host::HostKind;
use crate::process::host_making::HostPlan;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use crate::sys::pieces::Pieces;
use std::ffi::c_void;

const REGISTERED: u64 = 2 * MIB;
const BYTES: u64 = 9 * MIB + 4096;

/// The pieces between `at` of the block and `on_device`, as lists.
struct Lists {
    host: Vec<u64>,
    device: Vec<u64>,
    bytes: Vec<usize>,
}

impl Lists {
    /// One inside a registration, one up to its end, one over two ends, one of all.
    fn of(host: u64, device: u64) -> Lists {
        let pieces = [
            (100, 1000),
            (MIB, MIB),
            (REGISTERED - 1, REGISTERED + 2),
            (0, BYTES),
        ];
        let at = |base: u64| pieces.iter().map(|piece| base + piece.0).collect();
        Lists {
            host: at(host),
            device: at(device),
            bytes: pieces.iter().map(|piece| piece.1 as usize).collect(),
        }
    }

    fn copy(&self, house: &House, way: Way, stream: &OwnedStream) -> crate::error::Result<()> {
        let (to, from) = match way {
            Way::ToDevice => (&self.device, &self.host),
            Way::ToHost => (&self.host, &self.device),
        };
        let to: Vec<_> = to.iter().map(|at| *at as *mut c_void).collect();
        let from: Vec<_> = from.iter().map(|at| *at as *const c_void).collect();
        // SAFETY: both blocks are live until the case has waited for the stream.
        let pieces = unsafe { Pieces::new("test", &to, &from, &self.bytes) }?;
        (house.process).copy_batch(way, &pieces, 0, stream.stream())
    }
}

fn filled(house: &House, most: u64) -> Result<u64, Stop> {
    house.process.register_host_at_most(most);
    let pinned = HostPlan {
        is_pinned: true,
        ..HostPlan::default()
    };
    let block = (house.process).allocate_host(HostKind::Pinned, BYTES, &pinned)?;
    // SAFETY: the block is live and nobody else's.
    let bytes = unsafe { std::slice::from_raw_parts_mut(block as *mut u8, BYTES as usize) };
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (index * 13 / 32) as u8;
    }
    Ok(block)
}

/// Over the ends of registrations and back, as over one.
pub fn over_seams() -> Outcome {
    let house = House::plain()?;
    let stream = OwnedStream::create(&house.machine.device)?;
    let device = house.allocate(Kind::Vmm, BYTES, stream.stream())?;
    let (from, to) = (filled(&house, REGISTERED)?, filled(&house, REGISTERED)?);
    // SAFETY: the block is live and nobody else's.
    unsafe { std::ptr::write_bytes(to as *mut u8, 0, BYTES as usize) };
    let seams = house.process.host_block_seams("test", from)?;
    let ends: Vec<u64> = (1..=BYTES.div_ceil(REGISTERED))
        .map(|part| part * REGISTERED)
        .collect();
    ensure!(
        seams == ends,
        "the seams are told as {seams:?}, not {ends:?}"
    );
    Lists::of(from, device).copy(&house, Way::ToDevice, &stream)?;
    Lists::of(to, device).copy(&house, Way::ToHost, &stream)?;
    house.machine.synchronize()?;
    // SAFETY: both are live, and no work uses them.
    let [one, other] =
        [from, to].map(|at| unsafe { std::slice::from_raw_parts(at as *const u8, BYTES as usize) });
    ensure!(one == other, "what came back differs");
    for block in [from, to] {
        (house.process).free_host(HostKind::Pinned, block, None, None)?;
    }
    house.free(device)?;
    house.finish()
}

/// The simulated driver refuses what crosses; seams go with their block, and stay while it does.
pub fn seams_of_blocks() -> Outcome {
    let house = House::plain()?;
    let sim = house.sim()?;
    let stream = OwnedStream::create(&house.machine.device)?;
    let device = house.allocate(Kind::Vmm, BYTES, stream.stream())?;
    let block = filled(&house, REGISTERED)?;
    let seams: Vec<u64> = (1..5).map(|part| block + part * REGISTERED).collect();
    let lists = Lists::of(block, device);
    house.process.host_seams().remove(&seams[2..3]);
    let error = lists.copy(&house, Way::ToDevice, &stream).err();
    let error = error.ok_or("the driver copied over a seam")?.to_string();
    ensure!(error.contains("piece 3 of 4"), "{error}");
    house.process.host_seams().add(&seams);
    lists.copy(&house, Way::ToDevice, &stream)?;
    house.machine.synchronize()?;
    // The third registration of those that are given back last first.
    sim.fail_once("cuMemHostUnregister", 3, 999);
    let refused = (house.process).free_host(HostKind::Pinned, block, None, None);
    ensure!(refused.is_err(), "it was unregistered");
    sim.fail_clear();
    let calls = sim.calls("cuMemcpyHtoDAsync_v2");
    let first_three = Lists {
        bytes: vec![1000, MIB as usize, REGISTERED as usize + 2, 0],
        ..Lists::of(block, device)
    };
    first_three.copy(&house, Way::ToDevice, &stream)?;
    let pieces = sim.calls("cuMemcpyHtoDAsync_v2") - calls;
    ensure_eq!(pieces, 5, "copies while it is still there");
    house.machine.synchronize()?;
    (house.process).free_host(HostKind::Pinned, block, None, None)?;
    let whole = filled(&house, 0)?;
    let calls = sim.calls("cuMemcpyHtoDAsync_v2");
    Lists::of(whole, device).copy(&house, Way::ToDevice, &stream)?;
    let pieces = sim.calls("cuMemcpyHtoDAsync_v2") - calls;
    ensure_eq!(pieces, 4, "copies of a block of one registration");
    house.machine.synchronize()?;
    (house.process).free_host(HostKind::Pinned, whole, None, None)?;
    house.free(device)?;
    house.finish()
}
