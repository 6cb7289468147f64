//! Objects on memory of the host: batches of equal blocks, given out and taken back in tens of nanoseconds, with
//! counts of who holds them. What is known of them lies apart from their memory.
//!
//! A record an object (`record`), in whose word everybody who holds it is counted (`word`). Memory that was given back
//! waits on shelves for objects of the same size, a shelf for a few threads (`shelf`); behind them is one space with
//! the segregated fit of `core::space` (`stock`). Objects begin and end with a shelf locked, so that
//! who has locked them all, and the stock after them, sees everything at rest but counts of those who hold one (`check`).
#![forbid(unsafe_code)]

mod check;
mod holding;
pub mod layout;
mod pins;
mod pool;
mod record;
mod shelf;
mod stock;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_on_slabs;
mod word;

pub use pool::{Memory, Object, ObjectPool, Shortage, Usage};
