//! Physical memory. A chunk cannot be split, nor mapped in part.

use super::device::Device;
use crate::config::value::Location;
use crate::error::{Error, Result, Status};
use crate::sys::cuda::{AllocationProp, MemLocation};
use crate::sys::descriptors;
use cuda_sys::driver::sys::{
    CUmemAllocationHandleType, CUmemAllocationProp_st__bindgen_ty_1 as AllocationFlags,
    CUmemAllocationType, CUmemLocationType,
};
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// How a chunk can be handed to other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// Not at all.
    None,
    /// As a POSIX file descriptor.
    Fd,
    /// As a fabric handle, for other hosts of an NVLink domain.
    Fabric,
}

impl Share {
    fn handle_type(self) -> CUmemAllocationHandleType {
        match self {
            Share::None => CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            Share::Fd => CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
            Share::Fabric => CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_FABRIC,
        }
    }
}

/// A handle that stands for a chunk on every host of an NVLink domain.
pub type FabricHandle = [u8; 64];

/// What kind of chunk is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkSpec {
    /// Where it lives.
    pub location: Location,
    /// How it can be handed on.
    pub share: Share,
    /// Whether network cards must reach it (GPUDirect RDMA).
    pub rdma: bool,
}

impl ChunkSpec {
    /// A chunk at `location` that is nothing special.
    pub const fn plain(location: Location) -> ChunkSpec {
        ChunkSpec {
            location,
            share: Share::None,
            rdma: false,
        }
    }

    fn properties(self, device: &Device) -> AllocationProp {
        AllocationProp {
            type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: self.share.handle_type(),
            location: mem_location(self.location, device),
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: AllocationFlags {
                compressionType: 0,
                gpuDirectRDMACapable: self.rdma.into(),
                usage: 0,
                reserved: [0; 4],
            },
        }
    }

    /// The size of which chunks of this kind must be multiples.
    pub fn granularity(self, device: &Device) -> Result<u64> {
        const MINIMUM: c_int = 0;
        let mut bytes = 0usize;
        // SAFETY: both pointers are valid for the call.
        device.check(unsafe {
            device
                .cuda()
                .vmm_granularity(&mut bytes, &self.properties(device), MINIMUM)
        })?;
        Ok(bytes as u64)
    }
}

pub(super) fn mem_location(location: Location, device: &Device) -> MemLocation {
    match location {
        Location::Device => MemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: device.handle(),
        },
        Location::HostNuma(node) => MemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_HOST_NUMA,
            id: node,
        },
    }
}

/// One physical handle, released when dropped; memory stays until its last mapping is gone too.
pub struct Chunk {
    device: Arc<Device>,
    handle: u64,
    bytes: u64,
    spec: ChunkSpec,
    released: bool,
}

impl Chunk {
    /// Creates `bytes` of physical memory, a multiple of the granularity. Needs the device's context
    /// current: HIP makes it on the current device, whatever it is told.
    pub fn create(device: &Arc<Device>, bytes: u64, spec: ChunkSpec) -> Result<Chunk> {
        let mut handle = 0;
        // SAFETY: both pointers are valid for the call.
        device
            .check(unsafe {
                device
                    .cuda()
                    .vmm_create(&mut handle, bytes as usize, &spec.properties(device), 0)
            })
            .map_err(|error| device.explain_refusal(error).bytes(bytes))?;
        Ok(Chunk {
            device: device.clone(),
            handle,
            bytes,
            spec,
            released: false,
        })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The driver's generic allocation handle.
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// What kind it is.
    pub fn spec(&self) -> ChunkSpec {
        self.spec
    }

    /// Exports the chunk as a file descriptor, closed by exec.
    pub fn export_fd(&self) -> Result<OwnedFd> {
        let mut fd: c_int = -1;
        // SAFETY: this handle type writes one descriptor.
        unsafe { self.export(Share::Fd, std::ptr::from_mut(&mut fd).cast())? };
        if fd < 0 {
            return Err(Error::new(Status::Internal, "export")
                .detail(format!("the driver gave the descriptor {fd}")));
        }
        // SAFETY: the driver made it for whoever asks, so nobody else closes it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        descriptors::close_on_exec(&fd);
        Ok(fd)
    }

    /// Exports the chunk as a fabric handle, which other hosts of the NVLink domain can import.
    pub fn export_fabric(&self) -> Result<FabricHandle> {
        let mut handle: FabricHandle = [0; 64];
        // SAFETY: this handle type writes 64 bytes.
        unsafe { self.export(Share::Fabric, handle.as_mut_ptr().cast())? };
        Ok(handle)
    }

    /// Imports a chunk of `bytes` from a file descriptor, which stays the caller's.
    pub fn import_fd(device: &Arc<Device>, fd: BorrowedFd<'_>, bytes: u64) -> Result<Chunk> {
        let fd = fd.as_raw_fd() as usize as *mut c_void;
        // SAFETY: this handle type is passed by value in place of the pointer.
        unsafe { Chunk::import(device, Share::Fd, fd, bytes) }
    }

    /// Imports a chunk of `bytes` from a fabric handle.
    pub fn import_fabric(
        device: &Arc<Device>,
        mut handle: FabricHandle,
        bytes: u64,
    ) -> Result<Chunk> {
        // SAFETY: this handle type is read through the pointer.
        unsafe { Chunk::import(device, Share::Fabric, handle.as_mut_ptr().cast(), bytes) }
    }

    /// # Safety
    /// `out` must have room for what `share` writes.
    unsafe fn export(&self, share: Share, out: *mut c_void) -> Result<()> {
        let kind = share.handle_type().0 as c_int;
        // SAFETY: passed on to the caller; the handle is live.
        self.device
            .check(unsafe { self.device.cuda().vmm_export(out, self.handle, kind, 0) })
    }

    /// # Safety
    /// `shareable` must be what `share` reads.
    unsafe fn import(
        device: &Arc<Device>,
        share: Share,
        shareable: *mut c_void,
        bytes: u64,
    ) -> Result<Chunk> {
        let (kind, mut handle) = (share.handle_type().0 as c_int, 0);
        // SAFETY: passed on to the caller; `handle` is a valid out-pointer.
        device.check(unsafe { device.cuda().vmm_import(&mut handle, shareable, kind) })?;
        Ok(Chunk {
            device: device.clone(),
            handle,
            bytes,
            spec: ChunkSpec {
                share,
                ..ChunkSpec::plain(Location::Device)
            },
            released: false,
        })
    }

    /// Releases the handle; on failure it is still held and can be released again.
    pub fn release(&mut self) -> Result<()> {
        if !self.released {
            // SAFETY: the handle is live: `released` says so.
            self.device
                .check(unsafe { self.device.cuda().vmm_release(self.handle) })?;
            self.released = true;
        }
        Ok(())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::debug!("{error}");
        }
    }
}
