//! The programs: written out, compiled with the machine's compiler, and run.

use super::line::{Line, together};
use super::peers::{Entry, Peers, Program};
use super::{Options, Part};
use crate::cxx::{Folder, compile, compile_nothing};
use crate::python;
use crate::stopped::Child;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

macro_rules! sources {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../../../../benches/peers/", $name)))),*]
    };
}

/// The sources travel in this program, so that an installed command has them too.
const SOURCES: [(&str, &str); 9] = sources![
    "driver.hpp",
    "measure.hpp",
    "threads.hpp",
    "loops.hpp",
    "hbmalloc.cpp",
    "driver.cpp",
    "torch.cpp",
    "rmm.cpp",
    "nothing.c"
];
const HEADER: (&str, &str) = ("hbmalloc.h", include_str!("../../../../include/hbmalloc.h"));

/// Far beyond what any benchmark of any allocator needs.
const TIME_LIMIT: Duration = Duration::from_secs(180);

/// Compiled programs and the allocators that they measure.
pub struct Programs {
    folder: Folder,
    /// The allocator that does nothing, for torch, or why there is none.
    nothing: Result<PathBuf, String>,
    peers: Peers,
}

impl Programs {
    /// Compiles what the allocators need. Those whose program does not compile are skipped.
    pub fn build(folder: Option<&Path>, peers: Peers) -> Result<Programs, String> {
        let mut programs = Programs {
            nothing: Err("it was not compiled".to_owned()),
            folder: Folder::open(folder)?,
            peers,
        };
        programs.folder.write(&SOURCES)?;
        programs.folder.write(&[HEADER])?;
        for program in Program::COMPILED {
            programs.compile(program);
        }
        if programs.peers.has(Program::Python) {
            programs.nothing = compile_nothing(programs.folder.path());
        }
        Ok(programs)
    }

    fn compile(&mut self, program: Program) {
        if !self.peers.has(program) {
            return;
        }
        let arguments = self.peers.places.arguments(program.package());
        let outcome =
            arguments.and_then(|given| compile(self.folder.path(), program.name(), &given));
        if let Err(reason) = outcome {
            self.peers.skip_all(program, &reason);
        }
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
        let outcome = (self.command(entry, part))
            .and_then(|mut command| {
                command
                    .args(["--allocator", &entry.name])
                    .args(["--reps", &options.reps.to_string()])
                    .args(["--batch-ms", &options.batch_ms.to_string()])
                    // torch's newer name of what the entry may set.
                    .env_remove("PYTORCH_ALLOC_CONF")
                    .envs(entry.environment.iter().copied());
                if entry.program != Program::Python {
                    command.args(["--live", &options.live.to_string()]);
                }
                self.output(command)
            })
            .map(|text| text.lines().filter_map(Line::parse).collect());
        outcome.unwrap_or_else(|reason| vec![Line::skipped(&entry.name, &reason)])
    }

    /// The program of an allocator, with what does not depend on how long it is to measure.
    fn command(&self, entry: &Entry, part: Part) -> Result<Command, String> {
        let mut command;
        if entry.program == Program::Python {
            command = python::command(&python::program());
            command.args(["-m", entry.program.name()]);
            if entry.name == "nothing" {
                command.arg("--library").arg(self.nothing.as_ref()?);
            }
        } else {
            command = Command::new(self.folder.path().join(entry.program.name()));
            command
                .args(["--bench", &part.name(), "--driver"])
                .arg(&self.peers.driver);
        }
        if let Some(library) = &entry.library {
            command.arg("--library").arg(library);
        }
        if self.peers.driver.is_absolute() {
            // The library in the program uses the very file that the program's own streams are of.
            command.env("HBMALLOC_DRIVER", &self.peers.driver);
        }
        Ok(command)
    }

    /// What a program wrote; where it ended badly without having said why, that is the error.
    fn output(&self, mut command: Command) -> Result<String, String> {
        let folder = self.folder.path();
        let (out, err) = (folder.join("out.log"), folder.join("err.log"));
        let file = |path: &Path| {
            File::create(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let name = command.get_program().to_string_lossy().into_owned();
        let failed = |error: std::io::Error| format!("{name}: {error}");
        command
            .stdin(Stdio::null())
            .stdout(file(&out)?)
            .stderr(file(&err)?);
        let mut child = Child::spawn(&mut command).map_err(failed)?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if started.elapsed() > TIME_LIMIT {
                let _ = child.0.kill();
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
