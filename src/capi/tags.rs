//! Tags: names that group blocks for statistics, limits and placement.

use super::{export, text_argument};
use crate::config::value::Placement;
use crate::core::tags::TagId;
use crate::error::{Error, Result};
use crate::observe;
use crate::process::{has_forked, placement, tags};
use std::ffi::{c_char, c_void};

/// Where memory of a tag lives.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_placement {
    /// As the option `placement` says, and else as the kind of memory does.
    HBM_PLACEMENT_OPTION = 0,
    /// In the memory of the device, as far as there is room.
    HBM_PLACEMENT_DEVICE = 1,
    /// In the memory of the host, mapped for the device, which reads and writes it there.
    HBM_PLACEMENT_HOST = 2,
    /// Where the driver thinks best: managed memory gets no advice and no prefetch.
    HBM_PLACEMENT_NONE = 3,
}

/// Says where memory of the tag `name` lives: an hbm_placement. It holds for memory taken from the
/// driver from here on, in the whole process; blocks there are, and cached memory, stay where they
/// are. The pool over virtual memory asks once, at the first block of a tag for a stream, an allocator
/// and a graph, and goes by that from then on: place a tag before it is used. An allocator whose
/// descriptor names a location keeps to that.
///
/// Managed memory follows by advice: the device, as without a tag; or the host, at the NUMA node
/// nearest to the device, without prefetch, and mapped for the device where that has concurrent
/// access. Virtual memory, and the pool's over it, is made on that node, pinned and mapped for the
/// device, which reads it over the link; HBM_UNSUPPORTED at the allocation where the driver cannot.
/// What the pool holds of the host never serves the device's tags, nor the other way round. Device and
/// stream-ordered memory is the device's, and that of the pool over it: with HBM_PLACEMENT_HOST their
/// allocations are HBM_UNSUPPORTED; so are those of pinned memory, which is the host's, with
/// HBM_PLACEMENT_DEVICE. Memory placed on the host takes nothing of the device's limit.
/// Any thread; makes no driver call.
///
/// # Safety
/// `name` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_tag_place(name: *const c_char, placement: i32) -> i32 {
    export(|| {
        const OPERATION: &str = "hbm_tag_place";
        // SAFETY: passed on to the caller.
        let name = unsafe { text_argument(OPERATION, "name", name)? };
        let placement = match placement {
            0 => None,
            1 => Some(Placement::Device),
            2 => Some(Placement::Host),
            3 => Some(Placement::None),
            other => {
                return Err(
                    Error::invalid(OPERATION, format!("placement {other} is none"))
                        .advice("Placements: 0 as the option says, 1 device, 2 host, 3 none"),
                );
            }
        };
        placement::place(name, placement)
    })
}

/// What the calling thread allocates from here on has the tag `name`, until hbm_tag_pop. A name has 1
/// to 255 bytes of UTF-8; it is copied. Tags nest: the one pushed last counts. Blocks of allocators
/// that have a tag of their own keep that one. Threads that this thread starts inherit nothing: see
/// hbm_set_default_tag. There can be 65535 names in a process; HBM_BUSY for one more. Makes no
/// driver call; in a forked child it does nothing.
///
/// # Safety
/// `name` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_tag_push(name: *const c_char) -> i32 {
    // SAFETY: passed on to the caller.
    export(|| tags::push(unsafe { text_argument("hbm_tag_push", "name", name)? }))
}

/// Undoes the calling thread's last hbm_tag_push. HBM_INVALID_ARGUMENT where there is none. Blocks
/// allocated meanwhile keep their tag.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_tag_pop() -> i32 {
    export(tags::pop)
}

/// Sets the tag of what threads allocate that have pushed none, in the whole process; NULL for no tag,
/// which is how it begins. Names as in hbm_tag_push. Any thread; makes no driver call.
///
/// # Safety
/// `name` must be NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_set_default_tag(name: *const c_char) -> i32 {
    export(|| {
        if name.is_null() {
            return tags::set_default(None);
        }
        // SAFETY: passed on to the caller.
        let name = unsafe { text_argument("hbm_set_default_tag", "name", name)? };
        tags::set_default(Some(name))
    })
}

/// Writes the name of the tag that the calling thread's next block gets to `buffer`, with its final
/// zero; the empty text for no tag. 256 bytes hold every name; HBM_INVALID_ARGUMENT where `capacity`
/// is too small, and nothing is written.
///
/// # Safety
/// `buffer` must be valid for a write of `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_tag_current(buffer: *mut c_char, capacity: usize) -> i32 {
    // SAFETY: passed on to the caller.
    export(|| unsafe { write_name("hbm_tag_current", tags::current(), buffer, capacity) })
}

/// Writes the name of the tag of the block that begins at `address`, as hbm_tag_current does.
/// HBM_NOT_OWNED for an address that is no block.
///
/// # Safety
/// `buffer` must be valid for a write of `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_tag_of(
    address: *const c_void,
    buffer: *mut c_char,
    capacity: usize,
) -> i32 {
    export(|| {
        let tag = observe::process().tag_of(address as u64)?;
        // SAFETY: passed on to the caller.
        unsafe { write_name("hbm_tag_of", tag, buffer, capacity) }
    })
}

/// # Safety
/// `buffer` must be null or valid for a write of `capacity` bytes.
pub(super) unsafe fn write_name(
    operation: &'static str,
    tag: TagId,
    buffer: *mut c_char,
    capacity: usize,
) -> Result<()> {
    if buffer.is_null() {
        return Err(Error::invalid(operation, "the buffer is NULL"));
    }
    let name = match has_forked() {
        true => "",
        false => tags::table().name(tag).map_or("", |name| &**name),
    };
    if capacity <= name.len() {
        return Err(Error::invalid(
            operation,
            format!(
                "the name and its final zero need {} bytes, the buffer has {capacity} bytes",
                name.len() + 1
            ),
        )
        .advice("256 bytes hold every name"));
    }
    // SAFETY: a name and one byte more fit, and texts of Rust do not overlap memory of the caller.
    unsafe {
        buffer
            .cast::<u8>()
            .copy_from_nonoverlapping(name.as_ptr(), name.len());
        buffer.add(name.len()).write(0);
    }
    Ok(())
}
