//! Nodes of memory: which there are, which processors are theirs, and pages bound to one.

use super::pages::Pages;
use crate::error::{Error, Result, Status};
use std::io;
use std::path::Path;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// Its processors; none where its memory is a device's.
    pub processors: Vec<usize>,
    /// Bytes of its memory.
    pub bytes: u64,
    /// Those that nobody uses, or that hold but what files have too.
    pub free: u64,
}

/// The nodes of a machine.
#[derive(Clone, Debug)]
pub struct Topology {
    nodes: Vec<Node>,
}

impl Topology {
    /// As the system tells under `root`, which is `/` but for tests. A system without NUMA tells of none.
    pub fn read(root: &Path) -> Topology {
        let folder = root.join("sys/devices/system/node");
        let listed = std::fs::read_to_string(folder.join("online")).unwrap_or_default();
        let nodes = ranges(&listed).into_iter().map(|number| {
            let of = |name: &str| {
                let path = folder.join(format!("node{number}")).join(name);
                std::fs::read_to_string(path).unwrap_or_default()
            };
            let memory = of("meminfo");
            Node {
                number: number as u32,
                processors: ranges(&of("cpulist")),
                bytes: field(&memory, "MemTotal:"),
                free: (RECLAIMABLE.iter())
                    .map(|name| field(&memory, name))
                    .fold(0, u64::saturating_add),
            }
        });
        Topology {
            nodes: nodes.collect(),
        }
    }

    /// All of them.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of a number; an error that says which there are.
    pub fn node(&self, operation: &'static str, number: i32) -> Result<&Node> {
        let found = (self.nodes.iter())
            .find(|node| i64::from(node.number) == i64::from(number) && node.bytes > 0);
        found.ok_or_else(|| {
            let there = self.nodes.iter().filter(|node| node.bytes > 0);
            let there: Vec<String> = there.map(|node| node.number.to_string()).collect();
            let detail = match number {
                -1 => "node -1, which stands for an unknown one".to_owned(),
                _ => format!("there is no node {number} with memory"),
            };
            Error::new(Status::InvalidArgument, operation)
                .detail(detail)
                .advice(format!("Nodes with memory here: {}", there.join(", ")))
        })
    }
}

/// What of a node's `meminfo` can be had.
const RECLAIMABLE: [&str; 4] = [
    "MemFree:",
    "Active(file):",
    "Inactive(file):",
    "SReclaimable:",
];

/// `0-3,8` as numbers.
fn ranges(text: &str) -> Vec<usize> {
    let one = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    };
    (text.trim().split(','))
        .filter_map(one)
        .flatten()
        .take(1 << 16)
        .collect()
}

/// A figure of a node's `meminfo`, which is in KiB.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.contains(name));
    let number = line.and_then(|line| line.split_whitespace().rev().nth(1));
    let number: Option<u64> = number.and_then(|number| number.parse().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// Memory only of the nodes named, and none elsewhere (set_mempolicy(2)).
const MPOL_BIND: libc::c_int = 2;

/// Has what comes behind `pages` from now on be memory of `node`. What the system said where the process may not,
/// as in many containers, or where the kernel knows of no nodes; then nothing has changed.
pub fn bind(pages: &Pages, node: u32) -> Result<Option<io::Error>> {
    let mut mask = vec![0u64; node as usize / 64 + 1];
    mask[node as usize / 64] = 1 << (node % 64);
    // SAFETY: the pages are mapped; the mask has as many bits as are said, and the kernel takes one less.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            pages.address(),
            pages.bytes(),
            MPOL_BIND,
            mask.as_ptr(),
            mask.len() * 64 + 1,
            0,
        )
    };
    if answer == 0 {
        return Ok(None);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS) => Ok(Some(error)),
        _ => Err(Error::new(Status::InvalidArgument, "mbind")
            .bytes(pages.bytes())
            .detail(format!("node {node}: {error}"))),
    }
}

/// Has the calling thread run on these processors; whether it could.
pub fn run_on(processors: &[usize]) -> bool {
    // SAFETY: a set of bits, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for processor in (processors.iter()).filter(|processor| **processor < 1024) {
        // SAFETY: the number is within the set.
        unsafe { libc::CPU_SET(*processor, &mut set) };
    }
    // SAFETY: the set is valid for the call.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faked() -> (tempfile::TempDir, Topology) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/devices/system/node");
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("online", "0-1,9\n");
        write("node0/cpulist", "0-2,8\n");
        write(
            "node0/meminfo",
            "Node 0 MemTotal:  100 kB\nNode 0 MemFree: 7 kB\nNode 0 Inactive(file): 3 kB\n",
        );
        write("node1/cpulist", "3-4\n");
        write("node1/meminfo", "Node 1 MemTotal: 0 kB\n");
        write("node9/cpulist", "\n");
        write(
            "node9/meminfo",
            "Node 9 MemTotal: 96 kB\nNode 9 MemFree: 96 kB\n",
        );
        let topology = Topology::read(root.path());
        (root, topology)
    }

    #[test]
    fn nodes_are_read() {
        let (_root, topology) = faked();
        let node = topology.node("test", 0).unwrap();
        assert_eq!(node.processors, [0, 1, 2, 8]);
        assert_eq!((node.bytes, node.free), (100 << 10, 10 << 10));
        assert!(topology.node("test", 9).unwrap().processors.is_empty());
    }

    #[test]
    fn a_node_that_is_not_there_is_an_error_that_names_those_that_are() {
        let (_root, topology) = faked();
        for number in [-1, 1, 2, i32::MIN, i32::MAX] {
            let error = topology.node("test", number).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument);
            assert!(error.to_string().contains("0, 9"), "{error}");
        }
        let nowhere = tempfile::tempdir().unwrap();
        assert!(Topology::read(nowhere.path()).nodes().is_empty());
    }

    #[test]
    fn pages_are_bound_where_the_process_may() {
        let topology = Topology::read(Path::new("/"));
        let pages = Pages::map(super::super::pages::HUGE_PAGE).unwrap();
        let Some(node) = topology.nodes().first() else {
            return;
        };
        if bind(&pages, node.number).unwrap().is_none() {
            pages.populate().unwrap();
            assert!(bind(&pages, 1000).is_err());
        }
    }
}
