//! What the cases are given: the process as any program of ours has it, and the driver's functions
//! bare.

use crate::config::value::format_bytes;
use crate::error::{Error, Result, Status};
use crate::gpu::Driver;
use crate::gpu::driver::{DriverKind, version_text};
use crate::observe;
use crate::process::Process;
use crate::sys::cuda::Cuda;
use crate::sys::library::Library;
use std::cell::RefCell;

/// The library and the driver under test.
pub struct Context {
    /// The state of this process.
    pub process: &'static Process,
    /// Its driver.
    pub driver: &'static Driver,
    /// The driver's functions, for cases that call it themselves.
    pub cuda: Cuda,
    observing: bool,
    case: RefCell<String>,
}

impl Context {
    /// Opens the driver that the options name.
    pub(super) fn open(observing: bool) -> Result<Context> {
        let process = observe::process();
        let driver = process.driver()?;
        let library = Library::open(driver.path())
            .map_err(|reason| Error::new(Status::NoDriver, "open driver").detail(reason))?;
        Ok(Context {
            process,
            driver,
            cuda: Cuda::resolve(library),
            observing,
            case: RefCell::default(),
        })
    }

    /// Whether the driver is the simulated one.
    pub fn is_simulated(&self) -> bool {
        self.driver.kind() == DriverKind::Simulator
    }

    /// The case begun last, as it is printed.
    pub fn case(&self) -> String {
        self.case.borrow().clone()
    }

    pub(super) fn begin(&self, case: &str) {
        case.clone_into(&mut self.case.borrow_mut());
    }

    /// Prints what a step of the running case saw, where that was asked for.
    pub fn observe(&self, line: &str) {
        if self.observing {
            println!("{}: {line}", self.case.borrow());
        }
    }

    /// The machine and the driver in a line.
    pub fn machine(&self) -> String {
        let kind = if self.is_simulated() {
            "simulated driver"
        } else {
            "driver"
        };
        let device = match self.driver.device(0) {
            Ok(device) => format!("{}, {}", device.name(), format_bytes(device.total_memory())),
            Err(error) => error.to_string(),
        };
        format!(
            "hbmalloc {} on {}, {} cores; {kind} {} ({}); {} device(s): {device}",
            env!("CARGO_PKG_VERSION"),
            cpu_name(),
            std::thread::available_parallelism().map_or(0, usize::from),
            version_text(self.driver.version()),
            self.driver.path().display(),
            self.driver.device_count(),
        )
    }
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or_else(
            || std::env::consts::ARCH.to_owned(),
            |rest| rest.trim_start_matches([' ', '\t', ':']).to_owned(),
        )
}
