//! Which pool cudaMallocAsync takes memory from: a program may set one of its own for a device.

use crate::answer::SUCCESS;
use crate::runtime::runtime;
use std::collections::HashSet;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Whether some device has a pool of the program's, without the lock.
static ANY: AtomicBool = AtomicBool::new(false);

/// The devices that do.
fn devices() -> MutexGuard<'static, HashSet<c_int>> {
    static DEVICES: LazyLock<Mutex<HashSet<c_int>>> = LazyLock::new(Mutex::default);
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether cudaMallocAsync is to be of a pool of the program's on a device.
pub fn has_other(device: c_int) -> bool {
    ANY.load(Ordering::Relaxed) && devices().contains(&device)
}

/// Whether a pool is the one that a device has from the start.
pub fn is_usual(pool: *mut c_void, device: c_int) -> bool {
    let mut usual: *mut c_void = std::ptr::null_mut();
    let out: *mut *mut c_void = &mut usual;
    let answered = runtime!(cudaDeviceGetDefaultMemPool(out: *mut *mut c_void, device: c_int));
    answered == SUCCESS && usual == pool
}

/// Looks which pool of a device is current.
fn look_at(device: c_int) {
    let mut current: *mut c_void = std::ptr::null_mut();
    let out: *mut *mut c_void = &mut current;
    if runtime!(cudaDeviceGetMemPool(out: *mut *mut c_void, device: c_int)) != SUCCESS {
        return;
    }
    let is_other = !is_usual(current, device);
    let mut devices = devices();
    match is_other {
        true => devices.insert(device),
        false => devices.remove(&device),
    };
    ANY.store(!devices.is_empty(), Ordering::Relaxed);
}

/// As the runtime's; from here on cudaMallocAsync is the runtime's own on that device, unless the pool is its default one.
#[unsafe(no_mangle)]
pub extern "C" fn cudaDeviceSetMemPool(device: c_int, pool: *mut c_void) -> c_int {
    let answered = runtime!(cudaDeviceSetMemPool(device: c_int, pool: *mut c_void));
    if answered == SUCCESS {
        look_at(device);
    }
    answered
}

/// `cudaMemLocation`.
#[repr(C)]
#[allow(missing_docs)]
pub struct Location {
    pub kind: c_int,
    pub number: c_int,
}

/// As the runtime's, since CUDA 13: of a device it is cudaDeviceSetMemPool.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMemSetMemPool(
    location: *mut Location,
    kind: c_int,
    pool: *mut c_void,
) -> c_int {
    const DEVICE: c_int = 1;
    let answered =
        runtime!(cudaMemSetMemPool(location: *mut Location, kind: c_int, pool: *mut c_void));
    if answered == SUCCESS && !location.is_null() {
        // SAFETY: checked for null, and the runtime has read it too.
        let location = unsafe { &*location };
        if location.kind == DEVICE {
            look_at(location.number);
        }
    }
    answered
}

/// As the runtime's; where the pool was current, the device's default one is again.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMemPoolDestroy(pool: *mut c_void) -> c_int {
    let answered = runtime!(cudaMemPoolDestroy(pool: *mut c_void));
    look_again();
    answered
}

/// Of every device that may have changed back.
pub fn look_again() {
    let others: Vec<c_int> = devices().iter().copied().collect();
    others.into_iter().for_each(look_at);
}
