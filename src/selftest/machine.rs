//! The machine under test: a driver, simulated or real, with its raw calls beside this library's,
//! so that cases can give it work, capture, and see what a thread has current.

use super::simulator::Simulator;
use crate::config::Settings;
use crate::config::table::Opt;
use crate::error::{DriverCode, Warnings};
use crate::gpu::stream::OwnedStream;
use crate::gpu::{Device, Driver, Stream};
use crate::observe;
use crate::process::Process;
use crate::selftest::{Outcome, Stop};
use crate::sys::cuda::{Cuda, Handle, MemLocation, Refusal};
use crate::sys::library::Library;
use cuda_sys::driver::sys::CUmemLocationType;
use std::ffi::c_int;
use std::sync::Arc;

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`: calls of every thread that did not ask for less are watched.
pub const CAPTURE_GLOBAL: c_int = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
pub const CAPTURE_RELAXED: c_int = 2;

/// What popping a context answers where none was pushed.
const NOTHING_PUSHED: DriverCode = DriverCode(201);

/// A driver, and device 0 of it.
pub struct Machine {
    /// The driver as this library opens it.
    pub driver: Driver,
    /// Device 0.
    pub device: Arc<Device>,
    /// The same driver, to be called directly.
    pub cuda: Cuda,
    /// The control functions of the simulated driver.
    pub sim: Option<Simulator>,
    /// The warnings of its devices.
    pub warnings: Arc<Warnings>,
}

impl Machine {
    /// The driver that the option `driver` names; the simulated one is started afresh as `spec` says.
    pub fn open(spec: &str) -> Result<Machine, Stop> {
        let choice = observe::process().settings().text(Opt::Driver);
        let spec = &as_under_test(spec);
        let warnings: Arc<Warnings> = Arc::default();
        let mut driver = Driver::load(&choice, Some(spec), warnings.clone())?;
        let sim = Simulator::of(&driver);
        if let Some(sim) = sim {
            sim.reset();
            sim.faults_clear();
            driver = Driver::load(&choice, Some(spec), warnings.clone())?;
        }
        let cuda = Cuda::resolve(Library::open(driver.path())?);
        Ok(Machine {
            device: driver.device(0)?.clone(),
            driver,
            cuda,
            sim,
            warnings,
        })
    }

    /// [`Machine::open`], for cases that only the simulated driver can run.
    pub fn simulated(spec: &str) -> Result<(Machine, Simulator), Stop> {
        let machine = Machine::open(spec)?;
        match machine.sim {
            Some(sim) => Ok((machine, sim)),
            None => Err(Stop::needs_simulator()),
        }
    }

    /// A process state of its own on this machine, with some options set.
    pub fn process(&self, options: &[(&str, &str)]) -> Result<Process, Stop> {
        let settings = Settings::from_variables([]);
        let choice = observe::process().settings().text(Opt::Driver);
        settings.set("driver", &choice)?;
        for (name, value) in options {
            match *name {
                "sim" => settings.set(name, &as_under_test(value))?,
                _ => settings.set(name, value)?,
            };
        }
        Ok(Process::with_settings(settings))
    }

    /// Skips a case in which memory waits for all work of a device, and nobody may wait for that.
    pub fn needs_context_events(&self) -> Outcome {
        let probe = self.device.context_events()?;
        probe.map_err(|error| Stop::skip(error.to_string()))
    }

    /// A stream of device 0 that does not order itself with the legacy stream.
    pub fn stream(&self) -> Result<OwnedStream, Stop> {
        Ok(OwnedStream::create(&self.device)?)
    }

    /// Turns a refusal of a direct call into a failed case.
    pub fn check(&self, outcome: Result<(), Refusal>) -> Outcome {
        outcome.map_err(|refusal| self.cuda.error(refusal).into())
    }

    /// Waits for all work of device 0.
    pub fn synchronize(&self) -> Outcome {
        let _guard = self.device.enter()?;
        // SAFETY: takes no pointers.
        self.check(unsafe { self.cuda.context_synchronize() })
    }

    /// What a device may do at a mapped address: 0 nothing, 1 read, 3 write too.
    pub fn access(&self, address: u64, device: i32) -> Result<u64, Stop> {
        let location = MemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: device,
        };
        let mut flags = 0u64;
        let _guard = self.device.enter()?;
        // SAFETY: both pointers are valid for the call.
        self.check(unsafe { self.cuda.vmm_access(&mut flags, &location, address) })?;
        Ok(flags)
    }

    /// An attribute of a managed range, by the driver's number.
    pub fn range_attribute(&self, attribute: c_int, address: u64, bytes: u64) -> Result<i32, Stop> {
        let mut value: c_int = 0;
        let data = std::ptr::from_mut(&mut value).cast();
        let _guard = self.device.enter()?;
        // SAFETY: `data` has room for the four bytes that are told.
        self.check(unsafe {
            self.cuda
                .memory_range_attribute(data, 4, attribute, address, bytes as usize)
        })?;
        Ok(value)
    }

    /// Begins a capture on `stream`.
    pub fn begin_capture(&self, stream: Stream, mode: c_int) -> Outcome {
        let _guard = self.device.enter()?;
        // SAFETY: the stream is live.
        self.check(unsafe { self.cuda.stream_begin_capture(stream.raw(), mode) })
    }

    /// Ends it; an error if it did not stay valid.
    pub fn end_capture(&self, stream: Stream) -> Outcome {
        let _guard = self.device.enter()?;
        let mut graph: Handle = std::ptr::null_mut();
        // SAFETY: `graph` is a valid out-pointer, and what is destroyed is what it got.
        self.check(unsafe { self.cuda.stream_end_capture(stream.raw(), &mut graph) })?;
        // SAFETY: the graph is live and nothing was made of it.
        self.check(unsafe { self.cuda.graph_destroy(graph) })
    }

    /// The calling thread's context, 0 for none, and its capture mode. With HIP, 0 for the device of a
    /// thread that never set one.
    pub fn thread_state(&self) -> (usize, c_int) {
        let mut context: Handle = std::ptr::null_mut();
        let mut mode = CAPTURE_GLOBAL;
        // SAFETY: both are valid out-pointers; the mode is put back at once.
        unsafe {
            let _ = self.cuda.context_current(&mut context);
            let _ = self.cuda.exchange_capture_mode(&mut mode);
            let found = mode;
            let _ = self.cuda.exchange_capture_mode(&mut mode);
            let first = self.cuda.is_hip() && self.device.context() == context;
            (if first { 0 } else { context as usize }, found)
        }
    }

    /// Makes no context current on the calling thread, or that of `device`. With HIP, none is the device
    /// of a thread that never set one.
    pub fn set_context(&self, device: Option<&Device>) -> Outcome {
        loop {
            let mut context: Handle = std::ptr::null_mut();
            // SAFETY: `context` is a valid out-pointer.
            self.check(unsafe { self.cuda.context_current(&mut context) })?;
            if context.is_null() {
                break;
            }
            // SAFETY: as above.
            match unsafe { self.cuda.context_pop(&mut context) } {
                Err(refusal) if self.cuda.is_hip() && refusal.code == Some(NOTHING_PUSHED) => break,
                outcome => self.check(outcome)?,
            }
        }
        if self.cuda.is_hip() {
            // SAFETY: none is a value here.
            self.check(unsafe { self.cuda.context_set(std::ptr::null_mut()) })?;
        }
        if let Some(device) = device {
            // SAFETY: the device holds its primary context for good.
            self.check(unsafe { self.cuda.context_push(device.context()) })?;
        }
        Ok(())
    }

    /// Work on `stream` that uses the range until it is told to end; on a card it ends by itself.
    pub fn busy(&self, stream: Stream, address: u64, bytes: u64) -> Result<Busy<'_>, Stop> {
        match self.sim {
            Some(sim) => sim.spin(stream, address, bytes),
            None => {
                for _ in 0..CARD_FILLS {
                    self.device.fill(address, 1, bytes, stream)?;
                }
            }
        }
        Ok(Busy {
            machine: self,
            stream,
        })
    }

    /// Bytes of a block that work of [`Machine::busy`] needs to last long enough.
    pub fn busy_bytes(&self) -> u64 {
        match self.sim {
            Some(_) => 4 << 20,
            None => 512 << 20,
        }
    }
}

/// `spec` with what the machine of the options says of HIP, where it says first that HIP is played, and with
/// which quirks.
pub fn as_under_test(spec: &str) -> String {
    let all = observe::process().settings().text(Opt::Sim);
    if !all.starts_with("hip") {
        return spec.to_owned();
    }
    let hip = all.split(',').filter(|pair| pair.starts_with("hip"));
    let pairs: Vec<&str> = hip.chain([spec]).filter(|pair| !pair.is_empty()).collect();
    pairs.join(",")
}

impl Drop for Machine {
    /// Starts the machine of the options again, with every device in use, for what comes after.
    fn drop(&mut self) {
        let Some(sim) = self.sim else {
            return;
        };
        let settings = observe::process().settings();
        let choice = settings.text(Opt::Driver);
        let spec = settings.text(Opt::Sim);
        let load = || Driver::load(&choice, Some(&spec), Arc::default());
        sim.fail_clear();
        let _ = self.set_context(None);
        let _ = load().inspect(|_| sim.reset()).and_then(|_| {
            let driver = load()?;
            (0..driver.device_count())
                .try_for_each(|device| driver.device(device as i32).map(|_| ()))
        });
    }
}

/// 512 MiB at 4 TB/s take an eighth of a millisecond, so that this lasts 40 ms and more.
const CARD_FILLS: usize = 320;

/// Work that runs.
pub struct Busy<'a> {
    machine: &'a Machine,
    stream: Stream,
}

impl Busy<'_> {
    /// Whether it still runs.
    pub fn is_running(&self) -> Result<bool, Stop> {
        let _guard = self.machine.device.enter()?;
        // SAFETY: the stream is live.
        match unsafe { self.machine.cuda.stream_query(self.stream.raw()) } {
            Err(refusal) if refusal.code == Some(DriverCode::NOT_READY) => Ok(true),
            outcome => self.machine.check(outcome).map(|()| false),
        }
    }

    /// Ends it, or waits for its end.
    pub fn end(self) -> Outcome {
        self.stop();
        let _guard = self.machine.device.enter()?;
        // SAFETY: the stream is live.
        self.machine
            .check(unsafe { self.machine.cuda.stream_synchronize(self.stream.raw()) })
    }

    /// Lets it end.
    pub fn stop(&self) {
        if let Some(sim) = self.machine.sim {
            sim.spin_stop(self.stream);
        }
    }
}
