//! Plain memory of the process's heap, aligned as asked for.

use crate::error::{Error, Result, Status};
use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Zeros on the heap; freed when dropped.
#[derive(Debug)]
pub struct Heap {
    address: u64,
    layout: Layout,
}

impl Heap {
    /// `bytes` above 0, at a multiple of `align`, a power of two.
    pub fn new(operation: &'static str, bytes: u64, align: u64) -> Result<Heap> {
        let layout = Layout::from_size_align(bytes as usize, align as usize)
            .ok()
            .filter(|layout| layout.size() > 0)
            .ok_or_else(|| {
                let what = format!("a size of {bytes} bytes at an alignment of {align}");
                Error::invalid(operation, what)
            })?;
        // SAFETY: the layout has a size above 0.
        let address = unsafe { alloc_zeroed(layout) } as u64;
        if address == 0 {
            return Err(Error::new(Status::OutOfMemory, operation)
                .bytes(bytes)
                .detail("the system has no such room on the heap"));
        }
        Ok(Heap { address, layout })
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and by nobody freed.
        unsafe { dealloc(self.address as *mut u8, self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_power_of_two() {
        for shift in 0..24 {
            let heap = Heap::new("test", 5000, 1 << shift).unwrap();
            assert_eq!(heap.address() % (1 << shift), 0);
            // SAFETY: inside the block, which nobody else has.
            let bytes = unsafe { std::slice::from_raw_parts(heap.address() as *const u8, 5000) };
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn what_is_impossible_is_an_error() {
        for (bytes, align) in [(0, 8), (8, 0), (8, 3), (u64::MAX, 8), (8, u64::MAX)] {
            let error = Heap::new("test", bytes, align).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument, "{bytes} {align}");
        }
        let error = Heap::new("test", 1 << 62, 8).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
    }
}
