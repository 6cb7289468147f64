//! Memory of the host made as a program describes it.

use super::Process;
use super::host::{HostKind, HostSize, Memory, Owned};
use crate::config::table::Opt;
use crate::error::{Error, Result};
use crate::gpu::Device;
use crate::source::host::{self, HostBlock, PageKind, Wanted};
use crate::sys::heap::Heap;
use crate::sys::numa::Topology;
use crate::sys::pages::{HUGE_PAGE, PAGE};
use crate::sys::policy::{Binding, Policy};
use crate::sys::shm::{self, Segment};
use std::ffi::c_uint;
use std::path::Path;
use std::sync::Arc;

/// What the memory is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostPages {
    /// Ordinary pages, huge ones where the system makes them by itself.
    #[default]
    Ordinary,
    /// Of the heap.
    Heap,
    /// Pages of this length that the administrator has set aside.
    SetAside(u64),
    /// Those of a name, made anew or another process's.
    Shared {
        /// The name.
        name: String,
        /// Whether it is made anew.
        is_new: bool,
    },
}

impl HostPages {
    /// Whether such pages may be pinned or not.
    pub fn can_be_either(&self) -> bool {
        matches!(self, HostPages::SetAside(_) | HostPages::Shared { .. })
    }
}

/// Memory as a program describes it, all but its length.
#[derive(Clone, Debug, Default)]
pub struct HostPlan {
    /// What it is made of.
    pub pages: HostPages,
    /// Its nodes, none for wherever the system takes it, and how they are meant.
    pub nodes: Option<(Policy, Vec<i32>)>,
    /// Whether a driver pins it.
    pub is_pinned: bool,
    /// Those of `cudaHostAlloc`.
    pub flags: c_uint,
}

/// `cudaHostAllocPortable`, `cudaHostAllocMapped`; registering has the same.
pub(super) const PORTABLE: c_uint = 1;
const MAPPED: c_uint = 2;
/// `cudaHostAllocWriteCombined`; registering has none.
const WRITE_COMBINED: c_uint = 4;

impl HostPlan {
    /// On one node.
    pub fn on_node(node: i32, is_pinned: bool) -> HostPlan {
        HostPlan {
            nodes: Some((Policy::Bind, vec![node])),
            is_pinned,
            ..HostPlan::default()
        }
    }

    /// Whether such memory can be on nodes, and have such flags.
    pub fn check(&self, operation: &'static str) -> Result<()> {
        if self.pages == HostPages::Heap && self.nodes.is_some() {
            return Err(Error::invalid(operation, "the heap is on no node"));
        }
        if matches!(self.pages, HostPages::Shared { is_new: false, .. }) && self.nodes.is_some() {
            let what = "memory that another made is on the nodes that its maker chose";
            return Err(Error::invalid(operation, what).advice("Attach to it without nodes"));
        }
        let is_drivers =
            self.is_pinned && self.pages == HostPages::Ordinary && self.nodes.is_none();
        let (known, more) = match (is_drivers, self.is_pinned) {
            (true, _) => (PORTABLE | MAPPED | WRITE_COMBINED, ", 4 write-combined"),
            (false, true) => (PORTABLE | MAPPED, ""),
            (false, false) => (0, ", of pinned memory alone"),
        };
        if self.flags & !known == 0 {
            return Ok(());
        }
        let error = Error::invalid(operation, format!("flags {:#x}", self.flags));
        Err(error.advice(format!(
            "Those of cudaHostAlloc are known: 1 portable, 2 mapped{more}"
        )))
    }
}

impl Process {
    /// Memory of the host. The driver is opened for what is pinned.
    pub fn allocate_host(&self, kind: HostKind, bytes: u64, plan: &HostPlan) -> Result<u64> {
        self.allocate_host_aligned(kind, bytes, 1, plan)
            .map(|(address, _)| address)
    }

    /// The same at a multiple of `align`, a power of two.
    pub fn allocate_host_aligned(
        &self,
        kind: HostKind,
        bytes: u64,
        align: u64,
        plan: &HostPlan,
    ) -> Result<(u64, HostSize)> {
        let operation = match (&plan.pages, kind) {
            (HostPages::Shared { is_new: false, .. }, HostKind::SharedPinned) => {
                "hbm_attach_shm_pinned_ptr"
            }
            _ => kind.allocator(),
        };
        let stake = self.host_stake()?;
        plan.check(operation)?;
        if bytes == 0 {
            return Err(Error::invalid(operation, "a size of 0 bytes"));
        }
        let (memory, held, segment) = match (&plan.pages, plan.flags & WRITE_COMBINED) {
            (HostPages::Heap, _) => {
                // What is small the heap may have already.
                if bytes >= HUGE_PAGE {
                    host::check_memory(Path::new("/"), operation, bytes)?;
                }
                let heap = Heap::new(operation, bytes, align)?;
                (Memory::Heap(heap), bytes, None)
            }
            (_, 0) => self.block(operation, bytes, align, plan)?,
            _ => {
                host::check_memory(Path::new("/"), operation, bytes)?;
                let device = self.pinning_device()?;
                let address = device.allocate_pinned_as(bytes, plan.flags)?;
                (Memory::Driver { device, address }, bytes, None)
            }
        };
        let size = HostSize {
            requested: bytes,
            bytes: held,
        };
        let address = self.give_out(Owned {
            memory,
            kind,
            size,
            is_pinned: plan.is_pinned,
            flags: plan.flags,
            segment,
            _stake: stake,
        });
        Ok((address, size))
    }

    /// Pages, how many bytes of them, and what they are a map of.
    fn block(
        &self,
        operation: &'static str,
        bytes: u64,
        align: u64,
        plan: &HostPlan,
    ) -> Result<(Memory, u64, Option<Segment>)> {
        // Pages from 2 MiB on are aligned to that.
        let bytes = match align {
            0..=PAGE => bytes,
            _ if align <= HUGE_PAGE => bytes.max(HUGE_PAGE),
            _ => {
                return Err(Error::invalid(
                    operation,
                    format!("an alignment of {align} bytes is more than the {HUGE_PAGE} of pages"),
                ));
            }
        };
        let binding = self.binding(operation, plan)?;
        let device = match plan.is_pinned {
            true => Some(self.pinning_device()?),
            false => None,
        };
        let segment = match &plan.pages {
            HostPages::Shared { name, is_new } => Some(segment(operation, bytes, name, *is_new)?),
            _ => None,
        };
        let block = HostBlock::make_in_parts(
            &Wanted {
                operation,
                bytes,
                pages: match (&plan.pages, &segment) {
                    (_, Some(segment)) => PageKind::Shared(segment),
                    (HostPages::SetAside(page), _) => PageKind::SetAside(*page),
                    _ => PageKind::Ordinary,
                },
                binding: binding.as_ref(),
                pinned: (device.as_ref()).map(|device| (device, plan.flags | PORTABLE)),
            },
            &self.warnings,
            self.most_registered(),
        )?;
        let held = block.bytes();
        Ok((Memory::Block(block), held, segment))
    }

    /// The nodes that are named, which must be there.
    pub(super) fn binding(
        &self,
        operation: &'static str,
        plan: &HostPlan,
    ) -> Result<Option<Binding>> {
        let Some((policy, numbers)) = &plan.nodes else {
            return Ok(None);
        };
        let topology = Topology::read(Path::new("/"));
        let nodes = (numbers.iter())
            .map(|number| topology.node(operation, *number).cloned())
            .collect::<Result<Vec<_>>>()?;
        let is_strict = self.settings.text(Opt::NumaPolicy).trim() == "strict";
        Binding::new(operation, *policy, nodes, is_strict).map(Some)
    }

    /// The device whose driver pins: any will do, since what is pinned is so for all.
    pub(super) fn pinning_device(&self) -> Result<Arc<Device>> {
        let device = match self.devices_in_use().next() {
            Some(device) => device,
            None => self.device(0)?,
        };
        Ok(device.state().device.clone())
    }
}

fn segment(operation: &'static str, bytes: u64, name: &str, is_new: bool) -> Result<Segment> {
    let (folder, whole) = (Path::new(shm::FOLDER), host::whole(operation, bytes)?);
    match is_new {
        true => Segment::create(operation, folder, name, whole),
        false => Segment::attach(operation, folder, name, whole),
    }
}
