//! Algorithms and data structures that know no GPU and need no unsafe code, so that Miri, property
//! tests and fuzzers can run them.
#![forbid(unsafe_code)]

pub mod address_index;
pub mod append_list;
pub mod gate;
pub mod gauge;
pub mod limit;
pub mod ownership;
pub mod radix;
pub mod seams;
pub mod size;
pub mod size_index;
pub mod space;
pub mod stack;
pub mod sync;
pub mod tags;
