//! On which nodes the memory behind pages is to lie (mbind(2)), and where it does.

use super::numa::{Node, Topology};
use super::pages::Pages;
use crate::error::{Error, Result, Status};
use std::io;
use std::path::Path;

/// How nodes are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Memory of these nodes and no other.
    #[default]
    Bind,
    /// Of one node, and of others once that has none left.
    Preferred,
    /// Of these nodes in turn, a page each.
    Interleave,
}

impl Policy {
    /// The name of a policy in calls and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Bind => "bind",
            Policy::Preferred => "preferred",
            Policy::Interleave => "interleave",
        }
    }

    /// The number that the system has for it (set_mempolicy(2)).
    const fn mode(self) -> libc::c_int {
        match self {
            Policy::Preferred => 1,
            Policy::Bind => 2,
            Policy::Interleave => 3,
        }
    }
}

/// Nodes for memory, and how they are meant.
#[derive(Clone, Debug)]
pub struct Binding {
    policy: Policy,
    nodes: Vec<Node>,
    is_strict: bool,
}

impl Binding {
    /// Of one node or more; preferred is one. Where it is strict, a system that refuses is an error.
    pub fn new(
        operation: &'static str,
        policy: Policy,
        nodes: Vec<Node>,
        is_strict: bool,
    ) -> Result<Binding> {
        let is_possible = match policy {
            Policy::Preferred => nodes.len() == 1,
            Policy::Bind | Policy::Interleave => !nodes.is_empty(),
        };
        match is_possible {
            true => Ok(Binding {
                policy,
                nodes,
                is_strict,
            }),
            false => Err(Error::invalid(
                operation,
                format!("the policy {} of {} nodes", policy.name(), nodes.len()),
            )
            .advice("Name one node or more, and for preferred exactly one")),
        }
    }

    /// The same nodes as they are now.
    pub fn anew(&self, root: &Path) -> Binding {
        let now = Topology::read(root);
        let find = |node: &Node| {
            let same = now.nodes().iter().find(|other| other.number == node.number);
            same.unwrap_or(node).clone()
        };
        Binding {
            nodes: self.nodes.iter().map(find).collect(),
            ..*self
        }
    }

    /// In words: `bind to node 0`, `interleave to nodes 0, 1`.
    pub fn text(&self) -> String {
        let numbers: Vec<String> = (self.nodes.iter())
            .map(|node| node.number.to_string())
            .collect();
        let many = if numbers.len() > 1 { "s" } else { "" };
        format!(
            "{} to node{many} {}",
            self.policy.name(),
            numbers.join(", ")
        )
    }

    /// The nodes that the memory must all come from, where it must.
    pub fn only(&self) -> Option<&[Node]> {
        (self.policy == Policy::Bind).then_some(&self.nodes)
    }

    /// The processors of its nodes.
    pub fn processors(&self) -> Vec<usize> {
        let processors = (self.nodes.iter()).flat_map(|node| &node.processors);
        processors.copied().collect()
    }

    /// Has what comes behind `pages` from now on be memory of its nodes. What the system said where the process may
    /// not, as in many containers, or where the kernel knows of no nodes; then nothing has changed.
    pub fn apply(&self, pages: &Pages) -> Result<Option<io::Error>> {
        let highest = self.nodes.iter().map(|node| node.number).max().unwrap_or(0);
        let mut mask = vec![0u64; highest as usize / 64 + 1];
        for node in &self.nodes {
            mask[node.number as usize / 64] |= 1 << (node.number % 64);
        }
        // SAFETY: the pages are mapped; the mask has as many bits as are said, and the kernel takes one less.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                pages.address(),
                pages.bytes(),
                self.policy.mode(),
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
            Some(libc::EPERM | libc::ENOSYS) if !self.is_strict => Ok(Some(error)),
            _ => Err(self.refused(pages.bytes(), &error)),
        }
    }

    fn refused(&self, bytes: u64, error: &io::Error) -> Error {
        let (status, advice) = match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS) => (
                Status::Unsupported,
                "A container needs CAP_SYS_NICE for it; with the option numa_policy=fallback it is a warning".to_owned(),
            ),
            Some(libc::EINVAL) => (Status::InvalidArgument, allowed()),
            Some(libc::ENOMEM) => (
                Status::OutOfMemory,
                "The kernel has too little memory left, or the process too many mappings (vm.max_map_count)".to_owned(),
            ),
            Some(libc::EIO) => (Status::OutOfMemory, "The nodes have too little memory left".to_owned()),
            _ => (Status::Internal, String::new()),
        };
        (Error::new(status, "mbind").bytes(bytes))
            .detail(format!("{}: {error}", self.text()))
            .advice(advice)
    }
}

/// The nodes that the process may use (cpuset(7)), in words.
fn allowed() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = (status.lines()).find_map(|line| line.strip_prefix("Mems_allowed_list:"));
    match line {
        Some(nodes) => format!(
            "The process may use nodes {} (cpuset.mems of its control group)",
            nodes.trim()
        ),
        None => "cpuset.mems of its control group may limit the process".to_owned(),
    }
}

/// Take the policy of an address, rather than the thread's (get_mempolicy(2)).
const MPOL_F_ADDR: libc::c_ulong = 1 << 1;

/// The policy of the memory at an address and its nodes, as the system has them; none where it does not say or
/// has another policy.
pub fn policy_at(address: u64) -> Option<(Policy, Vec<u32>)> {
    const NODES: usize = 1024;
    let (mut mode, mut mask) = (0 as libc::c_int, [0u64; NODES / 64]);
    // SAFETY: both are valid out-pointers, and the mask has as many bits as are said.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &mut mode,
            mask.as_mut_ptr(),
            NODES,
            address,
            MPOL_F_ADDR,
        )
    };
    let all = [Policy::Bind, Policy::Preferred, Policy::Interleave];
    let policy = all.into_iter().find(|policy| policy.mode() == mode)?;
    let has = |node: &u32| mask[*node as usize / 64] & (1 << (node % 64)) != 0;
    (answer == 0).then(|| (policy, (0..NODES as u32).filter(has).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::numa::Topology;
    use super::super::pages::HUGE_PAGE;
    use super::*;
    use std::path::Path;

    fn binding(policy: Policy, numbers: &[u32]) -> Result<Binding> {
        let node = |number: &u32| Node {
            number: *number,
            processors: vec![*number as usize],
            bytes: 1,
            free: 1,
            distances: Vec::new(),
        };
        Binding::new("test", policy, numbers.iter().map(node).collect(), false)
    }

    #[test]
    fn the_system_has_the_policy_that_was_set() {
        let topology = Topology::read(Path::new("/"));
        let whole = topology.first_whole();
        for policy in [Policy::Bind, Policy::Preferred, Policy::Interleave] {
            let pages = Pages::map(HUGE_PAGE).unwrap();
            let Some(node) = whole else {
                println!("SKIP: the system tells of no nodes");
                return;
            };
            if let Some(error) = binding(policy, &[node]).unwrap().apply(&pages).unwrap() {
                println!("SKIP: mbind: {error}");
                return;
            }
            pages.populate().unwrap();
            assert_eq!(policy_at(pages.address()), Some((policy, vec![node])));
            assert_eq!(
                policy_at(pages.address() + HUGE_PAGE - 1).unwrap().0,
                policy
            );
        }
    }

    #[test]
    fn nodes_that_the_kernel_does_not_have_are_errors() {
        let pages = Pages::map(HUGE_PAGE).unwrap();
        match binding(Policy::Bind, &[1000]).unwrap().apply(&pages) {
            Err(error) => {
                assert_eq!(error.status(), Status::InvalidArgument);
                assert!(error.to_string().contains("cpuset.mems"), "{error}");
            }
            Ok(refused) => println!("SKIP: mbind: {:?}", refused.expect("there is no node 1000")),
        }
    }

    #[test]
    fn errors_have_the_status_that_fits() {
        let pages = Pages::map(HUGE_PAGE).unwrap();
        let binding = binding(Policy::Interleave, &[0, 3]).unwrap();
        let of = |code| binding.refused(pages.bytes(), &io::Error::from_raw_os_error(code));
        for (code, status) in [
            (libc::EPERM, Status::Unsupported),
            (libc::ENOSYS, Status::Unsupported),
            (libc::EINVAL, Status::InvalidArgument),
            (libc::ENOMEM, Status::OutOfMemory),
            (libc::EIO, Status::OutOfMemory),
            (libc::EFAULT, Status::Internal),
        ] {
            assert_eq!(of(code).status(), status, "{code}");
            assert!(of(code).to_string().contains("interleave to nodes 0, 3"));
        }
        assert_eq!(binding.processors(), [0, 3]);
    }

    #[test]
    fn preferred_is_one_node() {
        assert!(binding(Policy::Preferred, &[0, 1]).is_err());
        for policy in [Policy::Bind, Policy::Preferred, Policy::Interleave] {
            assert!(binding(policy, &[]).is_err());
            assert_eq!(
                binding(policy, &[4]).unwrap().only().is_some(),
                policy == Policy::Bind
            );
        }
    }
}
