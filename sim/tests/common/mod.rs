//! Loads the simulated driver as a program would, by dlopen, and calls it by name. One test at a time has the machine.
#![allow(dead_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

pub const MIB: u64 = 1 << 20;
pub const CHUNK: u64 = 2 * MIB;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

type Function = extern "C" fn(u64, u64, u64, u64, u64, u64) -> i32;

/// The machine, freshly started for one test.
pub struct Machine {
    _turn: MutexGuard<'static, ()>,
}

fn library() -> *mut c_void {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    let handle = *LIBRARY.get_or_init(|| {
        let path = CString::new(library_path().to_str().unwrap()).unwrap();
        // SAFETY: the library's constructors only fill tables.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "cannot load {path:?}");
        handle as usize
    });
    handle as *mut c_void
}

/// Cargo puts the library beside the tests or one folder up; the newer one is of this build.
pub fn library_path() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    let both = [deps.to_owned(), deps.parent().unwrap().to_owned()]
        .map(|dir| dir.join("libhbmalloc_sim.so"));
    let built = both
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
    built
        .max()
        .expect("libhbmalloc_sim.so is built with the tests")
        .1
}

pub fn symbol(name: &str) -> *mut c_void {
    let c = CString::new(name).unwrap();
    // SAFETY: the handle is never closed.
    let found = unsafe { libc::dlsym(library(), c.as_ptr()) };
    assert!(!found.is_null(), "{name} is not exported");
    found
}

/// Calls an export whose arguments are all integers, pointers or structs of eight bytes.
pub fn call(name: &str, args: &[u64]) -> i32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    // SAFETY: every export takes at most six such arguments, which the C convention passes in registers; surplus ones are ignored.
    let function: Function = unsafe { std::mem::transmute(symbol(name)) };
    function(all[0], all[1], all[2], all[3], all[4], all[5])
}

pub fn call64(name: &str, args: &[u64]) -> u64 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    // SAFETY: as above; these answer 64 bits.
    let function: extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64 =
        unsafe { std::mem::transmute(symbol(name)) };
    function(all[0], all[1], all[2], all[3], all[4], all[5])
}

#[track_caller]
pub fn ok(name: &str, args: &[u64]) {
    assert_eq!(call(name, args), 0, "{name}");
}

/// A call whose first argument is where it writes a handle or an address.
#[track_caller]
pub fn new(name: &str, args: &[u64]) -> u64 {
    let (code, value) = try_new(name, args);
    assert_eq!(code, 0, "{name}");
    value
}

pub fn try_new(name: &str, args: &[u64]) -> (i32, u64) {
    let mut out = 0u64;
    let mut all = vec![&raw mut out as u64];
    all.extend_from_slice(args);
    (call(name, &all), out)
}

/// A call whose last argument is where it writes.
#[track_caller]
pub fn get(name: &str, args: &[u64]) -> u64 {
    let mut out = 0u64;
    let mut all = args.to_vec();
    all.push(&raw mut out as u64);
    ok(name, &all);
    out
}

pub fn text(s: &str) -> CString {
    CString::new(s).unwrap()
}

impl Machine {
    /// A machine by its description, with the primary context of device 0 current.
    pub fn start(spec: &str) -> Machine {
        let machine = Machine::bare(spec);
        ok("cuInit", &[0]);
        ok("cuCtxSetCurrent", &[new("cuDevicePrimaryCtxRetain", &[0])]);
        machine
    }

    pub fn bare(spec: &str) -> Machine {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        // Only the first cuInit of a process reads the configuration; each test finds it done, whether
        // it has the process to itself or not.
        call("cuInit", &[0]);
        ok("hbmsim_configure", &[text(spec).as_ptr() as u64]);
        for device in 0..32 {
            ok("hbmsim_oom_at", &[device, 0]);
        }
        call("hbmsim_reset", &[]);
        call("cuCtxSetCurrent", &[0]);
        Machine { _turn: turn }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Prop {
    pub kind: i32,
    pub handles: u32,
    pub location: [i32; 2],
    pub win32: u64,
    pub compression: u8,
    pub rdma: u8,
    pub usage: u16,
    pub rest: [u8; 4],
}

pub const DEVICE: Prop = Prop {
    kind: 1,
    handles: 0,
    location: [1, 0],
    win32: 0,
    compression: 0,
    rdma: 0,
    usage: 0,
    rest: [0; 4],
};

pub fn try_create(size: u64, prop: &Prop) -> (i32, u64) {
    try_new("cuMemCreate", &[size, prop as *const Prop as u64, 0])
}

#[track_caller]
pub fn create(size: u64) -> u64 {
    let (code, handle) = try_create(size, &DEVICE);
    assert_eq!(code, 0);
    handle
}

#[track_caller]
pub fn reserve(size: u64) -> u64 {
    new("cuMemAddressReserve", &[size, 0, 0, 0])
}

pub fn map(address: u64, size: u64, handle: u64) -> i32 {
    call("cuMemMap", &[address, size, 0, handle, 0])
}

pub fn grant(address: u64, size: u64, device: i32, flags: i32) -> i32 {
    let desc = [1, device, flags];
    call("cuMemSetAccess", &[address, size, desc.as_ptr() as u64, 1])
}

/// A chunk mapped at an address of its own, accessible to device 0.
#[track_caller]
pub fn mapped(size: u64) -> (u64, u64) {
    let (base, handle) = (reserve(size), create(size));
    assert_eq!(map(base, size, handle), 0);
    assert_eq!(grant(base, size, 0, 3), 0);
    (base, handle)
}

#[track_caller]
pub fn unmapped(base: u64, handle: u64, size: u64) {
    ok("cuMemUnmap", &[base, size]);
    ok("cuMemRelease", &[handle]);
    ok("cuMemAddressFree", &[base, size]);
}

#[track_caller]
pub fn stream(flags: u64) -> u64 {
    new("cuStreamCreate", &[flags])
}

#[track_caller]
pub fn event() -> u64 {
    new("cuEventCreate", &[0])
}

/// Reads device memory by a copy on the legacy stream.
#[track_caller]
pub fn read(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    ok(
        "cuMemcpyDtoH_v2",
        &[bytes.as_mut_ptr() as u64, address, len as u64],
    );
    bytes
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    pub struct_size: u64,
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

pub fn counters() -> Counters {
    let mut out = Counters::default();
    ok(
        "hbmsim_counters",
        &[&raw mut out as u64, size_of::<Counters>() as u64],
    );
    assert_eq!(out.struct_size, size_of::<Counters>() as u64);
    out
}

/// Nothing that a program makes is left.
#[track_caller]
pub fn assert_clean() {
    let c = counters();
    let left = [
        c.chunks,
        c.handles,
        c.mappings,
        c.reservations,
        c.device_allocs,
        c.managed_allocs,
        c.async_allocs,
        c.pools,
        c.pinned_allocs,
        c.registered,
        c.events,
        c.streams,
        c.graphs,
        c.captures,
        c.physical_bytes,
        c.queued,
        c.faults,
    ];
    assert!(left.iter().all(|n| *n == 0), "{c:?}");
}

pub fn faults() -> (u64, String) {
    let mut buffer = vec![0u8; 65536];
    let count = call64(
        "hbmsim_faults",
        &[buffer.as_mut_ptr() as u64, buffer.len() as u64],
    );
    // SAFETY: the library wrote a terminator.
    let text = unsafe { CStr::from_ptr(buffer.as_ptr() as *const c_char) };
    (count, text.to_str().unwrap().to_owned())
}

/// Runs something in a forked child; its exit status, or 128 and the signal that ended it.
pub fn in_child(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child only calls f and leaves.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::_exit(f());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        if libc::WIFSIGNALED(status) {
            128 + libc::WTERMSIG(status)
        } else {
            libc::WEXITSTATUS(status)
        }
    }
}
