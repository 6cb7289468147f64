//! Result codes travel as plain integers: a program under test may pass any value in, and gets the driver's own values out.

use cuda_sys::driver::sys::CUresult;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::sync::Mutex;

pub type Code = i32;
pub type Result<T = ()> = std::result::Result<T, Code>;

/// Where a call writes its answer: null is seen, uninitialised memory is never read.
pub type Out<T> = Option<&'static mut MaybeUninit<T>>;

/// Writes an answer, or refuses a null pointer as the driver does.
pub fn put<T>(out: Out<T>, value: T) -> Result {
    out.ok_or(INVALID_VALUE)?.write(value);
    Ok(())
}

macro_rules! codes {
    ($($short:ident = $long:ident, $text:literal;)*) => {
        $(pub const $short: Code = CUresult::$long as Code;)*

        /// The driver's name of a code and its text, both with a C terminator.
        pub fn describe(code: Code) -> Option<(&'static std::ffi::CStr, &'static std::ffi::CStr)> {
            let (name, text) = match code {
                $($short => (concat!(stringify!($long), "\0"), concat!($text, "\0")),)*
                _ => return None,
            };
            Some((
                std::ffi::CStr::from_bytes_with_nul(name.as_bytes()).ok()?,
                std::ffi::CStr::from_bytes_with_nul(text.as_bytes()).ok()?,
            ))
        }
    };
}

/// HIP's name of a code, made of the driver's: `hipErrorOutOfMemory` of `CUDA_ERROR_OUT_OF_MEMORY`.
pub fn hip_name(code: Code) -> Option<&'static CStr> {
    static MADE: Mutex<BTreeMap<Code, &'static CStr>> = Mutex::new(BTreeMap::new());
    let (name, _) = describe(code)?;
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(known) = made.get(&code) {
        return Some(known);
    }
    let mut text = String::from("hip");
    for word in name.to_str().ok()?.split('_').skip(1) {
        let (first, rest) = word.split_at(1);
        text += first;
        text += &rest.to_ascii_lowercase();
    }
    let name: &'static CStr = Box::leak(CString::new(text).ok()?.into_boxed_c_str());
    made.insert(code, name);
    Some(name)
}

codes! {
    SUCCESS = CUDA_SUCCESS, "no error";
    INVALID_VALUE = CUDA_ERROR_INVALID_VALUE, "invalid argument";
    OUT_OF_MEMORY = CUDA_ERROR_OUT_OF_MEMORY, "out of memory";
    NOT_INITIALIZED = CUDA_ERROR_NOT_INITIALIZED, "initialization error";
    DEINITIALIZED = CUDA_ERROR_DEINITIALIZED, "driver shutting down";
    STUB_LIBRARY = CUDA_ERROR_STUB_LIBRARY, "CUDA driver is a stub library";
    NO_DEVICE = CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected";
    INVALID_DEVICE = CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal";
    INVALID_CONTEXT = CUDA_ERROR_INVALID_CONTEXT, "invalid device context";
    PRIMARY_CONTEXT_ACTIVE = CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, "cannot set while device is active in this process";
    PEER_ACCESS_UNSUPPORTED = CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "peer access is not supported between these two devices";
    INVALID_HANDLE = CUDA_ERROR_INVALID_HANDLE, "invalid resource handle";
    ILLEGAL_STATE = CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state";
    NOT_FOUND = CUDA_ERROR_NOT_FOUND, "named symbol not found";
    NOT_READY = CUDA_ERROR_NOT_READY, "device not ready";
    ILLEGAL_ADDRESS = CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered";
    PEER_ACCESS_ALREADY_ENABLED = CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled";
    PEER_ACCESS_NOT_ENABLED = CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "peer access has not been enabled";
    CONTEXT_IS_DESTROYED = CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed";
    HOST_MEMORY_ALREADY_REGISTERED = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped";
    HOST_MEMORY_NOT_REGISTERED = CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region";
    LAUNCH_FAILURE = CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure";
    NOT_PERMITTED = CUDA_ERROR_NOT_PERMITTED, "operation not permitted";
    NOT_SUPPORTED = CUDA_ERROR_NOT_SUPPORTED, "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE = CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED = CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED = CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work";
    STREAM_CAPTURE_ISOLATION = CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream";
    STREAM_CAPTURE_IMPLICIT = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream";
    CAPTURED_EVENT = CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread";
    UNKNOWN = CUDA_ERROR_UNKNOWN, "unknown error";
}
