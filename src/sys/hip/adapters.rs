//! Functions with the CUDA driver's signatures over HIP's, where the two differ in more than a name.
//!
//! HIP has no contexts: a thread has a current device, 0 where it never set one. A device's number,
//! less one, stands for its context here. HIP's own functions for contexts are not used, since its
//! `hipCtxPopCurrent` leaves the device that was pushed current, and they are deprecated.

use super::super::library::Library;
use super::attributes;
use crate::error::DriverCode;
use crate::sys::cuda::{Handle, MemLocation};
use cuda_sys::driver::sys::CUmemLocationType;
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = DriverCode::INVALID_VALUE.0;
const NOT_INITIALIZED: c_int = DriverCode::NOT_INITIALIZED.0;
const INVALID_CONTEXT: c_int = 201;

/// From this version on a file descriptor is imported by its value; before, through a pointer to it.
const IMPORTS_BY_VALUE: c_int = 7 * super::MAJOR + super::MINOR;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($arg:ident: $ty:ty),*);)*) => {
        /// The functions of HIP that are called here. The driver's functions take no pointer to a
        /// table, so these are found through statics.
        mod hip {
            use super::*;

            $(
                /// # Safety
                /// As HIP's manual asks for the function.
                pub unsafe fn $name($($arg: $ty),*) -> c_int {
                    let address = slot::$name.load(Ordering::Acquire);
                    if address.is_null() {
                        return NOT_INITIALIZED;
                    }
                    // SAFETY: the function of this name has this signature in HIP's ABI.
                    let function: unsafe extern "C" fn($($ty),*) -> c_int =
                        unsafe { std::mem::transmute(address) };
                    // SAFETY: passed on to the caller.
                    unsafe { function($($arg),*) }
                }
            )*
        }

        #[allow(non_upper_case_globals)]
        mod slot {
            use super::*;
            $( pub static $name: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut()); )*
        }

        /// Makes the functions of `library` those that are called. A process has one HIP.
        pub(super) fn bind(library: &Library) {
            $(
                const _: &CStr = $symbol;
                let found = library.symbol($symbol).unwrap_or(std::ptr::null_mut());
                slot::$name.store(found, Ordering::Release);
            )*
        }
    };
}

functions! {
    init = c"hipInit"(flags: c_uint);
    runtime_version = c"hipRuntimeGetVersion"(version: *mut c_int);
    set_device = c"hipSetDevice"(device: c_int);
    get_device = c"hipGetDevice"(device: *mut c_int);
    device_get = c"hipDeviceGet"(device: *mut c_int, ordinal: c_int);
    device_attribute = c"hipDeviceGetAttribute"(value: *mut c_int, attribute: c_int, device: c_int);
    context_state = c"hipDevicePrimaryCtxGetState"(device: c_int, flags: *mut c_uint, active: *mut c_int);
    memory_advise = c"hipMemAdvise"(address: u64, bytes: usize, advice: c_int, device: c_int);
    memory_prefetch = c"hipMemPrefetchAsync"(address: u64, bytes: usize, device: c_int, stream: Handle);
    stream_device = c"hipStreamGetDevice"(stream: Handle, device: *mut c_int);
    stream_wait_value = c"hipStreamWaitValue32"(stream: Handle, address: u64, value: c_uint, flags: c_uint, mask: u32);
    import = c"hipMemImportFromShareableHandle"(handle: *mut u64, shareable: *mut c_void, kind: c_int);
}

/// As many devices as can be noted to be in use.
const MOST_DEVICES: c_int = 64;

/// The devices whose contexts were retained since HIP was initialised last, a bit each.
static RETAINED: AtomicU64 = AtomicU64::new(0);

fn bit(device: c_int) -> u64 {
    match (0..MOST_DEVICES).contains(&device) {
        true => 1 << device,
        false => 0,
    }
}

fn context_of(device: c_int) -> Handle {
    (device as usize + 1) as Handle
}

fn device_of(context: Handle) -> c_int {
    (context as usize).wrapping_sub(1) as c_int
}

/// How deep contexts may be pushed: as the driver's own stack of a thread, about.
const DEPTH: usize = 64;

struct Stack {
    depth: Cell<usize>,
    devices: [Cell<c_int>; DEPTH],
}

thread_local! {
    // Without a destructor, so that it is there for handlers that run when the thread is nearly gone.
    static BEFORE: Stack = const {
        Stack { depth: Cell::new(0), devices: [const { Cell::new(0) }; DEPTH] }
    };
}

/// `?` for codes.
macro_rules! check {
    ($call:expr) => {
        match $call {
            SUCCESS => {}
            code => return code,
        }
    };
}

pub(super) unsafe extern "C" fn init(flags: c_uint) -> c_int {
    RETAINED.store(0, Ordering::SeqCst);
    // SAFETY: takes no pointers.
    unsafe { hip::init(flags) }
}

pub(super) unsafe extern "C" fn device_attribute(
    value: *mut c_int,
    attribute: c_int,
    device: c_int,
) -> c_int {
    match attributes::in_hip(attribute) {
        // SAFETY: passed on to the caller.
        Some(number) => unsafe { hip::device_attribute(value, number, device) },
        None => INVALID_VALUE,
    }
}

pub(super) unsafe extern "C" fn context_retain(context: *mut Handle, device: c_int) -> c_int {
    let mut known: c_int = 0;
    // SAFETY: `known` is a valid out-pointer.
    check!(unsafe { hip::device_get(&mut known, device) });
    RETAINED.fetch_or(bit(known), Ordering::SeqCst);
    // SAFETY: a valid out-pointer by the caller's promise.
    unsafe { context.write(context_of(known)) };
    SUCCESS
}

pub(super) unsafe extern "C" fn context_release(device: c_int) -> c_int {
    let mut known: c_int = 0;
    // SAFETY: `known` is a valid out-pointer.
    check!(unsafe { hip::device_get(&mut known, device) });
    RETAINED.fetch_and(!bit(known), Ordering::SeqCst);
    SUCCESS
}

/// Some versions say only whether the calling thread has the device current, so what was retained here
/// counts too.
pub(super) unsafe extern "C" fn context_state(
    device: c_int,
    flags: *mut c_uint,
    active: *mut c_int,
) -> c_int {
    // SAFETY: passed on to the caller.
    check!(unsafe { hip::context_state(device, flags, active) });
    if RETAINED.load(Ordering::SeqCst) & bit(device) != 0 {
        // SAFETY: a valid out-pointer by the caller's promise.
        unsafe { active.write(1) };
    }
    SUCCESS
}

pub(super) unsafe extern "C" fn context_current(context: *mut Handle) -> c_int {
    let mut device: c_int = 0;
    // SAFETY: `device` is a valid out-pointer.
    check!(unsafe { hip::get_device(&mut device) });
    // SAFETY: a valid out-pointer by the caller's promise.
    unsafe { context.write(context_of(device)) };
    SUCCESS
}

pub(super) unsafe extern "C" fn context_push(context: Handle) -> c_int {
    if context.is_null() {
        return INVALID_VALUE;
    }
    let mut before: c_int = 0;
    BEFORE.with(|stack| {
        let depth = stack.depth.get();
        let Some(place) = stack.devices.get(depth) else {
            return INVALID_VALUE;
        };
        // SAFETY: `before` is a valid out-pointer; the device's number is checked by HIP.
        unsafe {
            check!(hip::get_device(&mut before));
            check!(hip::set_device(device_of(context)));
        }
        place.set(before);
        stack.depth.set(depth + 1);
        SUCCESS
    })
}

pub(super) unsafe extern "C" fn context_pop(context: *mut Handle) -> c_int {
    let mut popped: c_int = 0;
    BEFORE.with(|stack| {
        let Some(depth) = stack.depth.get().checked_sub(1) else {
            return INVALID_CONTEXT;
        };
        // SAFETY: `popped` is a valid out-pointer; the other device was current before.
        unsafe {
            check!(hip::get_device(&mut popped));
            check!(hip::set_device(stack.devices[depth].get()));
        }
        stack.depth.set(depth);
        // SAFETY: a valid out-pointer by the caller's promise.
        unsafe { context.write(context_of(popped)) };
        SUCCESS
    })
}

/// A thread cannot be without a device: none is device 0, as it was at the thread's beginning.
pub(super) unsafe extern "C" fn context_set(context: Handle) -> c_int {
    let device = match context.is_null() {
        true => 0,
        false => device_of(context),
    };
    // SAFETY: the device's number is checked by HIP.
    unsafe { hip::set_device(device) }
}

/// HIP's number for the host where it takes that of a device.
const HOST: c_int = -1;

/// The number that stands for a place: HIP's older forms know devices and the host.
fn number_of(location: MemLocation) -> c_int {
    match location.type_ {
        CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE => location.id,
        _ => HOST,
    }
}

pub(super) unsafe extern "C" fn memory_advise(
    address: u64,
    bytes: usize,
    advice: c_int,
    location: MemLocation,
) -> c_int {
    // SAFETY: passed on to the caller.
    unsafe { hip::memory_advise(address, bytes, advice, number_of(location)) }
}

pub(super) unsafe extern "C" fn memory_prefetch(
    address: u64,
    bytes: usize,
    location: MemLocation,
    flags: c_uint,
    stream: Handle,
) -> c_int {
    if flags != 0 {
        return INVALID_VALUE;
    }
    // SAFETY: passed on to the caller.
    unsafe { hip::memory_prefetch(address, bytes, number_of(location), stream) }
}

pub(super) unsafe extern "C" fn stream_context(stream: Handle, context: *mut Handle) -> c_int {
    let mut device: c_int = 0;
    // SAFETY: `device` is a valid out-pointer; the rest is passed on to the caller.
    unsafe {
        check!(hip::stream_device(stream, &mut device));
        context.write(context_of(device));
    }
    SUCCESS
}

pub(super) unsafe extern "C" fn stream_wait_value(
    stream: Handle,
    address: u64,
    value: c_uint,
    flags: c_uint,
) -> c_int {
    const EVERY_BIT: u32 = u32::MAX;
    // SAFETY: passed on to the caller.
    unsafe { hip::stream_wait_value(stream, address, value, flags, EVERY_BIT) }
}

/// A descriptor by value, followed as a pointer, would end the process; a pointer taken for a
/// descriptor is only refused. So the pointer is tried first.
pub(super) unsafe extern "C" fn import(
    handle: *mut u64,
    shareable: *mut c_void,
    kind: c_int,
) -> c_int {
    const POSIX_FD: c_int = 1;
    if kind != POSIX_FD {
        // SAFETY: passed on to the caller.
        return unsafe { hip::import(handle, shareable, kind) };
    }
    let mut descriptor = shareable as usize as c_int;
    // SAFETY: a pointer to a descriptor, which is live for the call.
    let outcome = unsafe { hip::import(handle, std::ptr::from_mut(&mut descriptor).cast(), kind) };
    let mut version: c_int = 0;
    // SAFETY: `version` is a valid out-pointer.
    let asked = unsafe { hip::runtime_version(&mut version) };
    if outcome == SUCCESS || asked != SUCCESS || version < IMPORTS_BY_VALUE {
        return outcome;
    }
    // SAFETY: passed on to the caller.
    unsafe { hip::import(handle, shareable, kind) }
}
