//! The driver of this process: found, opened, initialised, asked for its devices.

use super::capture::RelaxedCapture;
use super::device::Device;
use super::opening;
use crate::error::{DriverCode, Error, Result, Status, Warnings};
use crate::sys::cuda::{Cuda, Refusal};
use crate::sys::hip;
use crate::sys::library::Library;
pub use crate::sys::meter::Timing;
use once_cell::sync::OnceCell;
use std::ffi::{CStr, c_int, c_void};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Which kind of driver was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// NVIDIA's.
    Cuda,
    /// AMD's: HIP.
    Hip,
    /// The simulated driver.
    Simulator,
}

/// The oldest driver that has every function the sources need: the location forms of managed advice
/// and prefetch are from 12.2.
pub const OLDEST_DRIVER: i32 = 12020;

/// An opened and initialised driver.
pub struct Driver {
    cuda: Arc<Cuda>,
    kind: DriverKind,
    version: i32,
    pub(super) warnings: Arc<Warnings>,
    devices: Vec<OnceCell<Arc<Device>>>,
}

impl Driver {
    /// Opens and initialises the driver that `choice` names: `auto`, `cuda`, `hip`, `sim` or a path.
    /// `sim_spec` configures the simulated driver, where a call asked for it.
    pub fn load(choice: &str, sim_spec: Option<&str>, warnings: Arc<Warnings>) -> Result<Driver> {
        let library = opening::open(choice)?;
        if let (Some(spec), true) = (sim_spec, library.is_simulator()) {
            opening::configure_simulator(&library, spec)?;
        }
        Driver::of(library, warnings)
    }

    fn of(library: Library, warnings: Arc<Warnings>) -> Result<Driver> {
        let is_simulator = library.is_simulator();
        let cuda = Cuda::resolve(library);
        let kind = match (is_simulator, cuda.is_hip()) {
            (true, _) => DriverKind::Simulator,
            (false, true) => DriverKind::Hip,
            (false, false) => DriverKind::Cuda,
        };
        // HIP's before anything else is asked, which it might lay out otherwise.
        let version = match cuda.is_hip() {
            true => Some(check_version(&cuda)?),
            false => None,
        };
        // SAFETY: takes no pointers.
        unsafe { cuda.init(0) }.map_err(|refusal| init_error(&cuda, refusal))?;
        let version = match version {
            Some(version) => version,
            None => check_version(&cuda)?,
        };
        let mut count: c_int = 0;
        // SAFETY: `count` is a valid out-pointer.
        unsafe { cuda.device_count(&mut count) }.map_err(|refusal| cuda.error(refusal))?;
        Ok(Driver {
            cuda: Arc::new(cuda),
            kind,
            version,
            warnings,
            devices: (0..count.max(0)).map(|_| OnceCell::new()).collect(),
        })
    }

    /// Which kind it is.
    pub fn kind(&self) -> DriverKind {
        self.kind
    }

    /// Whether its functions are HIP's, of AMD's driver or the simulated one.
    pub fn is_hip(&self) -> bool {
        self.cuda.is_hip()
    }

    /// The version it supports: 13000 for CUDA 13.0, 60400000 and above for HIP 6.4.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Whether a range is to be backed by several chunks of limited size: with HIP, where making large
    /// ones is refused or they misbehave.
    pub fn limits_chunks(&self) -> bool {
        self.is_hip()
    }

    /// The file it was opened from.
    pub fn path(&self) -> &Path {
        self.cuda.library().path()
    }

    /// How often this library has called it, without the questions that cost next to nothing.
    pub fn calls(&self) -> u64 {
        self.cuda.meter().calls()
    }

    /// How many calls were timed, and how long they took their callers, over all threads.
    pub fn driver_time(&self) -> (u64, Duration) {
        self.cuda.meter().time()
    }

    /// Which calls are timed from now on.
    pub fn time_calls(&self, timing: Timing) {
        self.cuda.meter().set_timing(timing);
    }

    /// Functions of the driver's interface that this driver lacks.
    pub fn missing_functions(&self) -> Vec<&'static str> {
        self.cuda.missing()
    }

    /// The address of any other symbol of the driver's library, for tests and tools.
    pub fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        self.cuda.library().symbol(name)
    }

    /// While it lives, calls of this thread that a capture would forbid do not break it.
    pub fn relaxed_capture(&self) -> RelaxedCapture<'_> {
        RelaxedCapture::enter(&self.cuda)
    }

    pub(super) fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    /// The devices that came into use here.
    pub fn open_devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.iter().filter_map(OnceCell::get)
    }

    pub(super) fn is_open(&self, ordinal: i32) -> bool {
        self.open_devices()
            .any(|device| device.ordinal() == ordinal)
    }

    /// The number of devices.
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// The names of the devices, none of which this brings into use.
    pub fn device_names(&self) -> Vec<String> {
        (0..self.devices.len() as i32)
            .map(|ordinal| Device::name_of(&self.cuda, ordinal).unwrap_or_default())
            .collect()
    }

    /// The device of an ordinal, its primary context retained at first use.
    pub fn device(&self, ordinal: i32) -> Result<&Arc<Device>> {
        self.slot(ordinal)?.get_or_try_init(|| {
            Device::open(self.cuda.clone(), ordinal, self.warnings.clone()).map(Arc::new)
        })
    }

    /// Where the device of an ordinal is kept; an error that says which there are.
    pub(super) fn slot(&self, ordinal: i32) -> Result<&OnceCell<Arc<Device>>> {
        let slot = usize::try_from(ordinal)
            .ok()
            .and_then(|index| self.devices.get(index));
        slot.ok_or_else(|| {
            let shown = shown(self.devices.len());
            Error::invalid("device", format!("there is no device {ordinal}: {shown}"))
        })
    }
}

/// Which devices there are, in words.
fn shown(count: usize) -> String {
    match count {
        0 => "the driver shows none".to_owned(),
        1 => "the driver shows one, device 0".to_owned(),
        count => format!("the driver shows {count}, devices 0 to {}", count - 1),
    }
}

/// `13.0` for CUDA's 13000, `6.4` for HIP's 60443484.
pub fn version_text(version: i32) -> String {
    match version < hip::MAJOR {
        true => format!("{}.{}", version / 1000, version % 1000 / 10),
        false => hip::version_text(version),
    }
}

/// The driver's version, which must be one that this library can work with.
fn check_version(cuda: &Cuda) -> Result<i32> {
    let mut version: c_int = 0;
    // SAFETY: `version` is a valid out-pointer.
    unsafe { cuda.driver_version(&mut version) }.map_err(|refusal| cuda.error(refusal))?;
    let too_old = |call, text: String| Error::new(Status::Unsupported, call).detail(text);
    if cuda.is_hip() && version < hip::OLDEST {
        return Err(too_old("hipRuntimeGetVersion", format!(
            "{} is HIP {}, and 6.0 is the oldest that works: the structs of earlier versions are laid out otherwise",
            cuda.library().path().display(),
            version_text(version)
        ))
        .advice("Install ROCm 6 or later, or set HBMALLOC_DRIVER=sim"));
    }
    if !cuda.is_hip() && version < OLDEST_DRIVER {
        return Err(too_old(
            "cuDriverGetVersion",
            format!(
                "the driver supports CUDA {}, and 12.2 is the oldest that works",
                version_text(version)
            ),
        ));
    }
    Ok(version)
}

const INVALID_DEVICE: DriverCode = DriverCode(101);

fn init_error(cuda: &Cuda, refusal: Refusal) -> Error {
    let error = cuda.error(refusal);
    if cuda.is_hip() {
        return match refusal.code {
            // HIP without a device answers one or the other.
            Some(DriverCode::NO_DEVICE | INVALID_DEVICE) => error.advice(
                "HIP sees no GPU: look at HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES, rocminfo and whether /dev/kfd and /dev/dri may be opened, or set HBMALLOC_DRIVER=sim",
            ),
            _ => error,
        };
    }
    match refusal.code {
        Some(DriverCode::STUB_LIBRARY) => error.advice(
            "This libcuda is the toolkit's stub for linking: take its folder off LD_LIBRARY_PATH so that the driver's own is found",
        ),
        Some(DriverCode::NO_DEVICE) => error.advice(
            "The driver sees no GPU: look at CUDA_VISIBLE_DEVICES and nvidia-smi, or set HBMALLOC_DRIVER=sim",
        ),
        Some(DriverCode::NOT_INITIALIZED) => error.advice(
            "The driver does not work in a process forked after it was initialised: start processes by 'spawn'",
        ),
        _ => error,
    }
}
