//! Many copies in one call.

use super::export;
use crate::error::{Error, Result};
use crate::gpu::{Stream, Way};
use crate::observe;
use crate::sys::pieces::Pieces;
use std::ffi::{c_int, c_void};

/// Between which memories a batch copies.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_copy_direction {
    /// On the host.
    HBM_COPY_ON_HOST = 0,
    /// From the host to a device.
    HBM_COPY_TO_DEVICE = 1,
    /// From a device to the host.
    HBM_COPY_TO_HOST = 2,
}

const OPERATION: &str = "hbm_memcpy_batch";

/// Copies `count` pieces, `sizes[i]` bytes from `sources[i]` to `destinations[i]`; those of size 0 are left out.
/// `direction` is of hbm_copy_direction. On the host it returns when all is copied, as if one piece after another (they
/// may overlap), by several threads from 4 MiB on; no driver is needed, `device` and `stream` are not looked at.
/// Else it gives the copies to `stream` of `device` in that order and returns; the host's memory, pinned best, must stay until
/// the stream has done them. Pieces may lie anywhere in blocks of hbm_alloc_pinned_ptr and its like: they are cut
/// where the driver needs it. What the driver refuses is an error that names the piece; those before it are under way.
///
/// # Safety
/// The three arrays must have `count` elements, or be NULL where that is 0; each piece must be readable at its source
/// and writable at its destination until it is copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_memcpy_batch(
    destinations: *const *mut c_void,
    sources: *const *const c_void,
    sizes: *const usize,
    count: usize,
    direction: c_int,
    device: c_int,
    stream: *mut c_void,
) -> c_int {
    export(|| {
        let way = match direction {
            0 => None,
            1 => Some(Way::ToDevice),
            2 => Some(Way::ToHost),
            other => {
                return Err(Error::invalid(OPERATION, format!("direction {other}"))
                    .advice("It is 0 on the host, 1 to the device, 2 to the host"));
            }
        };
        // SAFETY: passed on to the caller.
        let pieces = unsafe {
            let (to, from) = (list(destinations, count)?, list(sources, count)?);
            Pieces::new(OPERATION, to, from, list(sizes, count)?)
        }?;
        match way {
            None => pieces.copy_on_host(),
            Some(way) => {
                let stream = Stream::from_raw(stream);
                observe::process().copy_batch(way, &pieces, device, stream)?;
            }
        }
        Ok(())
    })
}

/// # Safety
/// `array` must have `count` elements where it is not null.
unsafe fn list<'a, T>(array: *const T, count: usize) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if array.is_null() || !array.is_aligned() || count > isize::MAX as usize / size_of::<T>() {
        let detail = format!("{array:p} is no array of {count} elements");
        return Err(Error::invalid(OPERATION, detail));
    }
    // SAFETY: passed on to the caller.
    Ok(unsafe { std::slice::from_raw_parts(array, count) })
}
