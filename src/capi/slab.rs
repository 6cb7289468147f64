//! Memory of the host that grows.

use super::{export, read_struct, text_argument, write_list, write_out, write_struct};
use crate::error::Result;
use crate::observe;
use crate::process::slabs::SlabSpec;
use crate::source::slab::Part;
use std::ffi::c_char;
use std::time::{Duration, Instant};

/// A slab: memory of the host that grows, part by part, in one range of addresses.
#[allow(non_camel_case_types)]
pub struct hbm_slab_t {
    _opaque: [u8; 0],
}

/// In `hbm_slab_desc_t.flags`: `numa_node` is the node that the slab is to be on.
pub const HBM_SLAB_ON_NODE: u32 = 1;
/// In `hbm_slab_desc_t.flags`: not pinned, and no driver needed.
pub const HBM_SLAB_PAGEABLE: u32 = 2;
/// In `hbm_slab_desc_t.flags`: from huge pages of 2 MiB that were set aside, all of them reserved at once.
pub const HBM_SLAB_HUGE_PAGES: u32 = 4;

/// What a slab is to be. Zeros are the defaults, but for `bytes`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_slab_desc_t {
    /// sizeof(hbm_slab_desc_t) as the program was compiled.
    pub struct_size: usize,
    /// Its length once it is grown; rounded up to 2 MiB from there on, to 4 KiB below.
    pub bytes: u64,
    /// How much of it is there, and pinned, when hbm_slab_open returns; 0 for all of it.
    pub initial_bytes: u64,
    /// The most that growing registers at once, until an object needs more in one piece; 0 for 256 MiB. Other driver calls wait
    /// while it does.
    pub part_bytes: u64,
    /// How fast it grows while nobody waits; 0 for 8 GiB a second.
    pub bytes_per_second: u64,
    /// HBM_SLAB_ flags, or 0.
    pub flags: u32,
    /// The node, with HBM_SLAB_ON_NODE.
    pub numa_node: i32,
    /// A name as of hbm_alloc_shm_pinned_ptr, for other processes to attach to by hbm_attach_shm_pinned_ptr, or NULL. Such a
    /// slab does not grow.
    pub shm_name: *const c_char,
}

/// How far a slab is.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_slab_stats_t {
    /// sizeof(hbm_slab_stats_t) as the program was compiled.
    pub struct_size: usize,
    /// Its first address, which stays; aligned to 2 MiB from that length on, else to 4 KiB.
    pub address: u64,
    /// Its length once it is grown, all of it addresses of its own.
    pub bytes: u64,
    /// Bytes from the first address on that are there, and pinned.
    pub ready: u64,
    /// Bytes that it grows to now.
    pub target: u64,
    /// In how many parts they are registered.
    pub parts: u64,
    /// Whether it grows: 1 or 0.
    pub is_growing: i32,
    /// Why it stopped before the target, as a status: hbm_slab_wait says it in words. 0 if it did not.
    pub failure: i32,
}

fn number(slab: *mut hbm_slab_t) -> u64 {
    slab as usize as u64
}

/// As many milliseconds from now; for ever where they are negative.
pub(super) fn deadline(milliseconds: i64) -> Option<Instant> {
    let left = u64::try_from(milliseconds).ok()?;
    Instant::now().checked_add(Duration::from_millis(left))
}

/// Opens a slab: addresses for all of it, memory for the first part of it, and a thread of ours that adds the rest at
/// a pace, part by part. Zeros at first. What the machine has not got for the first part is HBM_OUT_OF_MEMORY; where the
/// rest fails it stops growing, what is there stays, and hbm_slab_stats tells. Any thread.
///
/// # Safety
/// `descriptor` must point to a filled-in descriptor, `out` be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_slab_open(
    descriptor: *const hbm_slab_desc_t,
    out: *mut *mut hbm_slab_t,
) -> i32 {
    const OPERATION: &str = "hbm_slab_open";
    export(|| {
        // SAFETY: passed on to the caller.
        let wanted = unsafe { read_struct(OPERATION, descriptor, &[])? };
        if out.is_null() {
            // SAFETY: it is NULL, which is the error.
            return unsafe { write_out(OPERATION, out, std::ptr::null_mut()) };
        }
        // SAFETY: passed on to the caller.
        let spec = unsafe { spec_of(&wanted)? };
        let number = observe::process().open_slab(OPERATION, &spec)?;
        // SAFETY: passed on to the caller.
        unsafe { write_out(OPERATION, out, number as usize as *mut hbm_slab_t) }
    })
}

/// # Safety
/// The name must be NULL or a C string.
unsafe fn spec_of<'a>(wanted: &hbm_slab_desc_t) -> Result<SlabSpec<'a>> {
    const OPERATION: &str = "hbm_slab_open";
    let has = |flag: u32| wanted.flags & flag != 0;
    let known = HBM_SLAB_ON_NODE | HBM_SLAB_PAGEABLE | HBM_SLAB_HUGE_PAGES;
    if wanted.flags & !known != 0 {
        return Err(crate::error::Error::invalid(
            OPERATION,
            format!("flags {:#x}", wanted.flags),
        ));
    }
    Ok(SlabSpec {
        bytes: wanted.bytes,
        first: match wanted.initial_bytes {
            0 => wanted.bytes,
            first => first,
        },
        part: wanted.part_bytes,
        pace: wanted.bytes_per_second,
        node: has(HBM_SLAB_ON_NODE).then_some(wanted.numa_node),
        is_pinned: !has(HBM_SLAB_PAGEABLE),
        is_set_aside: has(HBM_SLAB_HUGE_PAGES),
        name: match wanted.shm_name.is_null() {
            true => None,
            // SAFETY: passed on to the caller.
            false => Some(unsafe { text_argument(OPERATION, "shm_name", wanted.shm_name)? }),
        },
    })
}

/// Gives a slab back: its thread ends, its memory is unpinned and unmapped. Waits for the devices' work. HBM_BUSY while a
/// pool of objects is open on it. Where the driver does not let go of a part, that and its error stay until another call.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_slab_close(slab: *mut hbm_slab_t) -> i32 {
    export(|| observe::process().close_slab("hbm_slab_close", number(slab)))
}

/// Writes how far a slab is.
///
/// # Safety
/// `out` must point to a struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_slab_stats(slab: *mut hbm_slab_t, out: *mut hbm_slab_stats_t) -> i32 {
    export(|| {
        let open = observe::process().slab("hbm_slab_stats", number(slab))?;
        let slab = open.slab();
        let progress = slab.progress();
        let stats = hbm_slab_stats_t {
            struct_size: size_of::<hbm_slab_stats_t>(),
            address: slab.address(),
            bytes: slab.bytes(),
            ready: progress.ready,
            target: progress.target,
            parts: progress.parts as u64,
            is_growing: i32::from(progress.is_growing),
            failure: progress.failure.map_or(0, |error| error.status() as i32),
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_slab_stats", out, &stats) }
    })
}

/// Writes where the parts of a slab end, as bytes from its first address, and how many they are; one copy may not cross from
/// one part into the next. At most `capacity` are written.
///
/// # Safety
/// `ends` must have room for `capacity` numbers or be NULL with capacity 0, `count` be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_slab_seams(
    slab: *mut hbm_slab_t,
    ends: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    export(|| {
        let open = observe::process().slab("hbm_slab_seams", number(slab))?;
        let base = open.slab().address();
        let parts = open.slab().parts_from(0);
        let end = |part: &Part| part.address + part.bytes - base;
        let found: Vec<u64> = parts.iter().map(end).collect();
        // SAFETY: passed on to the caller.
        unsafe { write_list("hbm_slab_seams", &found, ends, capacity, count) }
    })
}

/// Waits until `bytes` of a slab are there, at most so many milliseconds, for as long as it grows if they are negative;
/// growing makes haste meanwhile. Returns what stopped it before, if something did. That the time is over is no error, nor that it
/// was shrunk or told to grow to less meanwhile: hbm_slab_stats says how many there are.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_slab_wait(slab: *mut hbm_slab_t, bytes: u64, milliseconds: i64) -> i32 {
    export(|| {
        let open = observe::process().slab("hbm_slab_wait", number(slab))?;
        open.slab()
            .wait_for_bytes(bytes, deadline(milliseconds))
            .map(drop)
    })
}

/// Has a slab grow up to `bytes`, rounded up to 2 MiB, in the background: after it was shrunk or stopped by a failure, or to less than
/// it is growing to.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_slab_grow(slab: *mut hbm_slab_t, bytes: u64) -> i32 {
    export(|| {
        let open = observe::process().slab("hbm_slab_grow", number(slab))?;
        open.slab().grow(bytes)
    })
}

/// Stops a slab from growing and gives whole parts of it back from the end, while `least` bytes stay; the first part always
/// does. Their addresses stay the slab's. On a slab with a pool of objects, those that no object is in; on another, the
/// caller vouches that nobody uses them. Writes the bytes given back to `*released` (which may be NULL).
///
/// # Safety
/// `released` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_slab_shrink(
    slab: *mut hbm_slab_t,
    least: u64,
    released: *mut u64,
) -> i32 {
    export(|| {
        let given_back = observe::process().shrink_slab("hbm_slab_shrink", number(slab), least)?;
        match released.is_null() {
            true => Ok(()),
            // SAFETY: passed on to the caller.
            false => unsafe { write_out("hbm_slab_shrink", released, given_back) },
        }
    })
}
