//! Versions, statuses, the last error, the log.

use super::export;
use crate::error::{Error, Status, last};
use crate::observe;
use std::ffi::{CString, c_char, c_void};

/// What a call returns: 0 for success, else the kind of failure.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_status {
    HBM_OK = 0,
    HBM_INVALID_ARGUMENT = 1,
    HBM_OUT_OF_MEMORY = 2,
    HBM_UNSUPPORTED = 3,
    HBM_NO_DRIVER = 4,
    HBM_DRIVER = 5,
    HBM_NOT_OWNED = 6,
    HBM_CAPTURING = 7,
    HBM_FORKED = 8,
    HBM_SHUTDOWN = 9,
    HBM_BAD_OPTION = 10,
    HBM_BUSY = 11,
    HBM_INTERNAL = 12,
    HBM_IO = 13,
}

/// The version of the library in use: major * 10000 + minor * 100 + patch.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_version() -> i32 {
    const fn number(text: &str) -> i32 {
        let (bytes, mut value, mut index) = (text.as_bytes(), 0, 0);
        while index < bytes.len() {
            value = value * 10 + (bytes[index] - b'0') as i32;
            index += 1;
        }
        value
    }
    number(env!("CARGO_PKG_VERSION_MAJOR")) * 10_000
        + number(env!("CARGO_PKG_VERSION_MINOR")) * 100
        + number(env!("CARGO_PKG_VERSION_PATCH"))
}

/// The version of the library in use as text, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn hbm_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// A status in words; "unknown status" for an integer that is none.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_status_name(status: i32) -> *const c_char {
    macro_rules! names {
        ($($status:ident),*) => {
            match status {
                $(value if value == Status::$status as i32 => {
                    const NAME: &str = Status::$status.name();
                    const TEXT: [u8; NAME.len() + 1] = {
                        let mut text = [0; NAME.len() + 1];
                        let mut index = 0;
                        while index < NAME.len() {
                            text[index] = NAME.as_bytes()[index];
                            index += 1;
                        }
                        text
                    };
                    const { &TEXT }.as_ptr().cast()
                })*
                _ => c"unknown status".as_ptr(),
            }
        };
    }
    names!(
        Ok,
        InvalidArgument,
        OutOfMemory,
        Unsupported,
        NoDriver,
        Driver,
        NotOwned,
        Capturing,
        Forked,
        Shutdown,
        BadOption,
        Busy,
        Internal,
        Io
    )
}

/// The text of the calling thread's last error: operation, driver's code and text, sizes, what to do.
/// Valid until the next error of the thread; empty when there was none. Successes leave it alone.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_last_error() -> *const c_char {
    last::text()
}

/// The status of the calling thread's last error, for functions that return an address; HBM_OK when there was none.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_last_status() -> i32 {
    last::status() as i32
}

/// The driver's code of the calling thread's last error; 0 where the driver was not the cause.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_last_driver_code() -> i32 {
    last::code()
}

/// Receives a line of the log: level (1 error, 2 warn, 3 info, 4 debug, 5 trace), the part of the
/// library it came from, the message, and the pointer given with the callback. May be called from
/// any thread, and must not call the library.
#[allow(non_camel_case_types)]
pub type hbm_log_callback_t = Option<
    unsafe extern "C" fn(
        level: i32,
        target: *const c_char,
        message: *const c_char,
        user: *mut c_void,
    ),
>;

struct User(*mut c_void);
// SAFETY: whoever sets a callback vouches that its pointer may be used from any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

impl User {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Sends the log to a callback instead of standard error or the log file; NULL ends that. What is
/// logged stays a matter of the option `log`.
///
/// # Safety
/// The callback and `user` must stay valid until replaced, on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_log_set_callback(
    callback: hbm_log_callback_t,
    user: *mut c_void,
) -> i32 {
    export(|| {
        crate::process::check_not_forked()?;
        observe::process();
        let user = User(user);
        observe::log::set_callback(callback.map(|callback| -> observe::log::Callback {
            Box::new(move |level, target, message| {
                let text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
                let (target, message) = (text(target), text(message));
                // SAFETY: the texts outlive the call; the rest is the caller's promise.
                unsafe { callback(level, target.as_ptr(), message.as_ptr(), user.get()) }
            })
        }))
    })
}

/// 1 once the library has opened the GPU driver or tried to, else 0. Makes no driver call.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_driver_used() -> i32 {
    observe::process().driver_touched().into()
}

/// 1 in a process forked from one in which the library had initialised the driver: there
/// allocating is an error and freeing does nothing. Else 0.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_forked() -> i32 {
    crate::process::has_forked().into()
}

/// Writes the number of devices to `*count`. Opens and initialises the driver.
///
/// # Safety
/// `count` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_device_count(count: *mut i32) -> i32 {
    export(|| {
        let devices = observe::process().driver()?.device_count();
        let devices =
            i32::try_from(devices).map_err(|_| Error::new(Status::Internal, "hbm_device_count"))?;
        // SAFETY: passed on to the caller.
        unsafe { super::write_out("hbm_device_count", count, devices) }
    })
}
