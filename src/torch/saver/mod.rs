//! torch_memory_saver's functions, under its names: its Python finds them in this library and in the preload library.
//! What is allocated in a region has a tag that says where its contents go, so a pause is a sleep of such tags. Its own
//! library ends the process on every error; here they are statuses.

mod backup;
mod exports;

pub use exports::*;
