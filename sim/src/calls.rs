//! Every exported call in one table: its name, what it costs on the virtual clock, whether an open capture forbids it, and the driver version that brought it.
//! Figures are those of one H200 with driver 580 (CUDA 13.0); what depends on size adds its part from `cost`.

/// Whether a call disturbs a capture that is open in "global" or "thread-local" mode. Calls that depend on their stream or event look for themselves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    Safe,
    Unsafe,
}

pub struct Info {
    pub name: &'static str,
    pub nanoseconds: u64,
    pub capture: Capture,
    pub since: u32,
}

macro_rules! calls {
    ($($name:ident $nanoseconds:literal $capture:ident $since:literal;)*) => {
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Call { $($name),* }

        pub const TABLE: &[Info] = &[$(Info {
            name: stringify!($name),
            nanoseconds: $nanoseconds,
            capture: Capture::$capture,
            since: $since,
        }),*];
    };
}

impl Call {
    pub fn info(self) -> &'static Info {
        &TABLE[self as usize]
    }
}

/// The exported name without its version: `cuMemAlloc_v2` is the second form of `cuMemAlloc`.
pub fn base_name(name: &str) -> &str {
    match name.rsplit_once("_v") {
        Some((base, digits))
            if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            base
        }
        _ => name,
    }
}

calls! {
    cuInit 0 Safe 2000;
    cuDriverGetVersion 8 Safe 2020;
    cuGetErrorName 8 Safe 6000;
    cuGetErrorString 8 Safe 6000;
    cuGetProcAddress 100 Safe 11030;
    cuGetProcAddress_v2 100 Safe 12000;
    cuDeviceGetCount 8 Safe 2000;
    cuDeviceGet 8 Safe 2000;
    cuDeviceGetName 50 Safe 2000;
    cuDeviceGetAttribute 20 Safe 2000;
    cuDeviceTotalMem_v2 30 Safe 3020;
    cuDeviceGetUuid 30 Safe 9020;
    cuDeviceGetUuid_v2 30 Safe 11040;
    cuDeviceGetPCIBusId 100 Safe 4010;
    cuDeviceCanAccessPeer 100 Safe 4000;
    cuDevicePrimaryCtxRetain 60 Safe 7000;
    cuDevicePrimaryCtxRelease_v2 60 Safe 11000;
    cuDevicePrimaryCtxGetState 30 Safe 7000;
    cuDevicePrimaryCtxReset_v2 1000000 Unsafe 11000;
    cuDevicePrimaryCtxSetFlags_v2 30 Safe 11000;
    cuCtxCreate_v2 100000000 Unsafe 3020;
    cuCtxDestroy_v2 50000000 Unsafe 4000;
    cuCtxGetCurrent 8 Safe 4000;
    cuCtxSetCurrent 30 Safe 4000;
    cuCtxPushCurrent_v2 30 Safe 4000;
    cuCtxPopCurrent_v2 30 Safe 4000;
    cuCtxGetDevice 12 Safe 2000;
    cuCtxGetFlags 12 Safe 7000;
    cuCtxGetApiVersion 12 Safe 3020;
    cuCtxGetStreamPriorityRange 20 Safe 5050;
    cuCtxSynchronize 1500 Unsafe 2000;
    cuCtxGetId 20 Safe 12000;
    cuCtxEnablePeerAccess 5000000 Unsafe 4000;
    cuCtxDisablePeerAccess 1000000 Unsafe 4000;
    cuCtxRecordEvent 140 Safe 12050;
    cuCtxWaitEvent 140 Safe 12050;
    cuMemGetInfo_v2 15000 Safe 3020;
    cuMemAlloc_v2 0 Unsafe 3020;
    cuMemFree_v2 0 Unsafe 3020;
    cuMemGetAddressRange_v2 60 Safe 3020;
    cuMemAllocManaged 0 Unsafe 6000;
    cuMemAdvise 4000 Unsafe 8000;
    cuMemAdvise_v2 4000 Unsafe 12020;
    cuMemPrefetchAsync 6000 Safe 8000;
    cuMemPrefetchAsync_v2 6000 Safe 12020;
    cuMemRangeGetAttribute 1000 Safe 8000;
    cuMemRangeGetAttributes 2000 Safe 8000;
    cuMemAllocAsync 290 Safe 11020;
    cuMemFreeAsync 285 Safe 11020;
    cuMemAllocFromPoolAsync 290 Safe 11020;
    cuMemPoolCreate 20000 Unsafe 11020;
    cuMemPoolDestroy 20000 Unsafe 11020;
    cuMemPoolTrimTo 1000 Unsafe 11020;
    cuMemPoolSetAttribute 60 Unsafe 11020;
    cuMemPoolGetAttribute 60 Unsafe 11020;
    cuMemPoolSetAccess 20000 Unsafe 11020;
    cuMemPoolGetAccess 60 Unsafe 11020;
    cuDeviceGetDefaultMemPool 30 Safe 11020;
    cuDeviceGetMemPool 30 Safe 11020;
    cuDeviceSetMemPool 30 Safe 11020;
    cuMemHostAlloc 0 Unsafe 2020;
    cuMemAllocHost_v2 0 Unsafe 3020;
    cuMemFreeHost 0 Unsafe 2000;
    cuMemHostRegister_v2 0 Unsafe 6050;
    cuMemHostUnregister 0 Unsafe 4000;
    cuMemHostGetDevicePointer_v2 60 Safe 3020;
    cuMemHostGetFlags 60 Safe 2030;
    cuPointerGetAttribute 60 Safe 4000;
    cuPointerGetAttributes 100 Safe 7000;
    cuMemAddressReserve 0 Safe 10020;
    cuMemAddressFree 0 Safe 10020;
    cuMemCreate 0 Safe 10020;
    cuMemRelease 0 Safe 10020;
    cuMemMap 0 Safe 10020;
    cuMemUnmap 0 Safe 10020;
    cuMemSetAccess 0 Safe 10020;
    cuMemGetAccess 60 Safe 10020;
    cuMemGetAllocationGranularity 60 Safe 10020;
    cuMemGetAllocationPropertiesFromHandle 60 Safe 10020;
    cuMemRetainAllocationHandle 60 Safe 11000;
    cuMemExportToShareableHandle 10000 Safe 10020;
    cuMemImportFromShareableHandle 20000 Safe 10020;
    cuMemcpy 6000 Safe 4000;
    cuMemcpyAsync 1500 Safe 4000;
    cuMemcpyDtoH_v2 6000 Safe 3020;
    cuMemcpyHtoD_v2 6000 Safe 3020;
    cuMemcpyDtoD_v2 6000 Safe 3020;
    cuMemcpyDtoHAsync_v2 1500 Safe 3020;
    cuMemcpyHtoDAsync_v2 1500 Safe 3020;
    cuMemcpyDtoDAsync_v2 1500 Safe 3020;
    cuMemcpyPeerAsync 2000 Safe 4000;
    cuMemsetD8_v2 3000 Safe 3020;
    cuMemsetD16_v2 3000 Safe 3020;
    cuMemsetD32_v2 3000 Safe 3020;
    cuMemsetD8Async 1500 Safe 3020;
    cuMemsetD16Async 1500 Safe 3020;
    cuMemsetD32Async 1500 Safe 3020;
    cuStreamCreate 10000 Safe 2000;
    cuStreamCreateWithPriority 10000 Safe 5050;
    cuStreamDestroy_v2 5000 Safe 4000;
    cuStreamQuery 268 Safe 2000;
    cuStreamSynchronize 1500 Safe 2000;
    cuStreamWaitEvent 182 Safe 3020;
    cuStreamWaitValue32_v2 1000 Safe 11070;
    cuStreamGetId 22 Safe 12000;
    cuStreamGetCtx 22 Safe 9020;
    cuStreamGetFlags 22 Safe 5050;
    cuStreamGetPriority 22 Safe 5050;
    cuStreamIsCapturing 23 Safe 10000;
    cuStreamGetCaptureInfo_v2 60 Safe 11030;
    cuStreamBeginCapture_v2 5000 Safe 10010;
    cuStreamEndCapture 5000 Safe 10000;
    cuThreadExchangeStreamCaptureMode 20 Safe 10010;
    cuLaunchHostFunc 2000 Safe 10000;
    cuGraphInstantiateWithFlags 50000 Safe 11040;
    cuGraphLaunch 5000 Safe 10000;
    cuGraphExecDestroy 5000 Safe 10000;
    cuGraphDestroy 5000 Safe 10000;
    cuGraphGetNodes 500 Safe 10000;
    cuGraphNodeGetType 20 Safe 10000;
    cuEventCreate 137 Safe 2000;
    cuEventDestroy_v2 137 Safe 4000;
    cuEventRecord 256 Safe 2000;
    cuEventQuery 287 Safe 2000;
    cuEventSynchronize 500 Safe 2000;
    cuEventElapsedTime 500 Safe 2000;
    cuEventElapsedTime_v2 500 Safe 12080;
}
