//! Which symbols this driver has: those exported here, less the ones that the configured version or the option `missing` takes away.
//! A dynamic linker would find every export, so a loader asks `hbmsim_symbol` where it is present.

use super::hip;
use crate::calls::{TABLE, base_name};
use crate::codes::{self, Result};
use crate::config;
use std::ffi::{CStr, CString, c_char, c_void};

/// An export of this library by its exact name, if the configured driver has it.
pub fn find(name: &str) -> *mut c_void {
    if name.starts_with("hbmsim_") {
        return own_symbol(name);
    }
    let config = config::current().unwrap_or_default();
    if config.missing.iter().any(|missing| missing == name) {
        return std::ptr::null_mut();
    }
    match config.hip {
        Some(_) if hip::NAMES.contains(&name) => own_symbol(name),
        Some(_) => std::ptr::null_mut(),
        None => find_of_version(name, config.version),
    }
}

fn find_of_version(name: &str, version: u32) -> *mut c_void {
    match TABLE.iter().find(|info| info.name == name) {
        Some(info) if info.since <= version => own_symbol(name),
        _ => std::ptr::null_mut(),
    }
}

fn own_symbol(name: &str) -> *mut c_void {
    let Ok(name) = CString::new(name) else {
        return std::ptr::null_mut();
    };
    // SAFETY: dladdr gives this library's own path, which is loaded, so dlopen only finds it again; the library is never unloaded.
    unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        if libc::dladdr(own_symbol as *const c_void, &mut info) == 0 {
            return std::ptr::null_mut();
        }
        let library = libc::dlopen(info.dli_fname, libc::RTLD_NOLOAD | libc::RTLD_LAZY);
        if library.is_null() {
            std::ptr::null_mut()
        } else {
            libc::dlsym(library, name.as_ptr())
        }
    }
}

/// What a look-up found: the driver tells a name it never had from one that is newer than the caller.
pub enum Found {
    Symbol(*mut c_void),
    Unknown,
    TooNew,
}

impl Found {
    pub fn address(&self) -> *mut c_void {
        if let Found::Symbol(address) = self {
            *address
        } else {
            std::ptr::null_mut()
        }
    }

    pub fn or_not_found(&self) -> Result {
        match self {
            Found::Symbol(_) => Ok(()),
            _ => Err(codes::NOT_FOUND),
        }
    }

    /// The driver's number for it.
    pub fn status(&self) -> i32 {
        match self {
            Found::Symbol(_) => 0,
            Found::Unknown => 1,
            Found::TooNew => 2,
        }
    }
}

/// A symbol as `cuGetProcAddress` names it: without the version suffix, for a caller built against some version.
///
/// # Safety
/// `symbol` is null or a string with a terminator.
pub unsafe fn versioned(symbol: *const c_char, version: i32) -> Found {
    if symbol.is_null() {
        return Found::Unknown;
    }
    // SAFETY: the caller's promise.
    let Ok(name) = (unsafe { CStr::from_ptr(symbol) }).to_str() else {
        return Found::Unknown;
    };
    let forms = TABLE.iter().filter(|info| base_name(info.name) == name);
    let mut known: Vec<_> = forms.filter(|info| !find(info.name).is_null()).collect();
    // The newest form that the caller's version had.
    known.sort_by_key(|info| std::cmp::Reverse(info.since));
    match known.iter().find(|info| info.since as i32 <= version) {
        Some(info) => Found::Symbol(find(info.name)),
        None if known.is_empty() => Found::Unknown,
        None => Found::TooNew,
    }
}
