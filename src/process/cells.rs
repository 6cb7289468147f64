//! Memory that callers take away and bring back by themselves, at addresses that stay: what vLLM's
//! sleep mode is made of. The addresses are ours, reserved for a cell, or the caller's own.

use super::blocks::not_owned;
use super::cell_record::{CellInfo, CellStats};
use super::{DeviceEntry, Process, lifetime};
use crate::config::value::Location;
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::cell::{self, CellSpec, Handles};
use crate::extent::deferral::Behind;
use crate::gpu::{ChunkSpec, CopyQueue, Fence, Stream, Uses};
use crate::source::Kind;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

impl Process {
    /// Makes the primary context of a device current on this thread for good, where it has none.
    pub fn ensure_context(&self, ordinal: i32) -> Result<()> {
        self.device(ordinal)?.state().device.ensure_current()
    }

    /// Reserves addresses for at least `bytes`, with no memory behind them yet.
    pub fn cell_reserve(
        &self,
        ordinal: i32,
        bytes: u64,
        stream: Stream,
        tag: TagId,
    ) -> Result<CellInfo> {
        let outcome = self.reserve_cell(ordinal, bytes, stream, tag);
        self.cells.count(&self.cells.reserves, outcome)
    }

    fn reserve_cell(
        &self,
        ordinal: i32,
        bytes: u64,
        stream: Stream,
        tag: TagId,
    ) -> Result<CellInfo> {
        const OPERATION: &str = "reserve a cell";
        let device = self.device(ordinal)?;
        // Asking notes a capture that nobody told of: its work must not be waited for.
        if !device.is_capturing(stream)? {
            self.outside_captures(device)?;
        }
        let (chunk, grain) = device.state().grain(Location::Device)?;
        let bytes = (grain.round_up(bytes))
            .filter(|rounded| *rounded > 0 && *rounded <= 1 << 56)
            .ok_or_else(|| Error::invalid(OPERATION, "no such size").bytes(bytes))?;
        let handles = handles_for(device, bytes, grain);
        let spec = CellSpec {
            bytes,
            chunk,
            tag,
            handles: handles.clone(),
        };
        let address = device.state().extents.reserve_cell(&spec, grain.get())?;
        let cell = CellInfo {
            serial: self.cells.next(),
            address,
            bytes,
            device: ordinal,
            tag,
            is_lent: false,
            handles,
            is_chunked: self.driver()?.limits_chunks(),
            is_born: false,
            counted: false,
        };
        lock(&self.cells.by_address).insert(address, cell.clone());
        Ok(cell)
    }

    /// Puts new memory behind a cell, or behind `bytes` of addresses that the caller reserved.
    pub fn cell_map(&self, ordinal: i32, bytes: u64, address: u64, tag: TagId) -> Result<CellInfo> {
        let outcome = self.map_cell(ordinal, bytes, address, tag);
        self.cells.count(&self.cells.creates, outcome)
    }

    fn map_cell(&self, ordinal: i32, bytes: u64, address: u64, tag: TagId) -> Result<CellInfo> {
        const OPERATION: &str = "create and map";
        let device = self.device(ordinal)?;
        let (chunk, grain) = device.state().grain(Location::Device)?;
        let known = self.cells.at(address);
        if let Some(cell) = &known {
            check_same(OPERATION, cell, ordinal, bytes)?;
        }
        for (what, value) in [("size", bytes), ("address", address)] {
            if value == 0 || value % grain.get() != 0 {
                let grain = grain.get();
                let detail = format!(
                    "the {what} {value} is no multiple of device {ordinal}'s granularity, {grain} bytes"
                );
                return Err(Error::invalid(OPERATION, detail)
                    .bytes(bytes)
                    .advice("Round it up to a multiple"));
            }
        }
        let is_chunked = self.driver()?.limits_chunks();
        let cell = known.unwrap_or_else(|| CellInfo {
            serial: self.cells.next(),
            address,
            bytes,
            device: ordinal,
            tag,
            is_lent: true,
            handles: handles_for(device, bytes, grain),
            is_chunked,
            is_born: false,
            counted: false,
        });
        self.back(device, &cell, chunk)?;
        if cell.is_lent {
            lock(&self.cells.by_address).insert(address, cell.clone());
        }
        self.count_mapped(device, &cell);
        Ok(cell)
    }

    /// [`Process::cell_map`] of those of `addresses`, all of them cells, that have no memory. All or
    /// nothing: on failure the memory of those that got some is taken again. The answer is the bytes.
    pub fn cells_map(&self, addresses: &[u64]) -> Result<u64> {
        let mut made = Vec::new();
        let outcome = (addresses.iter())
            .try_for_each(|address| {
                let cell = self.cell(*address)?;
                if !self.behind_cell(&cell)?.is_mapped {
                    self.cell_map(cell.device, cell.bytes, cell.address, cell.tag)?;
                    made.push(cell);
                }
                Ok(())
            })
            .and_then(|()| self.wipe(&made));
        if let Err(error) = outcome {
            // Nothing is lost by taking it: nobody has been told of it yet.
            let made: Vec<u64> = made.iter().map(|cell| cell.address).collect();
            return Err(match self.cells_discard(&made) {
                Ok(_) => error,
                Err(second) => error.also(&format!("and what was mapped stays: {second}")),
            });
        }
        Ok(made.iter().map(|cell| cell.bytes).sum())
    }

    /// New memory holds nothing of what it held before, which with HIP has to be seen to.
    fn wipe(&self, made: &[CellInfo]) -> Result<()> {
        if !self.driver()?.is_hip() {
            return Ok(());
        }
        for of_device in made.chunk_by(|one, other| one.device == other.device) {
            let device = self.device(of_device[0].device)?;
            let mut queue = CopyQueue::create(&device.state().device)?;
            (of_device.iter()).try_for_each(|cell| queue.wipe(cell.address, cell.bytes))?;
            queue.wait()?;
        }
        Ok(())
    }

    fn count_mapped(&self, device: &DeviceEntry, cell: &CellInfo) {
        if self.cells.note(cell, true) {
            self.cells.mapped.add(cell.bytes);
            device.gave(Kind::Vmm, cell.tag, &cell.block());
        }
    }

    fn count_unmapped(&self, device: &DeviceEntry, cell: &CellInfo) {
        self.cells.mapped.sub(cell.bytes);
        device.took(Kind::Vmm, cell.tag, Stream::LEGACY, &cell.block());
    }

    /// Makes the memory; when it has run out, once more after everything that can be given back has
    /// been.
    fn back(&self, device: &DeviceEntry, cell: &CellInfo, chunk: ChunkSpec) -> Result<()> {
        let state = device.state();
        let attempt = || match cell.is_lent {
            true => state.extents.map_lent(
                cell.address,
                &CellSpec {
                    bytes: cell.bytes,
                    chunk,
                    tag: cell.tag,
                    handles: cell.handles.clone(),
                },
            ),
            false => state.extents.back_cell(cell.address, &cell.handles),
        };
        state.deferral.drain();
        // A wake that runs has made its list already. New ones are in nobody's.
        let _no_wake = (cell.is_born && !cell.is_lent).then(|| lock(device.residency_turn()));
        let outcome = match attempt() {
            Err(error) if error.status() == Status::OutOfMemory => {
                device.counters(Kind::Vmm).retried();
                // That memory has run out is what the caller needs to know, whatever else fails.
                let _ = device.trim_at(0, Some(Location::Device));
                attempt().map_err(|error| {
                    device.out_of_memory(error.bytes(cell.bytes), Location::Device)
                })
            }
            outcome => outcome,
        };
        outcome.inspect_err(|error| device.counters(Kind::Vmm).failed(error))
    }

    /// Takes the memory from behind a cell, once all work given to its device has finished. The
    /// addresses stay. The answer is the cell; none where the driver is gone, and the memory with it.
    pub fn cell_unmap(&self, ordinal: i32, bytes: u64, address: u64) -> Result<Option<CellInfo>> {
        const OPERATION: &str = "unmap and release";
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(None);
        }
        let known = self.cells.at(address);
        let cell = known.ok_or_else(|| not_owned(OPERATION, address));
        let outcome = cell.and_then(|cell| {
            check_same(OPERATION, &cell, ordinal, bytes)?;
            self.unmap_cells(std::slice::from_ref(&cell), false)?;
            Ok(Some(cell))
        });
        self.cells.count(&self.cells.unmaps, outcome)
    }

    /// [`Process::cell_unmap`] of those of `addresses` that have memory, behind one order point for
    /// each device. The answer is the bytes. What fails stays mapped, or is tried again when it is
    /// mapped the next time, and ends nothing for the others; the first failure is returned.
    pub fn cells_discard(&self, addresses: &[u64]) -> Result<u64> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(0);
        }
        let addresses: BTreeSet<u64> = addresses.iter().copied().collect();
        let cells = addresses.iter().map(|address| {
            let cell = self.cells.at(*address);
            cell.ok_or_else(|| not_owned("discard cells", *address))
        });
        let cells = cells.collect::<Result<Vec<_>>>()?;
        let mut mapped = Vec::new();
        for cell in cells {
            if self.behind_cell(&cell)?.is_mapped {
                mapped.push(cell);
            }
        }
        let outcome = self.unmap_cells(&mapped, true);
        let done = mapped.iter().filter(|cell| cell.handles.are_none());
        let (count, bytes) = done.fold((0, 0), |(n, sum), cell| (n + 1, sum + cell.bytes));
        self.cells.unmaps.fetch_add(count, Ordering::Relaxed);
        if outcome.is_err() {
            self.cells.failures.fetch_add(1, Ordering::Relaxed);
        }
        outcome.map(|()| bytes)
    }

    /// Of each device behind one order point.
    fn unmap_cells(&self, cells: &[CellInfo], if_mapped: bool) -> Result<()> {
        let devices: BTreeSet<i32> = cells.iter().map(|cell| cell.device).collect();
        let mut outcome = Ok(());
        for ordinal in devices {
            let of_device = cells.iter().filter(|cell| cell.device == ordinal);
            outcome = outcome.and(self.unmap_on(ordinal, of_device, if_mapped));
        }
        outcome
    }

    fn unmap_on<'a>(
        &self,
        ordinal: i32,
        cells: impl Iterator<Item = &'a CellInfo>,
        if_mapped: bool,
    ) -> Result<()> {
        let device = self.device(ordinal)?;
        // One that runs has given the device copies of what is behind these cells.
        let _no_sleep = lock(device.residency_turn());
        // Nobody told which streams use it.
        Fence::order_point(&device.state().device)?.wait()?;
        let mut outcome = Ok(());
        for cell in cells {
            // Somebody else may have done it meanwhile, or the same list.
            let is_due = !if_mapped || self.behind_cell(cell)?.is_mapped;
            outcome = outcome.and(if is_due {
                self.unmap_idle(cell)
            } else {
                Ok(())
            });
        }
        outcome
    }

    fn unmap_idle(&self, cell: &CellInfo) -> Result<()> {
        let device = self.device(cell.device)?;
        let extents = &device.state().extents;
        match cell.is_lent {
            true => extents.unmap_lent(cell.address, &cell.handles)?,
            false => extents.unback_cell(cell.address, &cell.handles)?,
        }
        if self.cells.note(cell, false) {
            self.count_unmapped(device, cell);
        }
        if cell.is_lent {
            let mut cells = lock(&self.cells.by_address);
            if cells
                .get(&cell.address)
                .is_some_and(|now| now.serial == cell.serial)
            {
                cells.remove(&cell.address);
            }
        }
        Ok(())
    }

    /// Gives a cell's memory, where it has any, and its addresses back once all work given to the
    /// device has finished, and waits for that unless a capture is open. What is no cell is reported
    /// and left alone.
    pub fn cell_free(&self, address: u64) -> Result<()> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(());
        }
        let outcome = self.free_cell(address);
        self.cells.count(&self.cells.frees, outcome)
    }

    fn free_cell(&self, address: u64) -> Result<()> {
        let mut cells = lock(&self.cells.by_address);
        let cell = match cells.get(&address) {
            Some(cell) if !cell.is_lent => cells.remove(&address),
            _ => None,
        };
        drop(cells);
        let cell = cell.ok_or_else(|| self.reject(address))?;
        let device = self.device(cell.device)?;
        if cell.counted {
            self.count_unmapped(device, &cell);
        }
        let state = Arc::clone(device.state());
        let behind = Behind::Everything(Uses::everything(&state.device));
        let extents = Arc::clone(&state);
        state
            .deferral
            .push(behind, cell.bytes, move || extents.extents.retire(address));
        // Who frees a segment goes on to measure what is free.
        state.deferral.wait();
        Ok(())
    }

    /// The cell that begins at an address.
    pub fn cell(&self, address: u64) -> Result<CellInfo> {
        lifetime::check_not_forked()?;
        let cell = self.cells.at(address);
        cell.ok_or_else(|| not_owned("cell", address))
    }

    /// What is behind a cell.
    pub fn behind_cell(&self, cell: &CellInfo) -> Result<cell::Behind> {
        let device = self.device(cell.device)?;
        Ok(device.state().extents.behind_cell(cell.address))
    }

    /// Where all cells begin that have had memory.
    pub fn cell_addresses(&self) -> Result<Vec<u64>> {
        lifetime::check_not_forked()?;
        let cells = lock(&self.cells.by_address);
        let born = cells.values().filter(|cell| cell.is_born);
        Ok(born.map(|cell| cell.address).collect())
    }

    /// What was done with cells.
    pub fn cell_stats(&self) -> Result<CellStats> {
        lifetime::check_not_forked()?;
        let cells = &self.cells;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mapped = cells.mapped.read();
        Ok(CellStats {
            cells: lock(&cells.by_address).len() as u64,
            mapped: mapped.now,
            peak_mapped: mapped.peak,
            reserves: read(&cells.reserves),
            frees: read(&cells.frees),
            creates: read(&cells.creates),
            unmaps: read(&cells.unmaps),
            failures: read(&cells.failures),
        })
    }
}

/// Places for the handles of the chunks behind a cell.
fn handles_for(device: &DeviceEntry, bytes: u64, grain: Align) -> Handles {
    Handles::new(bytes, device.state().device.fit_chunk(bytes, grain))
}

fn check_same(operation: &'static str, cell: &CellInfo, device: i32, bytes: u64) -> Result<()> {
    if (cell.device, cell.bytes) == (device, bytes) {
        return Ok(());
    }
    let detail = format!(
        "{:#x} is a cell of {} bytes on device {}, not of {bytes} bytes on device {device}",
        cell.address, cell.bytes, cell.device
    );
    Err(Error::invalid(operation, detail))
}
