//! Cells: places whose memory a caller takes away and brings back by himself, at addresses that he
//! reserved or that we did. One chunk backs a cell, or with HIP one behind the other. Their handles can be
//! read at an address, since programs that do this keep that address in place of the handle.

use super::backing::Backing;
use super::table::{Extent, Extents, Owner, Run, Table};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::{ChunkSpec, Reservation};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Eight bytes a chunk at an address that stays: the driver's handles of what backs a cell, or 0.
#[derive(Clone, Debug)]
pub struct Handles {
    shown: Arc<[AtomicU64]>,
    chunk_bytes: u64,
}

impl Handles {
    /// None yet, of a cell of `bytes` behind which chunks of `chunk_bytes` are to be, the last of them maybe
    /// shorter. Neither is zero.
    pub fn new(bytes: u64, chunk_bytes: u64) -> Handles {
        let count = bytes.div_ceil(chunk_bytes);
        Handles {
            shown: (0..count).map(|_| AtomicU64::new(0)).collect(),
            chunk_bytes,
        }
    }

    /// Where the first one's bytes are.
    pub fn address(&self) -> u64 {
        self.shown.as_ptr() as u64
    }

    /// The first one.
    pub fn first(&self) -> u64 {
        self.shown[0].load(Ordering::Acquire)
    }

    /// Whether there is no chunk.
    pub fn are_none(&self) -> bool {
        let is_none = |shown: &AtomicU64| shown.load(Ordering::Acquire) == 0;
        self.shown.iter().all(is_none)
    }

    /// The length of all chunks but the last.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// The chunks' offsets and lengths.
    fn chunks(&self, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
        let each = self.chunk_bytes;
        let offsets = (0..self.shown.len() as u64).map(move |index| index * each);
        offsets.map(move |offset| (offset, each.min(bytes - offset)))
    }

    /// The one of the chunk at an offset.
    fn at(&self, offset: u64) -> &AtomicU64 {
        &self.shown[(offset / self.chunk_bytes) as usize]
    }

    fn are(&self, other: &Handles) -> bool {
        Arc::ptr_eq(&self.shown, &other.shown)
    }
}

/// Whether there is memory behind a cell, and who brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// There is, and all of it that the library has to do with.
    pub is_mapped: bool,
    /// The library took it, or a part, and wake brings that back.
    pub is_asleep: bool,
}

impl Behind {
    /// A caller took it, or there has not been any yet.
    pub const NOTHING: Behind = Behind {
        is_mapped: false,
        is_asleep: false,
    };
}

/// What a cell is to be.
#[derive(Clone, Debug)]
pub struct CellSpec {
    /// Its length, a multiple of the granularity.
    pub bytes: u64,
    /// The kind of its chunk.
    pub chunk: ChunkSpec,
    /// The tag of what lives in it.
    pub tag: TagId,
    /// Where the handles of its chunks are shown, and how long these are.
    pub handles: Handles,
}

/// What more there is to a run that is a cell.
pub(super) struct CellState {
    handles: Handles,
    /// The caller took its memory by himself, and by himself he brings it back.
    is_taken: bool,
    /// He was told that it failed half way; what he does again may find nothing left to do.
    is_owed: bool,
}

impl Run {
    /// Shows the handle of the chunk at a place, or that there is none, to whoever looks for it.
    pub(super) fn show_handle(&self, place: u64) {
        if let Some(cell) = &self.cell {
            let chunk = self.extents.get(&place).and_then(|e| e.chunk.as_ref());
            let handle = chunk.map_or(0, |chunk| chunk.handle());
            let offset = place - self.reservation.address();
            cell.handles.at(offset).store(handle, Ordering::Release);
        }
    }

    /// Whether what is shown is true of the extent at a place.
    pub(super) fn shows_handle(&self, place: u64, extent: &Extent) -> bool {
        let handle = match (&extent.chunk, &extent.mapping) {
            (None, _) => 0,
            (Some(chunk), Some(_)) => chunk.handle(),
            // Being made, or about to go.
            (Some(_), None) => return true,
        };
        let offset = place - self.reservation.address();
        let shown = |cell: &CellState| cell.handles.at(offset).load(Ordering::Acquire);
        self.cell.as_ref().is_none_or(|cell| shown(cell) == handle)
    }

    /// Whether its chunk comes and goes by calls of the caller alone, at this time or always.
    pub(super) fn is_callers_own(&self) -> bool {
        self.reservation.is_lent() || self.cell.as_ref().is_some_and(|cell| cell.is_taken)
    }

    fn take(&mut self, is_taken: bool, is_owed: bool) {
        if let Some(cell) = &mut self.cell {
            cell.is_taken = is_taken;
            cell.is_owed = is_owed;
        }
    }
}

impl Extents {
    /// Reserves addresses for a cell, with nothing behind them. [`Extents::retire`] frees them.
    pub fn reserve_cell(&self, spec: &CellSpec, align: u64) -> Result<u64> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let reservation = self.reserve_beside(&table, spec.bytes, align)?;
        let address = reservation.address();
        let run = self.cell_run(spec, reservation);
        table.runs.insert(address, run);
        tracing::debug!("{address:#x}: {} bytes reserved for a cell", spec.bytes);
        Ok(address)
    }

    /// Puts new chunks behind a cell that has none. All or nothing.
    pub fn back_cell(&self, address: u64, handles: &Handles) -> Result<()> {
        const OPERATION: &str = "create and map";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let run = table.cell(OPERATION, address, handles)?;
        let bytes = run.reservation.bytes();
        for extent in run.extents.values() {
            if extent.mapping.is_some() {
                return Err(refused(
                    OPERATION,
                    format!("{address:#x} is mapped already"),
                ));
            }
            if extent.chunk.is_some() {
                return Err(Error::new(Status::Busy, OPERATION)
                    .detail(format!(
                        "the memory before at {address:#x} is not released yet"
                    ))
                    .advice("Try again: every call tries to release it"));
            }
            let sleeps = match (&extent.backup, &extent.guard) {
                (Some(_), _) => Some("its contents are saved"),
                (None, Some(_)) => Some("zeros stand behind it meanwhile"),
                (None, None) => None,
            };
            if let Some(how) = sleeps {
                return Err(Error::new(Status::Busy, OPERATION)
                    .detail(format!("{address:#x} sleeps: {how}"))
                    .advice("Wake its tag instead"));
            }
        }
        self.fill(&mut table, address, bytes, backings(handles, bytes))?;
        if let Some(run) = table.runs.get_mut(&address) {
            run.take(false, false);
        }
        tracing::debug!("{address:#x}: {bytes} bytes mapped in a cell");
        Ok(())
    }

    /// Takes the chunks from behind a cell that no work uses any more; the address stays. After a
    /// failure it can be called again and carries on.
    pub fn unback_cell(&self, address: u64, handles: &Handles) -> Result<()> {
        const OPERATION: &str = "unmap and release";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let run = table.cell(OPERATION, address, handles)?;
        let is_owed = run.cell.as_ref().is_some_and(|cell| cell.is_owed);
        if !is_owed && run.extents.values().all(|extent| extent.chunk.is_none()) {
            return Err(refused(OPERATION, format!("{address:#x} is not mapped")));
        }
        if run.extents.values().any(|extent| extent.pins > 0) {
            let detail = format!("{address:#x} is pinned");
            return Err(Error::new(Status::Busy, OPERATION)
                .detail(detail)
                .advice("Unpin it first"));
        }
        let places: Vec<u64> = run.extents.keys().copied().collect();
        let outcome = (self.unbind(run, &places)).and_then(|_| self.let_go_of_held(run));
        match outcome {
            Ok(_) => {
                run.take(true, false);
                // What it was saved to once is not what it will hold.
                let stale = run.extents.values_mut().map(|extent| extent.backup.take());
                let stale: Vec<_> = stale.collect();
                // Given up once nobody has to wait for the table.
                drop(table);
                drop(stale);
            }
            Err(_) => {
                // As long as all of it is mapped nothing has been done.
                let is_whole = run.extents.values().all(|extent| extent.mapping.is_some());
                run.take(!is_whole, !is_whole);
                table.leave_unmapped(&places);
            }
        }
        outcome?;
        tracing::debug!("{address:#x}: a cell unmapped");
        Ok(())
    }

    /// Backs addresses that the caller reserved by new chunks. All or nothing.
    pub fn map_lent(&self, address: u64, spec: &CellSpec) -> Result<()> {
        const OPERATION: &str = "create and map";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        if let Some(taken) = table.overlap(address, spec.bytes) {
            let detail = format!("{taken:#x} is in use by the library or mapped already");
            return Err(refused(OPERATION, detail));
        }
        let reservation = Reservation::lent(&self.device, address, spec.bytes);
        let run = self.cell_run(spec, reservation);
        table.runs.insert(address, run);
        let backings = backings(&spec.handles, spec.bytes);
        let outcome = self.fill(&mut table, address, spec.bytes, backings);
        match outcome {
            Ok(()) => tracing::debug!("{address:#x}: {} bytes mapped", spec.bytes),
            Err(_) => table.forget_if_empty(address),
        }
        outcome
    }

    /// Undoes [`Extents::map_lent`] where no work uses the memory any more. After a failure it can be
    /// called again and carries on.
    pub fn unmap_lent(&self, address: u64, handles: &Handles) -> Result<()> {
        self.unback_cell(address, handles)?;
        lock(&self.table).forget_if_empty(address);
        Ok(())
    }

    /// What is behind the cell at an address.
    pub fn behind_cell(&self, address: u64) -> Behind {
        let table = lock(&self.table);
        let Some(run) = table.runs.get(&address) else {
            return Behind::NOTHING;
        };
        let is_mapped = |extent: &Extent| extent.mapping.is_some();
        let is_awake = |extent: &Extent| is_mapped(extent) && !extent.is_unfilled;
        let is_asleep = !run.is_callers_own() && !run.extents.values().all(is_awake);
        Behind {
            is_mapped: !is_asleep && run.extents.values().any(is_mapped),
            is_asleep,
        }
    }

    fn cell_run(&self, spec: &CellSpec, reservation: Reservation) -> Run {
        let empty = |bytes| Extent {
            bytes,
            chunk: None,
            mapping: None,
            alias: false,
            backup: None,
            pins: 0,
            exports: Vec::new(),
            is_unfilled: false,
            guard: None,
        };
        let chunks = spec.handles.chunks(spec.bytes);
        let places = chunks.map(|(offset, bytes)| (reservation.address() + offset, empty(bytes)));
        Run {
            extents: places.collect(),
            reservation,
            spec: spec.chunk,
            owner: Owner::Cell,
            tag: spec.tag,
            of_tag: self.gauge_of(spec.tag),
            is_leaving: false,
            // Until it has memory for the first time.
            cell: Some(CellState {
                handles: spec.handles.clone(),
                is_taken: true,
                is_owed: false,
            }),
        }
    }
}

impl Table {
    /// The cell at an address, if it still is the one that `handles` belong to.
    fn cell(
        &mut self,
        operation: &'static str,
        address: u64,
        handles: &Handles,
    ) -> Result<&mut Run> {
        let run = self.runs.get_mut(&address);
        let run = run.filter(|run| {
            let cell = run.cell.as_ref();
            cell.is_some_and(|cell| cell.handles.are(handles))
        });
        run.ok_or_else(|| {
            Error::new(Status::NotOwned, operation)
                .detail(format!("{address:#x} is freed or was mapped by others"))
        })
    }

    /// An address of the stretch that is in a range of the table. What a failed [`Extents::map_lent`]
    /// left is not, once it is given back.
    fn overlap(&mut self, address: u64, bytes: u64) -> Option<u64> {
        let end = address.saturating_add(bytes);
        let before = self.runs.range(..=address).next_back().map(|(at, _)| *at);
        let within = self.runs.range(address..end).map(|(at, _)| *at);
        let near: Vec<u64> = before.into_iter().chain(within).collect();
        near.iter().for_each(|at| self.forget_if_empty(*at));
        near.into_iter().find_map(|at| {
            let run = self.runs.get(&at)?;
            (at + run.reservation.bytes() > address).then_some(at.max(address))
        })
    }

    /// Forgets addresses that the caller lent once nothing of ours is there.
    fn forget_if_empty(&mut self, address: u64) {
        let is_empty = |run: &Run| {
            run.reservation.is_lent() && run.extents.values().all(|extent| extent.chunk.is_none())
        };
        if self.runs.get(&address).is_some_and(is_empty) {
            self.runs.remove(&address);
        }
    }
}

fn backings(handles: &Handles, bytes: u64) -> Vec<Backing> {
    let chunks = handles.chunks(bytes);
    chunks.map(|(_, bytes)| Backing::New(bytes)).collect()
}

fn refused(operation: &'static str, detail: String) -> Error {
    Error::new(Status::InvalidArgument, operation).detail(detail)
}
