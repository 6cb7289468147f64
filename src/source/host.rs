//! Memory of the host by itself, of no device: mapped, bound to a node, populated by a few threads there, and
//! pinned by registering it. If a step fails, those before it are undone.

use crate::error::{Error, Result, Status, Warning, Warnings};
use crate::gpu::{Device, Registered};
use crate::sys::limits::{self, Left};
use crate::sys::numa::{self, Node};
use crate::sys::pages::{self, HUGE_PAGE, PAGE, Pages};
use crate::sys::policy::Binding;
use crate::sys::shm::Segment;
use std::ffi::c_uint;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What memory is made of.
#[derive(Clone, Copy, Debug)]
pub enum PageKind<'a> {
    /// Ordinary pages, huge ones where the system makes them by itself.
    Ordinary,
    /// Pages of this length that the administrator has set aside.
    SetAside(u64),
    /// Those of a segment, whose length is the block's in whole pages.
    Shared(&'a Segment),
}

/// Memory that is wanted.
pub struct Wanted<'a> {
    /// Who asks, in errors.
    pub operation: &'static str,
    /// Its length above 0.
    pub bytes: u64,
    /// The pages behind it.
    pub pages: PageKind<'a>,
    /// The nodes that it is to be on.
    pub binding: Option<&'a Binding>,
    /// The device whose driver pins it, and the driver's flags.
    pub pinned: Option<(&'a Arc<Device>, c_uint)>,
}

/// Memory of the host.
pub struct HostBlock {
    /// One for as many bytes as are registered at once, where it is pinned.
    pinned: Vec<Registered>,
    /// Else all of it.
    plain: Option<Pages>,
    address: u64,
    bytes: u64,
    is_unbound: bool,
}

/// Threads that populate: 4 to 16 were alike within what runs differ by (4 GiB, a machine of 16 cores).
pub(super) const THREADS: u64 = 8;
/// What one of them populates at a time: by 16 MiB 16 GB/s were pinned there, by 64 and 256 MiB 12 to 15.
const STEP: u64 = 16 << 20;
/// Registrations of 512 GiB fail on drivers of the 580 series.
pub const MOST_REGISTERED: u64 = 256 << 30;

impl HostBlock {
    /// Makes what is wanted.
    pub fn make(wanted: &Wanted<'_>, warnings: &Warnings) -> Result<HostBlock> {
        HostBlock::make_in_parts(wanted, warnings, MOST_REGISTERED)
    }

    /// The same, registered in parts of at most so many bytes, a multiple of 2 MiB.
    pub fn make_in_parts(wanted: &Wanted<'_>, warnings: &Warnings, most: u64) -> Result<HostBlock> {
        let bytes = length(wanted)?;
        check_left(Path::new("/"), wanted, bytes)?;
        let (pages, is_bound) = map_bound(wanted, bytes, warnings)?;
        let address = pages.address();
        if is_bound {
            check_nodes(Path::new("/"), wanted, bytes)?;
        }
        let processors = wanted.binding.map(Binding::processors).unwrap_or_default();
        let part = (0, bytes, step(wanted));
        populate(&pages, part, &processors, THREADS)
            .map_err(|error| short_of_pages(wanted, bytes, error))?;
        let (pinned, plain) = match wanted.pinned {
            None => (Vec::new(), Some(pages)),
            Some((device, flags)) => (pin(device, flags, pages, most)?, None),
        };
        Ok(HostBlock {
            pinned,
            plain,
            address,
            bytes,
            is_unbound: wanted.binding.is_some() && !is_bound,
        })
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length, whole pages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where one registration ends and the next begins.
    pub fn seams(&self) -> Vec<u64> {
        let parts = self.pinned.iter().skip(1);
        parts.map(Registered::address).collect()
    }

    /// Whether it was to be on some nodes, and the system refused.
    pub fn is_unbound(&self) -> bool {
        self.is_unbound
    }

    /// Gives it back to the system. What could not be unpinned stays as it is; where that is not all of it, the
    /// rest goes with the next call.
    pub fn give_back(mut self) -> std::result::Result<(), (HostBlock, Error)> {
        while let Some(part) = self.pinned.pop() {
            if let Err((part, error)) = part.give_back() {
                self.pinned.push(part);
                return Err((self, error));
            }
        }
        self.plain = None;
        Ok(())
    }
}

/// Registers pages in parts; where one fails, those before it are undone, the last first.
fn pin(device: &Arc<Device>, flags: c_uint, pages: Pages, most: u64) -> Result<Vec<Registered>> {
    let bytes = pages.bytes();
    let mut pinned = Vec::new();
    for part in pages.split(most) {
        match Registered::register_as(device, part, flags) {
            Ok(part) => pinned.push(part),
            Err(error) => {
                while pinned.pop().is_some() {}
                return Err(error.advice(format!(
                    "{bytes} bytes were to be pinned; the process may lock {}",
                    limits::lockable()
                )));
            }
        }
    }
    Ok(pinned)
}

/// Addresses for `bytes`, on the nodes that are wanted where the system lets them be, with nothing behind them yet.
pub(super) fn map_bound(
    wanted: &Wanted<'_>,
    bytes: u64,
    warnings: &Warnings,
) -> Result<(Pages, bool)> {
    let pages = match wanted.pages {
        PageKind::Ordinary => Pages::map(bytes)?,
        PageKind::SetAside(page) => Pages::map_set_aside(bytes, page)?,
        PageKind::Shared(segment) => segment.map()?,
    };
    let is_bound = match wanted.binding {
        Some(binding) => bind(&pages, binding, warnings)?,
        None => false,
    };
    if let PageKind::Shared(segment) = wanted.pages {
        segment.reserve(wanted.operation)?;
    }
    Ok((pages, is_bound))
}

/// Its length in whole pages.
pub(super) fn length(wanted: &Wanted<'_>) -> Result<u64> {
    match wanted.pages {
        PageKind::SetAside(page) => whole_pages(wanted.operation, wanted.bytes, page),
        _ => whole(wanted.operation, wanted.bytes),
    }
}

/// A length in whole ordinary pages, huge ones from 2 MiB on.
pub fn whole(operation: &'static str, bytes: u64) -> Result<u64> {
    whole_pages(
        operation,
        bytes,
        if bytes < HUGE_PAGE { PAGE } else { HUGE_PAGE },
    )
}

fn whole_pages(operation: &'static str, bytes: u64, page: u64) -> Result<u64> {
    const ALL_ADDRESSES: u64 = 1 << 47;
    if bytes == 0 {
        return Err(Error::invalid(operation, "a size of 0 bytes"));
    }
    (bytes.checked_next_multiple_of(page))
        .filter(|bytes| *bytes <= ALL_ADDRESSES)
        .ok_or_else(|| {
            Error::new(Status::OutOfMemory, operation)
                .bytes(bytes)
                .detail("more than a process has addresses for")
        })
}

/// What the system has not got is not tried: it would swap and kill before it said no.
pub(super) fn check_left(root: &Path, wanted: &Wanted<'_>, bytes: u64) -> Result<()> {
    match wanted.pages {
        PageKind::Ordinary => check_memory(root, wanted.operation, bytes),
        // In no other count.
        PageKind::SetAside(page) => match limits::huge_pages_of_groups(root, page) {
            Some(left) => fits(wanted.operation, bytes, &left),
            None => Ok(()),
        },
        PageKind::Shared(segment) if segment.is_own() => {
            check_memory(root, wanted.operation, bytes)
        }
        PageKind::Shared(_) => Ok(()),
    }
}

/// The same for ordinary memory, however it is made.
pub fn check_memory(root: &Path, operation: &'static str, bytes: u64) -> Result<()> {
    fits(operation, bytes, &limits::memory(root))
}

fn fits(operation: &'static str, bytes: u64, left: &Left) -> Result<()> {
    if bytes <= left.bytes {
        return Ok(());
    }
    Err(Error::new(Status::OutOfMemory, operation)
        .bytes(bytes)
        .detail(format!(
            "{} has {} bytes left, and {bytes} are needed",
            left.whose, left.bytes
        ))
        .advice("Ask for less, free memory of the host, or have the limit raised"))
}

/// Memory that must be of some nodes is not elsewhere when they have run out: the system kills then.
pub(super) fn check_nodes(root: &Path, wanted: &Wanted<'_>, bytes: u64) -> Result<()> {
    let Some((nodes, binding)) = wanted.binding.and_then(|all| Some((all.only()?, all))) else {
        return Ok(());
    };
    let sum = |of: &dyn Fn(&Node) -> u64| nodes.iter().map(of).fold(0, u64::saturating_add);
    if let PageKind::SetAside(page) = wanted.pages {
        let told = |node: &Node| limits::huge_pages_on(root, page, node.number);
        let free = sum(&|node| told(node).unwrap_or(u64::MAX));
        let why = format!(" to {}", binding.text());
        return match bytes / page <= free {
            true => Ok(()),
            false => Err(pages::too_few_set_aside(bytes, page, Some(free), &why)),
        };
    }
    let left = Left {
        bytes: sum(&|node| node.free),
        whose: format!("what there is to {}", binding.text()),
    };
    fits(wanted.operation, bytes, &left)
}

/// What it means that pages which were set aside, and there a moment ago, could not be populated.
pub(super) fn short_of_pages(wanted: &Wanted<'_>, bytes: u64, error: Error) -> Error {
    let PageKind::SetAside(page) = wanted.pages else {
        return error;
    };
    let free = limits::huge_pages(Path::new("/"), page);
    let why = format!(" by now, on whatever node and for whatever control group ({error})");
    pages::too_few_set_aside(bytes, page, free, &why)
}

/// What one thread populates at a time: no page is of two threads.
pub(super) fn step(wanted: &Wanted<'_>) -> u64 {
    match wanted.pages {
        PageKind::SetAside(page) => STEP.max(page),
        _ => STEP,
    }
}

/// Whether the system let it be bound.
fn bind(pages: &Pages, binding: &Binding, warnings: &Warnings) -> Result<bool> {
    let Some(error) = binding.apply(pages)? else {
        return Ok(true);
    };
    warnings.warn(Warning::Unbound, || {
        format!(
            "memory could not be had by the policy {}, since the system refuses mbind ({error}): it comes from wherever \
             the threads that touch it first run; a container needs CAP_SYS_NICE for it",
            binding.text()
        )
    });
    Ok(false)
}

/// Puts memory behind a part (where it begins, its length, what a thread takes at a time), by at most `threads` on these
/// processors, where any are named.
pub(super) fn populate(
    pages: &Pages,
    (offset, bytes, step): (u64, u64, u64),
    processors: &[usize],
    threads: u64,
) -> Result<()> {
    let end = offset + bytes;
    let steps = bytes.div_ceil(step);
    let there = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let begin = offset + next.fetch_add(1, Ordering::Relaxed) * step;
            if begin >= end {
                return Ok(());
            }
            pages.populate_part(begin, step.min(end - begin))?;
        }
    };
    if steps == 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(steps).min(there))
            .map(|_| {
                std::thread::Builder::new().spawn_scoped(scope, || {
                    // Where they may not run there, the memory is bound all the same.
                    if !processors.is_empty() {
                        numa::run_on(processors);
                    }
                    work()
                })
            })
            .collect();
        let mut outcome = Ok(());
        for thread in threads {
            // One that cannot be had leaves its part to the others, or to this one.
            let Ok(thread) = thread else { continue };
            let done = thread.join().unwrap_or_else(|_| {
                Err(Error::new(Status::Internal, "populate host memory")
                    .detail("a thread panicked"))
            });
            outcome = outcome.and(done);
        }
        outcome.and_then(|()| work())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::faked::root;
    use crate::sys::policy::Policy;

    const MIB: u64 = 1 << 20;

    fn nodes(policy: Policy, free: &[u64]) -> Binding {
        let node = |(number, free): (usize, &u64)| Node {
            number: number as u32,
            processors: Vec::new(),
            bytes: 1 << 40,
            free: *free,
            distances: Vec::new(),
        };
        let nodes = free.iter().enumerate().map(node).collect();
        Binding::new("test", policy, nodes, false).unwrap()
    }

    fn wanted<'a>(pages: PageKind<'a>, binding: Option<&'a Binding>) -> Wanted<'a> {
        Wanted {
            operation: "test",
            bytes: 8 * MIB,
            pages,
            binding,
            pinned: None,
        }
    }

    #[test]
    fn a_control_group_s_limit_is_told() {
        let files = [
            ("proc/meminfo", "MemAvailable: 900000000 kB\n"),
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/memory.max", "10485760\n"),
            ("sys/fs/cgroup/pod/memory.current", "4194304\n"),
            ("sys/fs/cgroup/pod/hugetlb.2MB.max", "4194304\n"),
            ("sys/fs/cgroup/pod/hugetlb.2MB.current", "0\n"),
        ];
        let root = root(&files);
        let fits = |pages, bytes| check_left(root.path(), &wanted(pages, None), bytes);
        let error = fits(PageKind::Ordinary, 8 * MIB).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        let said = "control group /pod (limit 10485760 bytes) has 6291456 bytes left, and 8388608 are needed";
        assert!(error.to_string().contains(said), "{error}");
        fits(PageKind::Ordinary, 6 * MIB).unwrap();
        let error = fits(PageKind::SetAside(2 * MIB), 6 * MIB).unwrap_err();
        assert!(error.to_string().contains("4194304 bytes left"), "{error}");
        fits(PageKind::SetAside(2 * MIB), 4 * MIB).unwrap();
        fits(PageKind::SetAside(1024 * MIB), 1024 * MIB).unwrap();
    }

    #[test]
    fn nodes_that_must_have_it_all_must_have_enough() {
        let (bind, turns) = (
            nodes(Policy::Bind, &[MIB, 5 * MIB]),
            nodes(Policy::Interleave, &[1]),
        );
        let nowhere = root(&[]);
        let fits = |binding, bytes| {
            check_nodes(
                nowhere.path(),
                &wanted(PageKind::Ordinary, Some(binding)),
                bytes,
            )
        };
        fits(&bind, 6 * MIB).unwrap();
        fits(&turns, 6 * MIB).unwrap();
        let error = fits(&bind, 8 * MIB).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        let said = "bind to nodes 0, 1 has 6291456 bytes left";
        assert!(error.to_string().contains(said), "{error}");
    }

    #[test]
    fn pages_set_aside_on_a_node_are_counted_there() {
        let of = "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages";
        let root = root(&[(of, "3\n")]);
        let bind = nodes(Policy::Bind, &[0]);
        let fits = |bytes| {
            let pages = PageKind::SetAside(2 * MIB);
            check_nodes(root.path(), &wanted(pages, Some(&bind)), bytes)
        };
        fits(6 * MIB).unwrap();
        let error = fits(8 * MIB).unwrap_err();
        let said = "4 huge pages of 2 MiB are needed, 3 are free to bind to node 0";
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(error.status(), Status::OutOfMemory);
    }

    #[test]
    fn no_page_is_of_two_threads() {
        assert_eq!(step(&wanted(PageKind::Ordinary, None)), STEP);
        assert_eq!(step(&wanted(PageKind::SetAside(2 * MIB), None)), STEP);
        assert_eq!(step(&wanted(PageKind::SetAside(1 << 30), None)), 1 << 30);
    }
}
