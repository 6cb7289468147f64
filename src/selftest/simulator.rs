//! The simulated driver's control functions (`sim/include/hbmalloc_sim.h`), for cases that make it
//! fail, hold its streams back, or ask what it counts itself.

use crate::gpu::{Driver, Stream};
use crate::sys::cuda::Handle;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// What is alive, counted by the simulator. The header tells what each field means.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
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
    pub faults: u64,
    pub leaks: u64,
    pub queued: u64,
    pub device_ns: u64,
    pub handles: u64,
    pub memory_bytes: u64,
    pub peak_memory_bytes: u64,
}

impl Counters {
    /// What a tidy library leaves as it found it: memory, addresses, events, pools.
    pub fn memory(&self) -> [u64; 15] {
        [
            self.chunks,
            self.chunk_bytes + self.host_chunk_bytes,
            self.mappings,
            self.reservations,
            self.device_allocs,
            self.device_bytes,
            self.managed_allocs,
            self.managed_bytes,
            self.async_allocs,
            self.async_used_bytes,
            self.pools,
            self.events,
            self.handles,
            self.pinned_allocs,
            self.pinned_bytes,
        ]
    }
}

macro_rules! control_functions {
    ($($field:ident = $symbol:literal ($($ty:ty),*) $(-> $out:ty)?;)*) => {
        /// The control functions, resolved.
        #[derive(Clone, Copy)]
        pub struct Simulator {
            $( $field: unsafe extern "C" fn($($ty),*) $(-> $out)?, )*
        }

        impl Simulator {
            /// Those of `driver`, where it is the simulated one.
            pub fn of(driver: &Driver) -> Option<Simulator> {
                Some(Simulator {
                    // SAFETY: the simulator's header declares these names with these signatures.
                    $( $field: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) $(-> $out)?>(driver.symbol($symbol)?) }, )*
                })
            }
        }
    };
}

control_functions! {
    reset = c"hbmsim_reset"();
    fail = c"hbmsim_fail"(*const c_char, u64, c_int, u64) -> c_int;
    fail_clear = c"hbmsim_fail_clear"();
    oom_at = c"hbmsim_oom_at"(c_int, u64) -> c_int;
    calls = c"hbmsim_calls"(*const c_char) -> u64;
    call_log = c"hbmsim_call_log"(*mut c_char, u64) -> u64;
    counters = c"hbmsim_counters"(*mut Counters, u64) -> c_int;
    hold = c"hbmsim_hold"(Handle) -> c_int;
    release = c"hbmsim_release"(Handle) -> c_int;
    spin = c"hbmsim_spin"(Handle, u64, u64) -> c_int;
    kernel = c"hbmsim_kernel"(Handle, u64, u64) -> c_int;
    spin_stop = c"hbmsim_spin_stop"(Handle) -> c_int;
    faults = c"hbmsim_faults"(*mut c_char, u64) -> u64;
    faults_clear = c"hbmsim_faults_clear"();
    virtual_ns = c"hbmsim_virtual_ns"() -> u64;
    physical = c"hbmsim_physical"(c_int, *mut u64, *mut u64) -> c_int;
}

impl Simulator {
    /// What a real driver would have spent in the calls so far, in nanoseconds.
    pub fn virtual_ns(&self) -> u64 {
        // SAFETY: takes no pointers.
        unsafe { (self.virtual_ns)() }
    }

    /// The most physical memory of a device that has been in use, in bytes.
    pub fn peak_physical(&self, device: i32) -> u64 {
        let mut peak = 0;
        // SAFETY: the second pointer is valid, and the first may be null.
        unsafe { (self.physical)(device, std::ptr::null_mut(), &mut peak) };
        peak
    }

    /// Drops everything and starts the configured machine again.
    pub fn reset(&self) {
        // SAFETY: takes no pointers.
        unsafe { (self.reset)() }
    }

    /// The `nth` coming call of that name (from 1) answers `code`, once.
    pub fn fail_once(&self, call: &str, nth: u64, code: i32) {
        let name = c_string(call);
        // SAFETY: `name` is a C string.
        let armed = unsafe { (self.fail)(name.as_ptr(), nth, code, 1) };
        assert_eq!(armed, 0, "hbmsim_fail({call}, {nth}, {code})");
    }

    /// Takes armed failures back.
    pub fn fail_clear(&self) {
        // SAFETY: takes no pointers.
        unsafe { (self.fail_clear)() }
    }

    /// Out of memory past so many bytes of a device; 0 takes the cap away.
    pub fn out_of_memory_at(&self, device: i32, bytes: u64) {
        // SAFETY: takes no pointers.
        unsafe { (self.oom_at)(device, bytes) };
    }

    /// How often a call was made since the start.
    pub fn calls(&self, call: &str) -> u64 {
        let name = c_string(call);
        // SAFETY: `name` is a C string.
        unsafe { (self.calls)(name.as_ptr()) }
    }

    /// How often each call was made since the start.
    pub fn call_log(&self) -> Vec<(String, u64)> {
        let text = read_text(|buffer, capacity| {
            // SAFETY: the buffer has that capacity.
            unsafe { (self.call_log)(buffer, capacity) }
        });
        text.lines()
            .filter_map(|line| {
                let (name, count) = line.split_once(' ')?;
                Some((name.to_owned(), count.parse().ok()?))
            })
            .collect()
    }

    /// What is alive.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: the struct has the size that is told.
        let answer = unsafe { (self.counters)(&mut counters, size_of::<Counters>() as u64) };
        assert_eq!(answer, 0, "hbmsim_counters");
        counters
    }

    /// Nothing starts on the stream until it is released.
    pub fn hold(&self, stream: Stream) {
        // SAFETY: the handle is checked by the simulator.
        assert_eq!(unsafe { (self.hold)(stream.raw()) }, 0, "hbmsim_hold");
    }

    /// Lets a held stream go on.
    pub fn release(&self, stream: Stream) {
        // SAFETY: the handle is checked by the simulator.
        assert_eq!(unsafe { (self.release)(stream.raw()) }, 0, "hbmsim_release");
    }

    /// Queues a kernel that uses a range until it is stopped.
    pub fn spin(&self, stream: Stream, address: u64, bytes: u64) {
        // SAFETY: handle and range are checked by the simulator.
        let answer = unsafe { (self.spin)(stream.raw(), address, bytes) };
        assert_eq!(answer, 0, "hbmsim_spin");
    }

    /// Queues a kernel that uses a range and ends as soon as its turn has come. The answer is the
    /// driver's: not 0 where the range is not memory that the stream's device may use.
    pub fn kernel(&self, stream: Stream, address: u64, bytes: u64) -> i32 {
        // SAFETY: handle and range are checked by the simulator.
        unsafe { (self.kernel)(stream.raw(), address, bytes) }
    }

    /// Ends the kernels queued by [`Simulator::spin`].
    pub fn spin_stop(&self, stream: Stream) {
        // SAFETY: the handle is checked by the simulator.
        unsafe { (self.spin_stop)(stream.raw()) };
    }

    /// What would have been faults on a card, a message a line.
    pub fn faults(&self) -> Vec<String> {
        let text = read_text(|buffer, capacity| {
            // SAFETY: the buffer has that capacity. The answer is a count of faults, not a length.
            match unsafe { (self.faults)(buffer, capacity) } {
                0 => 0,
                _ => FAULT_TEXT,
            }
        });
        text.lines().map(str::to_owned).collect()
    }

    /// Forgets faults and mends the contexts they broke.
    pub fn faults_clear(&self) {
        // SAFETY: takes no pointers.
        unsafe { (self.faults_clear)() }
    }
}

/// Room for the messages of faults; more are cut.
const FAULT_TEXT: u64 = 8192;

fn c_string(text: &str) -> CString {
    CString::new(text).expect("names of calls hold no zero byte")
}

/// Asks for the length, then for the text.
fn read_text(ask: impl Fn(*mut c_char, u64) -> u64) -> String {
    let length = ask(std::ptr::null_mut(), 0);
    if length == 0 {
        return String::new();
    }
    let mut buffer = vec![0u8; length as usize + 1];
    ask(buffer.as_mut_ptr().cast(), buffer.len() as u64);
    CStr::from_bytes_until_nul(&buffer)
        .map_or(String::new(), |text| text.to_string_lossy().into_owned())
}
