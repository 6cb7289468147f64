//! Allocators as objects: one interface over every kind of source.

use super::{export, hbm_stats_t, read_struct, text_argument, write_out, write_struct};
use crate::config::value::Location;
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
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The kinds of allocator.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_kind {
    /// Synchronous device memory: a free waits for all work of the device.
    HBM_KIND_DEVICE = 0,
    /// Managed memory.
    HBM_KIND_MANAGED = 1,
    /// The driver's stream-ordered pools.
    HBM_KIND_ASYNC = 2,
    /// Virtual memory management; at least one granule (2 MiB) a block.
    HBM_KIND_VMM = 3,
    /// The caching pool, which the option `backend` names unless it is set. It gets its memory from what
    /// the option `pool_source` names and keeps what is freed, for its own blocks, until hbm_trim or
    /// until memory is short. Blocks take multiples of 512 bytes and are aligned to 512; any other power
    /// of two on request.
    ///
    /// Streams: a freed block serves requests for its own stream again at once, with no driver call, as
    /// whatever uses it still comes before in that stream's order. Other streams get its memory once
    /// that work is done. Streams named besides, by hbm_allocator_record_stream or by a free on another
    /// stream than the block's own, hold it back until the work they have been given is done. No free
    /// waits; an allocation waits only where memory would otherwise have run out.
    ///
    /// Threads: any thread may allocate and free any block. A thread keeps some of what it frees for
    /// itself, by stream and tag, and then takes no lock; what it keeps goes to the others when it
    /// ends, by hbm_trim, and when memory is short.
    ///
    /// Captures: each allocation asks the driver whether its stream captures, which costs more than the
    /// rest of it; not in programs that promise by hbm_captures_told to tell of every capture.
    HBM_KIND_POOL = 4,
    /// Pinned memory of the host, which every device and the host use at the same address; devices
    /// reach it over the link. It takes nothing of the device's limit. A free waits for the streams
    /// that used the block. Making and freeing it is slow (about 0.4 and 0.1 s a GiB): the pool over
    /// it keeps it.
    HBM_KIND_PINNED = 5,
}

/// Where virtual-memory blocks live.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_location {
    /// As the option `vmm_location` says.
    HBM_LOCATION_DEFAULT = 0,
    /// In the memory of the device.
    HBM_LOCATION_DEVICE = 1,
    /// In host memory of the NUMA node `numa_node`, mapped for the device.
    HBM_LOCATION_HOST_NUMA = 2,
}

/// An allocator; only ever used through its pointer. A pointer that was destroyed or never was an
/// allocator is an error, not a crash.
#[allow(non_camel_case_types)]
pub struct hbm_allocator_t {
    _opaque: [u8; 0],
}

/// What allocator to make. Zero it, fill in `struct_size`, then what differs from zero.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_allocator_desc_t {
    /// sizeof(hbm_allocator_desc_t) as the program was compiled.
    pub struct_size: usize,
    /// An hbm_kind.
    pub kind: i32,
    /// The device's ordinal.
    pub device: i32,
    /// A tag for its blocks, of 1 to 255 bytes; or NULL: that of the allocating thread. Copied.
    pub tag: *const c_char,
    /// An hbm_location; only for HBM_KIND_VMM.
    pub location: i32,
    /// The NUMA node of HBM_LOCATION_HOST_NUMA.
    pub numa_node: i32,
}

/// What `hbm_allocator_desc_t` was in earlier versions: up to and with `tag`.
const OLDER_SIZES: &[usize] = &[std::mem::offset_of!(hbm_allocator_desc_t, location)];

struct Allocator {
    id: AllocatorId,
    kind: Kind,
    device: i32,
    location: Option<Location>,
    tag: TagId,
    live: AtomicU64,
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
    if allocator.kind == Kind::Pool {
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

fn parse(descriptor: &hbm_allocator_desc_t) -> Result<Allocator> {
    const OPERATION: &str = "hbm_allocator_create";
    let kind = Kind::from_number(descriptor.kind).ok_or_else(|| {
        Error::invalid(OPERATION, format!("kind {} is none", descriptor.kind))
            .advice("Kinds: 0 device, 1 managed, 2 async, 3 vmm, 4 pool, 5 pinned")
    })?;
    let location = match descriptor.location {
        0 => None,
        _ if kind != Kind::Vmm => {
            return Err(Error::invalid(OPERATION, "only vmm takes a location"));
        }
        1 => Some(Location::Device),
        2 if descriptor.numa_node >= 0 => Some(Location::HostNuma(descriptor.numa_node)),
        other => {
            return Err(Error::invalid(
                OPERATION,
                format!(
                    "location {other} with NUMA node {} is none",
                    descriptor.numa_node
                ),
            ));
        }
    };
    let tag = if descriptor.tag.is_null() {
        TagId::NONE
    } else {
        // SAFETY: the caller of hbm_allocator_create vouches for it.
        tags::table().intern(unsafe { text_argument(OPERATION, "tag", descriptor.tag)? })?
    };
    Ok(Allocator {
        id: AllocatorId::new(),
        kind,
        device: descriptor.device,
        location,
        tag,
        live: AtomicU64::new(0),
    })
}

/// Makes an allocator and writes it to `*out`. The device is opened now, so that a machine without
/// one shows here. Any thread.
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
        let allocator = parse(&descriptor)?;
        observe::process().device(allocator.device)?;
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
        let live = match found.kind {
            Kind::Pool => observe::process().pooled_blocks_of(found.id),
            _ => found.live.load(Ordering::Acquire),
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

/// Allocates `bytes` above zero, aligned to `alignment` (a power of two; 0 means 256, of the pool 512,
/// and only the pool and vmm give more than 256), for use on `stream` (a CUstream or cudaStream_t of
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
        let address = observe::process()
            .allocate(Demand {
                kind: found.kind,
                device: found.device,
                bytes: bytes as u64,
                align,
                stream: Stream::from_raw(stream),
                owner: Owner::Block,
                last_use: LastUse::Streams,
                allocator: Some(found.id),
                location: found.location,
                tag: found.tag.or_else(tags::current),
            })
            .inspect_err(|_| {
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
        let outcome = process.deallocate(address as u64, Some(found.id), used_on);
        let gone = !matches!(&outcome, Err(error) if error.status() == Status::NotOwned);
        if gone {
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
        find("hbm_allocator_record_stream", allocator)?;
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
        // SAFETY: passed on to the caller.
        unsafe { trim("hbm_allocator_trim", found.device, keep, released) }
    })
}

/// Statistics of the allocator's kind on its device.
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
        let stats = observe::process().stats(found.device, Some(found.kind))?;
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
    if released.is_null() {
        return Ok(());
    }
    // SAFETY: passed on to the caller.
    unsafe { write_out(operation, released, given_back) }
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
