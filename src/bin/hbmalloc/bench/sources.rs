//! What an allocation and its free cost on the host, for each source and beside it for the driver's
//! own calls, in one run.

use cuda_sys::driver::sys as cuda;
use hbmalloc::error::{Error, Result, Status, last};
use hbmalloc::gpu::Driver;
use hbmalloc::gpu::driver::DriverKind;
use hbmalloc::observe;
use hbmalloc::sys::cuda::{Cuda, Handle, Refusal};
use hbmalloc::sys::library::Library;
use hbmalloc::torch;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

const SIZES: [(u64, &str); 4] = [
    (4 << 10, "4 KiB"),
    (1 << 20, "1 MiB"),
    (64 << 20, "64 MiB"),
    (1 << 30, "1 GiB"),
];

/// A line is cut short after this, so that slow pairs do not take minutes.
const MOST_TIME: Duration = Duration::from_millis(600);

type Malloc = extern "C-unwind" fn(usize, c_int, *mut c_void) -> *mut c_void;
type Free = extern "C" fn(*mut c_void, usize, c_int, *mut c_void);

/// Measures up to `count` pairs, at least one, for each line.
pub fn measure(driver: &Driver, count: usize, json: bool) -> Result<()> {
    let process = observe::process();
    let simulated = driver.kind() == DriverKind::Simulator;
    if !json {
        print_head();
    }
    let raw = Raw::open(driver.path())?;
    let _guard = driver.device(0)?.enter()?;
    let sources: [(&str, Malloc, Free); 4] = [
        ("device", torch::device_malloc, torch::device_free),
        ("managed", torch::managed_malloc, torch::managed_free),
        ("async", torch::async_malloc, torch::async_free),
        ("vmm", torch::vmm_malloc, torch::vmm_free),
    ];
    for (bytes, size) in SIZES {
        for (name, malloc, free) in sources {
            let ours = pairs(count, || {
                let address = malloc(bytes as usize, 0, std::ptr::null_mut());
                if address.is_null() {
                    return Err(last::error());
                }
                free(address, bytes as usize, 0, std::ptr::null_mut());
                Ok(())
            })?;
            process.trim(0, 0)?;
            let theirs = raw.pairs(name, bytes, count)?;
            print_line(json, simulated, name, bytes, size, ours, theirs);
        }
    }
    Ok(())
}

fn print_head() {
    println!(
        "Host time of one allocation and its free, in microseconds: median and 99th percentile."
    );
    println!("managed includes advice and prefetch; vmm a mapping of its own for every block.\n");
    println!(
        "{:8} {:>8} {:>12} {:>12}   {:>12} {:>12}",
        "source", "size", "hbmalloc p50", "p99", "driver p50", "p99"
    );
}

fn print_line(
    json: bool,
    simulated: bool,
    name: &str,
    bytes: u64,
    size: &str,
    ours: Times,
    theirs: Times,
) {
    if json {
        println!(
            "{{\"source\":\"{name}\",\"bytes\":{bytes},\"simulated\":{simulated},\"hbmalloc_ns_p50\":{},\"hbmalloc_ns_p99\":{},\"driver_ns_p50\":{},\"driver_ns_p99\":{}}}",
            ours.p50, ours.p99, theirs.p50, theirs.p99
        );
        return;
    }
    let micros = |ns: u64| ns as f64 / 1000.0;
    println!(
        "{name:8} {size:>8} {:12.2} {:12.2}   {:12.2} {:12.2}",
        micros(ours.p50),
        micros(ours.p99),
        micros(theirs.p50),
        micros(theirs.p99)
    );
}

#[derive(Clone, Copy)]
struct Times {
    p50: u64,
    p99: u64,
}

fn pairs(count: usize, mut pair: impl FnMut() -> Result<()>) -> Result<Times> {
    for _ in 0..count.min(20) {
        pair()?;
    }
    let started = Instant::now();
    let mut times = Vec::with_capacity(count);
    while times.len() < count && started.elapsed() < MOST_TIME {
        let before = Instant::now();
        pair()?;
        times.push(before.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    Ok(Times {
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
    })
}

/// The driver's own calls, as a program without an allocator would make them.
struct Raw(Cuda);

impl Raw {
    fn open(path: &std::path::Path) -> Result<Raw> {
        let library = Library::open(path)
            .map_err(|reason| Error::new(Status::NoDriver, "open driver").detail(reason))?;
        Ok(Raw(Cuda::resolve(library)))
    }

    fn pairs(&self, source: &str, bytes: u64, count: usize) -> Result<Times> {
        pairs(count, || {
            // SAFETY: out-pointers are valid, and what was made is freed once, unused.
            unsafe {
                match source {
                    "async" => self.stream_ordered(bytes as usize),
                    "vmm" => self.mapped(bytes.next_multiple_of(2 << 20) as usize),
                    "managed" => self.managed(bytes as usize),
                    _ => self.plain(bytes as usize),
                }
            }
            .map_err(|refusal| self.0.error(refusal))
        })
    }

    unsafe fn plain(&self, bytes: usize) -> std::result::Result<(), Refusal> {
        let mut address = 0;
        // SAFETY: as in `pairs`.
        unsafe {
            self.0.memory_alloc(&mut address, bytes)?;
            self.0.memory_free(address)
        }
    }

    /// Without advice and prefetch.
    unsafe fn managed(&self, bytes: usize) -> std::result::Result<(), Refusal> {
        const ATTACH_GLOBAL: u32 = 1;
        let mut address = 0;
        // SAFETY: as in `pairs`.
        unsafe {
            self.0
                .memory_alloc_managed(&mut address, bytes, ATTACH_GLOBAL)?;
            self.0.memory_free(address)
        }
    }

    unsafe fn stream_ordered(&self, bytes: usize) -> std::result::Result<(), Refusal> {
        let (mut pool, stream): (Handle, Handle) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mut address = 0;
        // SAFETY: as in `pairs`.
        unsafe {
            self.0.default_pool(&mut pool, 0)?;
            self.0
                .memory_alloc_from_pool(&mut address, bytes, pool, stream)?;
            self.0.memory_free_async(address, stream)
        }
    }

    unsafe fn mapped(&self, bytes: usize) -> std::result::Result<(), Refusal> {
        let location = cuda::CUmemLocation {
            type_: cuda::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: 0,
        };
        let properties = cuda::CUmemAllocationProp {
            type_: cuda::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: cuda::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location,
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: cuda::CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        };
        let access = cuda::CUmemAccessDesc {
            location,
            flags: cuda::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let driver = &self.0;
        let (mut address, mut handle) = (0, 0);
        // SAFETY: as in `pairs`.
        unsafe {
            driver.vmm_reserve(&mut address, bytes, 0, 0, 0)?;
            driver.vmm_create(&mut handle, bytes, &properties, 0)?;
            driver.vmm_map(address, bytes, 0, handle, 0)?;
            driver.vmm_set_access(address, bytes, &access, 1)?;
            driver.vmm_unmap(address, bytes)?;
            driver.vmm_release(handle)?;
            driver.vmm_free_address(address, bytes)
        }
    }
}
