//! Memory of the host by itself, of no device: mapped, bound to a node, populated by a few threads there, and
//! pinned by registering it. If a step fails, those before it are undone.

use crate::error::{Error, Result, Status, Warning, Warnings};
use crate::gpu::{Device, Registered};
use crate::sys::numa::{self, Node};
use crate::sys::pages::{self, HUGE_PAGE, PAGE, Pages};
use crate::sys::shm::Segment;
use std::ffi::c_uint;
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
    /// The node that it is to be on.
    pub node: Option<&'a Node>,
    /// The device whose driver pins it, and the driver's flags.
    pub pinned: Option<(&'a Arc<Device>, c_uint)>,
    /// As many bytes are registered at once.
    pub most_registered: u64,
}

/// Memory of the host.
pub struct HostBlock {
    /// One for as many bytes as are registered at once, where it is pinned.
    pinned: Vec<Registered>,
    /// Else all of it.
    plain: Option<Pages>,
    address: u64,
    bytes: u64,
}

/// Threads that populate: what the first sleep's pipeline was fastest with. Not measured for blocks by themselves.
pub(super) const THREADS: u64 = 8;
/// What one of them populates at a time.
const STEP: u64 = 16 << 20;
/// Registrations of 512 GiB fail on drivers of the 580 series.
pub const MOST_REGISTERED: u64 = 256 << 30;

impl HostBlock {
    /// Makes what is wanted.
    pub fn make(wanted: &Wanted<'_>, warnings: &Warnings) -> Result<HostBlock> {
        let bytes = length(wanted)?;
        check_left(wanted, bytes)?;
        let pages = map_bound(wanted, bytes, warnings)?;
        let address = pages.address();
        let processors = wanted.node.map_or(&[][..], |node| &node.processors);
        populate(&pages, 0, bytes, processors, THREADS)?;
        let (mut pinned, mut plain) = (Vec::new(), None);
        match wanted.pinned {
            None => plain = Some(pages),
            Some((device, flags)) => {
                for part in pages.split(wanted.most_registered) {
                    match Registered::register_as(device, part, flags) {
                        Ok(part) => pinned.push(part),
                        Err(error) => {
                            while pinned.pop().is_some() {}
                            return Err(error.advice(format!(
                                "{bytes} bytes were to be pinned; the process may lock {} (ulimit -l)",
                                pages::lockable()
                            )));
                        }
                    }
                }
            }
        }
        Ok(HostBlock {
            pinned,
            plain,
            address,
            bytes,
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
        self.pinned
            .iter()
            .skip(1)
            .map(Registered::address)
            .collect()
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
    (bytes.checked_next_multiple_of(page))
        .filter(|bytes| *bytes > 0 && *bytes <= 1 << 47)
        .ok_or_else(|| Error::invalid(operation, format!("a size of {bytes} bytes")))
}

/// What the system has not got is not tried: it would swap and kill before it said no.
pub(super) fn check_left(wanted: &Wanted<'_>, bytes: u64) -> Result<()> {
    // Pages that are set aside are in no other count, and are reserved by the mapping; others' are theirs.
    let is_there = match wanted.pages {
        PageKind::Ordinary => false,
        PageKind::SetAside(_) => true,
        PageKind::Shared(segment) => !segment.is_own(),
    };
    if is_there {
        return Ok(());
    }
    let on_node = wanted.node.map_or(u64::MAX, |node| node.free);
    let left = pages::available().min(on_node);
    if bytes <= left {
        return Ok(());
    }
    let node = wanted.node.map(|node| format!(" on node {}", node.number));
    Err(Error::new(Status::OutOfMemory, wanted.operation)
        .bytes(bytes)
        .detail(format!(
            "the host has {left} bytes left{}",
            node.unwrap_or_default()
        ))
        .advice("Ask for less, or free memory of the host; a control group may limit the process"))
}

/// Addresses for `bytes`, of the node that is wanted, with nothing behind them yet.
pub(super) fn map_bound(wanted: &Wanted<'_>, bytes: u64, warnings: &Warnings) -> Result<Pages> {
    let pages = match wanted.pages {
        PageKind::Ordinary => Pages::map(bytes)?,
        PageKind::SetAside(page) => Pages::map_set_aside(bytes, page)?,
        PageKind::Shared(segment) => segment.map()?,
    };
    if let Some(node) = wanted.node {
        bind(&pages, node, warnings)?;
    }
    Ok(pages)
}

fn bind(pages: &Pages, node: &Node, warnings: &Warnings) -> Result<()> {
    if let Some(error) = numa::bind(pages, node.number)? {
        warnings.warn(Warning::Unbound, || {
            format!(
                "memory is not bound to node {}, since the system refuses mbind ({error}): it comes from wherever the \
                 threads that touch it first run; a container needs CAP_SYS_NICE for it",
                node.number
            )
        });
    }
    Ok(())
}

/// Puts memory behind `bytes` from `offset` on, by at most `threads` on these processors, where any are named.
pub(super) fn populate(
    pages: &Pages,
    offset: u64,
    bytes: u64,
    processors: &[usize],
    threads: u64,
) -> Result<()> {
    let end = offset + bytes;
    let steps = bytes.div_ceil(STEP);
    let there = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let begin = offset + next.fetch_add(1, Ordering::Relaxed) * STEP;
            if begin >= end {
                return Ok(());
            }
            pages.populate_part(begin, STEP.min(end - begin))?;
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
