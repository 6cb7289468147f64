//! The C interface. Each export checks, calls and translates; nothing of ours calls an export.

mod activity;
mod allocator;
mod allocator_kinds;
mod arena;
mod block_stats;
mod cells;
mod copies;
mod custom;
mod descriptor;
mod device;
mod graphs;
mod host;
mod host_buffer;
mod host_nodes;
mod limits;
mod objects;
mod options;
mod python;
mod residency;
mod sharing;
mod slab;
mod stats;
mod status;
mod streams;
mod tags;

pub use activity::*;
pub use allocator::*;
pub use arena::*;
pub use block_stats::*;
pub use cells::*;
pub use copies::*;
pub use descriptor::{hbm_allocator_desc_t, hbm_custom_t, hbm_kind, hbm_location, hbm_numa_policy};
pub use device::*;
pub use graphs::*;
pub use host::*;
pub use host_nodes::*;
pub use limits::*;
pub use objects::*;
pub use options::*;
pub use python::*;
pub use residency::*;
pub use sharing::*;
pub use slab::*;
pub use stats::*;
pub use status::*;
pub use streams::*;
use tags::write_name;
pub use tags::*;

use crate::error::{Error, Result, Status};
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the body of an export: remembers its error for the calling thread, and lets no panic cross
/// into C.
fn export(body: impl FnOnce() -> Result<()>) -> i32 {
    export_at_once(body)
}

/// [`export`] where a call and what is passed by it would be felt.
#[inline(always)]
fn export_at_once(body: impl FnOnce() -> Result<()>) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(Error::new(Status::Internal, "export").detail("a panic was caught; please report it"))
    });
    match outcome {
        Ok(()) => Status::Ok as i32,
        Err(error) => remember(error),
    }
}

#[cold]
fn remember(error: Error) -> i32 {
    let status = error.status() as i32;
    crate::error::last::remember(error);
    status
}

/// # Safety
/// `text` must be null or a C string that outlives the result.
unsafe fn text_argument<'a>(
    operation: &'static str,
    name: &'static str,
    text: *const c_char,
) -> Result<&'a str> {
    if text.is_null() {
        return Err(Error::invalid(operation, format!("{name} is NULL")));
    }
    // SAFETY: passed on to the caller.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| Error::invalid(operation, format!("{name} is not UTF-8")))
}

/// # Safety
/// `out` must be null or valid for a write.
unsafe fn write_out<T>(operation: &'static str, out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return Err(Error::invalid(operation, "the out-pointer is NULL"));
    }
    // SAFETY: passed on to the caller.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes values as far as `capacity` reaches, and how many there are.
///
/// # Safety
/// `out` must be null or have room for `capacity` values, `count` be null or valid for a write.
unsafe fn write_list<T: Copy>(
    operation: &'static str,
    values: &[T],
    out: *mut T,
    capacity: usize,
    count: *mut usize,
) -> Result<()> {
    if out.is_null() && capacity > 0 {
        return Err(Error::invalid(operation, "the list is NULL"));
    }
    // SAFETY: passed on to the caller.
    unsafe { write_out(operation, count, values.len()) }?;
    for (place, value) in values.iter().take(capacity).enumerate() {
        // SAFETY: below `capacity`, which the caller vouches for.
        unsafe { out.add(place).write(*value) };
    }
    Ok(())
}

/// Writes an out-struct, as much of it as the caller's version has. `T`'s first field is its size.
///
/// # Safety
/// `out` must be null or point to a struct whose first field, `struct_size`, says how many bytes of
/// it may be written.
unsafe fn write_struct<T>(operation: &'static str, out: *mut T, value: &T) -> Result<()> {
    if out.is_null() {
        return Err(Error::invalid(operation, "the out-pointer is NULL"));
    }
    // SAFETY: passed on to the caller: the first field is a size.
    let size = unsafe { out.cast::<usize>().read() };
    if size < size_of::<usize>() {
        return Err(Error::invalid(
            operation,
            format!("struct_size is {size} bytes; set it to the size of the struct"),
        ));
    }
    let header = size_of::<usize>();
    let len = size.min(size_of::<T>()) - header;
    // SAFETY: `len` bytes behind the first field lie in both structs; the size stays the caller's.
    unsafe {
        out.cast::<u8>()
            .add(header)
            .copy_from_nonoverlapping(std::ptr::from_ref(value).cast::<u8>().add(header), len);
    }
    Ok(())
}

/// Reads a descriptor whose version may be older, of one of `older_sizes`, or newer than ours:
/// fields it lacks are zero, and fields we lack must be.
///
/// # Safety
/// `descriptor` must be null or point to as many bytes as its first field says.
unsafe fn read_struct<T: Copy>(
    operation: &'static str,
    descriptor: *const T,
    older_sizes: &[usize],
) -> Result<T> {
    if descriptor.is_null() {
        return Err(Error::invalid(operation, "the descriptor is NULL"));
    }
    // SAFETY: passed on to the caller: the first field is a size.
    let size = unsafe { descriptor.cast::<usize>().read() };
    let is_newer = (size_of::<T>()..=1 << 16).contains(&size);
    if !is_newer && !older_sizes.contains(&size) {
        return Err(Error::invalid(
            operation,
            format!("struct_size is {size} bytes; set it to the size of the struct"),
        ));
    }
    // SAFETY: passed on to the caller: that many bytes are readable.
    let bytes = unsafe { std::slice::from_raw_parts(descriptor.cast::<u8>(), size) };
    let known = size.min(size_of::<T>());
    if bytes[known..].iter().any(|byte| *byte != 0) {
        return Err(Error::invalid(
            operation,
            "the descriptor sets fields that this version of the library does not know",
        )
        .advice("Use a newer library, or the header of this one"));
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: descriptors are plain C structs of integers and pointers, for which every byte
    // pattern is a value; `known` bytes fit in both.
    unsafe {
        value
            .as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr(), known);
        Ok(value.assume_init())
    }
}
