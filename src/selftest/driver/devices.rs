//! Initialisation, devices and the texts of codes.

use super::cases;
use super::steps::Steps;
use crate::selftest::{Case, Outcome};
use std::ffi::{CStr, c_char};

pub const CASES: &[Case] = cases![
    "initialisation" => initialisation,
    "devices by ordinal" => ordinals,
    "device properties" => properties,
    "texts of codes" => texts,
];

const NO_SUCH_DEVICES: [i32; 2] = [-1, 999];

fn initialisation(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    steps.is("init again", calls.init(0), 0);
    steps.is("init with flags", calls.init(1), 1);
    let mut version = 0;
    steps.is("version", calls.version(&mut version), 0);
    steps.is("version as at first", version, steps.version());
    // SAFETY: the driver refuses a null pointer.
    let answer = unsafe { calls.cuda().driver_version(std::ptr::null_mut()) };
    steps.is("version to nowhere", super::calls::code(answer), 1);
    Ok(())
}

fn ordinals(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (mut count, mut device) = (0, -7);
    steps.is("count", calls.device_count(&mut count), 0);
    steps.holds(
        "count as at first",
        count as usize == steps.context().driver.device_count(),
    );
    steps.is("get 0", calls.device(&mut device, 0), 0);
    steps.is("device 0 is", device, 0);
    steps.is("get past the last", calls.device(&mut device, count), 101);
    for wrong in NO_SUCH_DEVICES {
        let mut value = 0;
        steps.is(
            &format!("get {wrong}"),
            calls.device(&mut device, wrong),
            101,
        );
        steps.is(
            &format!("name of {wrong}"),
            calls.device_name(&mut [0; 8], wrong),
            101,
        );
        steps.is(
            &format!("memory of {wrong}"),
            calls.total_memory(&mut 0, wrong),
            101,
        );
        steps.is(
            &format!("attribute of {wrong}"),
            calls.attribute(&mut value, 1, wrong),
            101,
        );
        steps.is(
            &format!("default pool of {wrong}"),
            calls.default_pool(&mut 0, wrong),
            101,
        );
        steps.is(
            &format!("retain {wrong}"),
            calls.primary_retain(&mut 0, wrong),
            101,
        );
        steps.is(
            &format!("release {wrong}"),
            calls.primary_release(wrong),
            101,
        );
    }
    Ok(())
}

fn properties(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (mut whole, mut short) = ([0u8; 256], [0u8; 4]);
    steps.is("name", calls.device_name(&mut whole, 0), 0);
    steps.is("name in four bytes", calls.device_name(&mut short, 0), 0);
    steps.holds(
        "is cut and ended",
        short[..3] == whole[..3] && short[3] == 0,
    );
    let mut total = 0;
    steps.is("total memory", calls.total_memory(&mut total, 0), 0);
    let (mut free, mut all) = (0, 0);
    steps.is("memory info", calls.memory_info(&mut free, &mut all), 0);
    steps.holds("free within all within total", free <= all && all <= total);
    let mut value = 0;
    steps.is("attribute 0", calls.attribute(&mut value, 0, 0), 1);
    steps.is("attribute 999", calls.attribute(&mut value, 999, 0), 1);
    for (name, which) in ATTRIBUTES {
        steps.is(name, calls.attribute(&mut value, which, 0), 0);
        steps.saw(&format!("{name} is"), value);
    }
    Ok(())
}

const ATTRIBUTES: [(&str, i32); 11] = [
    ("unified addressing", 41),
    ("managed memory", 83),
    ("pageable memory access", 88),
    ("concurrent managed access", 89),
    ("virtual memory", 102),
    ("file handles", 103),
    ("RDMA with virtual memory", 110),
    ("memory pools", 115),
    ("fabric handles", 128),
    ("host node", 134),
    ("virtual memory on host nodes", 141),
];

fn texts(steps: &mut Steps) -> Outcome {
    for (code, name, text) in TEXTS {
        steps.is(
            &format!("name of {code}"),
            of_code(steps, code, true),
            format!("0 {name}"),
        );
        steps.is(
            &format!("text of {code}"),
            of_code(steps, code, false),
            format!("0 {text}"),
        );
    }
    for unknown in [-5, 12345] {
        steps.is(
            &format!("name of {unknown}"),
            of_code(steps, unknown, true),
            "1 null",
        );
        steps.is(
            &format!("text of {unknown}"),
            of_code(steps, unknown, false),
            "1 null",
        );
    }
    Ok(())
}

/// The answer and what it wrote.
fn of_code(steps: &Steps, code: i32, name: bool) -> String {
    let cuda = steps.calls().cuda();
    let mut text: *const c_char = c"untouched".as_ptr();
    // SAFETY: both write a pointer to a static string, or null.
    let answer = unsafe {
        if name {
            cuda.error_name(code, &mut text)
        } else {
            cuda.error_string(code, &mut text)
        }
    };
    let answer = super::calls::code(answer);
    if text.is_null() {
        return format!("{answer} null");
    }
    // SAFETY: the driver's texts are static C strings.
    let text = unsafe { CStr::from_ptr(text) };
    format!("{answer} {}", text.to_string_lossy())
}

const TEXTS: [(i32, &str, &str); 20] = [
    (0, "CUDA_SUCCESS", "no error"),
    (1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    (3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"),
    (4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"),
    (
        34,
        "CUDA_ERROR_STUB_LIBRARY",
        "CUDA driver is a stub library",
    ),
    (
        100,
        "CUDA_ERROR_NO_DEVICE",
        "no CUDA-capable device is detected",
    ),
    (101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"),
    (201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    (400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"),
    (600, "CUDA_ERROR_NOT_READY", "device not ready"),
    (
        700,
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "an illegal memory access was encountered",
    ),
    (
        709,
        "CUDA_ERROR_CONTEXT_IS_DESTROYED",
        "context is destroyed",
    ),
    (800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"),
    (801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"),
    (
        900,
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "operation not permitted when stream is capturing",
    ),
    (
        901,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        "operation failed due to a previous error during capture",
    ),
    (
        906,
        "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        "operation would make the legacy stream depend on a capturing blocking stream",
    ),
    (
        907,
        "CUDA_ERROR_CAPTURED_EVENT",
        "operation not permitted on an event last recorded in a capturing stream",
    ),
    (999, "CUDA_ERROR_UNKNOWN", "unknown error"),
];
