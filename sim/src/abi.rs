//! The driver's structs with their enums as integers: a caller may put any number there, and reading one into a Rust enum would be undefined.
//! Sizes are checked against the bindings.

use cuda_sys::driver::sys;
use std::ffi::c_void;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    pub kind: i32,
    pub id: i32,
}

impl Location {
    pub const NONE: Location = Location { kind: 0, id: -2 };
    pub const HOST: Location = Location {
        kind: LOCATION_HOST,
        id: -1,
    };
    pub fn device(id: i32) -> Location {
        Location {
            kind: LOCATION_DEVICE,
            id,
        }
    }
}

pub const LOCATION_DEVICE: i32 = 1;
pub const LOCATION_HOST: i32 = 2;
pub const LOCATION_HOST_NUMA: i32 = 3;
pub const LOCATION_HOST_NUMA_CURRENT: i32 = 4;

pub const HANDLE_POSIX_FD: u32 = 1;
/// The two kinds of Windows handles.
pub const HANDLE_WINDOWS: u32 = 2 | 4;
pub const HANDLE_FABRIC: u32 = 8;
pub const ALLOCATION_PINNED: i32 = 1;

pub const ACCESS_NONE: i32 = 0;
pub const ACCESS_READ: i32 = 1;
pub const ACCESS_READ_WRITE: i32 = 3;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AllocationProp {
    pub kind: i32,
    pub handle_types: u32,
    pub location: Location,
    pub win32: *mut c_void,
    pub compression: u8,
    pub rdma: u8,
    pub usage: u16,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AccessDesc {
    pub location: Location,
    pub flags: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PoolProps {
    pub kind: i32,
    pub handle_types: u32,
    pub location: Location,
    pub win32: *mut c_void,
    pub max_size: usize,
    pub usage: u16,
    pub reserved: [u8; 54],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Uuid {
    pub bytes: [u8; 16],
}

const _: () = assert!(size_of::<Location>() == size_of::<sys::CUmemLocation>());
const _: () = assert!(size_of::<AllocationProp>() == size_of::<sys::CUmemAllocationProp>());
const _: () = assert!(size_of::<AccessDesc>() == size_of::<sys::CUmemAccessDesc>());
const _: () = assert!(size_of::<PoolProps>() == size_of::<sys::CUmemPoolProps>());
const _: () = assert!(size_of::<Uuid>() == size_of::<sys::CUuuid>());
