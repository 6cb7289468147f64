//! The program's own runtime: looked for once a function is needed, among what is loaded by then.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Where the runtime is, newest first. A program that has two of them has one for a plug-in of its own.
const NAMES: [&CStr; 3] = [c"libcudart.so.13", c"libcudart.so.12", c"libcudart.so.11.0"];

/// A function of the runtime, found when it is first called.
pub struct Function {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Function {
    pub const fn new(name: &'static CStr) -> Function {
        Function {
            name,
            address: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Its address; none where no runtime that has it is loaded.
    #[inline]
    pub fn address(&self) -> Option<*mut c_void> {
        let known = self.address.load(Ordering::Relaxed);
        if !known.is_null() {
            return Some(known);
        }
        let found = find(self.name)?;
        self.address.store(found, Ordering::Relaxed);
        Some(found)
    }
}

/// A runtime that was opened with RTLD_LOCAL is behind nobody in the loader's order, so it is asked by its name.
fn find(name: &CStr) -> Option<*mut c_void> {
    let of_runtime = NAMES.iter().find_map(|library| {
        // SAFETY: both are C strings; a library that is not loaded stays so.
        let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        // SAFETY: the handle was just opened, and is never closed.
        (!handle.is_null()).then(|| unsafe { libc::dlsym(handle, name.as_ptr()) })
    });
    // SAFETY: a C string; what lies behind this library in the loader's order is not this library.
    let next = || unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    let found = of_runtime.unwrap_or_else(next);
    (!found.is_null()).then_some(found)
}

/// Calls a function of the program's runtime.
macro_rules! runtime {
    ($name:ident($($argument:ident: $kind:ty),*)) => {{
        static FUNCTION: $crate::runtime::Function = $crate::runtime::Function::new(
            // SAFETY: the text ends with a zero, and has none before it.
            unsafe { std::ffi::CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) },
        );
        match FUNCTION.address() {
            None => $crate::answer::NO_RUNTIME,
            Some(address) => {
                type Real = unsafe extern "C" fn($($kind),*) -> std::ffi::c_int;
                // SAFETY: the runtime's function of that name has this signature, in all versions that are looked for.
                let real: Real = unsafe { std::mem::transmute(address) };
                // SAFETY: the arguments are the program's own, or valid for what is asked here.
                unsafe { real($($argument),*) }
            }
        }
    }};
}
pub(crate) use runtime;

/// The device that the calling thread uses.
pub fn current_device() -> Result<c_int, c_int> {
    let mut device: c_int = 0;
    let out: *mut c_int = &mut device;
    match runtime!(cudaGetDevice(out: *mut c_int)) {
        0 => Ok(device),
        code => Err(code),
    }
}

thread_local! {
    static IS_READY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What the runtime's own functions do besides: its context is there and current, for calls of the driver that the
/// program makes next.
pub fn make_ready() -> c_int {
    if IS_READY.try_with(std::cell::Cell::get).unwrap_or(true) {
        return 0;
    }
    let nothing: *mut c_void = std::ptr::null_mut();
    let answered = runtime!(cudaFree(nothing: *mut c_void));
    let _ = IS_READY.try_with(|ready| ready.set(answered == 0));
    answered
}

/// The context is another one.
pub fn forget_ready() {
    let _ = IS_READY.try_with(|ready| ready.set(false));
}
