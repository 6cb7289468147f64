//! The state of the process: options, the driver opened once, a state for each device in use, the
//! blocks given out; and what fork and exit mean for them.

mod activity;
mod block_stats;
mod blocks;
mod captures;
mod cell_record;
mod cells;
mod choice;
pub mod copies;
mod demands;
mod devices;
mod graphs;
pub mod host;
pub mod host_counts;
pub mod host_making;
mod host_nodes;
mod lifetime;
mod limits;
mod naming;
pub mod placement;
mod pooled;
pub mod regions;
mod report;
mod reset;
pub mod residency;
pub mod sharing;
pub mod slabs;
mod stacks;
pub mod stats;
pub mod tags;

pub use crate::registry::AllocatorId;
pub use activity::{DriverStats, PoolStats};
pub use block_stats::BlockStats;
pub use blocks::Demand;
pub use cell_record::{CellInfo, CellStats};
pub use devices::DeviceEntry;
pub use lifetime::{HostStake, check_not_forked, has_forked, is_exiting, is_of_parent};
pub use naming::Whose;
pub use stats::Stats;

use crate::config::Settings;
use crate::config::table::Opt;
use crate::error::{Error, Result, Warning, Warnings};
use crate::gpu::Driver;
use crate::gpu::driver::version_text;
use crate::pool::Pools;
use crate::registry::Registry;
use crate::residency::{FileStore, Stores};
use crate::sys::linux;
use cell_record::Cells;
use choice::Choice;
use graphs::GraphPools;
use limits::Limits;
use once_cell::sync::OnceCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

/// The state of the process.
pub struct Process {
    settings: Arc<Settings>,
    warnings: Arc<Warnings>,
    opened: OnceCell<Opened>,
    driver_touched: AtomicBool,
    registry: Registry,
    cells: Cells,
    /// How often memory was exported.
    exports: AtomicU64,
    graphs: GraphPools,
    limits: Limits,
    rejected_frees: AtomicU64,
    choice: Choice,
    hooked: AtomicBool,
    captures_told: AtomicBool,
    /// Captures that were told of and are of no pool of graphs.
    captures_open: AtomicU64,
    pools: Pools,
    /// Where contents of memory that sleeps are.
    stores: Stores,
    listening: residency::Listening,
    host_blocks: host::HostBlocks,
    slabs: slabs::Slabs,
    host_seams: copies::HostSeams,
    stacks: stacks::Stacks,
    /// Held by frees of what sources gave out until no stream is to be named any more, and alone while
    /// one is forgotten.
    naming: RwLock<()>,
    /// Whether streams were named of other contexts than the devices' primary ones.
    other_contexts: AtomicBool,
    /// How many reasons there are to ask the driver whether a stream captures: that nobody tells, and
    /// every capture that somebody told of.
    slow: AtomicU64,
}

/// The driver and what came into use of it.
struct Opened {
    driver: Arc<Driver>,
    devices: Vec<OnceCell<Arc<DeviceEntry>>>,
}

impl Process {
    /// The state of this process, its options read from the environment at the first call. Makes no
    /// driver call.
    pub fn current() -> &'static Process {
        static PROCESS: OnceLock<Process> = OnceLock::new();
        PROCESS.get_or_init(|| {
            Process::with_settings(Settings::from_variables(std::env::vars_os().filter_map(
                |(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)),
            )))
        })
    }

    /// A state of its own beside that of the process, for tests: the driver is opened anew, and only
    /// what is allocated through it is known to it.
    pub fn with_settings(settings: Settings) -> Process {
        Process {
            settings: Arc::new(settings),
            warnings: Arc::default(),
            opened: OnceCell::new(),
            driver_touched: AtomicBool::new(false),
            registry: Registry::default(),
            cells: Cells::default(),
            exports: AtomicU64::new(0),
            graphs: GraphPools::default(),
            limits: Limits::default(),
            rejected_frees: AtomicU64::new(0),
            choice: Choice::default(),
            hooked: AtomicBool::new(false),
            captures_told: AtomicBool::new(false),
            captures_open: AtomicU64::new(0),
            pools: Pools::default(),
            stores: Stores {
                host: Arc::default(),
                files: FileStore::default(),
                name_of: tags::name_of,
            },
            listening: residency::Listening::default(),
            host_blocks: host::HostBlocks::default(),
            slabs: slabs::Slabs::default(),
            host_seams: copies::HostSeams::default(),
            stacks: stacks::Stacks::default(),
            naming: RwLock::default(),
            other_contexts: AtomicBool::new(false),
            slow: AtomicU64::new(1),
        }
    }

    /// The options.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The warnings so far.
    pub fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// Whether the driver has been opened, or tried to.
    pub fn driver_touched(&self) -> bool {
        self.driver_touched.load(Ordering::Relaxed)
    }

    /// Whether torch tells us of streams and captures.
    pub fn is_hooked(&self) -> bool {
        self.hooked.load(Ordering::Relaxed)
    }

    /// The driver, opened at the first call. A failure is not kept: the next call tries again.
    pub fn driver(&self) -> Result<&Driver> {
        self.opened().map(|opened| &*opened.driver)
    }

    fn opened(&self) -> Result<&Opened> {
        lifetime::check_not_forked()?;
        self.opened.get_or_try_init(|| {
            self.settings.check()?;
            self.driver_touched.store(true, Ordering::Relaxed);
            let choice = self.settings.text(Opt::Driver);
            let (sim, origin) = self.settings.describe(Opt::Sim);
            let by_call = (origin == crate::config::Origin::Call).then_some(sim.as_str());
            lifetime::watch_forks();
            // Where threads run already the system takes milliseconds for this; here it is not noticed.
            linux::has_barrier_on_all_threads();
            let driver = Driver::load(&choice, by_call, self.warnings.clone())
                .inspect_err(|_| lifetime::nothing_at_stake())?;
            lifetime::watch_exit();
            for opt in [Opt::Driver, Opt::Sim] {
                self.settings.fix(opt);
            }
            driver.time_calls(self.driver_timing());
            self.greet(&driver);
            let devices = (0..driver.device_count()).map(|_| OnceCell::new());
            Ok(Opened {
                devices: devices.collect(),
                driver: Arc::new(driver),
            })
        })
    }

    fn greet(&self, driver: &Driver) {
        lifetime::warn_of_other_copy(&self.warnings);
        for notice in self.settings.notices() {
            self.warnings.warn(Warning::Environment, || notice.clone());
        }
        tracing::info!(
            "hbmalloc {}, backend {}, {:?} driver {} ({}), {} device(s): {}",
            env!("CARGO_PKG_VERSION"),
            self.settings.text(Opt::Backend),
            driver.kind(),
            version_text(driver.version()),
            driver.path().display(),
            driver.device_count(),
            driver.device_names().join(", ")
        );
    }

    /// The state of a device, made at its first use.
    pub fn device(&self, ordinal: i32) -> Result<&Arc<DeviceEntry>> {
        let opened = self.opened()?;
        let slot = usize::try_from(ordinal)
            .ok()
            .and_then(|index| opened.devices.get(index));
        if let Some(entry) = slot.and_then(OnceCell::get) {
            return Ok(entry);
        }
        let gpu = opened.driver.device(ordinal)?;
        let slot = &opened.devices[gpu.ordinal() as usize];
        let mut is_new = false;
        let entry = slot.get_or_init(|| {
            is_new = true;
            let settings = self.settings.clone();
            let entry = DeviceEntry::new(&opened.driver, gpu.clone(), settings);
            self.apply_limit(&entry);
            Arc::new(entry)
        });
        if is_new {
            // One set meanwhile did not find the device in use.
            self.apply_limit(entry);
            for other in self.devices_in_use() {
                other.admit_peer(ordinal);
            }
        }
        Ok(entry)
    }

    /// A device, if it is in use; an error if there cannot be one of that number.
    fn device_in_use(&self, ordinal: i32) -> Result<Option<&Arc<DeviceEntry>>> {
        lifetime::check_not_forked()?;
        let Some(opened) = self.opened.get() else {
            return match ordinal {
                0.. => Ok(None),
                _ => Err(Error::invalid(
                    "device",
                    format!("there is no device {ordinal}"),
                )),
            };
        };
        match usize::try_from(ordinal)
            .ok()
            .and_then(|index| opened.devices.get(index))
        {
            Some(slot) => Ok(slot.get()),
            // Says how many there are.
            None => self.device(ordinal).map(Some),
        }
    }

    fn devices_in_use(&self) -> impl Iterator<Item = &Arc<DeviceEntry>> {
        self.opened
            .get()
            .into_iter()
            .flat_map(|opened| opened.devices.iter().filter_map(OnceCell::get))
    }

    /// The devices that are in use.
    pub fn ordinals_in_use(&self) -> Vec<i32> {
        self.devices_in_use()
            .map(|device| device.state().device.ordinal())
            .collect()
    }

    /// Gives cached memory of a device back, down to `keep` bytes a source; returns the bytes given
    /// back. Waits for work on freed blocks; does nothing while a capture is open there, nor on a
    /// device that is not in use.
    pub fn trim(&self, ordinal: i32, keep: u64) -> Result<u64> {
        let Some(device) = self.device_in_use(ordinal)? else {
            return Ok(0);
        };
        self.trim_device(device, keep)
    }

    /// [`Process::trim`] on every device in use.
    pub fn trim_all(&self) -> Result<u64> {
        lifetime::check_not_forked()?;
        self.devices_in_use()
            .try_fold(0, |sum, device| Ok(sum + self.trim_device(device, 0)?))
    }

    fn trim_device(&self, device: &DeviceEntry, keep: u64) -> Result<u64> {
        let given_back = device.trim(keep)?;
        self.forget_dead(device);
        Ok(given_back)
    }
}
