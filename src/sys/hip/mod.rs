//! HIP under the names of the CUDA driver's functions: [`Cuda`](super::cuda::Cuda) is one table of
//! operations, and this file says which function of libamdhip64 does each. Nearly all have the same
//! arguments, structs and codes under another name, from HIP 6 on; the rest are put together in
//! `adapters`. What is not named here HIP does not have.

mod adapters;
pub mod attributes;

use super::library::Library;
use std::ffi::{CString, c_int, c_void};

/// The oldest version whose structs are laid out as CUDA's: those of 5 differ, and nothing tells.
pub const OLDEST: c_int = 6 * MAJOR;

/// What `hipRuntimeGetVersion` counts a major version as.
pub const MAJOR: c_int = 10_000_000;
/// And a minor one.
pub const MINOR: c_int = 100_000;

/// How HIP does what a function of the CUDA driver does.
enum Form {
    /// By a function of the same arguments.
    Same(&'static str),
    /// By a function of ours over one or several of HIP's, the first of which names it.
    Adapted(&'static [&'static str], *const ()),
}

use Form::{Adapted, Same};

/// A function of ours as an address.
macro_rules! adapted {
    ($needs:expr, $function:path) => {
        Adapted($needs, $function as *const ())
    };
}

/// The functions of the driver that HIP has, by their names there.
const FORMS: &[(&str, Form)] = &[
    ("cuInit", adapted!(&["hipInit"], adapters::init)),
    ("cuDriverGetVersion", Same("hipRuntimeGetVersion")),
    ("cuGetErrorName", Same("hipDrvGetErrorName")),
    ("cuGetErrorString", Same("hipDrvGetErrorString")),
    ("cuDeviceGetCount", Same("hipGetDeviceCount")),
    ("cuDeviceGet", Same("hipDeviceGet")),
    ("cuDeviceGetName", Same("hipDeviceGetName")),
    ("cuDeviceGetPCIBusId", Same("hipDeviceGetPCIBusId")),
    (
        "cuDeviceGetAttribute",
        adapted!(&["hipDeviceGetAttribute"], adapters::device_attribute),
    ),
    ("cuDeviceTotalMem_v2", Same("hipDeviceTotalMem")),
    ("cuDeviceCanAccessPeer", Same("hipDeviceCanAccessPeer")),
    (
        "cuDevicePrimaryCtxRetain",
        adapted!(&["hipDeviceGet", "hipSetDevice"], adapters::context_retain),
    ),
    (
        "cuDevicePrimaryCtxRelease_v2",
        adapted!(&["hipDeviceGet"], adapters::context_release),
    ),
    (
        "cuDevicePrimaryCtxGetState",
        adapted!(&["hipDevicePrimaryCtxGetState"], adapters::context_state),
    ),
    (
        "cuCtxGetCurrent",
        adapted!(&["hipGetDevice"], adapters::context_current),
    ),
    (
        "cuCtxPushCurrent_v2",
        adapted!(&["hipSetDevice", "hipGetDevice"], adapters::context_push),
    ),
    (
        "cuCtxPopCurrent_v2",
        adapted!(&["hipSetDevice", "hipGetDevice"], adapters::context_pop),
    ),
    (
        "cuCtxSetCurrent",
        adapted!(&["hipSetDevice"], adapters::context_set),
    ),
    ("cuCtxGetDevice", Same("hipGetDevice")),
    ("cuCtxSynchronize", Same("hipDeviceSynchronize")),
    ("cuMemGetInfo_v2", Same("hipMemGetInfo")),
    ("cuMemAlloc_v2", Same("hipMalloc")),
    ("cuMemFree_v2", Same("hipFree")),
    ("cuMemGetAddressRange_v2", Same("hipMemGetAddressRange")),
    ("cuPointerGetAttribute", Same("hipPointerGetAttribute")),
    ("cuMemHostAlloc", Same("hipHostMalloc")),
    ("cuMemFreeHost", Same("hipHostFree")),
    ("cuMemHostRegister_v2", Same("hipHostRegister")),
    ("cuMemHostUnregister", Same("hipHostUnregister")),
    ("cuMemHostGetFlags", Same("hipHostGetFlags")),
    (
        "cuMemHostGetDevicePointer_v2",
        Same("hipHostGetDevicePointer"),
    ),
    ("cuMemAllocManaged", Same("hipMallocManaged")),
    (
        "cuMemAdvise_v2",
        adapted!(&["hipMemAdvise"], adapters::memory_advise),
    ),
    (
        "cuMemPrefetchAsync_v2",
        adapted!(&["hipMemPrefetchAsync"], adapters::memory_prefetch),
    ),
    ("cuMemRangeGetAttribute", Same("hipMemRangeGetAttribute")),
    ("cuMemAllocFromPoolAsync", Same("hipMallocFromPoolAsync")),
    ("cuMemAllocAsync", Same("hipMallocAsync")),
    ("cuMemFreeAsync", Same("hipFreeAsync")),
    (
        "cuDeviceGetDefaultMemPool",
        Same("hipDeviceGetDefaultMemPool"),
    ),
    ("cuMemPoolCreate", Same("hipMemPoolCreate")),
    ("cuMemPoolDestroy", Same("hipMemPoolDestroy")),
    ("cuMemPoolTrimTo", Same("hipMemPoolTrimTo")),
    ("cuMemPoolSetAttribute", Same("hipMemPoolSetAttribute")),
    ("cuMemPoolGetAttribute", Same("hipMemPoolGetAttribute")),
    ("cuMemPoolSetAccess", Same("hipMemPoolSetAccess")),
    ("cuMemPoolGetAccess", Same("hipMemPoolGetAccess")),
    ("cuDeviceGetMemPool", Same("hipDeviceGetMemPool")),
    ("cuDeviceSetMemPool", Same("hipDeviceSetMemPool")),
    (
        "cuMemGetAllocationGranularity",
        Same("hipMemGetAllocationGranularity"),
    ),
    ("cuMemAddressReserve", Same("hipMemAddressReserve")),
    ("cuMemAddressFree", Same("hipMemAddressFree")),
    ("cuMemCreate", Same("hipMemCreate")),
    ("cuMemRelease", Same("hipMemRelease")),
    ("cuMemMap", Same("hipMemMap")),
    ("cuMemUnmap", Same("hipMemUnmap")),
    ("cuMemSetAccess", Same("hipMemSetAccess")),
    ("cuMemGetAccess", Same("hipMemGetAccess")),
    (
        "cuMemRetainAllocationHandle",
        Same("hipMemRetainAllocationHandle"),
    ),
    (
        "cuMemGetAllocationPropertiesFromHandle",
        Same("hipMemGetAllocationPropertiesFromHandle"),
    ),
    (
        "cuMemExportToShareableHandle",
        Same("hipMemExportToShareableHandle"),
    ),
    (
        "cuMemImportFromShareableHandle",
        adapted!(&["hipMemImportFromShareableHandle"], adapters::import),
    ),
    ("cuStreamIsCapturing", Same("hipStreamIsCapturing")),
    (
        "cuStreamGetCaptureInfo_v2",
        Same("hipStreamGetCaptureInfo_v2"),
    ),
    (
        "cuStreamGetCtx",
        adapted!(&["hipStreamGetDevice"], adapters::stream_context),
    ),
    ("cuStreamGetId", Same("hipStreamGetId")),
    ("cuStreamSynchronize", Same("hipStreamSynchronize")),
    ("cuStreamQuery", Same("hipStreamQuery")),
    ("cuLaunchHostFunc", Same("hipLaunchHostFunc")),
    ("cuStreamWaitEvent", Same("hipStreamWaitEvent")),
    (
        "cuStreamWaitValue32_v2",
        adapted!(&["hipStreamWaitValue32"], adapters::stream_wait_value),
    ),
    (
        "cuThreadExchangeStreamCaptureMode",
        Same("hipThreadExchangeStreamCaptureMode"),
    ),
    ("cuEventCreate", Same("hipEventCreateWithFlags")),
    ("cuEventDestroy_v2", Same("hipEventDestroy")),
    ("cuEventRecord", Same("hipEventRecord")),
    ("cuEventQuery", Same("hipEventQuery")),
    ("cuEventSynchronize", Same("hipEventSynchronize")),
    ("cuStreamCreate", Same("hipStreamCreateWithFlags")),
    (
        "cuStreamCreateWithPriority",
        Same("hipStreamCreateWithPriority"),
    ),
    ("cuStreamDestroy_v2", Same("hipStreamDestroy")),
    ("cuStreamBeginCapture_v2", Same("hipStreamBeginCapture")),
    ("cuStreamEndCapture", Same("hipStreamEndCapture")),
    ("cuGraphDestroy", Same("hipGraphDestroy")),
    ("cuGraphGetNodes", Same("hipGraphGetNodes")),
    ("cuGraphNodeGetType", Same("hipGraphNodeGetType")),
    (
        "cuGraphInstantiateWithFlags",
        Same("hipGraphInstantiateWithFlags"),
    ),
    ("cuGraphExecDestroy", Same("hipGraphExecDestroy")),
    ("cuGraphLaunch", Same("hipGraphLaunch")),
    ("cuMemcpyHtoDAsync_v2", Same("hipMemcpyHtoDAsync")),
    ("cuMemcpyDtoHAsync_v2", Same("hipMemcpyDtoHAsync")),
    ("cuMemcpyDtoDAsync_v2", Same("hipMemcpyDtoDAsync")),
    ("cuMemsetD8Async", Same("hipMemsetD8Async")),
    ("cuMemsetD32Async", Same("hipMemsetD32Async")),
];

/// The driver's functions for which HIP has nothing.
pub const ABSENT: &[&str] = &[
    // Devices are waited for instead.
    "cuCtxRecordEvent",
];

/// Whether a library is HIP's and not the CUDA driver.
pub fn is_hip(library: &Library) -> bool {
    library.symbol(c"hipRuntimeGetVersion").is_some() && library.symbol(c"cuInit").is_none()
}

/// `6.4` for 60443484.
pub fn version_text(version: c_int) -> String {
    format!("{}.{}", version / MAJOR, version % MAJOR / MINOR)
}

/// Makes the functions of `library` those that the adapters call.
pub fn bind(library: &Library) {
    adapters::bind(library);
}

fn form(symbol: &str) -> Option<&'static Form> {
    let (_, form) = FORMS.iter().find(|(name, _)| *name == symbol)?;
    Some(form)
}

fn find(library: &Library, name: &str) -> Option<*mut c_void> {
    library.symbol(&CString::new(name).ok()?)
}

/// What does in `library` what the driver's function `symbol` does, callable as that.
pub fn address(library: &Library, symbol: &str) -> Option<*mut c_void> {
    match form(symbol)? {
        Same(name) => find(library, name),
        Adapted(needs, function) => {
            let there = needs.iter().all(|name| find(library, name).is_some());
            there.then_some(function.cast_mut().cast())
        }
    }
}

/// Which function it is that `library` would have to have for the driver's function `symbol`.
pub fn lacking(library: &Library, symbol: &str) -> Option<&'static str> {
    match form(symbol)? {
        Same(name) => Some(name),
        Adapted(needs, _) => {
            let mut lacking = needs.iter().filter(|name| find(library, name).is_none());
            lacking.next().copied()
        }
    }
}

/// The functions of HIP by which others of the driver's are done.
pub fn names() -> impl Iterator<Item = &'static str> {
    FORMS
        .iter()
        .flat_map(|(_, form)| match form {
            Same(name) => std::slice::from_ref(name),
            Adapted(needs, _) => needs,
        })
        .copied()
}

/// HIP's name for the driver's function `symbol`, where it has one.
pub fn name(symbol: &str) -> Option<&'static str> {
    match form(symbol)? {
        Same(name) => Some(name),
        Adapted(needs, _) => needs.first().copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cuda::Cuda;
    use super::*;

    #[test]
    fn every_function_of_the_table_has_a_form_or_is_said_to_be_absent() {
        for symbol in Cuda::FUNCTIONS {
            let is_absent = ABSENT.contains(symbol);
            assert_ne!(form(symbol).is_some(), is_absent, "{symbol}");
        }
    }

    #[test]
    fn versions_in_words() {
        assert_eq!(version_text(60_443_484), "6.4");
        assert_eq!(version_text(71_460_850), "7.14");
        assert_eq!(version_text(50_221_153), "5.2");
    }
}
