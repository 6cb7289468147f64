//! Sleep and wake: what a tag's memory holds is saved and its chunks go, while its addresses stay; later
//! new chunks come and are filled. Named by tags, done device by device, all or nothing.
#![forbid(unsafe_code)]

mod file;
mod host;
mod leaving;
mod plan;
mod report;
mod room;
mod saved;
mod sleep;
mod wake;

pub use file::FileStore;
pub use host::{HostStore, HostUse};
pub use plan::{Choice, Dead, Site};
pub use report::{Amounts, Report};
pub use room::prepare;
pub use saved::OnHost;
pub use sleep::{Manner, Stores, To, sleep};
pub use wake::wake;

/// Copies of so many bytes stand behind one event: enough for the link's full speed (55 GB/s from 32 MiB
/// on, 51 to 54 at 4 MiB, one H200 over PCIe Gen5), and little enough that what is done is soon given back.
const GROUP_BYTES: u64 = 32 << 20;
