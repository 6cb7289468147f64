//! Allocators as objects: one interface over every kind of source.

use super::allocator_kinds::Allocator;
use super::arena;
use super::descriptor::{Backing, OLDER_SIZES, hbm_allocator_desc_t};
use super::device::write_released;
use super::{export, export_at_once, hbm_stats_t, read_struct, write_out, write_struct};
use crate::core::size::Align;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::observe;
use crate::process::{self, AllocatorId, Demand, tags};
use crate::source::{ALIGN, Kind, LastUse};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// An allocator; only ever used through its pointer. A pointer that was destroyed or never was an
/// allocator is an error, not a crash.
#[allow(non_camel_case_types)]
pub struct hbm_allocator_t {
    _opaque: [u8; 0],
}

static ALLOCATORS: RwLock<Option<Table>> = RwLock::new(None);

pub(super) fn find(
    operation: &'static str,
    handle: *mut hbm_allocator_t,
) -> Result<Arc<Allocator>> {
    find_with(operation, handle, |_| ())
}

/// [`find`], with something done before anybody can destroy it.
fn find_with(
    operation: &'static str,
    handle: *mut hbm_allocator_t,
    note: impl FnOnce(&Allocator),
) -> Result<Arc<Allocator>> {
    process::check_not_forked()?;
    let table = ALLOCATORS.read().unwrap_or_else(PoisonError::into_inner);
    look_up(table.as_ref(), operation, handle).inspect(|found| note(found))
}

type Table = FxHashMap<usize, Arc<Allocator>>;

fn look_up(
    table: Option<&Table>,
    operation: &'static str,
    handle: *mut hbm_allocator_t,
) -> Result<Arc<Allocator>> {
    let found = table
        .and_then(|table| table.get(&(handle as usize)).cloned())
        .ok_or_else(|| {
            Error::invalid(
                operation,
                format!("{handle:p} is not an allocator, or was destroyed"),
            )
        })?;
    found.check_is_ours()?;
    Ok(found)
}

/// The pool's allocator that this thread used last, so that the usual call takes no lock.
#[derive(Clone, Copy)]
struct Recent {
    handle: usize,
    /// How many allocators had been destroyed.
    destroyed: u64,
    id: AllocatorId,
    device: i32,
    tag: TagId,
}

/// The alignment of every block of the pool.
const POOL_ALIGN: usize = crate::core::radix::UNIT as usize;

static DESTROYED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static RECENT: Cell<Option<Recent>> = const { Cell::new(None) };
}

#[inline]
fn recent(handle: *mut hbm_allocator_t) -> Option<Recent> {
    let recent = RECENT.try_with(Cell::get).ok().flatten()?;
    let is_same = recent.handle == handle as usize;
    (is_same && recent.destroyed == DESTROYED.load(Ordering::Acquire)).then_some(recent)
}

/// `destroyed` must have been read before the allocator was found.
fn remember(handle: *mut hbm_allocator_t, allocator: &Allocator, destroyed: u64) {
    if allocator.is_pool() {
        let recent = Recent {
            handle: handle as usize,
            destroyed,
            id: allocator.id,
            device: allocator.device,
            tag: allocator.tag,
        };
        let _ = RECENT.try_with(|slot| slot.set(Some(recent)));
    }
}

/// Makes an allocator and writes it to `*out`. The device is opened now, so that a machine without
/// one shows here; memory of the host is of none, and neither an arena nor custom functions are asked for anything yet.
/// Any thread.
///
/// # Safety
/// `descriptor` must point to a filled-in descriptor, `out` be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_allocator_create(
    descriptor: *const hbm_allocator_desc_t,
    out: *mut *mut hbm_allocator_t,
) -> i32 {
    export(|| {
        process::check_not_forked()?;
        if out.is_null() {
            return Err(Error::invalid(
                "hbm_allocator_create",
                "the out-pointer is NULL",
            ));
        }
        // SAFETY: passed on to the caller.
        let descriptor = unsafe { read_struct("hbm_allocator_create", descriptor, OLDER_SIZES)? };
        // SAFETY: passed on to the caller.
        let allocator = unsafe { Allocator::new(&descriptor)? };
        if let Backing::Device { .. } = allocator.backing {
            observe::process().device(allocator.device)?;
        }
        let handle = allocator.handle();
        // SAFETY: checked for null above; the rest is the caller's promise.
        unsafe { write_out("hbm_allocator_create", out, handle as *mut hbm_allocator_t)? };
        ALLOCATORS
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_default()
            .insert(handle, Arc::new(allocator));
        Ok(())
    })
}

/// Destroys an allocator. HBM_BUSY while blocks of it are given out, an arena is over it, or calls of an arena are under
/// way. The region of an arena is given back to its upstream first; where that fails, the error is returned and the
/// arena stays. NULL is fine. Does nothing at the end of the process, as deallocating does nothing then. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_allocator_destroy(allocator: *mut hbm_allocator_t) -> i32 {
    export(|| {
        if allocator.is_null() || process::has_forked() || process::is_exiting() {
            return Ok(());
        }
        let found = {
            let mut table = ALLOCATORS.write().unwrap_or_else(PoisonError::into_inner);
            let found = look_up(table.as_ref(), "hbm_allocator_destroy", allocator)?;
            DESTROYED.fetch_add(1, Ordering::AcqRel);
            found.begin_destroy()?;
            if let (Some(table), false) = (table.as_mut(), found.is_arena()) {
                table.remove(&(allocator as usize));
            }
            found
        };
        if let Backing::Arena(place) = &found.backing {
            // Asks its upstream, which may be functions that come back here.
            place.end().inspect_err(|_| found.reopen())?;
            let mut table = ALLOCATORS.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(table) = table.as_mut() {
                table.remove(&(allocator as usize));
            }
        }
        Ok(())
    })
}

/// Allocates `bytes` above zero, aligned to `alignment` (a power of two; 0 means 256, of the pool 512;
/// the pool, vmm, the heap and arenas give any, custom functions what they can, other kinds of the host up to 2 MiB, the
/// rest 256), for use on `stream` (a CUstream or cudaStream_t of the device, HBM_INVALID_ARGUMENT for another's; NULL is
/// the legacy stream), and writes the address to `*out`. Any thread, with any context current or none. What custom
/// functions return is returned.
///
/// # Safety
/// `out` must be valid for a write; `stream` must be a live stream of the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_allocator_allocate(
    allocator: *mut hbm_allocator_t,
    bytes: usize,
    alignment: usize,
    stream: *mut c_void,
    out: *mut *mut c_void,
) -> i32 {
    if arena::is_arena(allocator) {
        // SAFETY: passed on to the caller.
        return unsafe { allocate_of_arena(allocator, bytes, alignment, stream, out) };
    }
    // SAFETY: passed on to the caller.
    unsafe { allocate(allocator, bytes, alignment, stream, out) }
}

/// hbm_allocator_allocate of what may be an arena: by itself, so that neither kind pays for the other's frame; of C's
/// calling convention, as the compiler makes a jump of such a call.
///
/// # Safety
/// As hbm_allocator_allocate.
#[inline(never)]
unsafe extern "C" fn allocate_of_arena(
    arena: *mut hbm_allocator_t,
    bytes: usize,
    alignment: usize,
    stream: *mut c_void,
    out: *mut *mut c_void,
) -> i32 {
    if !out.is_null() {
        let stream = Stream::from_raw(stream);
        if let Some(address) = arena::allocate_at_once(arena, bytes as u64, alignment, stream) {
            // SAFETY: checked for null above; the rest is the caller's promise.
            unsafe { out.write(address as *mut c_void) };
            return Status::Ok as i32;
        }
    }
    // SAFETY: passed on to the caller.
    unsafe { allocate(arena, bytes, alignment, stream, out) }
}

/// hbm_allocator_allocate, but for what an arena has at once.
///
/// # Safety
/// As hbm_allocator_allocate.
#[inline(never)]
unsafe extern "C" fn allocate(
    allocator: *mut hbm_allocator_t,
    bytes: usize,
    alignment: usize,
    stream: *mut c_void,
    out: *mut *mut c_void,
) -> i32 {
    export_at_once(|| {
        const OPERATION: &str = "hbm_allocator_allocate";
        if out.is_null() {
            return Err(Error::invalid(OPERATION, "the out-pointer is NULL"));
        }
        let is_usual = alignment <= POOL_ALIGN && (alignment == 0 || alignment.is_power_of_two());
        if let (Some(recent), true) = (recent(allocator), is_usual) {
            let stream = Stream::from_raw(stream);
            let process = observe::process();
            let tag = recent.tag.or_else(tags::current);
            let id = Some(recent.id);
            let reused = process.reuse_pooled(recent.device, bytes as u64, stream, id, tag);
            let address = match reused {
                Some(address) => address,
                None => process.allocate(Demand {
                    kind: Kind::Pool,
                    device: recent.device,
                    bytes: bytes as u64,
                    align: ALIGN,
                    stream,
                    owner: Owner::Block,
                    last_use: LastUse::Streams,
                    allocator: id,
                    location: None,
                    tag,
                })?,
            };
            // SAFETY: checked for null above; the rest is the caller's promise.
            return unsafe { write_out(OPERATION, out, address as *mut c_void) };
        }
        let align = match alignment {
            0 => ALIGN,
            other => Align::new(other as u64).ok_or_else(|| {
                Error::invalid(
                    OPERATION,
                    format!("an alignment of {other} bytes is no power of two"),
                )
            })?,
        };
        let destroyed = DESTROYED.load(Ordering::Acquire);
        let found = find_with(OPERATION, allocator, Allocator::expect_block)?;
        remember(allocator, &found, destroyed);
        let address = found.allocate_expected(bytes as u64, align, Stream::from_raw(stream))?;
        // SAFETY: checked for null above; the rest is the caller's promise.
        unsafe { write_out(OPERATION, out, address as *mut c_void) }
    })
}

/// Takes a block back. Work already given to the stream it was allocated on, to `stream`, and to
/// every stream recorded for it may still use it; later work may not. `stream` may be what
/// hbm_allocator_record_stream takes; a handle that is the block's own means that stream.
/// HBM_NOT_OWNED for an address that is no block of this allocator, or no longer one; it is left
/// alone. HBM_INVALID_ARGUMENT for a block of an arena's region that other blocks lie on. NULL is fine. Does not wait,
/// but for device, managed and pinned memory, and for another stream than the arena's where that is over custom functions.
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_allocator_deallocate(
    allocator: *mut hbm_allocator_t,
    address: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    match arena::is_arena(allocator) {
        true => deallocate_of_arena(allocator, address, stream),
        false => deallocate(allocator, address, stream),
    }
}

/// hbm_allocator_deallocate of what may be an arena.
#[inline(never)]
extern "C" fn deallocate_of_arena(
    arena: *mut hbm_allocator_t,
    address: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    match arena::deallocate_at_once(arena, address as u64, None, Stream::from_raw(stream)) {
        true => Status::Ok as i32,
        false => deallocate(arena, address, stream),
    }
}

/// hbm_allocator_deallocate, but for what an arena does at once.
#[inline(never)]
extern "C" fn deallocate(
    allocator: *mut hbm_allocator_t,
    address: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    export_at_once(|| {
        if address.is_null() || process::has_forked() || process::is_exiting() {
            return Ok(());
        }
        let process = observe::process();
        let used_on = Stream::from_raw(stream);
        if let Some(recent) = recent(allocator) {
            if process.free_pooled(address as u64, Some(recent.id), Some(used_on))? {
                return Ok(());
            }
        }
        let destroyed = DESTROYED.load(Ordering::Acquire);
        let found = find("hbm_allocator_deallocate", allocator)?;
        remember(allocator, &found, destroyed);
        found.deallocate(address as u64, None, used_on).1
    })
}

/// hbm_allocator_deallocate, if the block was asked for with `bytes`: another size is HBM_INVALID_ARGUMENT, and
/// changes nothing. The pool looks at the block's record for that, which costs some 2 nanoseconds. NULL is fine
/// with any size. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_allocator_deallocate_sized(
    allocator: *mut hbm_allocator_t,
    address: *mut c_void,
    bytes: usize,
    stream: *mut c_void,
) -> i32 {
    let used_on = Stream::from_raw(stream);
    if arena::deallocate_at_once(allocator, address as u64, Some(bytes as u64), used_on) {
        return Status::Ok as i32;
    }
    deallocate_sized(allocator, address, bytes, stream)
}

/// hbm_allocator_deallocate_sized, but for what an arena does at once.
#[inline(never)]
extern "C" fn deallocate_sized(
    allocator: *mut hbm_allocator_t,
    address: *mut c_void,
    bytes: usize,
    stream: *mut c_void,
) -> i32 {
    export(|| {
        if address.is_null() || process::has_forked() || process::is_exiting() {
            return Ok(());
        }
        let process = observe::process();
        let (bytes, used_on) = (bytes as u64, Stream::from_raw(stream));
        if let Some(recent) = recent(allocator) {
            process.check_size(address as u64, recent.id, bytes)?;
            if process.free_pooled(address as u64, Some(recent.id), Some(used_on))? {
                return Ok(());
            }
        }
        let destroyed = DESTROYED.load(Ordering::Acquire);
        let found = find("hbm_allocator_deallocate_sized", allocator)?;
        remember(allocator, &found, destroyed);
        found.deallocate(address as u64, Some(bytes), used_on).1
    })
}

/// Says that work already given to `stream` uses the block at `address`, so that its memory is not
/// given back before that work is done. `stream` must be live, and may be of any device: what reads
/// the block by a peer copy, say. It may also be of a context that the program made itself; that
/// context must stay until hbm_trim after the free. The handles that every device has (0 and 1 for the
/// legacy stream, 2 for the thread's own) mean that of the calling thread's current context and, where
/// that is another device, that of the block's too. Any thread. No driver call where `stream` is the
/// one the block was allocated on, but to ask for the current context where such a handle is named and
/// several devices are in use; else the driver is asked for the stream's context. Where it cannot tell
/// (before 12.5, while the stream captures), all work of every device is waited for. Of an arena: see HBM_KIND_ARENA; of
/// custom functions HBM_UNSUPPORTED, as they cannot be told.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_allocator_record_stream(
    allocator: *mut hbm_allocator_t,
    address: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    export(|| {
        if process::has_forked() {
            return Ok(());
        }
        let found = find("hbm_allocator_record_stream", allocator)?;
        found.record_stream(address as u64, Stream::from_raw(stream))
    })
}

/// Gives cached memory of the allocator's device back, down to `keep` bytes a source, and writes
/// the bytes given back to `*released` (which may be NULL). Waits for work on freed blocks; does
/// nothing while a stream capture is open on the device. An arena gives its region back if no block lies in it and it
/// has more than `keep` bytes, then has its upstream trim, and writes what both gave back; custom functions trim as
/// theirs does. Any thread.
///
/// # Safety
/// `released` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_allocator_trim(
    allocator: *mut hbm_allocator_t,
    keep: u64,
    released: *mut u64,
) -> i32 {
    export(|| {
        let found = find("hbm_allocator_trim", allocator)?;
        let given_back = found.trim(keep)?;
        // SAFETY: passed on to the caller.
        unsafe { write_released("hbm_allocator_trim", released, given_back) }
    })
}

/// Statistics of the allocator's kind on its device; of memory of the host, an arena, and custom functions, the
/// allocator's own. What an arena has reserved is its region and what is spilled. Any thread.
///
/// # Safety
/// `out` must point to an hbm_stats_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_allocator_stats(
    allocator: *mut hbm_allocator_t,
    out: *mut hbm_stats_t,
) -> i32 {
    export(|| {
        let found = find("hbm_allocator_stats", allocator)?;
        let stats = found.stats()?;
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_allocator_stats", out, &hbm_stats_t::from(stats)) }
    })
}

/// Writes the device of an allocator, as its descriptor said it; of an arena, that of its upstream. Memory of the host
/// is of none, whatever its descriptor said. Any thread.
///
/// # Safety
/// `device` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_allocator_device(
    allocator: *mut hbm_allocator_t,
    device: *mut i32,
) -> i32 {
    export(|| {
        let found = find("hbm_allocator_device", allocator)?;
        // SAFETY: passed on to the caller.
        unsafe { write_out("hbm_allocator_device", device, found.device) }
    })
}
