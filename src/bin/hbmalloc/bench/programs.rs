//! The C++ programs: written out, compiled with the machine's compiler, and run.

use super::line::{Line, together};
use super::peers::{Entry, Peers, Program};
use super::{Options, Part};
use clap::ValueEnum;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The sources travel in this program, so that an installed command has them too.
const SOURCES: [(&str, &str); 6] = [
    (
        "driver.hpp",
        include_str!("../../../../benches/peers/driver.hpp"),
    ),
    (
        "measure.hpp",
        include_str!("../../../../benches/peers/measure.hpp"),
    ),
    (
        "threads.hpp",
        include_str!("../../../../benches/peers/threads.hpp"),
    ),
    (
        "loops.hpp",
        include_str!("../../../../benches/peers/loops.hpp"),
    ),
    (
        "hbmalloc.cpp",
        include_str!("../../../../benches/peers/hbmalloc.cpp"),
    ),
    (
        "driver.cpp",
        include_str!("../../../../benches/peers/driver.cpp"),
    ),
];
const HEADER: (&str, &str) = ("hbmalloc.h", include_str!("../../../../include/hbmalloc.h"));

/// Far beyond what any benchmark of any allocator needs.
const TIME_LIMIT: Duration = Duration::from_secs(180);

impl Program {
    fn name(self) -> &'static str {
        match self {
            Program::Hbmalloc => "hbmalloc",
            Program::Driver => "driver",
        }
    }
}

/// Compiled programs and the allocators that they measure.
pub struct Programs {
    folder: PathBuf,
    keep: bool,
    peers: Peers,
}

impl Programs {
    /// Compiles what the allocators need. Those whose program does not compile are skipped.
    pub fn build(folder: Option<&Path>, mut peers: Peers) -> Result<Programs, String> {
        let text = |error: std::io::Error| error.to_string();
        let keep = folder.is_some();
        let folder = match folder {
            Some(folder) => std::path::absolute(folder).map_err(text)?,
            None => std::env::temp_dir().join(format!("hbmalloc-bench-{}", std::process::id())),
        };
        fs::create_dir_all(&folder).map_err(text)?;
        for (name, source) in SOURCES.iter().chain([&HEADER]) {
            fs::write(folder.join(name), source).map_err(text)?;
        }
        for program in [Program::Hbmalloc, Program::Driver] {
            if !peers.entries.iter().any(|entry| entry.program == program) {
                continue;
            }
            if let Err(reason) = compile(&folder, program) {
                let (failed, kept): (Vec<Entry>, Vec<Entry>) =
                    (peers.entries.into_iter()).partition(|entry| entry.program == program);
                peers.entries = kept;
                let failed = failed
                    .into_iter()
                    .map(|entry| (entry.label, reason.clone()));
                peers.skipped.extend(failed);
            }
        }
        Ok(Programs {
            folder,
            keep,
            peers,
        })
    }

    pub fn entries(&self) -> &[Entry] {
        &self.peers.entries
    }

    pub fn skipped(&self) -> &[(String, String)] {
        &self.peers.skipped
    }

    /// One benchmark of one allocator, in a process of its own; for a cold start in several.
    pub fn run(&self, entry: &Entry, part: Part, options: &Options) -> Vec<Line> {
        if part != Part::Cold {
            return self.once(entry, part, options);
        }
        let runs: Vec<Line> = (0..options.reps)
            .flat_map(|_| self.once(entry, part, options))
            .collect();
        together(&runs)
    }

    fn once(&self, entry: &Entry, part: Part, options: &Options) -> Vec<Line> {
        let value = part.to_possible_value();
        let bench = value.as_ref().map_or("", |value| value.get_name());
        let mut command = Command::new(self.folder.join(entry.program.name()));
        command
            .args(["--allocator", &entry.name, "--bench", bench])
            .args(["--reps", &options.reps.to_string()])
            .args(["--batch-ms", &options.batch_ms.to_string()])
            .args(["--live", &options.live.to_string()])
            .arg("--driver")
            .arg(&self.peers.driver)
            .envs(entry.environment.iter().map(|(name, value)| (name, value)));
        if let Some(library) = &entry.library {
            command.arg("--library").arg(library);
        }
        if self.peers.driver.is_absolute() {
            // The library in the program uses the very file that the program's own streams are of.
            command.env("HBMALLOC_DRIVER", &self.peers.driver);
        }
        match self.output(command) {
            Ok(text) => text.lines().filter_map(Line::parse).collect(),
            Err(reason) => vec![Line::skipped(&entry.name, &reason)],
        }
    }

    /// What a program wrote; where it ended badly without having said why, that is the error.
    fn output(&self, mut command: Command) -> Result<String, String> {
        let (out, err) = (self.folder.join("out.log"), self.folder.join("err.log"));
        let file = |path: &Path| File::create(path).map_err(|error| error.to_string());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(file(&out)?)
            .stderr(file(&err)?)
            .spawn()
            .map_err(|error| error.to_string())?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                break status;
            }
            if started.elapsed() > TIME_LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no end in {} s", TIME_LIMIT.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let text =
            |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let told = text(&out).unwrap_or_default();
        if status.success() || told.contains("\"skipped\"") {
            return Ok(told);
        }
        let last = text(&err).unwrap_or_default();
        let last = last.lines().last().unwrap_or("it said nothing");
        Err(format!("{status}: {last}"))
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn compile(folder: &Path, program: Program) -> Result<(), String> {
    let compiler = std::env::var_os("CXX").filter(|name| !name.is_empty());
    let compiler = compiler.unwrap_or_else(|| OsString::from("c++"));
    let output = Command::new(&compiler)
        .current_dir(folder)
        .args(["-std=c++17", "-O2", "-g", "-I."])
        .arg(format!("{}.cpp", program.name()))
        .args(["-o", program.name()])
        .args(["-lpthread", "-ldl"])
        .output()
        .map_err(|error| format!("{}: {error} (set CXX)", compiler.to_string_lossy()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().find(|line| line.contains("error"));
    Err(format!(
        "does not compile: {}",
        first.unwrap_or("the compiler said nothing").trim()
    ))
}
