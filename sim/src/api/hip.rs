//! HIP's names over the same machine. Each does what the driver's function does that it is made of, and is
//! counted, charged and made to fail as that one. A HIP program initialises nothing and has no contexts: a
//! call works on the calling thread's device, which is the first where it set none.

use super::{
    contexts, copies, devices, events, graphs, host, managed, memory, pointers, pools, process,
    streams, vmm,
};
use crate::abi::{AccessDesc, AllocationProp, LOCATION_DEVICE, Location, PoolProps};
use crate::calls::Call;
use crate::codes::{self, Out, Result, put};
use crate::entry::{self, Locked};
use crate::sim::Sim;
use crate::stream::HostFunction;
use crate::{config, context, hip};
use std::ffi::{c_char, c_void};

/// For calls that need the library alone.
fn start() -> Result {
    match entry::is_fresh() && !entry::forked() {
        true => entry::initialize(),
        false => Ok(()),
    }
}

/// For calls that work on the current device.
pub fn here() -> Result {
    start()?;
    if !entry::forked() {
        let device = context::primary_device(context::top()).unwrap_or(0);
        set_device(&mut Locked::take(), device)?;
    }
    Ok(())
}

fn set_device(sim: &mut Sim, device: i32) -> Result {
    sim.check_device(device)?;
    let handle = context::primary_handle(device);
    if sim.contexts.get(handle).is_none() {
        sim.retain_primary(device);
    }
    match context::top() == handle {
        true => Ok(()),
        false => context::set(handle),
    }
}

macro_rules! hip {
    ($($way:ident fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:expr;)*) => {
        /// The names exported here.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> i32 {
                if let Err(code) = $way() {
                    return code;
                }
                #[allow(unused_unsafe)]
                // SAFETY: the caller's promise for the driver's function that does this.
                unsafe { $body }
            }
        )*
    };
}

/// For calls that need nothing.
fn any() -> Result {
    Ok(())
}

hip! {
    any fn hipInit(flags: u32) = process::cuInit(flags);
    any fn hipRuntimeGetVersion(version: Out<i32>) = entry::run_anywhere(Call::cuDriverGetVersion, || {
        put(version, config::current().unwrap_or_default().hip.unwrap_or(0))
    });
    any fn hipDriverGetVersion(version: Out<i32>) = hipRuntimeGetVersion(version);
    any fn hipDrvGetErrorName(code: i32, name: Out<*const c_char>) = entry::run_anywhere(Call::cuGetErrorName, || {
        let found = codes::hip_name(code).ok_or(codes::INVALID_VALUE)?;
        put(name, found.as_ptr())
    });
    any fn hipDrvGetErrorString(code: i32, text: Out<*const c_char>) = process::cuGetErrorString(code, text);

    start fn hipGetDeviceCount(count: Out<i32>) = devices::cuDeviceGetCount(count);
    start fn hipDeviceGet(device: Out<i32>, ordinal: i32) = devices::cuDeviceGet(device, ordinal);
    start fn hipDeviceGetName(name: *mut c_char, len: i32, device: i32) = devices::cuDeviceGetName(name, len, device);
    start fn hipDeviceGetPCIBusId(text: *mut c_char, len: i32, device: i32) = devices::cuDeviceGetPCIBusId(text, len, device);
    start fn hipDeviceGetAttribute(value: Out<i32>, which: i32, device: i32) = devices::cuDeviceGetAttribute(value, in_cuda(which), device);
    start fn hipDeviceTotalMem(bytes: Out<usize>, device: i32) = devices::cuDeviceTotalMem_v2(bytes, device);
    start fn hipDeviceCanAccessPeer(able: Out<i32>, device: i32, peer: i32) = devices::cuDeviceCanAccessPeer(able, device, peer);
    start fn hipDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) = contexts::cuDevicePrimaryCtxGetState(device, flags, active);
    start fn hipSetDevice(device: i32) = entry::run(Call::cuCtxSetCurrent, |sim| set_device(sim, device));
    start fn hipGetDevice(device: Out<i32>) = entry::run(Call::cuCtxGetDevice, |_| {
        put(device, context::primary_device(context::top()).unwrap_or(0))
    });
    here fn hipDeviceSynchronize() = contexts::cuCtxSynchronize();

    here fn hipMemGetInfo(free: Out<usize>, total: Out<usize>) = memory::cuMemGetInfo_v2(free, total);
    here fn hipMalloc(out: Out<u64>, size: usize) = memory::cuMemAlloc_v2(out, size);
    here fn hipFree(base: u64) = memory::cuMemFree_v2(base);
    here fn hipMemGetAddressRange(base: Out<u64>, size: Out<usize>, address: u64) = memory::cuMemGetAddressRange_v2(base, size, address);
    here fn hipPointerGetAttribute(to: *mut c_void, which: i32, address: u64) = pointers::cuPointerGetAttribute(to, which, address);
    here fn hipHostMalloc(out: Out<u64>, size: usize, flags: u32) = host::cuMemHostAlloc(out, size, flags);
    here fn hipHostFree(base: u64) = host::cuMemFreeHost(base);
    here fn hipHostRegister(address: u64, size: usize, flags: u32) = host::cuMemHostRegister_v2(address, size, flags);
    here fn hipHostUnregister(address: u64) = host::cuMemHostUnregister(address);
    here fn hipHostGetDevicePointer(out: Out<u64>, address: u64, flags: u32) = host::cuMemHostGetDevicePointer_v2(out, address, flags);
    here fn hipHostGetFlags(out: Out<u32>, address: u64) = host::cuMemHostGetFlags(out, address);
    here fn hipMallocManaged(out: Out<u64>, size: usize, flags: u32) = managed::cuMemAllocManaged(out, size, flags);
    here fn hipMemAdvise(base: u64, count: usize, advice: i32, device: i32) = managed::cuMemAdvise(base, count, advice, device);
    here fn hipMemPrefetchAsync(base: u64, count: usize, device: i32, stream: u64) = managed::cuMemPrefetchAsync(base, count, device, stream);
    here fn hipMemRangeGetAttribute(data: *mut c_void, size: usize, which: i32, base: u64, count: usize) = managed::cuMemRangeGetAttribute(data, size, which, base, count);

    here fn hipMallocFromPoolAsync(out: Out<u64>, size: usize, pool: u64, stream: u64) = pools::cuMemAllocFromPoolAsync(out, size, pool, stream);
    here fn hipMallocAsync(out: Out<u64>, size: usize, stream: u64) = pools::cuMemAllocAsync(out, size, stream);
    here fn hipFreeAsync(base: u64, stream: u64) = pools::cuMemFreeAsync(base, stream);
    here fn hipDeviceGetDefaultMemPool(out: Out<u64>, device: i32) = pools::cuDeviceGetDefaultMemPool(out, device);
    here fn hipDeviceGetMemPool(out: Out<u64>, device: i32) = pools::cuDeviceGetMemPool(out, device);
    here fn hipDeviceSetMemPool(device: i32, pool: u64) = pools::cuDeviceSetMemPool(device, pool);
    here fn hipMemPoolCreate(out: Out<u64>, props: Option<&PoolProps>) = pools::cuMemPoolCreate(out, props);
    here fn hipMemPoolDestroy(pool: u64) = pools::cuMemPoolDestroy(pool);
    here fn hipMemPoolTrimTo(pool: u64, keep: usize) = pools::cuMemPoolTrimTo(pool, keep);
    here fn hipMemPoolSetAttribute(pool: u64, which: i32, value: *const c_void) = pools::cuMemPoolSetAttribute(pool, which, value);
    here fn hipMemPoolGetAttribute(pool: u64, which: i32, value: *mut c_void) = pools::cuMemPoolGetAttribute(pool, which, value);
    here fn hipMemPoolSetAccess(pool: u64, descs: *const AccessDesc, count: usize) = pools::cuMemPoolSetAccess(pool, descs, count);
    here fn hipMemPoolGetAccess(flags: Out<i32>, pool: u64, location: Option<&Location>) = pools::cuMemPoolGetAccess(flags, pool, location);

    here fn hipMemGetAllocationGranularity(out: Out<usize>, prop: Option<&AllocationProp>, option: i32) = vmm::cuMemGetAllocationGranularity(out, prop, option);
    here fn hipMemAddressReserve(out: Out<u64>, size: usize, align: usize, hint: u64, flags: u64) = vmm::cuMemAddressReserve(out, size, align, hint, flags);
    here fn hipMemAddressFree(base: u64, size: usize) = vmm::cuMemAddressFree(base, size);
    here fn hipMemCreate(out: Out<u64>, size: usize, prop: Option<&AllocationProp>, flags: u64) = {
        let prop = prop.map(as_made);
        vmm::cuMemCreate(out, size, prop.as_ref(), flags)
    };
    here fn hipMemRelease(handle: u64) = vmm::cuMemRelease(handle);
    here fn hipMemMap(address: u64, size: usize, offset: usize, handle: u64, flags: u64) = vmm::cuMemMap(address, size, offset, handle, flags);
    here fn hipMemUnmap(address: u64, size: usize) = vmm::cuMemUnmap(address, size);
    here fn hipMemSetAccess(address: u64, size: usize, descs: *const AccessDesc, count: usize) = vmm::cuMemSetAccess(address, size, descs, count);
    here fn hipMemGetAccess(flags: Out<u64>, location: Option<&Location>, address: u64) = vmm::cuMemGetAccess(flags, location, address);
    here fn hipMemRetainAllocationHandle(out: Out<u64>, address: u64) = vmm::cuMemRetainAllocationHandle(out, address);
    here fn hipMemGetAllocationPropertiesFromHandle(out: Out<AllocationProp>, handle: u64) = vmm::cuMemGetAllocationPropertiesFromHandle(out, handle);
    here fn hipMemExportToShareableHandle(out: *mut c_void, handle: u64, kind: u32, flags: u64) = vmm::cuMemExportToShareableHandle(out, handle, kind, flags);
    here fn hipMemImportFromShareableHandle(out: Out<u64>, shared: *mut c_void, kind: u32) = {
        let by_value = config::current().is_ok_and(|config| config.hip >= Some(hip::IMPORTS_BY_VALUE));
        let shared = match by_value || shared.is_null() {
            true => shared,
            false => shared.cast::<i32>().read_unaligned() as usize as *mut c_void,
        };
        vmm::cuMemImportFromShareableHandle(out, shared, kind)
    };

    here fn hipStreamCreateWithFlags(out: Out<u64>, flags: u32) = streams::cuStreamCreate(out, flags);
    here fn hipStreamCreateWithPriority(out: Out<u64>, flags: u32, priority: i32) = streams::cuStreamCreateWithPriority(out, flags, priority);
    here fn hipStreamDestroy(stream: u64) = streams::cuStreamDestroy_v2(stream);
    here fn hipStreamQuery(stream: u64) = streams::cuStreamQuery(stream);
    here fn hipStreamSynchronize(stream: u64) = streams::cuStreamSynchronize(stream);
    here fn hipStreamWaitEvent(stream: u64, event: u64, flags: u32) = streams::cuStreamWaitEvent(stream, event, flags);
    here fn hipStreamWaitValue32(stream: u64, address: u64, value: u32, flags: u32, mask: u32) = match mask {
        u32::MAX => streams::cuStreamWaitValue32_v2(stream, address, value, flags),
        _ => codes::NOT_SUPPORTED,
    };
    here fn hipStreamGetId(stream: u64, out: Out<u64>) = streams::cuStreamGetId(stream, out);
    here fn hipStreamGetDevice(stream: u64, out: Out<i32>) = entry::run(Call::cuStreamGetCtx, |sim| {
        let key = sim.stream_key(stream)?;
        put(out, sim.stream(key)?.device)
    });
    here fn hipStreamIsCapturing(stream: u64, out: Out<i32>) = streams::cuStreamIsCapturing(stream, out);
    here fn hipStreamGetCaptureInfo_v2(stream: u64, status: Out<i32>, id: Out<u64>, graph: Out<u64>, nodes: Out<*const u64>, count: Out<usize>) = streams::cuStreamGetCaptureInfo_v2(stream, status, id, graph, nodes, count);
    here fn hipStreamBeginCapture(stream: u64, mode: i32) = streams::cuStreamBeginCapture_v2(stream, mode);
    here fn hipStreamEndCapture(stream: u64, graph: Out<u64>) = streams::cuStreamEndCapture(stream, graph);
    start fn hipThreadExchangeStreamCaptureMode(mode: Option<&mut i32>) = streams::cuThreadExchangeStreamCaptureMode(mode);
    here fn hipLaunchHostFunc(stream: u64, function: Option<HostFunction>, data: *mut c_void) = copies::cuLaunchHostFunc(stream, function, data);

    here fn hipEventCreateWithFlags(out: Out<u64>, flags: u32) = events::cuEventCreate(out, flags);
    here fn hipEventDestroy(event: u64) = events::cuEventDestroy_v2(event);
    here fn hipEventRecord(event: u64, stream: u64) = events::cuEventRecord(event, stream);
    here fn hipEventQuery(event: u64) = events::cuEventQuery(event);
    here fn hipEventSynchronize(event: u64) = events::cuEventSynchronize(event);

    here fn hipGraphInstantiateWithFlags(exec: Out<u64>, graph: u64, flags: u64) = graphs::cuGraphInstantiateWithFlags(exec, graph, flags);
    here fn hipGraphLaunch(exec: u64, stream: u64) = graphs::cuGraphLaunch(exec, stream);
    here fn hipGraphExecDestroy(exec: u64) = graphs::cuGraphExecDestroy(exec);
    here fn hipGraphDestroy(graph: u64) = graphs::cuGraphDestroy(graph);
    here fn hipGraphGetNodes(graph: u64, nodes: *mut u64, count: Option<&mut usize>) = graphs::cuGraphGetNodes(graph, nodes, count);
    here fn hipGraphNodeGetType(node: u64, kind: Out<i32>) = graphs::cuGraphNodeGetType(node, kind);

    here fn hipMemcpyHtoDAsync(dst: u64, src: u64, len: usize, stream: u64) = copies::cuMemcpyHtoDAsync_v2(dst, src, len, stream);
    here fn hipMemcpyDtoHAsync(dst: u64, src: u64, len: usize, stream: u64) = copies::cuMemcpyDtoHAsync_v2(dst, src, len, stream);
    here fn hipMemcpyDtoDAsync(dst: u64, src: u64, len: usize, stream: u64) = copies::cuMemcpyDtoDAsync_v2(dst, src, len, stream);
    here fn hipMemsetD8Async(dst: u64, value: u8, count: usize, stream: u64) = copies::cuMemsetD8Async(dst, value, count, stream);
    here fn hipMemsetD32Async(dst: u64, value: u32, count: usize, stream: u64) = copies::cuMemsetD32Async(dst, value, count, stream);
}

/// What a chunk comes to be.
fn as_made(prop: &AllocationProp) -> AllocationProp {
    let mut made = *prop;
    let sim = Locked::take();
    if sim.config.quirks.set_device && made.location.kind == LOCATION_DEVICE {
        made.location.id = context::primary_device(context::top()).unwrap_or(0);
    }
    made
}

/// The driver's number of HIP's attribute; one that no device has for what HIP devices do not tell.
fn in_cuda(attribute: i32) -> i32 {
    const NONE: i32 = 0;
    match attribute {
        9 => 89,
        24 => 83,
        65 => 88,
        66 => 100,
        88 => 115,
        89 => 102,
        92 => 134,
        94 => 110,
        _ => NONE,
    }
}
