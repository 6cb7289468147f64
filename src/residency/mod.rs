//! Sleep and wake: what a tag's memory holds is saved and its chunks go, while its addresses stay; later
//! new chunks come and are filled. Named by tags, done device by device, all or nothing.
#![forbid(unsafe_code)]

mod file;
mod host;
mod leaving;
mod plan;
mod room;
mod saved;
mod sleep;
mod wake;

pub use file::FileStore;
pub use host::{HostStore, HostUse};
pub use plan::{Choice, Dead, Site};
pub use room::prepare;
pub use sleep::{Manner, Stores, To, sleep};
pub use wake::wake;

/// What an operation did on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the device's memory given back, or had again.
    pub moved: u64,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes whose chunks have to stay where they are.
    pub pinned: u64,
    /// The stretches that lost their chunks or got new ones: device, first address and length.
    pub ranges: Vec<(i32, u64, u64)>,
}

impl Report {
    /// Notes a stretch.
    fn note(&mut self, device: i32, address: u64, bytes: u64) {
        self.moved += bytes;
        match self.ranges.last_mut() {
            Some((on, begin, length)) if *on == device && *begin + *length == address => {
                *length += bytes;
            }
            _ => self.ranges.push((device, address, bytes)),
        }
    }

    /// Adds what was done elsewhere.
    pub fn add(&mut self, other: Report) {
        self.moved += other.moved;
        self.copied += other.copied;
        self.pinned += other.pinned;
        self.ranges.extend(other.ranges);
    }
}

/// Copies of so many bytes stand behind one event: enough for the link's full speed (55 GB/s from 32 MiB
/// on, 51 to 54 at 4 MiB, one H200 over PCIe Gen5), and little enough that what is done is soon given back.
const GROUP_BYTES: u64 = 32 << 20;
