//! Finding the driver's library: CUDA's, HIP's, the simulated one, or a file by its path.

use crate::error::{Error, Result, Status};
use crate::sys::installed;
use crate::sys::library::{self, Library};
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};

const CUDA: &str = "libcuda.so.1";

/// HIP's library by what programs and packages call it: newest first, and last the name in torch's
/// wheels, which stands for whatever version they bring.
const HIP: [&str; 3] = ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"];

/// Too old: who asks for HIP is to be told that, rather than that there is none.
const OLD_HIP: &str = "libamdhip64.so.5";

/// Opens the library that `choice` names: `auto` (CUDA's, else HIP's), `cuda`, `hip`, `sim` or a path.
pub(super) fn open(choice: &str) -> Result<Library> {
    let no_driver = |reason: String| {
        Error::new(Status::NoDriver, "open driver").detail(reason).advice(
            "Install the GPU's driver, or set HBMALLOC_DRIVER=sim to run on the simulated driver",
        )
    };
    match choice {
        "auto" => open_any().map_err(no_driver),
        "cuda" => Library::open(Path::new(CUDA)).map_err(no_driver),
        "hip" => open_hip()
            .or_else(|reason| Library::open(Path::new(OLD_HIP)).map_err(|_| reason))
            .map_err(no_driver),
        "sim" => {
            let path = find_simulator().ok_or_else(|| {
                no_driver(format!("{SIMULATOR} was not found beside this library"))
            })?;
            Library::open(&path).map_err(no_driver)
        }
        path => Library::open(Path::new(path)).map_err(no_driver),
    }
}

/// A machine may have both libraries and devices of one: what the program has loaded is what it uses.
fn open_any() -> std::result::Result<Library, String> {
    if !Library::is_loaded(Path::new(CUDA)) {
        if let Some(name) = HIP.iter().find(|name| Library::is_loaded(Path::new(name))) {
            return Library::open(Path::new(name));
        }
    }
    Library::open(Path::new(CUDA))
        .or_else(|no_cuda| open_hip().map_err(|no_hip| format!("{no_cuda}; {no_hip}")))
}

fn open_hip() -> std::result::Result<Library, String> {
    let loaded = HIP.iter().find(|name| Library::is_loaded(Path::new(name)));
    if let Some(name) = loaded {
        return Library::open(Path::new(name));
    }
    let mut reason = String::new();
    for name in HIP {
        match Library::open(Path::new(name)) {
            Ok(library) => return Ok(library),
            Err(why) if reason.is_empty() => reason = why,
            Err(_) => {}
        }
    }
    Err(reason)
}

const SIMULATOR: &str = "libhbmalloc_sim.so";

fn find_simulator() -> Option<PathBuf> {
    let here = library::file_of(find_simulator as fn() -> Option<PathBuf> as usize)?;
    installed::find(SIMULATOR, &here)
}

pub(super) fn configure_simulator(library: &Library, spec: &str) -> Result<()> {
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
