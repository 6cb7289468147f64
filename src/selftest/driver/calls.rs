//! The driver's functions as the cases call them: they answer the plain code, and take references
//! to what lives. A destroyed stream, event or pool cannot be passed, since its guard is gone; the
//! driver would crash on it.

use super::abi::{Access, Place, PoolProperties, Properties};
use super::guards::{Event, Executable, Graph, Pool, Stream};
use crate::sys::cuda::{Cuda, Handle, Refusal};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::from_ref;

/// What a driver without the function answers, which no driver's code is.
pub const MISSING: i32 = -1;

/// The code of an answer.
pub fn code(answer: Result<(), Refusal>) -> i32 {
    match answer {
        Ok(()) => 0,
        Err(refusal) => refusal.code.map_or(MISSING, |code| code.0),
    }
}

/// The driver's functions; freely copied, also to other threads.
#[derive(Clone, Copy)]
pub struct Calls<'a>(&'a Cuda);

impl<'a> Calls<'a> {
    pub fn new(cuda: &'a Cuda) -> Calls<'a> {
        Calls(cuda)
    }

    pub fn cuda(self) -> &'a Cuda {
        self.0
    }
}

macro_rules! safe_calls {
    ($( $name:ident ( $($arg:ident : $ty:ty),* $(,)? ) = $function:ident ( $($pass:expr),* $(,)? ) ; )*) => {
        impl Calls<'_> {
            $(
                pub fn $name(self, $($arg: $ty),*) -> i32 {
                    // SAFETY: references are valid pointers, guards hold live objects, and the
                    // driver checks addresses, sizes and numbers itself, which is what is tested.
                    code(unsafe { self.0.$function($($pass),*) })
                }
            )*
        }
    };
}

safe_calls! {
    init(flags: u32) = init(flags);
    version(out: &mut i32) = driver_version(out);
    device_count(out: &mut i32) = device_count(out);
    device(out: &mut i32, ordinal: i32) = device_get(out, ordinal);
    device_name(out: &mut [u8], device: i32) = device_name(out.as_mut_ptr().cast(), out.len() as c_int, device);
    attribute(out: &mut i32, which: i32, device: i32) = device_attribute(out, which, device);
    total_memory(out: &mut usize, device: i32) = device_total_memory(out, device);
    primary_retain(out: &mut usize, device: i32) = primary_context_retain(from_mut_handle(out), device);
    primary_release(device: i32) = primary_context_release(device);
    primary_state(flags: &mut u32, active: &mut i32, device: i32) = primary_context_state(device, flags, active);

    current(out: &mut usize) = context_current(from_mut_handle(out));
    /* A number that was a context's is known to the driver as such or not at all. */
    push(context: usize) = context_push(context as Handle);
    pop(out: &mut usize) = context_pop(from_mut_handle(out));
    set_current(context: usize) = context_set(context as Handle);
    current_device(out: &mut i32) = context_device(out);
    synchronize() = context_synchronize();
    record_context(context: usize, event: &Event) = context_record_event(context as Handle, event.raw());

    memory_info(free: &mut usize, total: &mut usize) = memory_info(free, total);
    alloc(out: &mut u64, bytes: u64) = memory_alloc(out, bytes as usize);
    free(address: u64) = memory_free(address);
    range(base: &mut u64, bytes: &mut usize, address: u64) = memory_range(base, bytes, address);
    host_alloc(out: &mut usize, bytes: u64, flags: u32) = host_alloc(from_mut_handle(out), bytes as usize, flags);
    host_free(address: usize) = host_free(address as *mut c_void);
    alloc_managed(out: &mut u64, bytes: u64, flags: u32) = memory_alloc_managed(out, bytes as usize, flags);
    advise(address: u64, bytes: u64, advice: i32, place: Place) = memory_advise(address, bytes as usize, advice, place.by_value());
    prefetch(address: u64, bytes: u64, place: Place, flags: u32, stream: &Stream) =
        memory_prefetch(address, bytes as usize, place.by_value(), flags, stream.raw());
    range_attribute(out: &mut [i32], bytes_out: usize, which: i32, address: u64, bytes: u64) =
        memory_range_attribute(out.as_mut_ptr().cast(), bytes_out.min(size_of_val(out)), which, address, bytes as usize);
    pointer_attribute(out: &mut u64, which: i32, address: u64) = pointer_attribute(std::ptr::from_mut(out).cast(), which, address);

    alloc_async(out: &mut u64, bytes: u64, stream: &Stream) = memory_alloc_async(out, bytes as usize, stream.raw());
    alloc_from_pool(out: &mut u64, bytes: u64, pool: &Pool, stream: &Stream) =
        memory_alloc_from_pool(out, bytes as usize, pool.raw(), stream.raw());
    free_async(address: u64, stream: &Stream) = memory_free_async(address, stream.raw());
    default_pool(out: &mut usize, device: i32) = default_pool(from_mut_handle(out), device);
    device_pool(out: &mut usize, device: i32) = device_pool(from_mut_handle(out), device);
    set_device_pool(device: i32, pool: &Pool) = set_device_pool(device, pool.raw());
    pool_create(out: &mut usize, props: &PoolProperties) = pool_create(from_mut_handle(out), from_ref(props).cast());
    pool_destroy(pool: &Pool) = pool_destroy(pool.raw());
    pool_trim(pool: &Pool, keep: u64) = pool_trim(pool.raw(), keep as usize);
    pool_set(pool: &Pool, which: i32, value: &mut u64) = pool_set_attribute(pool.raw(), which, std::ptr::from_mut(value).cast());
    pool_get(pool: &Pool, which: i32, value: &mut u64) = pool_attribute(pool.raw(), which, std::ptr::from_mut(value).cast());
    pool_access(flags: &mut i32, pool: &Pool, place: Place) = pool_access(flags, pool.raw(), from_ref(&place).cast());

    granularity(out: &mut usize, props: &Properties, option: i32) = vmm_granularity(out, from_ref(props).cast(), option);
    reserve(out: &mut u64, bytes: u64, align: u64, hint: u64, flags: u64) = vmm_reserve(out, bytes as usize, align as usize, hint, flags);
    free_address(address: u64, bytes: u64) = vmm_free_address(address, bytes as usize);
    create(out: &mut u64, bytes: u64, props: &Properties, flags: u64) = vmm_create(out, bytes as usize, from_ref(props).cast(), flags);
    release(chunk: u64) = vmm_release(chunk);
    map(address: u64, bytes: u64, offset: u64, chunk: u64, flags: u64) = vmm_map(address, bytes as usize, offset as usize, chunk, flags);
    unmap(address: u64, bytes: u64) = vmm_unmap(address, bytes as usize);
    set_access(address: u64, bytes: u64, who: &[Access]) = vmm_set_access(address, bytes as usize, who.as_ptr().cast(), who.len());
    set_access_of_none(address: u64, bytes: u64) = vmm_set_access(address, bytes as usize, std::ptr::null(), 1);
    access(flags: &mut u64, place: Place, address: u64) = vmm_access(flags, from_ref(&place).cast(), address);
    retain_chunk(out: &mut u64, address: u64) = vmm_retain(out, address as *mut c_void);
    properties(out: &mut Properties, chunk: u64) = vmm_properties(std::ptr::from_mut(out).cast(), chunk);
    export_fd(out: &mut i32, chunk: u64, flags: u64) = vmm_export(std::ptr::from_mut(out).cast(), chunk, super::abi::SHARED_AS_FD, flags);
    export_as(out: &mut [u8; 64], chunk: u64, kind: i32) = vmm_export(out.as_mut_ptr().cast(), chunk, kind, 0);
    import_fd(out: &mut u64, fd: i32) = vmm_import(out, fd as isize as *mut c_void, super::abi::SHARED_AS_FD);

    is_capturing(stream: &Stream, status: &mut i32) = stream_is_capturing(stream.raw(), status);
    stream_context(stream: &Stream, out: &mut usize) = stream_context(stream.raw(), from_mut_handle(out));
    stream_id(stream: &Stream, id: &mut u64) = stream_id(stream.raw(), id);
    stream_synchronize(stream: &Stream) = stream_synchronize(stream.raw());
    stream_query(stream: &Stream) = stream_query(stream.raw());
    wait_event(stream: &Stream, event: &Event, flags: u32) = stream_wait_event(stream.raw(), event.raw(), flags);
    exchange_mode(mode: &mut i32) = exchange_capture_mode(mode);
    stream_create(out: &mut usize, flags: c_uint) = stream_create(from_mut_handle(out), flags);
    begin_capture(stream: &Stream, mode: i32) = stream_begin_capture(stream.raw(), mode);
    end_capture(stream: &Stream, graph: &mut usize) = stream_end_capture(stream.raw(), from_mut_handle(graph));
    event_create(out: &mut usize, flags: c_uint) = event_create(from_mut_handle(out), flags);
    record(event: &Event, stream: &Stream) = event_record(event.raw(), stream.raw());
    event_query(event: &Event) = event_query(event.raw());
    event_synchronize(event: &Event) = event_synchronize(event.raw());

    graph_node_count(graph: &Graph, count: &mut usize) = graph_nodes(graph.raw(), std::ptr::null_mut(), count);
    instantiate(out: &mut usize, graph: &Graph) = graph_instantiate(from_mut_handle(out), graph.raw(), 0);
    launch(graph: &Executable, stream: &Stream) = graph_launch(graph.raw(), stream.raw());

    copy_on_device(to: u64, from: u64, bytes: u64, stream: &Stream) = copy_on_device(to, from, bytes as usize, stream.raw());
    fill(address: u64, byte: u8, bytes: u64, stream: &Stream) = fill_bytes(address, byte, bytes as usize, stream.raw());
    fill_words(address: u64, word: u32, words: u64, stream: &Stream) = fill_words(address, word, words as usize, stream.raw());
}

/// A place for a handle, which is a pointer of the driver's.
fn from_mut_handle(out: &mut usize) -> *mut Handle {
    std::ptr::from_mut(out).cast()
}

impl Calls<'_> {
    /// Copies from pinned memory, which must outlive the copy.
    pub fn copy_in(
        self,
        to: u64,
        from: &super::guards::Pinned,
        bytes: u64,
        stream: &Stream,
    ) -> i32 {
        let at = from.address() as *const c_void;
        // SAFETY: the driver checks both ranges; the guard keeps the memory until work has ended.
        code(unsafe { self.0.copy_to_device(to, at, bytes as usize, stream.raw()) })
    }

    /// Copies to pinned memory.
    pub fn copy_out(
        self,
        to: &super::guards::Pinned,
        from: u64,
        bytes: u64,
        stream: &Stream,
    ) -> i32 {
        let at = to.address() as *mut c_void;
        // SAFETY: the driver checks both ranges; the guard keeps the memory until work has ended.
        code(unsafe { self.0.copy_to_host(at, from, bytes as usize, stream.raw()) })
    }

    /// The kinds of a graph's nodes, sorted.
    pub fn node_kinds(self, graph: &Graph) -> Result<Vec<i32>, i32> {
        let mut nodes: [Handle; 64] = [std::ptr::null_mut(); 64];
        let mut count = nodes.len();
        // SAFETY: the array has as many places as `count` says.
        match code(unsafe {
            self.0
                .graph_nodes(graph.raw(), nodes.as_mut_ptr(), &mut count)
        }) {
            0 => {}
            refused => return Err(refused),
        }
        let mut kinds = Vec::new();
        for node in &nodes[..count.min(nodes.len())] {
            let mut kind = 0;
            // SAFETY: a node of a live graph.
            match code(unsafe { self.0.graph_node_kind(*node, &mut kind) }) {
                0 => kinds.push(kind),
                refused => return Err(refused),
            }
        }
        kinds.sort_unstable();
        Ok(kinds)
    }

    /// Calls `function` of the host with `data` in stream order.
    ///
    /// # Safety
    /// `function` must be fit for `data`, once for each time the driver will call it.
    pub unsafe fn host_function(
        self,
        stream: &Stream,
        function: extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> i32 {
        // SAFETY: passed on to the caller.
        code(unsafe { self.0.launch_host_function(stream.raw(), function, data) })
    }
}
