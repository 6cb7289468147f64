//! Pages of the host: mapped without anything behind them, then populated, by huge pages where the system
//! has them.

use super::limits;
use crate::error::{Error, Result, Status};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

/// What huge pages are aligned to, and their size on the machines of interest.
pub const HUGE_PAGE: u64 = 2 << 20;
/// Linux 5.14: populate page tables writable, without writing (madvise(2)).
const MADV_POPULATE_WRITE: libc::c_int = 23;
/// What lengths are multiples of.
pub const PAGE: u64 = 4096;
const MAP: &str = "map host memory";

/// A mapping of zeros or of a file, aligned to huge pages where it is as long as one; unmapped when dropped.
#[derive(Debug)]
pub struct Pages {
    address: u64,
    bytes: u64,
}

impl Pages {
    /// Maps `bytes`, a multiple of [`PAGE`] above 0. Takes no memory yet.
    pub fn map(bytes: u64) -> Result<Pages> {
        let align = if bytes < HUGE_PAGE { PAGE } else { HUGE_PAGE };
        let whole = (bytes.checked_add(align))
            .filter(|_| bytes > 0 && bytes % PAGE == 0)
            .ok_or_else(|| Error::invalid(MAP, format!("a size of {bytes} bytes")))?;
        // SAFETY: a new private mapping; nothing else is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                whole as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(lacking(MAP, bytes, &io::Error::last_os_error()));
        }
        let base = base as u64;
        let address = base.next_multiple_of(align);
        unmap(base, address - base);
        unmap(address + bytes, base + whole - address - bytes);
        let pages = Pages { address, bytes };
        pages.advise(libc::MADV_HUGEPAGE);
        // A forked child has no use for them, and must not make the parent's copies on write.
        pages.advise(libc::MADV_DONTFORK);
        Ok(pages)
    }

    /// Maps `bytes`, a multiple of `page`, from the pages of that length (2 MiB, 1 GiB) that the system's administrator
    /// has set aside. They are reserved, so that populating them does not fail.
    pub fn map_set_aside(bytes: u64, page: u64) -> Result<Pages> {
        if !page.is_power_of_two() || bytes == 0 || bytes % page != 0 {
            return Err(Error::invalid(
                MAP,
                format!("{bytes} bytes of pages of {page}"),
            ));
        }
        let there = || limits::huge_pages(Path::new("/"), page);
        if let Some(free) = there().filter(|free| *free < bytes / page) {
            return Err(too_few_set_aside(bytes, page, Some(free), ""));
        }
        let shift = page.trailing_zeros() as libc::c_int;
        // SAFETY: a new private mapping; nothing else is touched.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_HUGETLB
                    | (shift << libc::MAP_HUGE_SHIFT),
                -1,
                0,
            )
        };
        if address != libc::MAP_FAILED {
            let address = address as u64;
            let pages = Pages { address, bytes };
            pages.advise(libc::MADV_DONTFORK);
            return Ok(pages);
        }
        let error = io::Error::last_os_error();
        Err(too_few_set_aside(
            bytes,
            page,
            there(),
            &format!(": {error}"),
        ))
    }

    /// Maps `bytes` of a file, a multiple of [`PAGE`] above 0, aligned as [`Pages::map`] does; what is written goes to
    /// the file.
    pub fn map_file(file: &File, bytes: u64) -> Result<Pages> {
        let pages = Pages::map(bytes)?;
        // SAFETY: over a mapping of ours that nobody knows yet, and no longer than it.
        let mapped = unsafe {
            libc::mmap(
                pages.address as *mut _,
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(lacking(MAP, bytes, &io::Error::last_os_error()));
        }
        pages.advise(libc::MADV_HUGEPAGE);
        pages.advise(libc::MADV_DONTFORK);
        Ok(pages)
    }

    /// The same pages as parts of `most` bytes, a multiple of [`HUGE_PAGE`], and what is left.
    pub fn split(mut self, most: u64) -> Vec<Pages> {
        let mut parts = Vec::new();
        let most = most.next_multiple_of(HUGE_PAGE).max(HUGE_PAGE);
        while self.bytes > most {
            let address = self.address;
            parts.push(Pages {
                address,
                bytes: most,
            });
            self.address += most;
            self.bytes -= most;
        }
        parts.push(self);
        parts
    }

    /// The first `bytes`, a multiple of [`PAGE`] below its length and above 0, and the rest.
    pub fn split_at(mut self, bytes: u64) -> (Pages, Pages) {
        assert!(
            bytes > 0 && bytes < self.bytes && bytes % PAGE == 0,
            "a cut inside the pages"
        );
        let first = Pages {
            address: self.address,
            bytes,
        };
        self.address += bytes;
        self.bytes -= bytes;
        (first, self)
    }

    /// These and those that lie right behind them as one.
    pub fn join(mut self, after: Pages) -> Pages {
        assert_eq!(self.address + self.bytes, after.address, "neighbours");
        self.bytes += after.bytes;
        std::mem::forget(after);
        self
    }

    /// Gives the memory behind pages of no file back; the addresses stay, and read as zeros. Pages that were set aside stay with
    /// kernels before 5.18.
    pub fn empty(&self) {
        self.advise(libc::MADV_DONTNEED);
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn advise(&self, advice: libc::c_int) -> bool {
        // SAFETY: the mapping is this one's own; none of the advices used reaches beyond it.
        unsafe { libc::madvise(self.address as *mut _, self.bytes as usize, advice) == 0 }
    }

    /// Puts memory behind all of it, on the calling thread.
    pub fn populate(&self) -> Result<()> {
        self.populate_part(0, self.bytes)
    }

    /// Puts memory behind `bytes` of it from `offset` on, multiples of [`PAGE`], on the calling thread.
    pub fn populate_part(&self, offset: u64, bytes: u64) -> Result<()> {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "a part of the pages"
        );
        let address = (self.address + offset) as *mut _;
        // SAFETY: a part of the mapping, whose contents stay.
        if unsafe { libc::madvise(address, bytes as usize, MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(lacking("populate host memory", bytes, &error));
        }
        // An older kernel: each page is written to, and stays as it is, since others may share it.
        for page in (offset..offset + bytes).step_by(PAGE as usize) {
            // SAFETY: inside the mapping, and only used atomically here.
            let byte = unsafe { AtomicU8::from_ptr((self.address + page) as *mut u8) };
            byte.fetch_or(0, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        unmap(self.address, self.bytes);
    }
}

fn unmap(address: u64, bytes: u64) {
    if bytes > 0 {
        // SAFETY: a part of a mapping of this module that nobody uses.
        unsafe { libc::munmap(address as *mut _, bytes as usize) };
    }
}

fn lacking(operation: &'static str, bytes: u64, error: &io::Error) -> Error {
    Error::new(Status::OutOfMemory, operation)
        .bytes(bytes)
        .detail(error.to_string())
        .advice(match limits::addresses() {
            Some(most) => format!("The process may have {most} bytes of addresses (ulimit -v)"),
            None => {
                "The host has too little memory left, or a limit is set for the process".to_owned()
            }
        })
}

/// Too few pages of a length are set aside, or free where they were to be; `why` says who says so.
pub fn too_few_set_aside(bytes: u64, page: u64, free: Option<u64>, why: &str) -> Error {
    let free = match free {
        Some(free) => format!("{free} are free"),
        None => "the system has none of that length".to_owned(),
    };
    Error::new(Status::OutOfMemory, MAP)
        .bytes(bytes)
        .detail(format!(
            "{} huge pages of {} MiB are needed, {free}{why}",
            bytes / page,
            page >> 20
        ))
        .advice(format!(
            "Have them set aside (as root: echo N > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages, or in the folder of that name of a node), or use ordinary memory",
            page >> 10
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_and_zero() {
        let pages = Pages::map(2 * HUGE_PAGE).unwrap();
        assert_eq!(pages.address() % HUGE_PAGE, 0);
        pages.populate().unwrap();
        // SAFETY: inside the mapping.
        let last = unsafe { *((pages.address() + pages.bytes() - 1) as *const u8) };
        assert_eq!(last, 0);
    }

    #[test]
    fn short_ones_take_no_huge_page() {
        let pages = Pages::map(3 * PAGE).unwrap();
        pages.populate_part(PAGE, 2 * PAGE).unwrap();
        assert_eq!((pages.bytes(), pages.address() % PAGE), (3 * PAGE, 0));
    }

    #[test]
    fn pages_that_nobody_set_aside_are_an_error_that_counts_them() {
        let error = Pages::map_set_aside(1 << 50, HUGE_PAGE).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        assert!(
            error.to_string().contains("536870912 huge pages of 2 MiB"),
            "{error}"
        );
        let odd = [
            (HUGE_PAGE + 1, HUGE_PAGE),
            (0, HUGE_PAGE),
            (3 << 20, 3 << 20),
        ];
        for (bytes, page) in odd {
            let error = Pages::map_set_aside(bytes, page).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument);
        }
    }

    #[test]
    fn parts_lie_one_behind_the_other() {
        let pages = Pages::map(5 * HUGE_PAGE).unwrap();
        let begin = pages.address();
        let parts = pages.split(2 * HUGE_PAGE);
        let seen: Vec<_> = (parts.iter())
            .map(|part| (part.address() - begin, part.bytes()))
            .collect();
        let expected = [(0, 2), (2, 2), (4, 1)].map(|(at, len)| (at * HUGE_PAGE, len * HUGE_PAGE));
        assert_eq!(seen, expected);
        parts.iter().for_each(|part| part.populate().unwrap());
    }

    #[test]
    fn what_was_cut_is_joined_and_emptied() {
        let pages = Pages::map(3 * HUGE_PAGE).unwrap();
        let begin = pages.address();
        pages.populate().unwrap();
        let (first, rest) = pages.split_at(HUGE_PAGE);
        // SAFETY: inside the mapping.
        let byte = |pages: &Pages| unsafe { AtomicU8::from_ptr(pages.address() as *mut u8) };
        byte(&first).store(3, Ordering::Relaxed);
        byte(&rest).store(4, Ordering::Relaxed);
        rest.empty();
        assert_eq!(
            [&first, &rest].map(|pages| byte(pages).load(Ordering::Relaxed)),
            [3, 0]
        );
        let pages = first.join(rest);
        assert_eq!((pages.address(), pages.bytes()), (begin, 3 * HUGE_PAGE));
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for bytes in [0, 1, HUGE_PAGE + 1, u64::MAX] {
            assert!(Pages::map(bytes).is_err(), "{bytes}");
        }
        assert_eq!(
            Pages::map(1 << 62).unwrap_err().status(),
            Status::OutOfMemory
        );
    }
}
