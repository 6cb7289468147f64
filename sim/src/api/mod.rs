//! The exports, one file a chapter of the driver's manual. Each checks its arguments, calls one verb and writes its answer.

mod contexts;
mod copies;
mod devices;
mod events;
mod graphs;
mod hip;
mod host;
mod managed;
mod memory;
mod pointers;
mod pools;
mod process;
mod streams;
mod symbols;
mod vmm;

pub use hip::here as enter_hip_device;
pub use symbols::find as find_symbol;
