//! Cells: places whose memory a caller takes away and brings back by himself, at addresses that he
//! reserved or that we did. One chunk backs one cell. Its handle can be read at an address, since
//! programs that do this keep that address in place of the handle.

use super::backing::Backing;
use super::table::{Extent, Extents, Owner, Run, Table};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::{ChunkSpec, Reservation};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Eight bytes at an address that stays: the driver's handle of what backs a cell, or 0.
#[derive(Clone, Debug, Default)]
pub struct HandleCell(Arc<AtomicU64>);

impl HandleCell {
    /// Where the bytes are.
    pub fn address(&self) -> u64 {
        Arc::as_ptr(&self.0) as u64
    }

    /// The handle.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn show(&self, handle: u64) {
        self.0.store(handle, Ordering::Release);
    }

    fn is(&self, other: &HandleCell) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Whether there is memory behind a cell, and who brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// There is.
    pub is_mapped: bool,
    /// There is none since the library took it, and wake brings it back.
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
    /// Where its handle is shown.
    pub handle: HandleCell,
}

/// What more there is to a run that is a cell.
pub(super) struct CellState {
    handle: HandleCell,
    /// The caller took its memory by himself, and by himself he brings it back.
    is_taken: bool,
}

impl CellState {
    /// Shows that there is no chunk.
    pub(super) fn hide_handle(&self) {
        self.handle.show(0);
    }
}

impl Run {
    /// Shows the handle of the chunk at a place to whoever looks for it.
    pub(super) fn show_handle(&self, place: u64) {
        let extent = self.extents.get(&place);
        let chunk = extent.and_then(|extent| extent.chunk.as_ref());
        if let (Some(cell), Some(chunk)) = (&self.cell, chunk) {
            cell.handle.show(chunk.handle());
        }
    }

    /// Whether what is shown is true of its only extent.
    pub(super) fn shows_handle(&self, extent: &Extent) -> bool {
        let handle = match (&extent.chunk, &extent.mapping) {
            (None, _) => 0,
            (Some(chunk), Some(_)) => chunk.handle(),
            // Being made, or about to go.
            (Some(_), None) => return true,
        };
        self.cell
            .as_ref()
            .is_none_or(|cell| cell.handle.get() == handle)
    }

    /// Whether its chunk comes and goes by calls of the caller alone, at this time or always.
    pub(super) fn is_callers_own(&self) -> bool {
        self.reservation.is_lent() || self.cell.as_ref().is_some_and(|cell| cell.is_taken)
    }

    fn take(&mut self, is_taken: bool) {
        if let Some(cell) = &mut self.cell {
            cell.is_taken = is_taken;
        }
    }
}

impl Extents {
    /// Reserves addresses for a cell, with nothing behind them. [`Extents::retire`] frees them.
    pub fn reserve_cell(&self, spec: &CellSpec, align: u64) -> Result<u64> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let reservation = Reservation::new(&self.device, spec.bytes, align)?;
        let address = reservation.address();
        let run = self.cell_run(spec, reservation);
        table.runs.insert(address, run);
        tracing::debug!("{address:#x}: {} bytes reserved for a cell", spec.bytes);
        Ok(address)
    }

    /// Puts a new chunk behind a cell that has none. All or nothing.
    pub fn back_cell(&self, address: u64, handle: &HandleCell) -> Result<()> {
        const OPERATION: &str = "create and map";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let run = table.cell(OPERATION, address, handle)?;
        let bytes = run.reservation.bytes();
        if let Some(extent) = run.extents.get(&address) {
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
        self.fill(&mut table, address, bytes, vec![Backing::New(bytes)])?;
        if let Some(run) = table.runs.get_mut(&address) {
            run.take(false);
        }
        tracing::debug!("{address:#x}: {bytes} bytes mapped in a cell");
        Ok(())
    }

    /// Takes the chunk from behind a cell that no work uses any more; the address stays. After a
    /// failure it can be called again and carries on.
    pub fn unback_cell(&self, address: u64, handle: &HandleCell) -> Result<()> {
        const OPERATION: &str = "unmap and release";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let run = table.cell(OPERATION, address, handle)?;
        let extent = run.extents.get(&address);
        if extent.is_none_or(|extent| extent.chunk.is_none()) {
            return Err(refused(OPERATION, format!("{address:#x} is not mapped")));
        }
        if extent.is_some_and(|extent| extent.pins > 0) {
            let detail = format!("{address:#x} is pinned");
            return Err(Error::new(Status::Busy, OPERATION)
                .detail(detail)
                .advice("Unpin it first"));
        }
        let outcome = self.unbind(run, &[address]);
        match outcome {
            Ok(_) => {
                run.take(true);
                // What it was saved to once is not what it will hold.
                let stale = (run.extents.get_mut(&address)).and_then(|extent| extent.backup.take());
                // Given up once nobody has to wait for the table.
                drop(table);
                drop(stale);
            }
            Err(_) => table.leave_unmapped(&[address]),
        }
        outcome?;
        tracing::debug!("{address:#x}: a cell unmapped");
        Ok(())
    }

    /// Backs addresses that the caller reserved by a new chunk. All or nothing.
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
        let backing = vec![Backing::New(spec.bytes)];
        let outcome = self.fill(&mut table, address, spec.bytes, backing);
        match outcome {
            Ok(()) => tracing::debug!("{address:#x}: {} bytes mapped", spec.bytes),
            Err(_) => table.forget_if_empty(address),
        }
        outcome
    }

    /// Undoes [`Extents::map_lent`] where no work uses the memory any more. After a failure it can be
    /// called again and carries on.
    pub fn unmap_lent(&self, address: u64, handle: &HandleCell) -> Result<()> {
        self.unback_cell(address, handle)?;
        lock(&self.table).forget_if_empty(address);
        Ok(())
    }

    /// What is behind the cell at an address.
    pub fn behind_cell(&self, address: u64) -> Behind {
        let table = lock(&self.table);
        let Some(run) = table.runs.get(&address) else {
            return Behind::NOTHING;
        };
        let mut extents = run.extents.values();
        let is_mapped = extents.any(|extent| extent.mapping.is_some());
        Behind {
            is_mapped,
            is_asleep: !is_mapped && !run.is_callers_own(),
        }
    }

    fn cell_run(&self, spec: &CellSpec, reservation: Reservation) -> Run {
        let empty = Extent {
            bytes: spec.bytes,
            chunk: None,
            mapping: None,
            alias: false,
            backup: None,
            pins: 0,
            is_unfilled: false,
            guard: None,
        };
        Run {
            extents: BTreeMap::from([(reservation.address(), empty)]),
            reservation,
            spec: spec.chunk,
            owner: Owner::Cell,
            tag: spec.tag,
            of_tag: self.gauge_of(spec.tag),
            is_leaving: false,
            // Until it has memory for the first time.
            cell: Some(CellState {
                handle: spec.handle.clone(),
                is_taken: true,
            }),
        }
    }
}

impl Table {
    /// The cell at an address, if it still is the one that `handle` belongs to.
    fn cell(
        &mut self,
        operation: &'static str,
        address: u64,
        handle: &HandleCell,
    ) -> Result<&mut Run> {
        let run = self.runs.get_mut(&address);
        let run = run.filter(|run| {
            let cell = run.cell.as_ref();
            cell.is_some_and(|cell| cell.handle.is(handle))
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

fn refused(operation: &'static str, detail: String) -> Error {
    Error::new(Status::InvalidArgument, operation).detail(detail)
}
