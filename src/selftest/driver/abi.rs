//! The driver's structs with their enumerations as integers: the cases pass numbers that no Rust
//! enumeration may hold.

use crate::sys::cuda as sys;
use cuda_sys::driver::sys::CUmemLocationType as LocationKind;
use std::ffi::c_void;

/// Where memory lies or who reaches it: kind and number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub kind: i32,
    pub id: i32,
}

impl Place {
    pub const NOWHERE: Place = Place { kind: 0, id: 0 };
    pub const HOST: Place = Place { kind: 2, id: 0 };
    pub const NODE_CURRENT: Place = Place { kind: 4, id: 0 };

    pub const fn device(id: i32) -> Place {
        Place { kind: 1, id }
    }

    pub const fn node(id: i32) -> Place {
        Place { kind: 3, id }
    }

    /// For the calls that take it by value; no kind above 4 can be asked for there.
    pub fn by_value(self) -> sys::MemLocation {
        let kind = match self.kind {
            1 => LocationKind::CU_MEM_LOCATION_TYPE_DEVICE,
            2 => LocationKind::CU_MEM_LOCATION_TYPE_HOST,
            3 => LocationKind::CU_MEM_LOCATION_TYPE_HOST_NUMA,
            4 => LocationKind::CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT,
            _ => LocationKind::CU_MEM_LOCATION_TYPE_INVALID,
        };
        sys::MemLocation {
            type_: kind,
            id: self.id,
        }
    }
}

/// What a chunk is asked to be.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    pub kind: i32,
    pub handle_types: i32,
    pub place: Place,
    pub win32: *mut c_void,
    pub compression: u8,
    pub rdma: u8,
    pub usage: u16,
    pub reserved: [u8; 4],
}

pub const PINNED: i32 = 1;
pub const SHARED_AS_FD: i32 = 1;
pub const SHARED_AS_WIN32: i32 = 2;
pub const SHARED_ON_FABRIC: i32 = 8;

impl Properties {
    /// Memory of `place`, nothing special.
    pub const fn at(place: Place) -> Properties {
        Properties {
            kind: PINNED,
            handle_types: 0,
            place,
            win32: std::ptr::null_mut(),
            compression: 0,
            rdma: 0,
            usage: 0,
            reserved: [0; 4],
        }
    }
}

/// Who may do what.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub place: Place,
    pub flags: i32,
}

pub const NO_ACCESS: i32 = 0;
pub const READ: i32 = 1;
pub const READ_WRITE: i32 = 3;

/// What a pool is asked to be.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PoolProperties {
    pub kind: i32,
    pub handle_types: i32,
    pub place: Place,
    pub win32: *mut c_void,
    pub most: usize,
    pub usage: u16,
    pub reserved: [u8; 54],
}

impl PoolProperties {
    pub const fn at(place: Place) -> PoolProperties {
        PoolProperties {
            kind: PINNED,
            handle_types: 0,
            place,
            win32: std::ptr::null_mut(),
            most: 0,
            usage: 0,
            reserved: [0; 54],
        }
    }
}

const _: () = assert!(size_of::<Place>() == size_of::<sys::MemLocation>());
const _: () = assert!(size_of::<Properties>() == size_of::<sys::AllocationProp>());
const _: () = assert!(size_of::<Access>() == size_of::<sys::AccessDesc>());
const _: () = assert!(size_of::<PoolProperties>() == size_of::<sys::PoolProps>());
