//! Which symbols this driver has: those exported here, less the ones that the configured version or the option `missing` takes away.
//! A dynamic linker would find every export, so a loader asks `hbmsim_symbol` where it is present.

use crate::calls::{TABLE, base_name};
use crate::config;
use std::ffi::{CStr, CString, c_char, c_void};

/// An export of this library by its exact name, if the configured driver has it.
pub fn find(name: &str) -> *mut c_void {
    let Some(info) = TABLE.iter().find(|info| info.name == name) else {
        return if name.starts_with("hbmsim_") {
            own_symbol(name)
        } else {
            std::ptr::null_mut()
        };
    };
    let config = config::current().unwrap_or_default();
    if info.since > config.version || config.missing.iter().any(|missing| missing == name) {
        return std::ptr::null_mut();
    }
    own_symbol(name)
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

/// From 13.0 on the plain names of these stand for their second form.
const CHANGED_IN_13: [&str; 2] = ["cuMemAdvise", "cuMemPrefetchAsync"];

/// A symbol as `cuGetProcAddress` names it: without the version suffix, for a caller built against some version.
///
/// # Safety
/// `symbol` is null or a string with a terminator.
pub unsafe fn versioned(symbol: *const c_char, version: i32) -> *mut c_void {
    if symbol.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: the caller's promise.
    let Ok(name) = (unsafe { CStr::from_ptr(symbol) }).to_str() else {
        return std::ptr::null_mut();
    };
    let old_form = CHANGED_IN_13.contains(&name) && version < 13_000;
    let mut candidates: Vec<&str> = TABLE
        .iter()
        .map(|info| info.name)
        .filter(|n| base_name(n) == name)
        .collect();
    candidates.sort_by_key(|n| std::cmp::Reverse(n.len()));
    if old_form {
        candidates.retain(|n| *n == name);
    }
    if candidates.is_empty() {
        candidates.push(name);
    }
    let known = |n: &&str| {
        TABLE
            .iter()
            .any(|info| info.name == *n && info.since as i32 <= version)
    };
    candidates
        .into_iter()
        .filter(known)
        .map(find)
        .find(|f| !f.is_null())
        .unwrap_or(std::ptr::null_mut())
}
