//! hbmalloc owns the memory of deep-learning programs: on the GPU, pinned on the host, and on the
//! way between them. `docs/design.md` explains the layers; a layer uses only those above it here.
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[allow(unsafe_code)]
pub mod capi;
pub mod config;
pub mod core;
pub mod error;
pub mod extent;
#[allow(unsafe_code)]
pub mod gpu;
pub mod object;
pub mod observe;
pub mod pool;
pub mod process;
pub mod registry;
pub mod residency;
#[cfg(feature = "cli")]
#[allow(unsafe_code)]
pub mod selftest;
pub mod source;
#[allow(unsafe_code)]
pub mod sys;
#[allow(unsafe_code)]
pub mod torch;
