//! What the simulated driver says of itself: its clock, its count of calls, and what it counts as
//! alive, none of it from this library's statistics. The interface is `sim/include/hbmalloc_sim.h`.

use hbmalloc::gpu::Driver;
use std::ffi::{CStr, c_char, c_int, c_void};

/// `struct hbmsim_counters`, as far as it is used here; the simulator writes no more than asked.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Counters {
    struct_size: u64,
    pub chunks: u64,
    pub chunk_bytes: u64,
    pub mappings: u64,
    pub mapped_bytes: u64,
    pub reservations: u64,
    pub reserved_address_bytes: u64,
    pub device_allocs: u64,
    pub device_bytes: u64,
    pub managed_allocs: u64,
    pub managed_bytes: u64,
    pub async_reserved_bytes: u64,
    pub async_used_bytes: u64,
    pub async_allocs: u64,
    pub pools: u64,
    pub pinned_allocs: u64,
    pub pinned_bytes: u64,
    pub registered: u64,
    pub registered_bytes: u64,
    pub events: u64,
    pub streams: u64,
    pub graphs: u64,
    pub captures: u64,
    pub contexts: u64,
    pub physical_bytes: u64,
    pub peak_physical_bytes: u64,
    pub host_chunk_bytes: u64,
}

type Clock = unsafe extern "C" fn() -> u64;
type CountOf = unsafe extern "C" fn(*const c_char) -> u64;
type CountAll = unsafe extern "C" fn(*mut c_void, u64) -> c_int;
type Physical = unsafe extern "C" fn(c_int, *mut u64, *mut u64) -> c_int;
/// Fills a buffer of that capacity with text and a zero byte.
type Text = unsafe extern "C" fn(*mut c_char, u64) -> u64;

/// The control functions of the simulated driver.
pub struct Simulator {
    virtual_ns: Clock,
    calls: CountOf,
    call_log: Text,
    counters: CountAll,
    physical: Physical,
    faults: Text,
}

impl Simulator {
    /// The control functions of `driver`, where it is the simulated one.
    pub fn of(driver: &Driver) -> Option<Simulator> {
        macro_rules! function {
            ($name:literal as $signature:ty) => {
                // SAFETY: the simulator's header declares the function with this signature.
                unsafe { std::mem::transmute::<*mut c_void, $signature>(driver.symbol($name)?) }
            };
        }
        Some(Simulator {
            virtual_ns: function!(c"hbmsim_virtual_ns" as Clock),
            calls: function!(c"hbmsim_calls" as CountOf),
            call_log: function!(c"hbmsim_call_log" as Text),
            counters: function!(c"hbmsim_counters" as CountAll),
            physical: function!(c"hbmsim_physical" as Physical),
            faults: function!(c"hbmsim_faults" as Text),
        })
    }

    /// What a real driver would have spent in the calls so far, in nanoseconds.
    pub fn virtual_ns(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { (self.virtual_ns)() }
    }

    /// How many calls have been made.
    pub fn calls(&self) -> u64 {
        // SAFETY: the name is a C string.
        unsafe { (self.calls)(c"*".as_ptr()) }
    }

    /// How often each function has been called.
    pub fn call_log(&self) -> Vec<(String, u64)> {
        let entry = |line: &str| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        read_text(self.call_log).lines().filter_map(entry).collect()
    }

    /// What is alive.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        let size = size_of::<Counters>() as u64;
        // SAFETY: at most `size` bytes are written, of integers only.
        unsafe { (self.counters)((&raw mut counters).cast(), size) };
        counters
    }

    /// The most physical memory of a device that has been in use.
    pub fn peak_physical(&self, device: i32) -> u64 {
        let mut peak = 0;
        // SAFETY: the second pointer is valid, and the first may be null.
        unsafe { (self.physical)(device, std::ptr::null_mut(), &mut peak) };
        peak
    }

    /// What would have been faults on a card, a line each.
    pub fn faults(&self) -> String {
        read_text(self.faults)
    }
}

/// The largest text that is asked for.
const TEXT: usize = 64 << 10;

fn read_text(function: Text) -> String {
    let mut buffer = vec![0u8; TEXT];
    // SAFETY: the buffer has that capacity; what is written ends with a zero byte within it.
    unsafe { function(buffer.as_mut_ptr().cast(), TEXT as u64) };
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
    text.to_string_lossy().into_owned()
}
