//! Allocators as objects: one interface over every kind of source.

use super::descriptor::{Backing, OLDER_SIZES, backing, hbm_allocator_desc_t};
use super::{export, hbm_stats_t, read_struct, text_argument, write_out, write_struct};
use crate::core::size::Align;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::observe;
use crate::process::host::HostKind;
use crate::process::host_counts::HostCounts;
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

struct Allocator {
    id: AllocatorId,
    backing: Backing,
    device: i32,
    tag: TagId,
    live: AtomicU64,
    /// Of memory of the host, which no device counts.
    counts: HostCounts,
}

impl Allocator {
    fn is_pool(&self) -> bool {
        matches!(
            self.backing,
            Backing::Device {
                kind: Kind::Pool,
                ..
            }
        )
    }

    /// # Safety
    /// The texts of the descriptor must be NULL or C strings.
    unsafe fn new(descriptor: &hbm_allocator_desc_t) -> Result<Allocator> {
        const OPERATION: &str = "hbm_allocator_create";
        // SAFETY: passed on to the caller.
        let backing = unsafe { backing(OPERATION, descriptor) }?;
        let tag = if descriptor.tag.is_null() {
            TagId::NONE
        } else {
            // SAFETY: passed on to the caller.
            tags::table().intern(unsafe { text_argument(OPERATION, "tag", descriptor.tag)? })?
        };
        Ok(Allocator {
            id: AllocatorId::new(),
            backing,
            device: descriptor.device,
            tag,
            live: AtomicU64::new(0),
            counts: HostCounts::default(),
        })
    }

    fn allocate(&self, bytes: u64, align: Align, stream: Stream) -> Result<u64> {
        let (kind, location) = match &self.backing {
            Backing::Device { kind, location } => (*kind, *location),
            Backing::Host(plan) => {
                let kind = HostKind::Allocator(self.id);
                let made = observe::process().allocate_host_aligned(kind, bytes, align.get(), plan);
                return self.counts.note_made(bytes, made);
            }
        };
        observe::process().allocate(Demand {
            kind,
            device: self.device,
            bytes,
            align,
            stream,
            owner: Owner::Block,
            last_use: LastUse::Streams,
            allocator: Some(self.id),
            location,
            tag: self.tag.or_else(tags::current),
        })
    }

    /// Whether the block is gone now, and how it went.
    fn deallocate(&self, address: u64, used_on: Option<Stream>) -> (bool, Result<()>) {
        let process = observe::process();
        match &self.backing {
            Backing::Device { .. } => {
                let outcome = process.deallocate(address, Some(self.id), used_on);
                let is_gone = !matches!(&outcome, Err(error) if error.status() == Status::NotOwned);
                (is_gone, outcome)
            }
            Backing::Host(_) => {
                let freed = process.free_host(HostKind::Allocator(self.id), address, None, None);
                (
                    freed.is_ok(),
                    freed.map(|freed| self.counts.note_freed(freed)),
                )
            }
        }
    }
}

static ALLOCATORS: RwLock<Option<Table>> = RwLock::new(None);

fn find(operation: &'static str, handle: *mut hbm_allocator_t) -> Result<Arc<Allocator>> {
    process::check_not_forked()?;
    let table = ALLOCATORS.read().unwrap_or_else(PoisonError::into_inner);
    look_up(table.as_ref(), operation, handle)
}

/// Finds an allocator and counts a block of it, so that it is not destroyed meanwhile.
fn find_for_block(operation: &'static str, handle: *mut hbm_allocator_t) -> Result<Arc<Allocator>> {
    process::check_not_forked()?;
    let table = ALLOCATORS.read().unwrap_or_else(PoisonError::into_inner);
    let found = look_up(table.as_ref(), operation, handle)?;
    found.live.fetch_add(1, Ordering::AcqRel);
    Ok(found)
}

type Table = FxHashMap<usize, Arc<Allocator>>;

fn look_up(
    table: Option<&Table>,
    operation: &'static str,
    handle: *mut hbm_allocator_t,
) -> Result<Arc<Allocator>> {
    table
        .and_then(|table| table.get(&(handle as usize)).cloned())
        .ok_or_else(|| {
            Error::invalid(
                operation,
                format!("{handle:p} is not an allocator, or was destroyed"),
            )
        })
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
/// one shows here; memory of the host is of none. Any thread.
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
        // SAFETY: passed on to the caller.
        let descriptor = unsafe { read_struct("hbm_allocator_create", descriptor, OLDER_SIZES)? };
        // SAFETY: passed on to the caller.
        let allocator = unsafe { Allocator::new(&descriptor)? };
        if let Backing::Device { .. } = allocator.backing {
            observe::process().device(allocator.device)?;
        }
        let handle = allocator.id.get() as usize;
        // SAFETY: passed on to the caller.
        unsafe { write_out("hbm_allocator_create", out, handle as *mut hbm_allocator_t)? };
        ALLOCATORS
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_default()
            .insert(handle, Arc::new(allocator));
        Ok(())
    })
}

/// Destroys an allocator. HBM_BUSY while blocks of it are given out. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_allocator_destroy(allocator: *mut hbm_allocator_t) -> i32 {
    export(|| {
        if allocator.is_null() || process::has_forked() {
            return Ok(());
        }
        let mut table = ALLOCATORS.write().unwrap_or_else(PoisonError::into_inner);
        let found = look_up(table.as_ref(), "hbm_allocator_destroy", allocator)?;
        DESTROYED.fetch_add(1, Ordering::AcqRel);
        let live = match found.is_pool() {
            true => observe::process().pooled_blocks_of(found.id),
            false => found.live.load(Ordering::Acquire),
        };
        if live > 0 {
            return Err(Error::new(Status::Busy, "hbm_allocator_destroy")
                .detail(format!("{live} of its blocks are not deallocated")));
        }
        if let Some(table) = table.as_mut() {
            table.remove(&(allocator as usize));
        }
        Ok(())
    })
}

/// Allocates `bytes` above zero, aligned to `alignment` (a power of two; 0 means 256, of the pool 512;
/// only the pool, vmm and the heap give any, other kinds of the host up to 2 MiB, the rest 256), for use on `stream` (a CUstream or cudaStream_t of
/// the device, HBM_INVALID_ARGUMENT for another's; NULL is the legacy stream), and writes the address
/// to `*out`. Any thread, with any context current or none.
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
    export(|| {
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
        let found = find_for_block(OPERATION, allocator)?;
        remember(allocator, &found, destroyed);
        let address =
            (found.allocate(bytes as u64, align, Stream::from_raw(stream))).inspect_err(|_| {
                found.live.fetch_sub(1, Ordering::AcqRel);
            })?;
        // SAFETY: checked for null above; the rest is the caller's promise.
        unsafe { write_out(OPERATION, out, address as *mut c_void) }
    })
}

/// Takes a block back. Work already given to the stream it was allocated on, to `stream`, and to
/// every stream recorded for it may still use it; later work may not. `stream` may be what
/// hbm_allocator_record_stream takes; a handle that is the block's own means that stream.
/// HBM_NOT_OWNED for an address that is no block of this allocator, or no longer one; it is left
/// alone. NULL is fine. Does not wait, but for device, managed and pinned memory. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_allocator_deallocate(
    allocator: *mut hbm_allocator_t,
    address: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    export(|| {
        if address.is_null() || process::has_forked() || process::is_exiting() {
            return Ok(());
        }
        let process = observe::process();
        let used_on = Some(Stream::from_raw(stream));
        if let Some(recent) = recent(allocator) {
            if process.free_pooled(address as u64, Some(recent.id), used_on)? {
                return Ok(());
            }
        }
        let destroyed = DESTROYED.load(Ordering::Acquire);
        let found = find("hbm_allocator_deallocate", allocator)?;
        remember(allocator, &found, destroyed);
        let (is_gone, outcome) = found.deallocate(address as u64, used_on);
        if is_gone {
            found.live.fetch_sub(1, Ordering::AcqRel);
        }
        outcome
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
/// (before 12.5, while the stream captures), all work of every device is waited for.
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
        if let Backing::Host(_) = found.backing {
            // A free waits for all work that could use it.
            let kind = HostKind::Allocator(found.id);
            return observe::process().check_host_block(kind, address as u64);
        }
        observe::process().record_stream(address as u64, Stream::from_raw(stream))
    })
}

/// Gives cached memory of the allocator's device back, down to `keep` bytes a source, and writes
/// the bytes given back to `*released` (which may be NULL). Waits for work on freed blocks; does
/// nothing while a stream capture is open on the device.
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
        if let Backing::Host(_) = found.backing {
            // SAFETY: passed on to the caller.
            return unsafe { write_released("hbm_allocator_trim", released, 0) };
        }
        // SAFETY: passed on to the caller.
        unsafe { trim("hbm_allocator_trim", found.device, keep, released) }
    })
}

/// Statistics of the allocator's kind on its device; of memory of the host, the allocator's own.
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
        let process = observe::process();
        let stats = match &found.backing {
            Backing::Device { kind, .. } => process.stats(found.device, Some(*kind))?,
            Backing::Host(_) => found.counts.read(process.warnings().total()),
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_allocator_stats", out, &hbm_stats_t::from(stats)) }
    })
}

/// Gives cached memory of a device back, as hbm_allocator_trim.
///
/// # Safety
/// `released` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_trim(device: i32, keep: u64, released: *mut u64) -> i32 {
    // SAFETY: passed on to the caller.
    export(|| unsafe { trim("hbm_trim", device, keep, released) })
}

unsafe fn trim(operation: &'static str, device: i32, keep: u64, released: *mut u64) -> Result<()> {
    let given_back = observe::process().trim(device, keep)?;
    // SAFETY: passed on to the caller.
    unsafe { write_released(operation, released, given_back) }
}

unsafe fn write_released(operation: &'static str, released: *mut u64, bytes: u64) -> Result<()> {
    if released.is_null() {
        return Ok(());
    }
    // SAFETY: passed on to the caller.
    unsafe { write_out(operation, released, bytes) }
}

/// Call this before destroying a stream that was named to the library, so that the library never
/// names it to the driver again (the driver crashes on the handle of a destroyed stream). Blocks of
/// any device that used the stream stay valid; their memory is later given back behind all work of the
/// stream's device. `device` is the stream's. Waits for frees on other threads that are about to name
/// the stream, and for the stream itself only where it is of a context that the program made.
/// What the pool has for the stream serves the next one, so a program may make, forget and destroy any
/// number of streams.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_stream_forget(device: i32, stream: *mut c_void) -> i32 {
    export(|| observe::process().forget_stream(device, Stream::from_raw(stream)))
}
