//! Nodes of memory: which there are, which processors are theirs, and which is near to what.

use crate::error::{Error, Result};
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
    /// How far each node is, in the order of [`Topology::nodes`].
    pub distances: Vec<u32>,
}

impl Node {
    /// Whether threads run there and have memory there.
    fn is_whole(&self) -> bool {
        self.bytes > 0 && !self.processors.is_empty()
    }
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
                distances: (of("distance").split_whitespace())
                    .map_while(|distance| distance.parse().ok())
                    .collect(),
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

    /// Those with memory, as errors name them.
    pub fn with_memory(&self) -> String {
        let there = self.nodes.iter().filter(|node| node.bytes > 0);
        let there: Vec<String> = there.map(|node| node.number.to_string()).collect();
        format!("Nodes with memory here: {}", there.join(", "))
    }

    fn find(&self, number: i32) -> Option<&Node> {
        (self.nodes.iter()).find(|node| i64::from(node.number) == i64::from(number))
    }

    /// The node of a number; an error that says which there are.
    pub fn node(&self, operation: &'static str, number: i32) -> Result<&Node> {
        (self.find(number).filter(|node| node.bytes > 0)).ok_or_else(|| {
            let detail = match number {
                -1 => "node -1, which stands for an unknown one".to_owned(),
                _ => format!("there is no node {number} with memory"),
            };
            Error::invalid(operation, detail).advice(self.with_memory())
        })
    }

    /// Whether there is one of that number.
    pub fn knows(&self, number: i32) -> bool {
        self.find(number).is_some()
    }

    /// The node itself where it has processors and memory, else the nearest that has: a node without processors
    /// may be the memory of a device. None where that cannot be told.
    pub fn nearest_whole(&self, number: i32) -> Option<u32> {
        let from = self.find(number)?;
        if from.is_whole() {
            return Some(from.number);
        }
        let told = self.nodes.iter().zip(&from.distances);
        let near = told.filter(|(node, _)| node.is_whole());
        near.min_by_key(|(node, distance)| (**distance, node.number))
            .map(|(node, _)| node.number)
    }

    /// The first node with processors and memory.
    pub fn first_whole(&self) -> Option<u32> {
        (self.nodes.iter())
            .find(|node| node.is_whole())
            .map(|node| node.number)
    }
}

/// The node of a device on the bus as the system tells it, -1 where it does not know; none where it knows no such
/// device. Addresses are as `0000:1b:00.0`, in either case.
pub fn of_bus_address(root: &Path, address: &str) -> Option<i32> {
    let address = address.trim().to_ascii_lowercase();
    if address.is_empty() || address.contains(['/', '\0']) {
        return None;
    }
    let path = (root.join("sys/bus/pci/devices"))
        .join(address)
        .join("numa_node");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
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
            assert_eq!(error.status(), crate::error::Status::InvalidArgument);
            assert!(error.to_string().contains("0, 9"), "{error}");
        }
        let nowhere = tempfile::tempdir().unwrap();
        assert!(Topology::read(nowhere.path()).nodes().is_empty());
    }

    /// A machine of these nodes: processors, MiB of memory, distances.
    fn machine(nodes: &[(u32, &str, u64, &str)], bus: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |name: String, text: String| {
            let path = root.path().join("sys").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let all: Vec<String> = nodes.iter().map(|node| node.0.to_string()).collect();
        write("devices/system/node/online".into(), all.join(","));
        for (number, processors, mib, distances) in nodes {
            let of = |name: &str| format!("devices/system/node/node{number}/{name}");
            write(of("cpulist"), format!("{processors}\n"));
            write(of("distance"), format!("{distances}\n"));
            let total = format!("Node {number} MemTotal: {} kB\n", mib << 10);
            write(of("meminfo"), total);
        }
        for (address, node) in bus {
            write(
                format!("bus/pci/devices/{address}/numa_node"),
                format!("{node}\n"),
            );
        }
        root
    }

    /// What is nearest to the device at an address.
    fn nearest(root: &tempfile::TempDir, address: &str) -> Option<u32> {
        let node = of_bus_address(root.path(), address)?;
        Topology::read(root.path()).nearest_whole(node)
    }

    #[test]
    fn each_socket_has_its_devices() {
        let nodes = [
            (0, "0-27,56-83", 9, "10 21"),
            (1, "28-55,84-111", 9, "21 10"),
        ];
        let bus = [
            ("0000:1b:00.0", "0"),
            ("0000:b4:00.0", "1"),
            ("0000:01:00.0", "-1"),
        ];
        let root = machine(&nodes, &bus);
        assert_eq!(nearest(&root, "0000:1B:00.0"), Some(0));
        assert_eq!(nearest(&root, "0000:B4:00.0\n"), Some(1));
        for unknown in ["0000:01:00.0", "0000:02:00.0", "", "../../etc"] {
            assert_eq!(nearest(&root, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn memory_of_a_device_is_not_the_host_s() {
        // Two processors with a device each, whose memory are nodes 2 and 10.
        let nodes = [
            (0, "0-71", 480, "10 40 80 140"),
            (1, "72-143", 480, "40 10 140 80"),
            (2, "", 96, "80 140 10 255"),
            (10, "", 96, "140 80 255 10"),
        ];
        let bus = [
            ("0009:01:00.0", "2"),
            ("0019:01:00.0", "10"),
            ("0002:00:00.0", "1"),
        ];
        let root = machine(&nodes, &bus);
        let found = bus.map(|(address, _)| nearest(&root, address));
        assert_eq!(found, [Some(0), Some(1), Some(1)]);
        let topology = Topology::read(root.path());
        assert_eq!(topology.node("test", 10).unwrap().number, 10);
        assert_eq!(topology.first_whole(), Some(0));
    }

    #[test]
    fn processors_without_memory_and_distances_that_nobody_tells() {
        let nodes = [
            (0, "0-3", 0, "10 20 30"),
            (1, "4-7", 9, "20 10 25"),
            (2, "", 9, ""),
        ];
        let root = machine(&nodes, &[]);
        let topology = Topology::read(root.path());
        let found = [-1, 0, 1, 2, 3, i32::MIN].map(|node| topology.nearest_whole(node));
        assert_eq!(found, [None, Some(1), Some(1), None, None, None]);
        assert_eq!(topology.first_whole(), Some(1));
        let nowhere = tempfile::tempdir().unwrap();
        assert_eq!(Topology::read(nowhere.path()).nearest_whole(0), None);
    }
}
