//! The demo on a GPU belongs to Python: which Python, whether its torch sees the GPU, and handing
//! over to it.

use crate::python;
use hbmalloc::gpu::Driver;
use hbmalloc::sys::library::Library;
use std::os::unix::process::CommandExt;
use std::path::Path;
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
    // The loader's own words are enough where there is none.
    let no_cuda = match choice {
        "hip" => None,
        _ => Library::open(Path::new("libcuda.so.1")).err(),
    };
    let driver = Driver::load(choice, None, Arc::default())
        .map_err(|error| no_cuda.unwrap_or_else(|| error.to_string()))?;
    match driver.device_count() {
        0 => Err("the GPU driver shows no device".to_owned()),
        _ => Ok(()),
    }
}

/// A Python that has torch and this library's package, and whose torch sees a GPU; else why not.
pub fn python() -> Result<Command, String> {
    let program = python::program();
    let shown = program.to_string_lossy().into_owned();
    let answer = python::command(&program)
        .args(["-c", PROBE])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("{shown} does not run: {error}"))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    match text.lines().last() {
        Some("yes") => Ok(python::command(&program)),
        Some(reason) => Err(format!("{shown}: {reason}")),
        None => Err(format!("{shown} ended with {}", answer.status)),
    }
}

/// Becomes the Python program; returns only what went wrong.
pub fn hand_over(mut python: Command) -> std::io::Error {
    python.args(["-m", MODULE]).exec()
}
