//! The Python beside this command, its package, and the shared library.

use hbmalloc::sys::installed;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The Python named by the environment, the one installed beside this program, or the usual one.
pub fn program() -> OsString {
    if let Some(named) = std::env::var_os("HBMALLOC_PYTHON").filter(|name| !name.is_empty()) {
        return named;
    }
    let beside = own_folders().next().map(|folder| folder.join("python3"));
    match beside.filter(|path| path.is_file()) {
        Some(path) => path.into_os_string(),
        None => "python3".into(),
    }
}

/// A Python process that finds the library's package.
pub fn command(program: &OsString) -> Command {
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

/// The shared library that belongs to this command: named by the environment, beside it, installed
/// with it, or in the package that its Python finds.
pub fn library() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("HBMALLOC_LIBRARY").filter(|name| !name.is_empty()) {
        return Ok(PathBuf::from(named));
    }
    // In wheels it has another name: of those the one that Python finds is meant.
    let own = std::env::current_exe().unwrap_or_default();
    if let Some(found) = installed::find("libhbmalloc.so", &own) {
        return Ok(found);
    }
    let program = program();
    let answer = command(&program)
        .args(["-c", "import hbmalloc; print(hbmalloc.get_library_path())"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = answer.map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned());
    match text {
        Ok(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err(format!(
            "libhbmalloc.so is neither beside this command nor in the package of {}; set HBMALLOC_LIBRARY",
            program.to_string_lossy()
        )),
    }
}
