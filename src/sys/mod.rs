//! Foreign ABIs and nothing else: the driver's symbols, CUDA's or HIP's, opened at run time, and Linux.

pub mod atomics;
pub mod biased;
pub mod cuda;
pub mod descriptors;
#[cfg(test)]
pub mod faked;
pub mod heap;
pub mod hip;
pub mod installed;
pub mod library;
pub mod limits;
pub mod linux;
pub mod local;
pub mod meter;
pub mod numa;
pub mod pages;
pub mod pieces;
pub mod policy;
pub mod scratch;
pub mod shm;
pub mod spin;
pub mod thread_mark;
pub mod unshared;
