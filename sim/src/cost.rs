//! The virtual clock: what the real driver would have spent in the calls made so far. It makes two designs comparable on a machine without a GPU.
//! Figures: one H200, driver 580.159, CUDA 13.0, PCIe Gen5 x16; medians. Between two measured sizes the cost is interpolated, past the last one extrapolated.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static CLOCK: AtomicU64 = AtomicU64::new(0);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Pairs of (bytes, nanoseconds), sizes rising.
pub type Curve = &'static [(u64, u64)];

pub const RESERVE: Curve = &[
    (2 * MIB, 600),
    (256 * MIB, 1_800),
    (GIB, 1_800),
    (8 * GIB, 2_300),
    (64 << 40, 20_000),
];
/// Past 8 GiB not measured: taken to rise as reserving does.
pub const ADDRESS_FREE: Curve = &[
    (2 * MIB, 400),
    (256 * MIB, 1_900),
    (GIB, 2_000),
    (8 * GIB, 4_000),
    (64 << 40, 22_000),
];
pub const CREATE: Curve = &[
    (2 * MIB, 7_000),
    (256 * MIB, 9_000),
    (GIB, 14_000),
    (8 * GIB, 239_000),
];
pub const RELEASE: Curve = &[
    (2 * MIB, 9_000),
    (256 * MIB, 69_000),
    (GIB, 255_000),
    (8 * GIB, 1_993_000),
];
pub const MAP: Curve = &[(2 * MIB, 600), (GIB, 700), (8 * GIB, 800)];
/// A handle and a device: stitching pays it again for every peer.
pub const SET_ACCESS: Curve = &[
    (2 * MIB, 24_000),
    (64 * MIB, 25_000),
    (256 * MIB, 38_000),
    (GIB, 63_000),
    (8 * GIB, 234_000),
];
/// A handle and a device that had access.
pub const UNMAP: Curve = &[
    (2 * MIB, 16_000),
    (32 * MIB, 15_000),
    (256 * MIB, 20_000),
    (GIB, 29_000),
    (8 * GIB, 86_000),
];
pub const DEVICE_ALLOC: Curve = &[(512, 27_000), (20 * MIB, 31_000), (GIB, 70_000)];
pub const DEVICE_FREE: Curve = &[(512, 24_000), (20 * MIB, 28_000), (GIB, 287_000)];
pub const MANAGED_ALLOC: Curve = &[(4 * KIB, 9_000), (GIB, 19_000)];
pub const MANAGED_FREE: Curve = &[(4 * KIB, 23_000), (GIB, 5_200_000)];
/// Pages moved by a prefetch, on the device's time.
pub const PREFETCH: Curve = &[(4 * KIB, 6_000), (GIB, 3_340_000)];
/// 2.7 GB/s at 1 GiB, 2.4 at 4 GiB.
pub const HOST_ALLOC: Curve = &[
    (4 * KIB, 10_000),
    (GIB, 397_000_000),
    (4 * GIB, 1_790_000_000),
];
pub const HOST_FREE: Curve = &[(4 * KIB, 10_000), (4 * GIB, 364_000_000)];
/// Populated memory with huge pages.
pub const REGISTER: Curve = &[(4 * KIB, 5_000), (4 * GIB, 74_000_000)];
pub const UNREGISTER: Curve = &[(4 * KIB, 5_000), (4 * GIB, 60_000_000)];
/// An order point over the context while work is in flight, past what an idle one costs.
pub const CONTEXT_RECORD_BUSY: u64 = 7_360;
/// A pool that has to grow asks for memory as a plain allocation does.
pub const POOL_GROW: Curve = DEVICE_ALLOC;

/// Device time of copies, in bytes a microsecond: pinned over the link, pageable in, pageable out, and on the card.
pub const LINK: u64 = 55_300;
pub const PAGEABLE_IN: u64 = 8_800;
pub const PAGEABLE_OUT: u64 = 18_000;
/// Not measured: half of the card's 4.8 TB/s for a copy (it reads and writes), all of it for a fill.
pub const ON_CARD: u64 = 2_400_000;
pub const FILL: u64 = 4_800_000;
/// Between two cards of one host over NVLink; not measured.
pub const PEER_LINK: u64 = 400_000;
/// What the shortest operation takes on the device.
pub const SHORTEST: u64 = 1_500;

pub fn interpolate(curve: Curve, bytes: u64) -> u64 {
    let first = curve[0];
    if bytes <= first.0 || curve.len() == 1 {
        return first.1;
    }
    let at = curve
        .iter()
        .position(|point| bytes <= point.0)
        .unwrap_or(curve.len() - 1);
    let (low, high) = (curve[at - 1], curve[at]);
    let span = (high.0 - low.0) as f64;
    let slope = (high.1 as f64 - low.1 as f64) / span;
    (low.1 as f64 + slope * (bytes - low.0) as f64).max(0.0) as u64
}

/// Device time for moving bytes at a rate in bytes a microsecond.
pub fn transfer(bytes: u64, rate: u64) -> u64 {
    SHORTEST + (bytes as u128 * 1000 / rate as u128) as u64
}

pub fn charge(nanoseconds: u64) {
    CLOCK.fetch_add(nanoseconds, Relaxed);
}

pub fn now() -> u64 {
    CLOCK.load(Relaxed)
}

pub fn reset() {
    CLOCK.store(0, Relaxed);
}
