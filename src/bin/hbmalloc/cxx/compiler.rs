//! The machine's C and C++ compilers.

use crate::stopped::Child;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Compiles `name.cpp` of a folder to the program `name` beside it.
pub fn compile(folder: &Path, name: &str, arguments: &[String]) -> Result<(), String> {
    let mut compiler = compiler("CXX", "c++", folder);
    compiler.args(["-O2", "-g", "-I.", &format!("{name}.cpp")]);
    compiler.args(["-o", name]).args(arguments);
    finish(compiler.args(["-lpthread", "-ldl"]), "CXX")
}

/// Compiles the allocator that does nothing to a library that torch can open.
pub fn compile_nothing(folder: &Path) -> Result<PathBuf, String> {
    let library = folder.join("libnothing.so");
    let mut compiler = compiler("CC", "cc", folder);
    compiler.args(["-O2", "-fPIC", "-shared", "nothing.c", "-o"]);
    finish(compiler.arg(&library).arg("-ldl"), "CC")?;
    Ok(library)
}

fn compiler(variable: &str, usual: &str, folder: &Path) -> Command {
    let named = std::env::var_os(variable).filter(|name| !name.is_empty());
    let mut command = Command::new(named.unwrap_or_else(|| usual.into()));
    command.current_dir(folder);
    command
}

fn finish(compiler: &mut Command, variable: &str) -> Result<(), String> {
    compiler
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut told = Vec::new();
    let outcome = Child::spawn(compiler).and_then(|mut child| {
        if let Some(mut errors) = child.0.stderr.take() {
            errors.read_to_end(&mut told)?;
        }
        child.wait()
    });
    let status = outcome.map_err(|error| {
        let name = compiler.get_program().to_string_lossy();
        format!("{name}: {error} (set {variable})")
    })?;
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&told);
    let first = text.lines().find(|line| line.contains("error"));
    let told = first.or_else(|| text.lines().last());
    let told = told.unwrap_or("the compiler said nothing").trim();
    Err(format!("does not compile: {told}"))
}
