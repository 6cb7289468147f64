//! Other allocators: C++ programs of `benches/peers/`, compiled where they run, that replay the same
//! events. What is not installed is left out, with the reason.

use super::memory_file;
use crate::cxx::{Folder, Package, Places, compile};
use crate::machine::Machine;
use crate::trace::{Action, Trace};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

macro_rules! sources {
    ($($name:literal)*) => {
        /// The sources travel in this program, so that an installed command has them too.
        const SOURCES: &[(&str, &str)] = &[$((
            $name,
            include_str!(concat!("../../../../benches/peers/", $name)),
        )),*];
    };
}

sources! { "driver.hpp" "replay.hpp" "replay_driver.cpp" "replay_rmm.cpp" "replay_torch.cpp" }

/// Another allocator.
#[derive(Clone, Copy)]
pub struct Peer {
    pub name: &'static str,
    /// The program, without its ending, and what it calls the allocator.
    program: &'static str,
    allocator: &'static str,
    /// For torch's own environment variables.
    setting: &'static str,
}

const fn peer(name: &'static str, program: &'static str, allocator: &'static str) -> Peer {
    Peer {
        name,
        program,
        allocator,
        setting: "",
    }
}

const DRIVER: &str = "replay_driver";
const RMM: &str = "replay_rmm";
const TORCH: &str = "replay_torch";

const PROGRAMS: [(&str, Package); 3] = [
    (TORCH, Package::Torch),
    (DRIVER, Package::None),
    (RMM, Package::Rmm),
];

const ALL: [Peer; 5] = [
    peer("torch-native", TORCH, "native"),
    Peer {
        setting: "expandable_segments:True",
        ..peer("torch-expandable", TORCH, "expandable")
    },
    peer("cudaMallocAsync", DRIVER, "cudaMallocAsync"),
    peer("rmm-pool", RMM, "pool"),
    peer("rmm-arena", RMM, "arena"),
];

/// Both names of torch's variable: which of them rules depends on the version.
const TORCH_VARIABLES: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];

/// Those that can be replayed, compiled, and those that cannot.
#[derive(Default)]
pub struct Peers {
    pub programs: Vec<Peer>,
    /// A name and a reason each.
    pub skipped: Vec<(&'static str, String)>,
    folder: Option<Folder>,
    /// The driver's file.
    driver: PathBuf,
}

impl Peers {
    /// Compiles the programs for what is installed.
    pub fn find(driver: &Path, machine: &Machine, lag: u32) -> Peers {
        let mut peers = Peers {
            driver: driver.to_owned(),
            ..Peers::default()
        };
        if lag > 0 {
            peers.skip(|_| true, "they are replayed without a lag");
            return peers;
        }
        let prepared = Folder::open(None).and_then(|folder| {
            folder.write(SOURCES)?;
            Ok(folder)
        });
        let folder = match prepared {
            Ok(folder) => folder,
            Err(error) => {
                peers.skip(|_| true, &error);
                return peers;
            }
        };
        let places = match machine.is_simulated {
            true => Err("the CUDA runtime does not run on the simulated driver".to_owned()),
            false => Ok(Places::find()),
        };
        for (program, package) in PROGRAMS {
            let arguments = match (package, &places) {
                (Package::None, _) => Ok(vec!["-std=c++17".to_owned()]),
                (_, Ok(places)) => places.arguments(package),
                (_, Err(reason)) => Err(reason.clone()),
            };
            let built = arguments.and_then(|mut given| {
                given.push("-DNDEBUG".to_owned());
                compile(folder.path(), program, &given)
            });
            let of_it = |peer: &&Peer| peer.program == program;
            match built {
                Ok(()) => peers.programs.extend(ALL.iter().filter(of_it)),
                Err(reason) => peers.skip(|peer| of_it(&peer), &reason),
            }
        }
        peers.folder = Some(folder);
        peers
    }

    fn skip(&mut self, which: impl Fn(&Peer) -> bool, reason: &str) {
        let left_out = ALL.iter().filter(|peer| which(peer));
        self.skipped
            .extend(left_out.map(|peer| (peer.name, reason.to_owned())));
    }

    /// The process that replays `events` through `peer`.
    pub fn command(&self, peer: &Peer, events: &Events) -> Command {
        let folder = self.folder.as_ref().map_or(Path::new("."), Folder::path);
        let mut command = Command::new(folder.join(peer.program));
        command
            .arg(peer.allocator)
            .arg(events.path())
            .arg(&self.driver);
        for variable in TORCH_VARIABLES {
            match peer.setting {
                "" => command.env_remove(variable),
                setting => command.env(variable, setting),
            };
        }
        command
    }
}

/// A trace as `replay.hpp` reads it, in memory that processes started from here inherit.
pub struct Events(File);

const MAGIC: u64 = 0x3159_414c_5045_5200;

impl Events {
    pub fn of(trace: &Trace) -> io::Result<Events> {
        let (blocks, events) = (trace.blocks.len() as u64, trace.events.len() as u64);
        let header = [
            MAGIC,
            trace.streams() as u64,
            blocks,
            events,
            trace.peak().0,
        ];
        let frees = |action| u64::from(action == Action::Free);
        let events =
            (trace.events.iter()).map(|event| event.block as u64 * 2 + frees(event.action));
        let blocks = (trace.blocks.iter()).flat_map(|block| [block.bytes, block.stream as u64]);
        let mut words = header.into_iter().chain(events).chain(blocks);
        memory_file::filled(|out| words.try_for_each(|word| out.write_all(&word.to_ne_bytes())))
            .map(Events)
    }

    /// What a process started from here calls it.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}
