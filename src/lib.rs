//! The allocator library.
