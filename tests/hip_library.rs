//! What HIP's headers and a library of AMD's say of what `src/sys/hip` relies on: layouts and numbers as
//! bindings of HIP 7.14 have them, names as a library has them. Debian's libamdhip64 is of HIP 5.2, which is
//! found, asked for its version, and refused. Where it is not installed, `HBMALLOC_TEST_HIP` may name the file.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

use cubecl_hip_sys as hip;
use cuda_sys::driver::sys as cuda;
use hbmalloc::sys::hip::attributes;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two structs, field by field: where each begins.
macro_rules! alike {
    ($ours:ty, $theirs:ty: $($our:ident = $their:ident),*) => {
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>(), stringify!($ours));
        $(assert_eq!(
            offset_of!($ours, $our),
            offset_of!($theirs, $their),
            "{} of {}", stringify!($our), stringify!($ours)
        );)*
    };
}

#[test]
fn structs_are_laid_out_as_cudas() {
    alike!(cuda::CUmemAllocationProp_st, hip::hipMemAllocationProp:
        type_ = type_, requestedHandleTypes = __bindgen_anon_1, location = location,
        win32HandleMetaData = win32HandleMetaData, allocFlags = allocFlags);
    assert_eq!(offset_of!(hip::hipMemAllocationProp, location), 8);
    assert_eq!(offset_of!(hip::hipMemAllocationProp, allocFlags), 24);
    assert_eq!(size_of::<hip::hipMemAllocationProp>(), 32);
    alike!(cuda::CUmemAllocationProp_st__bindgen_ty_1, cuda::CUmemAllocationProp_st__bindgen_ty_1:
        gpuDirectRDMACapable = gpuDirectRDMACapable);
    assert_eq!(
        offset_of!(
            hip::hipMemAllocationProp__bindgen_ty_2,
            gpuDirectRDMACapable
        ),
        offset_of!(
            cuda::CUmemAllocationProp_st__bindgen_ty_1,
            gpuDirectRDMACapable
        ),
    );
    alike!(cuda::CUmemLocation_st, hip::hipMemLocation: type_ = type_, id = id);
    alike!(cuda::CUmemAccessDesc_st, hip::hipMemAccessDesc: location = location, flags = flags);
    alike!(cuda::CUmemPoolProps_st, hip::hipMemPoolProps:
        allocType = allocType, handleTypes = handleTypes, location = location,
        win32SecurityAttributes = win32SecurityAttributes, maxSize = maxSize);
    assert_eq!(
        size_of::<hip::hipMemGenericAllocationHandle_t>(),
        size_of::<u64>()
    );
    assert_eq!(size_of::<hip::hipDeviceptr_t>(), size_of::<u64>());
}

/// Numbers that are passed on as they are.
#[test]
fn numbers_are_those_of_cuda() {
    let alike = [
        (hip::hipError_t_hipErrorInvalidValue, 1),
        (hip::hipError_t_hipErrorOutOfMemory, 2),
        (hip::hipError_t_hipErrorNotInitialized, 3),
        (hip::hipError_t_hipErrorDeinitialized, 4),
        (hip::hipError_t_hipErrorNoDevice, 100),
        (hip::hipError_t_hipErrorInvalidDevice, 101),
        (hip::hipError_t_hipErrorInvalidContext, 201),
        (hip::hipError_t_hipErrorInvalidHandle, 400),
        (hip::hipError_t_hipErrorNotReady, 600),
        (hip::hipError_t_hipErrorNotSupported, 801),
        (hip::hipError_t_hipErrorStreamCaptureUnsupported, 900),
        (hip::hipError_t_hipErrorStreamCaptureImplicit, 906),
        (hip::hipMemLocationType_hipMemLocationTypeDevice, 1),
        (hip::hipMemAllocationType_hipMemAllocationTypePinned, 1),
        (hip::hipMemAllocationHandleType_hipMemHandleTypeNone, 0),
        (
            hip::hipMemAllocationHandleType_hipMemHandleTypePosixFileDescriptor,
            1,
        ),
        (hip::hipMemAccessFlags_hipMemAccessFlagsProtReadWrite, 3),
        (hip::hipMemPoolAttr_hipMemPoolAttrReleaseThreshold, 4),
        (hip::hipMemPoolAttr_hipMemPoolAttrReservedMemCurrent, 5),
        (hip::hipMemPoolAttr_hipMemPoolAttrReservedMemHigh, 6),
        (hip::hipMemPoolAttr_hipMemPoolAttrUsedMemCurrent, 7),
        (hip::hipMemoryAdvise_hipMemAdviseSetPreferredLocation, 3),
        (hip::hipMemoryAdvise_hipMemAdviseSetAccessedBy, 5),
        (hip::hipStreamCaptureMode_hipStreamCaptureModeRelaxed, 2),
        (hip::hipGraphNodeType_hipGraphNodeTypeMemAlloc, 10),
        (hip::hipStreamNonBlocking, 1),
        (hip::hipEventDisableTiming, 2),
        (hip::hipHostMallocPortable | hip::hipHostMallocMapped, 3),
        (hip::hipMemAttachGlobal, 1),
    ];
    for (place, (theirs, ours)) in alike.into_iter().enumerate() {
        assert_eq!(theirs, ours, "number {place} of the list");
    }
}

#[test]
fn attributes_have_hips_numbers() {
    let theirs = [
        (
            83,
            hip::hipDeviceAttribute_t_hipDeviceAttributeManagedMemory,
        ),
        (
            89,
            hip::hipDeviceAttribute_t_hipDeviceAttributeConcurrentManagedAccess,
        ),
        (
            88,
            hip::hipDeviceAttribute_t_hipDeviceAttributePageableMemoryAccess,
        ),
        (
            100,
            hip::hipDeviceAttribute_t_hipDeviceAttributePageableMemoryAccessUsesHostPageTables,
        ),
        (
            102,
            hip::hipDeviceAttribute_t_hipDeviceAttributeVirtualMemoryManagementSupported,
        ),
        (
            110,
            hip::hipDeviceAttribute_t_hipDeviceAttributeGPUDirectRDMAWithHipVMMSupported,
        ),
        (
            115,
            hip::hipDeviceAttribute_t_hipDeviceAttributeMemoryPoolsSupported,
        ),
        (134, hip::hipDeviceAttribute_t_hipDeviceAttributeHostNumaId),
    ];
    for (cuda, theirs) in theirs {
        assert_eq!(attributes::in_hip(cuda), Some(theirs as i32), "{cuda}");
    }
    assert_eq!(attributes::in_hip(128), None, "fabric handles");
}

/// Those that came after HIP 5.2.
const NEWER: [&str; 5] = [
    "hipDrvGetErrorName",
    "hipDrvGetErrorString",
    "hipLaunchHostFunc",
    "hipStreamGetDevice",
    "hipStreamGetId",
];

/// A library of AMD's, if there is one, with the folder of what it needs.
fn library() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("HBMALLOC_TEST_HIP") {
        return Some(PathBuf::from(named));
    }
    let known = Command::new("/sbin/ldconfig").arg("-p").output().ok()?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    let line = known.lines().find(|line| line.contains("libamdhip64.so"))?;
    Some(PathBuf::from(line.split("=> ").nth(1)?.trim()))
}

fn or_skipped() -> Option<PathBuf> {
    let found = library();
    if found.is_none() {
        println!(
            "SKIPPED: no libamdhip64 is installed (Debian: apt install libamdhip64-5), and HBMALLOC_TEST_HIP names none"
        );
    }
    found
}

/// What `hbmalloc doctor` says with a library to be found beside those it needs.
fn doctor(choice: &str, library: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .arg("doctor")
        .env("HBMALLOC_DRIVER", choice)
        .env("LD_LIBRARY_PATH", library.parent().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = text + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn a_library_has_the_names() {
    let Some(library) = or_skipped() else {
        return;
    };
    let bytes = std::fs::read(&library).unwrap();
    let has = |name: &str| {
        let name = [b"\0", name.as_bytes(), b"\0"].concat();
        bytes.windows(name.len()).any(|part| part == name)
    };
    let old = !has("hipDrvGetErrorName");
    let lacking: Vec<&str> = hbmalloc::sys::hip::names()
        .filter(|name| !(has(name) || old && NEWER.contains(name)))
        .collect();
    assert!(lacking.is_empty(), "{}: {lacking:?}", library.display());
}

#[test]
fn a_library_before_hip_6_is_found_and_refused_as_too_old() {
    let Some(library) = or_skipped() else {
        return;
    };
    if !library.to_string_lossy().contains("libamdhip64.so.5") {
        println!("SKIPPED: {} is newer", library.display());
        return;
    }
    for choice in [library.to_str().unwrap(), "hip"] {
        let (_, said) = doctor(choice, &library);
        assert!(
            said.contains("hipRuntimeGetVersion")
                && said.contains("HIP 5.")
                && said.contains("6.0"),
            "{choice}: {said}"
        );
    }
}
