//! Where the figures come from: processor, driver, device, and whether it is simulated.

use crate::json::quoted;
use hbmalloc::config::table::Opt;
use hbmalloc::error::{Result, Status};
use hbmalloc::gpu::driver::{DriverKind, version_text};
use hbmalloc::process::Process;

pub struct Machine {
    /// `cuda` or `sim`.
    pub driver: &'static str,
    pub version: String,
    pub device: String,
    pub cpu: String,
    pub cores: usize,
    pub is_simulated: bool,
    /// No GPU driver is here, so the simulated one is used though nobody named it.
    pub is_fallback: bool,
}

impl Machine {
    /// Opens the driver in force; where `auto` finds none, the simulated one.
    pub fn find(process: &Process) -> Result<Machine> {
        let mut is_fallback = false;
        if let Err(error) = process.driver() {
            let chosen = process.settings().text(Opt::Driver);
            if error.status() != Status::NoDriver || chosen != "auto" {
                return Err(error);
            }
            eprintln!("hbmalloc: no GPU driver is here, so the simulated driver is used.");
            process.settings().set("driver", "sim")?;
            is_fallback = true;
        }
        let driver = process.driver()?;
        let is_simulated = driver.kind() == DriverKind::Simulator;
        let names = driver.device_names();
        Ok(Machine {
            driver: match driver.kind() {
                DriverKind::Simulator => "sim",
                DriverKind::Cuda => "cuda",
                DriverKind::Hip => "hip",
            },
            version: version_text(driver.version()),
            device: names.into_iter().next().unwrap_or_default(),
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(0, |cores| cores.get()),
            is_simulated,
            is_fallback,
        })
    }

    /// In one line.
    pub fn describe(&self) -> String {
        format!(
            "hbmalloc {}; {}, {} cores; driver {}, {}{}",
            env!("CARGO_PKG_VERSION"),
            self.cpu,
            self.cores,
            self.version,
            self.device,
            if self.is_simulated { ": SIMULATED" } else { "" }
        )
    }

    /// `"name":value` for a line of JSON.
    pub fn json(&self) -> String {
        format!(
            "\"simulated\":{},\"driver_version\":\"{}\",\"device\":{},\"cpu\":{},\"cores\":{}",
            self.is_simulated,
            self.version,
            quoted(&self.device),
            quoted(&self.cpu),
            self.cores
        )
    }
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU".to_owned(), |rest| {
            rest.trim_start_matches([' ', '\t', ':']).to_owned()
        })
}
