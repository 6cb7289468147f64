//! Which allocators are measured, and which program measures each.

use super::Options;
use crate::machine::Machine;
use crate::python;
use std::path::{Path, PathBuf};

/// A C++ program of `benches/peers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Hbmalloc,
    Driver,
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
    pub environment: Vec<(String, String)>,
    pub is_ours: bool,
    /// Shows what the loops cost; no allocator to be compared with.
    pub is_baseline: bool,
}

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
}

/// Everything there is to measure.
pub struct Peers {
    pub entries: Vec<Entry>,
    /// A label and a reason each.
    pub skipped: Vec<(String, String)>,
    /// The driver's file, for programs and for the library in them.
    pub driver: PathBuf,
}

impl Peers {
    pub fn find(options: &Options, driver: &Path, machine: &Machine) -> Result<Peers, String> {
        let mut peers = Peers {
            entries: Vec::new(),
            skipped: Vec::new(),
            driver: driver.to_owned(),
        };
        peers.add_ours(options, &python::library()?);
        if !options.ours {
            peers.add_others(machine);
        }
        let nothing = Entry::new("none", "nothing (the loop itself)", Program::Driver);
        peers.entries.push(Entry {
            is_baseline: true,
            ..nothing
        });
        Ok(peers)
    }

    fn add_ours(&mut self, options: &Options, library: &Path) {
        for kind in options.kinds() {
            let kind = kind.name();
            for (name, label) in [
                (kind.to_owned(), format!("hbmalloc {kind}, C")),
                (
                    format!("{kind}/torch"),
                    format!("hbmalloc {kind}, torch entry"),
                ),
            ] {
                self.entries.push(Entry {
                    library: Some(library.to_owned()),
                    is_ours: true,
                    ..Entry::new(&name, &label, Program::Hbmalloc)
                });
            }
        }
    }

    fn add_others(&mut self, machine: &Machine) {
        if machine.is_simulated {
            let reason = "the simulated driver says nothing about them";
            self.skipped
                .push(("other allocators".to_owned(), reason.to_owned()));
            return;
        }
        for name in ["cuMemAllocAsync", "cuMemAlloc"] {
            self.entries.push(Entry::new(name, name, Program::Driver));
        }
    }
}
