//! Which allocators are measured, and which program measures each.

use super::{Options, Part};
use crate::cxx::{Package, Places};
use crate::machine::Machine;
use crate::python;
use std::path::{Path, PathBuf};

/// What measures an allocator: a C++ program of `benches/peers/`, or the Python module for torch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Hbmalloc,
    Driver,
    Torch,
    Rmm,
    Python,
}

impl Program {
    pub const COMPILED: [Program; 4] = [
        Program::Hbmalloc,
        Program::Driver,
        Program::Torch,
        Program::Rmm,
    ];

    /// What it calls besides the driver.
    pub fn package(self) -> Package {
        match self {
            Program::Hbmalloc | Program::Driver | Program::Python => Package::None,
            Program::Torch => Package::Torch,
            Program::Rmm => Package::Rmm,
        }
    }

    /// Of its file, or of the module.
    pub fn name(self) -> &'static str {
        match self {
            Program::Hbmalloc => "hbmalloc",
            Program::Driver => "driver",
            Program::Torch => "torch",
            Program::Rmm => "rmm",
            Program::Python => "hbmalloc.bench_torch",
        }
    }
}

/// One allocator to measure.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What its program knows it by.
    pub name: String,
    /// What the tables call it.
    pub label: String,
    pub program: Program,
    /// What the program opens at run time.
    pub library: Option<PathBuf>,
    pub environment: Vec<(&'static str, &'static str)>,
    pub is_ours: bool,
    /// Shows what the loops cost; no allocator to be compared with.
    pub is_baseline: bool,
}

/// Which of torch's allocators a process uses.
const TORCH_CONFIGURATION: &str = "PYTORCH_CUDA_ALLOC_CONF";

impl Entry {
    fn new(name: &str, label: &str, program: Program) -> Entry {
        Entry {
            name: name.to_owned(),
            label: label.to_owned(),
            program,
            library: None,
            environment: Vec::new(),
            is_ours: false,
            is_baseline: false,
        }
    }

    fn configured(self, value: &'static str) -> Entry {
        Entry {
            environment: vec![(TORCH_CONFIGURATION, value)],
            ..self
        }
    }

    fn opening(self, library: &Path) -> Entry {
        Entry {
            library: Some(library.to_owned()),
            ..self
        }
    }

    fn ours(self) -> Entry {
        Entry {
            is_ours: true,
            ..self
        }
    }

    fn baseline(self) -> Entry {
        Entry {
            is_baseline: true,
            ..self
        }
    }

    /// Whether a part of the benchmarks means something for it.
    pub fn takes(&self, part: Part) -> bool {
        match part {
            Part::Torch => self.program == Program::Python,
            Part::Cold => self.program != Program::Python && !self.is_baseline,
            _ => self.program != Program::Python,
        }
    }
}

/// Everything there is to measure.
pub struct Peers {
    pub entries: Vec<Entry>,
    /// A label and a reason each.
    pub skipped: Vec<(String, String)>,
    /// The driver's file, for programs and for the library in them.
    pub driver: PathBuf,
    pub places: Places,
}

impl Peers {
    pub fn find(options: &Options, driver: &Path, machine: &Machine) -> Result<Peers, String> {
        let library = python::library()?;
        let mut peers = Peers {
            entries: Vec::new(),
            skipped: Vec::new(),
            driver: driver.to_owned(),
            places: Places::find(),
        };
        let parts = |entry: &Entry| options.parts().iter().any(|part| entry.takes(*part));
        let mut entries = ours(options, &library);
        match (machine.is_simulated, options.ours) {
            (false, _) => peers.others(options, &mut entries),
            (true, false) => peers.skip("other allocators and torch", "the driver is simulated"),
            (true, true) => {}
        }
        for (name, title) in [
            ("none", "nothing (the loop itself)"),
            ("words", "a word a block, nothing else"),
            ("scattered", "the same, the words far apart"),
        ] {
            entries.push(Entry::new(name, title, Program::Driver).baseline());
        }
        entries.retain(parts);
        for entry in entries {
            let needed = match entry.program {
                Program::Python => peers.places.missing("torch").map_or(Ok(()), Err),
                program => peers.places.arguments(program.package()).map(|_| ()),
            };
            match needed {
                Ok(()) => peers.entries.push(entry),
                Err(reason) => peers.skip(&entry.label, &reason),
            }
        }
        Ok(peers)
    }

    /// Whether a program has something to measure.
    pub fn has(&self, program: Program) -> bool {
        self.entries.iter().any(|entry| entry.program == program)
    }

    /// Skips what a program would have measured.
    pub fn skip_all(&mut self, program: Program, reason: &str) {
        let entries = std::mem::take(&mut self.entries);
        for entry in entries {
            match entry.program == program {
                true => self.skip(&entry.label, reason),
                false => self.entries.push(entry),
            }
        }
    }

    fn skip(&mut self, label: &str, reason: &str) {
        self.skipped.push((label.to_owned(), reason.to_owned()));
    }

    fn others(&mut self, options: &Options, entries: &mut Vec<Entry>) {
        entries.extend(torch_from_python(options));
        if options.ours {
            entries.retain(|entry| entry.is_ours);
            return;
        }
        let (torch, rmm) = (self.places.version("torch"), self.places.version("rmm"));
        for (name, configuration) in [("native", ""), ("expandable", EXPANDABLE)] {
            let label = format!("torch {torch} {name}");
            entries.push(Entry::new(name, &label, Program::Torch).configured(configuration));
        }
        for name in ["pool", "arena"] {
            entries.push(Entry::new(name, &format!("RMM {rmm} {name}"), Program::Rmm));
        }
        let name = "cudaMallocAsync";
        match self.places.runtime() {
            Ok(file) => entries.push(Entry::new(name, name, Program::Driver).opening(&file)),
            Err(reason) => self.skip(name, &reason),
        }
        for name in ["cuMemAllocAsync", "cuMemAlloc"] {
            entries.push(Entry::new(name, name, Program::Driver));
        }
    }
}

const EXPANDABLE: &str = "expandable_segments:True";

fn ours(options: &Options, library: &Path) -> Vec<Entry> {
    let entry = |name: &str, label: String| {
        (Entry::new(name, &label, Program::Hbmalloc).opening(library)).ours()
    };
    (options.kinds().into_iter())
        .flat_map(|kind| {
            let kind = kind.name();
            [
                entry(kind, format!("hbmalloc {kind}, C")),
                entry(
                    &format!("{kind}/torch"),
                    format!("hbmalloc {kind}, torch entry"),
                ),
            ]
        })
        .collect()
}

/// Allocators under `torch.empty`.
fn torch_from_python(options: &Options) -> Vec<Entry> {
    let entry = |name: &str, label: &str| Entry::new(name, label, Program::Python);
    let ours = (options.kinds().into_iter()).map(|kind| {
        let label = format!("hbmalloc {}, installed", kind.name());
        entry(kind.name(), &label).configured("").ours()
    });
    let others = [
        entry("native", "torch native").configured(""),
        entry("expandable", "torch expandable").configured(EXPANDABLE),
        entry("cudaMallocAsync", "torch cudaMallocAsync").configured("backend:cudaMallocAsync"),
        entry("nothing", "a pluggable one that does nothing")
            .configured("")
            .baseline(),
        entry("meta", "no allocator (meta)")
            .configured("")
            .baseline(),
    ];
    ours.chain(others).collect()
}
