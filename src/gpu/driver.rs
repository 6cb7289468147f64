//! The driver of this process: found, opened, initialised, asked for its devices.

use super::device::Device;
use crate::error::{DriverCode, Error, Result, Status, Warnings};
use crate::sys::cuda::{Cuda, Refusal};
use crate::sys::library::{self, Library};
pub use crate::sys::meter::Timing;
use once_cell::sync::OnceCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Which kind of driver was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// NVIDIA's.
    Cuda,
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
    limits_chunks: bool,
    warnings: Arc<Warnings>,
    devices: Vec<OnceCell<Arc<Device>>>,
}

impl Driver {
    /// Opens and initialises the driver that `choice` names: `auto`, `cuda`, `sim` or a path.
    /// `sim_spec` configures the simulated driver, where a call asked for it.
    pub fn load(choice: &str, sim_spec: Option<&str>, warnings: Arc<Warnings>) -> Result<Driver> {
        let library = open(choice)?;
        let kind = if library.is_simulator() {
            DriverKind::Simulator
        } else {
            DriverKind::Cuda
        };
        if let (Some(spec), DriverKind::Simulator) = (sim_spec, kind) {
            configure_simulator(&library, spec)?;
        }
        let limits_chunks = kind == DriverKind::Simulator && plays_rocm(&library);
        let cuda = Cuda::resolve(library);
        // SAFETY: cuInit takes no pointers.
        unsafe { cuda.init(0) }.map_err(|refusal| init_error(&cuda, refusal))?;
        let mut version: c_int = 0;
        // SAFETY: `version` is a valid out-pointer.
        unsafe { cuda.driver_version(&mut version) }.map_err(|refusal| cuda.error(refusal))?;
        if version < OLDEST_DRIVER {
            return Err(
                Error::new(Status::Unsupported, "cuDriverGetVersion").detail(format!(
                    "the driver supports CUDA {}, and 12.2 is the oldest that works",
                    version_text(version)
                )),
            );
        }
        let mut count: c_int = 0;
        // SAFETY: `count` is a valid out-pointer.
        unsafe { cuda.device_count(&mut count) }.map_err(|refusal| cuda.error(refusal))?;
        Ok(Driver {
            cuda: Arc::new(cuda),
            kind,
            version,
            limits_chunks,
            warnings,
            devices: (0..count.max(0)).map(|_| OnceCell::new()).collect(),
        })
    }

    /// Which kind it is.
    pub fn kind(&self) -> DriverKind {
        self.kind
    }

    /// The version it supports, as 13000 for 13.0.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Whether a range is to be backed by several chunks of limited size, as on ROCm, where creating
    /// large ones is refused or misbehaves.
    pub fn limits_chunks(&self) -> bool {
        self.limits_chunks
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
        let slot = usize::try_from(ordinal)
            .ok()
            .and_then(|index| self.devices.get(index))
            .ok_or_else(|| {
                Error::invalid(
                    "device",
                    format!(
                        "there is no device {ordinal}: {}",
                        shown(self.devices.len())
                    ),
                )
            })?;
        slot.get_or_try_init(|| {
            Device::open(self.cuda.clone(), ordinal, self.warnings.clone()).map(Arc::new)
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

/// `13.0` for 13000.
pub fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn open(choice: &str) -> Result<Library> {
    let no_driver = |reason: String| {
        Error::new(Status::NoDriver, "open driver").detail(reason).advice(
            "Install the GPU's driver, or set HBMALLOC_DRIVER=sim to run on the simulated driver",
        )
    };
    match choice {
        "auto" | "cuda" => Library::open(Path::new("libcuda.so.1")).map_err(no_driver),
        "hip" => Err(Error::new(Status::Unsupported, "open driver")
            .detail("this version does not drive HIP devices")),
        "sim" => {
            let path = find_simulator().ok_or_else(|| {
                no_driver(format!("{SIMULATOR} was not found beside this library"))
            })?;
            Library::open(&path).map_err(no_driver)
        }
        path => Library::open(Path::new(path)).map_err(no_driver),
    }
}

const SIMULATOR: &str = "libhbmalloc_sim.so";

/// The simulator lies beside the library in a wheel and after installation; cargo puts test
/// programs one folder below it, and a wheel's command lies in `bin` next to the package.
fn find_simulator() -> Option<PathBuf> {
    let here = library::file_of(find_simulator as fn() -> Option<PathBuf> as usize)?;
    let folder = here.parent()?;
    let mut candidates = vec![
        folder.to_owned(),
        folder.join(".."),
        folder.join("../lib"),
        folder.join("../hbmalloc/lib"),
    ];
    if let Ok(entries) = std::fs::read_dir(folder.join("../lib")) {
        candidates.extend(
            entries
                .flatten()
                .map(|entry| entry.path().join("site-packages/hbmalloc/lib")),
        );
    }
    candidates
        .into_iter()
        .map(|candidate| candidate.join(SIMULATOR))
        .find(|path| path.is_file())
}

fn configure_simulator(library: &Library, spec: &str) -> Result<()> {
    let spec_text = CString::new(spec)
        .map_err(|_| Error::invalid("configure simulator", "the text holds a zero byte"))?;
    let address = library.symbol(c"hbmsim_configure").ok_or_else(|| {
        Error::new(Status::Unsupported, "configure simulator")
            .detail("the simulated driver has no hbmsim_configure")
    })?;
    // SAFETY: the simulator declares hbmsim_configure with this signature.
    let configure: unsafe extern "C" fn(*const c_char) -> c_int =
        unsafe { std::mem::transmute(address) };
    // SAFETY: `spec_text` is a C string that outlives the call.
    match unsafe { configure(spec_text.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Error::new(Status::BadOption, "configure simulator")
            .detail(format!("sim='{spec}' was refused"))),
    }
}

/// HIP itself is not driven yet; the simulator can play its limit on chunks.
fn plays_rocm(library: &Library) -> bool {
    library.symbol(c"hbmsim_rocm").is_some_and(|address| {
        // SAFETY: the simulator declares hbmsim_rocm with this signature.
        let largest: unsafe extern "C" fn() -> u64 = unsafe { std::mem::transmute(address) };
        // SAFETY: takes no arguments.
        unsafe { largest() != 0 }
    })
}

fn init_error(cuda: &Cuda, refusal: Refusal) -> Error {
    let error = cuda.error(refusal);
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
