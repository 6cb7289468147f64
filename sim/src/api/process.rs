//! Initialisation, version and error texts: the calls that work without a device.

use crate::calls::Call;
use crate::codes::{self, Out, put};
use crate::{config, entry};
use std::ffi::{c_char, c_void};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: u32) -> i32 {
    entry::run_early(Call::cuInit, || {
        if flags != 0 {
            Err(codes::INVALID_VALUE)
        } else {
            entry::initialize()
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: Out<i32>) -> i32 {
    entry::run_anywhere(Call::cuDriverGetVersion, || {
        put(
            version,
            config::current().unwrap_or_default().version as i32,
        )
    })
}

fn text(
    code: i32,
    which: fn((&'static std::ffi::CStr, &'static std::ffi::CStr)) -> &'static std::ffi::CStr,
) -> *const c_char {
    codes::describe(code).map_or(std::ptr::null(), |pair| which(pair).as_ptr())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: i32, name: Out<*const c_char>) -> i32 {
    entry::run_anywhere(Call::cuGetErrorName, || {
        let found = text(code, |pair| pair.0);
        put(name, found)?;
        if found.is_null() {
            Err(codes::INVALID_VALUE)
        } else {
            Ok(())
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: i32, message: Out<*const c_char>) -> i32 {
    entry::run_anywhere(Call::cuGetErrorString, || {
        let found = text(code, |pair| pair.1);
        put(message, found)?;
        if found.is_null() {
            Err(codes::INVALID_VALUE)
        } else {
            Ok(())
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress(
    symbol: *const c_char,
    function: Out<*mut c_void>,
    version: i32,
    _flags: u64,
) -> i32 {
    entry::run_early(Call::cuGetProcAddress, || {
        // SAFETY: the caller passes a string with a terminator, as the driver's manual says.
        let found = unsafe { super::symbols::versioned(symbol, version) };
        put(function, found.address())?;
        found.or_not_found()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    function: Out<*mut c_void>,
    version: i32,
    _flags: u64,
    status: Out<i32>,
) -> i32 {
    entry::run_early(Call::cuGetProcAddress_v2, || {
        // SAFETY: the caller passes a string with a terminator, as the driver's manual says.
        let found = unsafe { super::symbols::versioned(symbol, version) };
        put(function, found.address())?;
        // With a place for the status, a missing symbol is no error.
        match status {
            Some(status) => {
                status.write(found.status());
                Ok(())
            }
            None => found.or_not_found(),
        }
    })
}
