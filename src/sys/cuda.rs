//! The CUDA driver's functions, each resolved by name when the library is opened and each optional:
//! one binary serves drivers 12.2 to 13.x, and a missing function is an error that names it. With HIP's
//! library the same table holds HIP's functions, by [`hip`].
//!
//! Results are plain integers, and so are enumerations that the driver returns: a newer driver's
//! values must never become invalid Rust enumerations.

use super::hip;
use super::library::Library;
use super::meter::{self, Meter};
use crate::error::{DriverCode, Error, Status};
pub use cuda_sys::driver::sys::{
    CUmemAccessDesc_st as AccessDesc, CUmemAllocationProp_st as AllocationProp,
    CUmemLocation_st as MemLocation, CUmemPoolProps_st as PoolProps,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// An opaque pointer of the driver: context, stream, event, pool, graph.
pub type Handle = *mut c_void;

/// A call that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The CUDA driver's name of the function; [`Cuda::error`] tells HIP's.
    pub call: &'static str,
    /// What it answered; none when the driver does not have the function.
    pub code: Option<DriverCode>,
}

macro_rules! driver_functions {
    ($( $(#[$doc:meta])* $field:ident = $symbol:literal ( $($arg:ident : $ty:ty),* $(,)? ) ; )*) => {
        /// The driver's functions.
        pub struct Cuda {
            library: Library,
            meter: Meter,
            is_hip: bool,
            $( $field: Option<unsafe extern "C" fn($($ty),*) -> c_int>, )*
        }

        impl Cuda {
            /// Every function this library may call.
            pub const FUNCTIONS: &[&str] = &[$($symbol),*];

            /// Resolves what `library` has: the CUDA driver's functions, or HIP's that do the same.
            pub fn resolve(library: Library) -> Cuda {
                let is_hip = hip::is_hip(&library);
                if is_hip {
                    hip::bind(&library);
                }
                Cuda {
                    $( $field: {
                        const NAME: &CStr = match CStr::from_bytes_with_nul(concat!($symbol, "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => panic!("a symbol's name holds a zero byte"),
                        };
                        let found = match is_hip {
                            true => hip::address(&library, $symbol),
                            false => library.symbol(NAME),
                        };
                        // SAFETY: the symbol of this name has this signature in the driver's ABI, and
                        // so has what HIP has for it.
                        found.map(|address| unsafe { std::mem::transmute(address) })
                    }, )*
                    is_hip,
                    library,
                    meter: Meter::default(),
                }
            }

            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// Pointers must be valid as the driver's manual asks for this function.
                pub unsafe fn $field(&self, $($arg: $ty),*) -> Result<(), Refusal> {
                    let Some(function) = self.$field else {
                        return Err(Refusal { call: $symbol, code: None });
                    };
                    // SAFETY: passed on to the caller.
                    let call = || unsafe { function($($arg),*) };
                    match self.meter.around(const { meter::is_counted($symbol) }, call) {
                        0 => Ok(()),
                        code => Err(Refusal { call: $symbol, code: Some(DriverCode(code)) }),
                    }
                }
            )*

            /// Which of [`Cuda::FUNCTIONS`] the driver lacks.
            pub fn missing(&self) -> Vec<&'static str> {
                let mut missing = Vec::new();
                $( if self.$field.is_none() { missing.push(self.name($symbol)); } )*
                missing
            }
        }
    };
}

driver_functions! {
    /// Initialises the driver for this process.
    init = "cuInit"(flags: c_uint);
    /// The version the driver supports: 13000 for 13.0.
    driver_version = "cuDriverGetVersion"(version: *mut c_int);
    /// The name of a code.
    error_name = "cuGetErrorName"(code: c_int, name: *mut *const c_char);
    /// The text of a code.
    error_string = "cuGetErrorString"(code: c_int, text: *mut *const c_char);

    /// How many devices there are.
    device_count = "cuDeviceGetCount"(count: *mut c_int);
    /// The device of an ordinal.
    device_get = "cuDeviceGet"(device: *mut c_int, ordinal: c_int);
    /// A device's name.
    device_name = "cuDeviceGetName"(name: *mut c_char, len: c_int, device: c_int);
    /// A device's address on the bus, as `0000:1B:00.0`.
    device_bus_address = "cuDeviceGetPCIBusId"(text: *mut c_char, len: c_int, device: c_int);
    /// An attribute of a device.
    device_attribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: c_int, device: c_int);
    /// A device's memory in bytes.
    device_total_memory = "cuDeviceTotalMem_v2"(bytes: *mut usize, device: c_int);
    /// Whether one device can reach another's memory.
    device_can_access_peer = "cuDeviceCanAccessPeer"(can: *mut c_int, device: c_int, peer: c_int);
    /// Retains a device's primary context.
    primary_context_retain = "cuDevicePrimaryCtxRetain"(context: *mut Handle, device: c_int);
    /// Releases a device's primary context.
    primary_context_release = "cuDevicePrimaryCtxRelease_v2"(device: c_int);
    /// Whether a device's primary context is active.
    primary_context_state = "cuDevicePrimaryCtxGetState"(device: c_int, flags: *mut c_uint, active: *mut c_int);

    /// The calling thread's context.
    context_current = "cuCtxGetCurrent"(context: *mut Handle);
    /// Pushes a context onto the calling thread's stack.
    context_push = "cuCtxPushCurrent_v2"(context: Handle);
    /// Pops the calling thread's context.
    context_pop = "cuCtxPopCurrent_v2"(context: *mut Handle);
    /// Replaces the calling thread's context.
    context_set = "cuCtxSetCurrent"(context: Handle);
    /// The device of the calling thread's context.
    context_device = "cuCtxGetDevice"(device: *mut c_int);
    /// Waits for all work of the current context.
    context_synchronize = "cuCtxSynchronize"();
    /// Records an event behind all work of a context (12.5 and later).
    context_record_event = "cuCtxRecordEvent"(context: Handle, event: Handle);

    /// Free and total memory of the current device.
    memory_info = "cuMemGetInfo_v2"(free: *mut usize, total: *mut usize);
    /// Synchronous device memory.
    memory_alloc = "cuMemAlloc_v2"(address: *mut u64, bytes: usize);
    /// Frees synchronous or managed memory after all work of the device.
    memory_free = "cuMemFree_v2"(address: u64);
    /// The allocation that holds an address.
    memory_range = "cuMemGetAddressRange_v2"(base: *mut u64, bytes: *mut usize, address: u64);
    /// An attribute of any address the driver knows.
    pointer_attribute = "cuPointerGetAttribute"(data: *mut c_void, attribute: c_int, address: u64);
    /// Pinned host memory.
    host_alloc = "cuMemHostAlloc"(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    /// Frees it after all work of the context.
    host_free = "cuMemFreeHost"(address: *mut c_void);
    /// Pins memory of the program.
    host_register = "cuMemHostRegister_v2"(address: *mut c_void, bytes: usize, flags: c_uint);
    /// Unpins it after all work of the context.
    host_unregister = "cuMemHostUnregister"(address: *mut c_void);
    /// The device's address of pinned host memory.
    host_device_pointer = "cuMemHostGetDevicePointer_v2"(address: *mut u64, host: *mut c_void, flags: c_uint);
    /// Managed memory.
    memory_alloc_managed = "cuMemAllocManaged"(address: *mut u64, bytes: usize, flags: c_uint);
    /// Advice on managed memory.
    memory_advise = "cuMemAdvise_v2"(address: u64, bytes: usize, advice: c_int, location: MemLocation);
    /// Prefetch of managed memory.
    memory_prefetch = "cuMemPrefetchAsync_v2"(address: u64, bytes: usize, location: MemLocation, flags: c_uint, stream: Handle);
    /// An attribute of a managed range.
    memory_range_attribute = "cuMemRangeGetAttribute"(data: *mut c_void, len: usize, attribute: c_int, address: u64, bytes: usize);
    /// Stream-ordered memory from a pool.
    memory_alloc_from_pool = "cuMemAllocFromPoolAsync"(address: *mut u64, bytes: usize, pool: Handle, stream: Handle);
    /// Stream-ordered memory from the device's current pool.
    memory_alloc_async = "cuMemAllocAsync"(address: *mut u64, bytes: usize, stream: Handle);
    /// Frees stream-ordered memory in stream order.
    memory_free_async = "cuMemFreeAsync"(address: u64, stream: Handle);
    /// A device's default stream-ordered pool.
    default_pool = "cuDeviceGetDefaultMemPool"(pool: *mut Handle, device: c_int);
    /// Creates a stream-ordered pool.
    pool_create = "cuMemPoolCreate"(pool: *mut Handle, props: *const PoolProps);
    /// Destroys a stream-ordered pool.
    pool_destroy = "cuMemPoolDestroy"(pool: Handle);
    /// Gives a pool's free memory back down to a size.
    pool_trim = "cuMemPoolTrimTo"(pool: Handle, keep: usize);
    /// Sets an attribute of a pool.
    pool_set_attribute = "cuMemPoolSetAttribute"(pool: Handle, attribute: c_int, value: *mut c_void);
    /// An attribute of a pool.
    pool_attribute = "cuMemPoolGetAttribute"(pool: Handle, attribute: c_int, value: *mut c_void);
    /// Lets devices reach a pool.
    pool_set_access = "cuMemPoolSetAccess"(pool: Handle, descriptors: *const AccessDesc, count: usize);
    /// How a location may reach a pool.
    pool_access = "cuMemPoolGetAccess"(flags: *mut c_int, pool: Handle, location: *const MemLocation);
    /// The pool that a device allocates from where none is named.
    device_pool = "cuDeviceGetMemPool"(pool: *mut Handle, device: c_int);
    /// Changes that pool.
    set_device_pool = "cuDeviceSetMemPool"(device: c_int, pool: Handle);

    /// Granularity of physical chunks.
    vmm_granularity = "cuMemGetAllocationGranularity"(bytes: *mut usize, props: *const AllocationProp, option: c_int);
    /// Reserves addresses.
    vmm_reserve = "cuMemAddressReserve"(address: *mut u64, bytes: usize, align: usize, hint: u64, flags: u64);
    /// Frees addresses.
    vmm_free_address = "cuMemAddressFree"(address: u64, bytes: usize);
    /// Creates a physical chunk.
    vmm_create = "cuMemCreate"(handle: *mut u64, bytes: usize, props: *const AllocationProp, flags: u64);
    /// Releases a physical chunk.
    vmm_release = "cuMemRelease"(handle: u64);
    /// Maps a chunk.
    vmm_map = "cuMemMap"(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64);
    /// Unmaps whole mappings.
    vmm_unmap = "cuMemUnmap"(address: u64, bytes: usize);
    /// Lets devices reach a mapped range.
    vmm_set_access = "cuMemSetAccess"(address: u64, bytes: usize, descriptors: *const AccessDesc, count: usize);
    /// How a location may reach a mapped address.
    vmm_access = "cuMemGetAccess"(flags: *mut u64, location: *const MemLocation, address: u64);
    /// A further handle on the chunk mapped at an address.
    vmm_retain = "cuMemRetainAllocationHandle"(handle: *mut u64, address: *mut c_void);
    /// What a chunk was asked to be.
    vmm_properties = "cuMemGetAllocationPropertiesFromHandle"(props: *mut AllocationProp, handle: u64);
    /// Exports a chunk as a file descriptor or fabric handle.
    vmm_export = "cuMemExportToShareableHandle"(out: *mut c_void, handle: u64, kind: c_int, flags: u64);
    /// Imports a chunk.
    vmm_import = "cuMemImportFromShareableHandle"(handle: *mut u64, shareable: *mut c_void, kind: c_int);

    /// Whether a stream is capturing.
    stream_is_capturing = "cuStreamIsCapturing"(stream: Handle, status: *mut c_int);
    /// Whether a stream is capturing, and a number that no other capture of the process has had.
    stream_capture_info = "cuStreamGetCaptureInfo_v2"(stream: Handle, status: *mut c_int, id: *mut u64, graph: *mut Handle, nodes: *mut *const Handle, count: *mut usize);
    /// The context that a stream was made in (during its capture from 12.5 on).
    stream_context = "cuStreamGetCtx"(stream: Handle, context: *mut Handle);
    /// A number that no other stream of the process has had.
    stream_id = "cuStreamGetId"(stream: Handle, id: *mut u64);
    /// Waits for a stream.
    stream_synchronize = "cuStreamSynchronize"(stream: Handle);
    /// Whether a stream's work has finished.
    stream_query = "cuStreamQuery"(stream: Handle);
    /// Calls a function of the host in stream order; it may not call the driver.
    launch_host_function = "cuLaunchHostFunc"(stream: Handle, function: extern "C" fn(*mut c_void), data: *mut c_void);
    /// Makes a stream wait for an event.
    stream_wait_event = "cuStreamWaitEvent"(stream: Handle, event: Handle, flags: c_uint);
    /// Makes a stream wait until a word in memory compares with a value.
    stream_wait_value = "cuStreamWaitValue32_v2"(stream: Handle, address: u64, value: c_uint, flags: c_uint);
    /// Exchanges the calling thread's capture mode.
    exchange_capture_mode = "cuThreadExchangeStreamCaptureMode"(mode: *mut c_int);
    /// Creates an event.
    event_create = "cuEventCreate"(event: *mut Handle, flags: c_uint);
    /// Destroys an event.
    event_destroy = "cuEventDestroy_v2"(event: Handle);
    /// Records an event behind a stream's work.
    event_record = "cuEventRecord"(event: Handle, stream: Handle);
    /// Whether an event has happened.
    event_query = "cuEventQuery"(event: Handle);
    /// Waits for an event.
    event_synchronize = "cuEventSynchronize"(event: Handle);

    /// Creates a stream.
    stream_create = "cuStreamCreate"(stream: *mut Handle, flags: c_uint);
    /// Creates a stream of a priority.
    stream_create_with_priority = "cuStreamCreateWithPriority"(stream: *mut Handle, flags: c_uint, priority: c_int);
    /// Destroys a stream.
    stream_destroy = "cuStreamDestroy_v2"(stream: Handle);
    /// Begins a capture.
    stream_begin_capture = "cuStreamBeginCapture_v2"(stream: Handle, mode: c_int);
    /// Ends a capture.
    stream_end_capture = "cuStreamEndCapture"(stream: Handle, graph: *mut Handle);
    /// Destroys a graph.
    graph_destroy = "cuGraphDestroy"(graph: Handle);
    /// The nodes of a graph; with a null array, their number.
    graph_nodes = "cuGraphGetNodes"(graph: Handle, nodes: *mut Handle, count: *mut usize);
    /// What kind of node it is.
    graph_node_kind = "cuGraphNodeGetType"(node: Handle, kind: *mut c_int);
    /// Makes a graph that can be launched.
    graph_instantiate = "cuGraphInstantiateWithFlags"(executable: *mut Handle, graph: Handle, flags: u64);
    /// Destroys it.
    graph_executable_destroy = "cuGraphExecDestroy"(executable: Handle);
    /// Runs it in stream order.
    graph_launch = "cuGraphLaunch"(executable: Handle, stream: Handle);
    /// Copies host to device in stream order.
    copy_to_device = "cuMemcpyHtoDAsync_v2"(to: u64, from: *const c_void, bytes: usize, stream: Handle);
    /// Copies device to host in stream order.
    copy_to_host = "cuMemcpyDtoHAsync_v2"(to: *mut c_void, from: u64, bytes: usize, stream: Handle);
    /// Copies device to device in stream order.
    copy_on_device = "cuMemcpyDtoDAsync_v2"(to: u64, from: u64, bytes: usize, stream: Handle);
    /// Fills with a byte in stream order.
    fill_bytes = "cuMemsetD8Async"(address: u64, byte: u8, count: usize, stream: Handle);
    /// Fills with a word in stream order.
    fill_words = "cuMemsetD32Async"(address: u64, word: c_uint, count: usize, stream: Handle);
}

impl Cuda {
    /// The library the functions came from.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Whether the functions are HIP's.
    pub fn is_hip(&self) -> bool {
        self.is_hip
    }

    fn name(&self, symbol: &'static str) -> &'static str {
        match self.is_hip {
            true => hip::name(symbol).unwrap_or(symbol),
            false => symbol,
        }
    }

    /// How often it was called, and for how long.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Whether the driver can record an event behind a whole context.
    pub fn has_context_record_event(&self) -> bool {
        self.context_record_event.is_some()
    }

    /// Turns a refusal into an error with the driver's own words.
    pub fn error(&self, refusal: Refusal) -> Error {
        let mut call = self.name(refusal.call);
        if self.is_hip && refusal.code.is_none() {
            call = hip::lacking(&self.library, refusal.call).unwrap_or(call);
        }
        match refusal.code {
            None => Error::new(Status::Unsupported, call)
                .detail(format!(
                    "{} does not have {call}",
                    self.library.path().display(),
                ))
                .advice(match self.is_hip && hip::ABSENT.contains(&call) {
                    true => "HIP has nothing for this.",
                    false => "A newer driver is needed for this.",
                }),
            Some(code) => Error::driver(call, code, self.code_text(code)),
        }
    }

    fn code_text(&self, code: DriverCode) -> String {
        let mut name: *const c_char = std::ptr::null();
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: both calls only write a pointer to a static string.
        unsafe {
            let _ = self.error_name(code.0, &mut name);
            let _ = self.error_string(code.0, &mut text);
        }
        match (static_text(name), static_text(text)) {
            (Some(name), Some(text)) => format!("{name}: {text}"),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => String::new(),
        }
    }
}

fn static_text(text: *const c_char) -> Option<String> {
    (!text.is_null()).then(|| {
        // SAFETY: the driver's texts are static C strings.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    })
}
