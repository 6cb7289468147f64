//! Foreign ABIs and nothing else: the driver's symbols, opened at run time, and Linux.

pub mod cuda;
pub mod descriptors;
pub mod library;
pub mod linux;
pub mod meter;
pub mod pages;
pub mod scratch;
