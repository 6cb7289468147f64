//! Options by call.

use super::{export, text_argument};
use crate::config::table::{self, Opt, TABLE};
use crate::core::sync::lock;
use crate::error::{Error, Status};
use crate::observe;
use crate::process::check_not_forked;
use std::ffi::{CString, c_char};
use std::sync::Mutex;

/// One option. Fill in `struct_size` before the call.
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct hbm_option_t {
    /// sizeof(hbm_option_t) as the program was compiled.
    pub struct_size: usize,
    /// Its name in calls; the environment variable is HBMALLOC_ and this in capitals.
    pub name: *const c_char,
    /// The value in force, as text; valid until the value changes again.
    pub value: *const c_char,
    /// The value when nobody sets one.
    pub default_value: *const c_char,
    /// Where the value came from.
    pub origin: *const c_char,
    /// What it does.
    pub help: *const c_char,
    /// What is accepted.
    pub accepted: *const c_char,
}

/// Sets an option. `name` is as in the table ("backend") or the variable ("HBMALLOC_BACKEND").
/// Beats the environment. HBM_BAD_OPTION for an unknown name or a bad value, HBM_BUSY for an option
/// from which something has been built already. Any thread; makes no driver call.
///
/// # Safety
/// Both must be C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_option_set(name: *const c_char, value: *const c_char) -> i32 {
    export(|| {
        check_not_forked()?;
        // SAFETY: passed on to the caller.
        let (name, value) = unsafe {
            (
                text_argument("hbm_option_set", "name", name)?,
                text_argument("hbm_option_set", "value", value)?,
            )
        };
        let process = observe::process();
        let opt = process.settings().set(name, value)?;
        if matches!(opt, Opt::Log | Opt::LogFile) {
            observe::log::reconfigure(process);
        }
        if opt == Opt::Limit {
            process.apply_limits();
        }
        if opt == Opt::DriverTiming {
            process.apply_driver_timing();
        }
        Ok(())
    })
}

/// Whether hbm_option_set would succeed now, with its statuses; changes nothing.
///
/// # Safety
/// Both must be C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_option_validate(name: *const c_char, value: *const c_char) -> i32 {
    export(|| {
        check_not_forked()?;
        // SAFETY: passed on to the caller.
        let (name, value) = unsafe {
            (
                text_argument("hbm_option_validate", "name", name)?,
                text_argument("hbm_option_validate", "value", value)?,
            )
        };
        observe::process().settings().validate(name, value)
    })
}

/// Writes the value in force as text to `buffer`, cut to `capacity` bytes with the final zero, and
/// the bytes needed to `*needed` (which may be NULL).
///
/// # Safety
/// `name` must be a C string, `buffer` valid for `capacity` bytes or NULL with capacity 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_option_get(
    name: *const c_char,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    export(|| {
        check_not_forked()?;
        // SAFETY: passed on to the caller.
        let name = unsafe { text_argument("hbm_option_get", "name", name)? };
        let spec = table::find(name).ok_or_else(|| {
            Error::new(Status::BadOption, "hbm_option_get")
                .detail(format!("there is no option '{name}'"))
        })?;
        let (text, _) = observe::process().settings().describe(spec.opt);
        let bytes = text.as_bytes();
        if !needed.is_null() {
            // SAFETY: passed on to the caller.
            unsafe { needed.write(bytes.len() + 1) };
        }
        if !buffer.is_null() && capacity > 0 {
            let len = bytes.len().min(capacity - 1);
            // SAFETY: `len + 1 <= capacity`, for which the caller vouches.
            unsafe {
                buffer
                    .cast::<u8>()
                    .copy_from_nonoverlapping(bytes.as_ptr(), len);
                buffer.add(len).write(0);
            }
        }
        Ok(())
    })
}

/// How many options there are.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_option_count() -> usize {
    TABLE.len()
}

/// Describes the option of an index below hbm_option_count().
///
/// # Safety
/// `out` must point to an hbm_option_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_option_describe(index: usize, out: *mut hbm_option_t) -> i32 {
    export(|| {
        check_not_forked()?;
        let spec = TABLE.get(index).ok_or_else(|| {
            Error::invalid(
                "hbm_option_describe",
                format!("there are {} options, none at index {index}", TABLE.len()),
            )
        })?;
        let (value, origin) = observe::process().settings().describe(spec.opt);
        let described = hbm_option_t {
            struct_size: size_of::<hbm_option_t>(),
            name: interned(spec.name),
            value: interned(&value),
            default_value: interned(spec.default),
            origin: interned(&origin.describe()),
            help: interned(spec.help),
            accepted: interned(spec.accepted),
        };
        // SAFETY: passed on to the caller.
        unsafe { super::write_struct("hbm_option_describe", out, &described) }
    })
}

/// A C string that lives for good. Texts of options are few and change seldom.
fn interned(text: &str) -> *const c_char {
    static TEXTS: Mutex<Vec<CString>> = Mutex::new(Vec::new());
    let mut texts = lock(&TEXTS);
    if let Some(known) = texts
        .iter()
        .find(|known| known.to_bytes() == text.as_bytes())
    {
        return known.as_ptr();
    }
    texts.push(CString::new(text.replace('\0', " ")).unwrap_or_default());
    // A CString's bytes stay where they are when the vector grows.
    texts.last().map_or(std::ptr::null(), |text| text.as_ptr())
}
