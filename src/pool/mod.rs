//! The caching pool. It hands addresses out in tens of nanoseconds and moves physical memory to where
//! it is needed instead of asking for more.
//!
//! A request goes down these steps, each dearer than the one before: a block of just this size that the
//! thread freed before (`cache.rs`); memory that is free in the stream's order (`device.rs`); memory
//! of other streams whose work is done (`settle.rs`); free chunks moved to where they are needed, new
//! chunks, and, when the device has no more, whatever can be waited for and given back (`growth.rs`).
#![forbid(unsafe_code)]

mod arena;
pub mod backing;
mod cache;
pub mod counters;
mod device;
mod doze;
mod ending;
mod exchange;
mod fold;
mod freeing;
mod growth;
mod heap;
mod keys;
mod local;
mod movable;
mod order;
mod pace;
mod pending;
mod policy;
mod pools;
mod reset;
mod retired;
mod settle;
pub mod stack;
pub mod stats;
mod tally;
mod visit;
mod waiting;
mod word;

pub use device::{DevicePool, Placing};
pub use doze::Dozing;
pub use heap::{GraphId, HeapKey};
pub use order::Order;
pub use pools::{Freed, Named, Pools, thread_number};
pub use retired::Footprint;
pub use word::LARGEST;
