//! Objects on a slab, in batches.

use super::slab::{deadline, hbm_slab_t};
use super::{export, write_out, write_struct};
use crate::error::{Error, Result};
use crate::object::{Object, ObjectPool, layout};
use crate::observe;
use std::cell::RefCell;
use std::sync::Arc;

/// A pool of objects.
#[allow(non_camel_case_types)]
pub struct hbm_objects_t {
    _opaque: [u8; 0],
}

/// How much of a pool is in use, all counted at one moment.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_objects_usage_t {
    /// sizeof(hbm_objects_usage_t) as the program was compiled.
    pub struct_size: usize,
    /// Bytes of objects that somebody holds.
    pub used: u64,
    /// Bytes that there are now.
    pub total: u64,
    /// The largest piece that is free.
    pub largest_free: u64,
    /// Objects that somebody holds, and freed ones that somebody still sees.
    pub objects: u64,
}

/// One group of elements of an object.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_group_t {
    /// Lengths, outermost first; NULL for a single element.
    pub shape: *const u64,
    /// How many.
    pub dimensions: usize,
    /// Bytes of an element.
    pub element_bytes: u64,
}

struct Recent {
    handle: usize,
    closed: u64,
    pool: Arc<ObjectPool>,
}

thread_local! {
    /// The pool that the thread used last, to be found without a lock.
    static RECENT: RefCell<Option<Recent>> = const { RefCell::new(None) };
}

/// Runs `body` on the pool of a handle.
#[inline]
fn with<T>(
    operation: &'static str,
    objects: *mut hbm_objects_t,
    body: impl FnOnce(&ObjectPool) -> Result<T>,
) -> Result<T> {
    let process = observe::process();
    process.check_host_is_ours()?;
    let handle = objects as usize;
    let closed = process.objects_closed();
    let find = || process.objects(operation, handle as u64);
    let mut body = Some(body);
    let outcome = RECENT.try_with(|recent| {
        let mut recent = recent.try_borrow_mut().ok()?;
        let is_same = |recent: &Recent| recent.handle == handle && recent.closed == closed;
        if !recent.as_ref().is_some_and(is_same) {
            let pool = match find() {
                Ok(pool) => pool,
                Err(error) => return Some(Err(error)),
            };
            *recent = Some(Recent {
                handle,
                closed,
                pool,
            });
        }
        let pool = &recent.as_ref()?.pool;
        Some(body.take()?(pool))
    });
    match (outcome, body) {
        (Ok(Some(done)), _) => done,
        // A thread at its end has no such memory any more.
        (_, Some(body)) => body(&*find()?),
        (_, None) => Err(Error::new(crate::error::Status::Internal, operation)),
    }
}

/// # Safety
/// `objects` must have room for `count` handles, or `count` be 0.
unsafe fn handles<'a>(
    operation: &'static str,
    objects: *const u64,
    count: usize,
) -> Result<&'a [Object]> {
    if count == 0 {
        return Ok(&[]);
    }
    if objects.is_null() || count > isize::MAX as usize / 8 {
        return Err(Error::invalid(
            operation,
            format!("{count} objects at NULL"),
        ));
    }
    // SAFETY: passed on to the caller; an Object is such a number.
    Ok(unsafe { std::slice::from_raw_parts(objects.cast::<Object>(), count) })
}

/// Opens a pool of objects on a slab, which must stay open, or with NULL on addresses alone, from 0 on, as many as
/// hbm_objects_extend says. Addresses and lengths of objects are multiples of `alignment`, a power of two from 512 up to
/// 2 MiB and to what the slab's first address is a multiple of (without a slab 1 TiB); 0 is 4096. One pool a slab. Any thread.
///
/// # Safety
/// `out` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_objects_open(
    slab: *mut hbm_slab_t,
    alignment: u64,
    out: *mut *mut hbm_objects_t,
) -> i32 {
    const OPERATION: &str = "hbm_objects_open";
    export(|| {
        if out.is_null() {
            return Err(Error::invalid(OPERATION, "the out-pointer is NULL"));
        }
        let slab = (!slab.is_null()).then_some(slab as usize as u64);
        let alignment = if alignment == 0 { 4096 } else { alignment };
        let number = observe::process().open_objects(OPERATION, slab, alignment)?;
        // SAFETY: passed on to the caller.
        unsafe { write_out(OPERATION, out, number as usize as *mut hbm_objects_t) }
    })
}

/// Closes a pool, whatever of its objects somebody holds: no call takes them from here on, and a pool opened on the slab later
/// gives their memory to others. The slab stays.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_objects_close(objects: *mut hbm_objects_t) -> i32 {
    export(|| observe::process().close_objects("hbm_objects_close", objects as usize as u64))
}

/// Adds `bytes`, a multiple of 512, of addresses to a pool that is on no slab.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_objects_extend(objects: *mut hbm_objects_t, bytes: u64) -> i32 {
    const OPERATION: &str = "hbm_objects_extend";
    export(|| with(OPERATION, objects, |pool| pool.extend(OPERATION, bytes)))
}

/// Makes `count` objects of `bytes` each, all or none, and writes their handles, which are not 0, and addresses. Each has one
/// reference, its maker's. They lie side by side where there is room for that, and never across two parts of the slab.
/// Contents are undefined. Where memory has run out while the slab grows, waits for it as hbm_slab_wait does; with
/// `milliseconds` 0 it does not. HBM_OUT_OF_MEMORY else, with the number of objects that could have been had in
/// `*feasible`. Any thread; some tens of nanoseconds.
///
/// # Safety
/// `handles` and `addresses`, if it is not NULL, must have room for `count` numbers; `feasible` must be NULL or valid for
/// a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_objects_allocate(
    objects: *mut hbm_objects_t,
    bytes: u64,
    count: usize,
    milliseconds: i64,
    handles: *mut u64,
    addresses: *mut u64,
    feasible: *mut usize,
) -> i32 {
    const OPERATION: &str = "hbm_objects_allocate";
    export(|| {
        if handles.is_null() && count > 0 {
            return Err(Error::invalid(OPERATION, "handles is NULL"));
        }
        let write = |place: usize, object: Object, address: u64| {
            // SAFETY: the pool calls this for places below `count`.
            unsafe {
                handles.add(place).write(object.get());
                if !addresses.is_null() {
                    addresses.add(place).write(address);
                }
            }
        };
        with(OPERATION, objects, |pool| {
            let deadline = || deadline(milliseconds);
            pool.allocate(OPERATION, bytes, count, deadline, write)
                .map_err(|shortage| {
                    if !feasible.is_null() {
                        // SAFETY: passed on to the caller.
                        unsafe { feasible.write(shortage.feasible) };
                    }
                    shortage.error
                })
        })
    })
}

/// Drops the reference that the maker of each object has; what nobody refers to, pins or sees then is free memory. What is no
/// object of the pool, or was freed before, is HBM_NOT_OWNED (a stale handle is missed once in two million uses of its record), told after all others were freed.
///
/// # Safety
/// `handles` must hold `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_objects_free(
    objects: *mut hbm_objects_t,
    handles: *const u64,
    count: usize,
) -> i32 {
    const OPERATION: &str = "hbm_objects_free";
    export(|| {
        // SAFETY: passed on to the caller.
        let handles = unsafe { self::handles(OPERATION, handles, count)? };
        with(OPERATION, objects, |pool| pool.free(OPERATION, handles))
    })
}

fn count_out(
    operation: &'static str,
    objects: *mut hbm_objects_t,
    left: *mut u32,
    change: impl FnOnce(&ObjectPool) -> Result<u32>,
) -> i32 {
    export(|| {
        let count = with(operation, objects, change)?;
        if !left.is_null() {
            // SAFETY: the exports' callers vouch for it.
            unsafe { left.write(count) };
        }
        Ok(())
    })
}

/// Adds a reference to an object that somebody refers to; how many there are is written to `*count` (which may be NULL).
/// At most 1023.
///
/// # Safety
/// `count` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_object_retain(
    objects: *mut hbm_objects_t,
    handle: u64,
    count: *mut u32,
) -> i32 {
    const OPERATION: &str = "hbm_object_retain";
    count_out(OPERATION, objects, count, |pool| {
        pool.hold(OPERATION, Object::from_raw(handle))
    })
}

/// Takes a reference away; with the last one, and no pin or view, it is free memory. How many are left is written to `*count`
/// (which may be NULL).
///
/// # Safety
/// `count` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_object_release(
    objects: *mut hbm_objects_t,
    handle: u64,
    count: *mut u32,
) -> i32 {
    const OPERATION: &str = "hbm_object_release";
    count_out(OPERATION, objects, count, |pool| {
        pool.drop_reference(OPERATION, Object::from_raw(handle))
    })
}

/// Somebody sees the memory of each of `count` objects from here on, or of none: a tensor over it, say. It is given to no other object
/// until as many hbm_objects_unview, whether the object is freed meanwhile or not. At most 1023 views an object. HBM_NOT_OWNED for
/// what is no object any more.
///
/// # Safety
/// `handles` must hold `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_objects_view(
    objects: *mut hbm_objects_t,
    handles: *const u64,
    count: usize,
) -> i32 {
    const OPERATION: &str = "hbm_objects_view";
    export(|| {
        // SAFETY: passed on to the caller.
        let handles = unsafe { self::handles(OPERATION, handles, count)? };
        with(OPERATION, objects, |pool| pool.view(OPERATION, handles))
    })
}

/// Takes back what hbm_objects_view gave, of each of `count` objects, freed ones included. What has no view is
/// HBM_NOT_OWNED, told after the others.
///
/// # Safety
/// `handles` must hold `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_objects_unview(
    objects: *mut hbm_objects_t,
    handles: *const u64,
    count: usize,
) -> i32 {
    const OPERATION: &str = "hbm_objects_unview";
    export(|| {
        // SAFETY: passed on to the caller.
        let handles = unsafe { self::handles(OPERATION, handles, count)? };
        with(OPERATION, objects, |pool| pool.unview(OPERATION, handles))
    })
}

/// Pins an object for `owner`, any number: its memory stays while a pin does. Each pin is taken away by its owner. At most 1023
/// pins an object; how many there are is written to `*count` (which may be NULL).
///
/// # Safety
/// `count` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_object_pin(
    objects: *mut hbm_objects_t,
    handle: u64,
    owner: u64,
    count: *mut u32,
) -> i32 {
    const OPERATION: &str = "hbm_object_pin";
    count_out(OPERATION, objects, count, |pool| {
        pool.pin(OPERATION, Object::from_raw(handle), owner)
    })
}

/// Takes a pin of `owner`'s away; HBM_NOT_OWNED if it has none. As hbm_object_release.
///
/// # Safety
/// `count` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_object_unpin(
    objects: *mut hbm_objects_t,
    handle: u64,
    owner: u64,
    count: *mut u32,
) -> i32 {
    const OPERATION: &str = "hbm_object_unpin";
    count_out(OPERATION, objects, count, |pool| {
        pool.unpin(OPERATION, Object::from_raw(handle), owner)
    })
}

/// Takes all pins of `owner` away, one that is gone, say; how many they were is written to `*count` (which may be NULL).
///
/// # Safety
/// `count` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_objects_unpin_all(
    objects: *mut hbm_objects_t,
    owner: u64,
    count: *mut u32,
) -> i32 {
    const OPERATION: &str = "hbm_objects_unpin_all";
    count_out(OPERATION, objects, count, |pool| {
        pool.unpin_all(OPERATION, owner).map(|count| count as u32)
    })
}

/// Writes how many references, pins and views an object has; HBM_NOT_OWNED once it has none of them. It is an object while it has
/// references or pins. Any of the three may be NULL.
///
/// # Safety
/// `references`, `pins` and `views` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_object_counts(
    objects: *mut hbm_objects_t,
    handle: u64,
    references: *mut u32,
    pins: *mut u32,
    views: *mut u32,
) -> i32 {
    const OPERATION: &str = "hbm_object_counts";
    export(|| {
        let object = Object::from_raw(handle);
        let found = with(OPERATION, objects, |pool| pool.holders(OPERATION, object))?;
        for (out, count) in [(references, found.0), (pins, found.1), (views, found.2)] {
            if !out.is_null() {
                // SAFETY: passed on to the caller.
                unsafe { out.write(count) };
            }
        }
        Ok(())
    })
}

/// Writes how much is in use.
///
/// # Safety
/// `out` must point to a struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_objects_usage(
    objects: *mut hbm_objects_t,
    out: *mut hbm_objects_usage_t,
) -> i32 {
    export(|| {
        let usage = with("hbm_objects_usage", objects, |pool| Ok(pool.usage()))?;
        let usage = hbm_objects_usage_t {
            struct_size: size_of::<hbm_objects_usage_t>(),
            used: usage.used,
            total: usage.total,
            largest_free: usage.largest,
            objects: usage.objects,
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_objects_usage", out, &usage) }
    })
}

/// Whether all that is known of the objects and their memory agrees: HBM_INTERNAL with what does not, where something
/// wrote over it. Other calls on the pool wait meanwhile.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_objects_check(objects: *mut hbm_objects_t) -> i32 {
    const OPERATION: &str = "hbm_objects_check";
    export(|| {
        with(OPERATION, objects, |pool| {
            pool.check().map_err(|what| {
                Error::new(crate::error::Status::Internal, OPERATION)
                    .detail(what)
                    .advice("Something wrote over memory of the process")
            })
        })
    })
}

/// Writes where each of `count` groups of an object begins and where the last one ends, `count + 1` numbers; that end is the
/// size to ask for. HBM_INVALID_ARGUMENT for a layout of 0 bytes or one that is too large. No driver call.
///
/// # Safety
/// `groups` must hold `count` groups whose shapes can be read, `offsets` have room for `count + 1` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_layout(
    groups: *const hbm_group_t,
    count: usize,
    offsets: *mut u64,
) -> i32 {
    const OPERATION: &str = "hbm_layout";
    export(|| {
        if groups.is_null() || offsets.is_null() || count > 1 << 20 {
            return Err(Error::invalid(
                OPERATION,
                "no groups, too many, or nowhere to write",
            ));
        }
        // SAFETY: passed on to the caller.
        let groups = unsafe { std::slice::from_raw_parts(groups, count) };
        let of = |group: &hbm_group_t| layout::Group {
            shape: match group.shape.is_null() || group.dimensions == 0 {
                true => &[],
                // SAFETY: passed on to the caller.
                false => unsafe { std::slice::from_raw_parts(group.shape, group.dimensions) },
            },
            element: group.element_bytes,
        };
        let groups: Vec<layout::Group<'_>> = groups.iter().map(of).collect();
        for (place, offset) in layout::offsets(OPERATION, &groups)?.into_iter().enumerate() {
            // SAFETY: there is one more than groups, for which the caller vouches.
            unsafe { offsets.add(place).write(offset) };
        }
        Ok(())
    })
}
