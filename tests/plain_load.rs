//! The torch entry points as `CUDAPluggableAllocator` calls them when it was given the library and two
//! names only: nobody tells of streams or captures, so every free waits behind everything and is
//! looked at by allocations alone. Then the same with the hooks set.
#![allow(missing_docs)]

mod support;

use hbmalloc::error::Warning;
use hbmalloc::gpu::Stream;
use hbmalloc::gpu::stream::OwnedStream;
use hbmalloc::observe;
use hbmalloc::process::Process;
use hbmalloc::selftest::machine::{CAPTURE_GLOBAL, Machine};
use hbmalloc::selftest::simulator::Simulator;
use hbmalloc::torch::*;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

type Malloc = extern "C-unwind" fn(usize, c_int, *mut c_void) -> *mut c_void;
type Free = extern "C" fn(*mut c_void, usize, c_int, *mut c_void);

const SOURCES: [(&str, Malloc, Free); 5] = [
    ("pool", pool_malloc, pool_free),
    ("device", device_malloc, device_free),
    ("managed", managed_malloc, managed_free),
    ("async", async_malloc, async_free),
    ("vmm", vmm_malloc, vmm_free),
];

const BYTES: usize = 5 << 20;

/// What names a stream or waits for one.
const RECORDING: [&str; 5] = [
    "cuEventRecord",
    "cuCtxRecordEvent",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuStreamSynchronize",
];

struct Plain {
    process: &'static Process,
    sim: Simulator,
    machine: Machine,
}

/// One test has the process, whose state there is once.
#[test]
fn without_and_with_hooks() {
    let library = support::built("libhbmalloc_sim.so");
    let driver = library.to_str().unwrap();
    let settings = Process::current().settings();
    settings.set("driver", driver).unwrap();
    settings.set("log", "off").unwrap();
    let process = observe::process();
    let machine = Machine::open("devices=1").unwrap();
    let plain = Plain {
        sim: machine.sim.unwrap(),
        process,
        machine,
    };
    for source in SOURCES {
        plain.a_free_waits_behind_everything(source);
        plain.a_free_disturbs_no_capture(source);
    }
    plain.free_memory_serves_blocks_that_any_stream_may_use();
    // torch is not in this process, so nothing is missing.
    assert_eq!(process.warnings().count(Warning::PlainLoad), 0);
    hbm_torch_set_hooked(1);
    for source in SOURCES {
        plain.a_free_waits_for_its_streams_only(source);
    }
    plain.the_pool_gives_out_again_at_once_in_stream_order();
    assert_eq!(plain.sim.faults(), Vec::<String>::new());
    assert_eq!(process.stats(0, None).unwrap().reserved, 0);
}

impl Plain {
    fn recorded(&self) -> u64 {
        RECORDING.iter().map(|call| self.sim.calls(call)).sum()
    }

    fn pending(&self) -> u64 {
        self.process.stats(0, None).unwrap().pending_frees
    }

    fn stream(&self) -> OwnedStream {
        OwnedStream::create(&self.machine.device).unwrap()
    }

    fn a_free_waits_behind_everything(&self, (name, malloc, free): (&str, Malloc, Free)) {
        let (own, unknown, third) = (self.stream(), self.stream(), self.stream());
        let block = malloc(BYTES, 0, own.stream().raw());
        assert!(!block.is_null(), "{name}");
        let busy = self
            .machine
            .busy(unknown.stream(), block as u64, BYTES as u64);
        let (busy, before) = (busy.unwrap(), self.recorded());
        // cudaMalloc's memory needs no queue: its free waits for everything by itself.
        let at_once = name == "device";
        if at_once {
            busy.stop();
        }
        // Size, device and stream of a free are not looked at: released versions passed wrong ones.
        free(block, 1, 7, 0x1234 as *mut c_void);
        assert_eq!(
            self.recorded(),
            before,
            "{name}: recorded before an allocation"
        );
        assert_eq!(self.pending(), u64::from(!at_once), "{name}");
        for stream in [third.stream(), own.stream()] {
            let next = malloc(BYTES, 0, stream.raw());
            // The driver's pool may: it has the block's own stream wait on the device.
            let on_device = name == "async" && stream == own.stream();
            if !at_once {
                assert!(
                    next != block || on_device,
                    "{name}: given out under running work"
                );
                assert!(busy.is_running().unwrap(), "{name}: an allocation waited");
            }
            free(next, BYTES, 0, stream.raw());
        }
        busy.end().unwrap();
        if name == "pool" {
            // What was never used goes first.
            let more: [_; 16] = std::array::from_fn(|_| malloc(BYTES, 0, own.stream().raw()));
            assert!(more.contains(&block), "not reused though the work is done");
            for block in more {
                free(block, BYTES, 0, own.stream().raw());
            }
        }
        hbm_torch_reset();
        assert_eq!(self.pending(), 0, "{name}");
        free(block, BYTES, 0, null_mut());
        assert_eq!(self.process.live_blocks(), 0, "{name}");
        self.forget([own, unknown, third]);
    }

    /// A block at hand is had another way where captures are told of, which is no promise about streams.
    fn free_memory_serves_blocks_that_any_stream_may_use(&self) {
        let (own, unknown) = (self.stream(), self.stream());
        let malloc = || pool_malloc(BYTES, 0, own.stream().raw());
        let free = |block: *mut c_void| pool_free(block, BYTES, 0, own.stream().raw());
        self.process.set_captures_told(true);
        let first: [_; 16] = std::array::from_fn(|_| malloc());
        first.into_iter().for_each(free);
        // The frees are looked at by the first of these.
        let again: [_; 4] = std::array::from_fn(|_| malloc());
        for block in again {
            assert!(first.contains(&block), "there was free memory");
            let address = block as u64;
            let busy = self.machine.busy(unknown.stream(), address, BYTES as u64);
            let busy = busy.unwrap();
            free(block);
            let next: [_; 16] = std::array::from_fn(|_| malloc());
            assert!(!next.contains(&block), "given out under running work");
            busy.end().unwrap();
            next.into_iter().for_each(free);
        }
        hbm_torch_reset();
        assert_eq!((self.pending(), self.process.live_blocks()), (0, 0));
        self.process.set_captures_told(false);
        self.forget([own, unknown]);
    }

    /// Nobody told of the capture, and it is of the mode that forbids most.
    fn a_free_disturbs_no_capture(&self, (name, malloc, free): (&str, Malloc, Free)) {
        let (own, capturing) = (self.stream(), self.stream());
        let block = malloc(BYTES, 0, own.stream().raw());
        self.machine
            .begin_capture(capturing.stream(), CAPTURE_GLOBAL)
            .unwrap();
        free(block, BYTES, 0, own.stream().raw());
        self.machine.end_capture(capturing.stream()).expect(name);
        hbm_torch_reset();
        assert_eq!(self.pending(), 0, "{name}");
        self.forget([own, capturing]);
    }

    fn a_free_waits_for_its_streams_only(&self, (name, malloc, free): (&str, Malloc, Free)) {
        let (own, recorded, other) = (self.stream(), self.stream(), self.stream());
        let block = malloc(BYTES, 0, own.stream().raw());
        let using = self
            .machine
            .busy(recorded.stream(), block as u64, BYTES as u64)
            .unwrap();
        let elsewhere = self.machine.busy(other.stream(), 0, 0).unwrap();
        hbm_torch_record_stream(block, recorded.stream().raw());
        // cudaMalloc's memory waits for everything, managed memory for the streams that used it.
        let (waits, waits_for_all) = (["device", "managed"].contains(&name), name == "device");
        if waits {
            using.stop();
        }
        if waits_for_all || name == "managed" {
            elsewhere.stop();
        }
        free(block, BYTES, 0, own.stream().raw());
        if !waits {
            assert!(using.is_running().unwrap(), "{name}: the free waited");
            using.end().unwrap();
            assert!(elsewhere.is_running().unwrap(), "{name}");
            let next = malloc(BYTES, 0, Stream::LEGACY.raw());
            // Virtual memory is unmapped under no stream at all.
            let pending = u64::from(name == "vmm");
            assert_eq!(self.pending(), pending, "{name}: frees that wait");
            free(next, BYTES, 0, null_mut());
            elsewhere.end().unwrap();
        }
        hbm_torch_reset();
        assert_eq!(self.pending(), 0, "{name}");
        self.forget([own, recorded, other]);
    }

    /// The work that uses the block still runs, and nobody asks the driver about it.
    fn the_pool_gives_out_again_at_once_in_stream_order(&self) {
        let (own, other) = (self.stream(), self.stream());
        let block = pool_malloc(BYTES, 0, own.stream().raw());
        let busy = self
            .machine
            .busy(own.stream(), block as u64, BYTES as u64)
            .unwrap();
        let calls = self.sim.calls("*");
        pool_free(block, BYTES, 0, own.stream().raw());
        assert_eq!(pool_malloc(BYTES, 0, own.stream().raw()), block);
        assert_eq!(self.sim.calls("*"), calls, "the driver was called");
        pool_free(block, BYTES, 0, own.stream().raw());
        let elsewhere = pool_malloc(BYTES, 0, other.stream().raw());
        assert!(elsewhere != block, "given to another stream meanwhile");
        assert!(busy.is_running().unwrap(), "something waited");
        busy.end().unwrap();
        pool_free(elsewhere, BYTES, 0, other.stream().raw());
        hbm_torch_reset();
        self.forget([own, other]);
    }

    fn forget<const N: usize>(&self, streams: [OwnedStream; N]) {
        for stream in &streams {
            self.process.forget_stream(0, stream.stream()).unwrap();
        }
    }
}
