//! Memory of the host by itself, of no device: mapped, bound to a node, populated by a few threads there, and
//! pinned by registering it. If a step fails, those before it are undone.

use crate::error::{Error, Result, Status, Warning, Warnings};
use crate::gpu::{Device, Registered};
use crate::sys::numa;
use crate::sys::pages::{self, HUGE_PAGE, PAGE, Pages};
use crate::sys::policy::Binding;
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

/// Threads that populate: what the first sleep's pipeline was fastest with. Not measured for blocks by themselves.
const THREADS: u64 = 8;
/// What one of them populates at a time.
const STEP: u64 = 64 << 20;
/// Registrations of 512 GiB fail on drivers of the 580 series.
const MOST_REGISTERED: u64 = 256 << 30;

impl HostBlock {
    /// Makes what is wanted.
    pub fn make(wanted: &Wanted<'_>, warnings: &Warnings) -> Result<HostBlock> {
        let bytes = length(wanted)?;
        check_left(wanted, bytes)?;
        let pages = match wanted.pages {
            PageKind::Ordinary => Pages::map(bytes)?,
            PageKind::SetAside(page) => Pages::map_set_aside(bytes, page)?,
            PageKind::Shared(segment) => segment.map()?,
        };
        let address = pages.address();
        let is_bound = match wanted.binding {
            Some(binding) => bind(&pages, binding, warnings)?,
            None => false,
        };
        if is_bound {
            check_nodes(wanted, bytes)?;
        }
        let processors = wanted.binding.map(Binding::processors);
        populate(&pages, &processors.unwrap_or_default())?;
        let (mut pinned, mut plain) = (Vec::new(), None);
        match wanted.pinned {
            None => plain = Some(pages),
            Some((device, flags)) => {
                for part in pages.split(MOST_REGISTERED) {
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

fn length(wanted: &Wanted<'_>) -> Result<u64> {
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
fn check_left(wanted: &Wanted<'_>, bytes: u64) -> Result<()> {
    // Pages that are set aside are in no other count, and are reserved by the mapping; others' are theirs.
    let is_there = match wanted.pages {
        PageKind::Ordinary => false,
        PageKind::SetAside(_) => true,
        PageKind::Shared(segment) => !segment.is_own(),
    };
    if is_there {
        return Ok(());
    }
    let left = pages::available();
    if bytes <= left {
        return Ok(());
    }
    Err(lacking(wanted, bytes, left, ""))
}

fn lacking(wanted: &Wanted<'_>, bytes: u64, left: u64, place: &str) -> Error {
    Error::new(Status::OutOfMemory, wanted.operation)
        .bytes(bytes)
        .detail(format!("the host has {left} bytes left{place}"))
        .advice("Ask for less, or free memory of the host; a control group may limit the process")
}

/// Memory that must be of some nodes is not elsewhere when they have run out: the system kills then.
fn check_nodes(wanted: &Wanted<'_>, bytes: u64) -> Result<()> {
    let Some((nodes, binding)) = wanted.binding.and_then(|all| Some((all.only()?, all))) else {
        return Ok(());
    };
    if let PageKind::SetAside(_) = wanted.pages {
        return Ok(());
    }
    let left = nodes
        .iter()
        .fold(0, |sum: u64, node| sum.saturating_add(node.free));
    match bytes <= left {
        true => Ok(()),
        false => Err(lacking(
            wanted,
            bytes,
            left,
            &format!(" to {}", binding.text()),
        )),
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

/// Puts memory behind all pages, by threads on these processors, where any are named.
fn populate(pages: &Pages, processors: &[usize]) -> Result<()> {
    let steps = pages.bytes().div_ceil(STEP);
    let there = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let begin = next.fetch_add(1, Ordering::Relaxed) * STEP;
            if begin >= pages.bytes() {
                return Ok(());
            }
            pages.populate_part(begin, STEP.min(pages.bytes() - begin))?;
        }
    };
    if steps == 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS.min(steps).min(there))
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
