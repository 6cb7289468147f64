//! The demo on a GPU belongs to Python: which Python, whether its torch sees the GPU, and handing
//! over to it.

use hbmalloc::gpu::Driver;
use hbmalloc::sys::library::Library;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const MODULE: &str = "hbmalloc.demo_torch";

/// Says on its last line whether it will do.
const PROBE: &str = "
import sys
try:
    import torch, hbmalloc.demo_torch
    print('yes' if torch.cuda.is_available() else 'its PyTorch %s finds no GPU' % torch.__version__)
except ImportError as error:
    print(error)
";

/// Whether the driver that the option `choice` names is here, with a device; else why not.
pub fn gpu_driver(choice: &str) -> Result<(), String> {
    if choice != "hip" {
        // The loader's own words are enough where there is none.
        Library::open(Path::new("libcuda.so.1"))?;
    }
    let driver = Driver::load(choice, None, Arc::default()).map_err(|error| error.to_string())?;
    match driver.device_count() {
        0 => Err("the GPU driver shows no device".to_owned()),
        _ => Ok(()),
    }
}

/// A Python that has torch and this library's package, and whose torch sees a GPU; else why not.
pub fn python() -> Result<Command, String> {
    let program = program();
    let shown = program.to_string_lossy().into_owned();
    let answer = command(&program)
        .args(["-c", PROBE])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("{shown} does not run: {error}"))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    match text.lines().last() {
        Some("yes") => Ok(command(&program)),
        Some(reason) => Err(format!("{shown}: {reason}")),
        None => Err(format!("{shown} ended with {}", answer.status)),
    }
}

/// Becomes the Python program; returns only what went wrong.
pub fn hand_over(mut python: Command) -> std::io::Error {
    python.args(["-m", MODULE]).exec()
}

/// The Python named by the environment, the one installed beside this program, or the usual one.
fn program() -> OsString {
    if let Some(named) = std::env::var_os("HBMALLOC_PYTHON").filter(|name| !name.is_empty()) {
        return named;
    }
    let beside = own_folders().next().map(|folder| folder.join("python3"));
    match beside.filter(|path| path.is_file()) {
        Some(path) => path.into_os_string(),
        None => "python3".into(),
    }
}

fn command(program: &OsString) -> Command {
    let mut command = Command::new(program);
    // What the environment names is found first; then the package beside this program, if any.
    let mut places: Vec<PathBuf> = std::env::var_os("PYTHONPATH")
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default();
    places.extend(package_place());
    if let Ok(joined) = std::env::join_paths(places) {
        command.env("PYTHONPATH", joined);
    }
    command
}

/// The folder that holds the Python package: `python/` of the source checkout that this program was
/// built in, or where `pip install --target` put both.
fn package_place() -> Option<PathBuf> {
    /// `target`, in it the platform's folder where one was named, in it the profile's.
    const DEPTH: usize = 4;
    let installed = own_folders().nth(1);
    let checkouts = own_folders()
        .take(DEPTH)
        .filter(|folder| folder.join("Cargo.toml").is_file())
        .map(|folder| folder.join("python"));
    installed
        .into_iter()
        .chain(checkouts)
        .find(|place| place.join("hbmalloc/demo_torch.py").is_file())
}

/// The folder of this program, and those around it.
fn own_folders() -> impl Iterator<Item = PathBuf> {
    let own = std::env::current_exe().unwrap_or_default();
    let folders: Vec<PathBuf> = own.ancestors().skip(1).map(Path::to_owned).collect();
    folders.into_iter()
}
