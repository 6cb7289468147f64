//! Places on their way out: copies go group by group, chunks behind them.

use super::host::Span;
use super::plan::{Item, Site};
use super::room::{Asked, Room};
use super::saved::{Saved, Stored};
use super::{GROUP_BYTES, Report, wake};
use crate::error::{Error, Result, Status};
use crate::extent::residency::{Backup, Place};
use crate::extent::table::Residency;
use crate::gpu::{CopyQueue, Fence};
use rustc_hash::FxHashSet;
use std::collections::VecDeque;

/// Places whose copies stand behind one event.
type Group = Vec<(u64, Option<Backup>)>;

/// As many places without copies go by one call.
const GROUP_PLACES: usize = 256;

/// Places on their way out.
pub(super) struct Leaving<'a> {
    site: &'a Site,
    queue: CopyQueue,
    room: Option<Room<'a>>,
    is_guarded: bool,
    group: Group,
    group_bytes: u64,
    copying: VecDeque<(Fence, Group)>,
    gone: Vec<u64>,
    /// What copies under way save, until they stand behind an event.
    saving: Saved,
}

impl<'a> Leaving<'a> {
    /// Begins with nothing; `room` is where contents are saved, if any are.
    pub fn begin(site: &'a Site, room: Option<Room<'a>>, is_guarded: bool) -> Result<Leaving<'a>> {
        Ok(Leaving {
            site,
            queue: CopyQueue::create(&site.state.device)?,
            room,
            is_guarded,
            group: Vec::new(),
            group_bytes: 0,
            copying: VecDeque::new(),
            gone: Vec::new(),
            saving: Saved::default(),
        })
    }

    /// Copies what is live of a place.
    pub fn save(&mut self, item: &Item) -> Result<()> {
        for (begin, bytes) in &item.live {
            let (mut at, end) = (*begin, begin + bytes);
            while at < end {
                let span = self.span(end - at)?;
                let (offset, piece) = (at - item.place.address, span.piece.clone());
                self.saving.pieces.push((offset, Stored::Host(span)));
                self.queue.save(at, &piece)?;
                at += piece.bytes;
            }
        }
        let saved = std::mem::take(&mut self.saving);
        let bytes = saved.bytes();
        self.let_go(item, saved.into_backup(), bytes)
    }

    fn span(&mut self, most: u64) -> Result<Span> {
        let Some(room) = &mut self.room else {
            return Err(Error::new(Status::Internal, "sleep").detail("no room was asked for"));
        };
        if let Asked::Span(span) = room.ask(most, false)? {
            return Ok(span);
        }
        // While more is made, what is copied goes.
        self.let_go_of_copied()?;
        match self.room.as_mut().map(|room| room.ask(most, true)) {
            Some(Ok(Asked::Span(span))) => Ok(span),
            Some(Err(error)) => Err(error),
            _ => Err(Error::new(Status::Internal, "sleep").detail("room was waited for in vain")),
        }
    }

    /// A place may go once the copies so far are done.
    pub fn let_go(&mut self, item: &Item, backup: Option<Backup>, copied: u64) -> Result<()> {
        self.group.push((item.place.address, backup));
        self.group_bytes += copied;
        // What is not copied need not wait, but is unmapped by one call with its neighbours.
        if self.group_bytes >= GROUP_BYTES || self.group.len() >= GROUP_PLACES {
            self.end_group()?;
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        if !self.group.is_empty() {
            let fence = self.queue.mark()?;
            self.copying
                .push_back((fence, std::mem::take(&mut self.group)));
            self.group_bytes = 0;
        }
        self.let_go_of_copied()
    }

    fn let_go_of_copied(&mut self) -> Result<()> {
        while let Some((fence, _)) = self.copying.front() {
            let is_done = {
                let _guard = self.site.state.device.enter()?;
                fence.is_done()?
            };
            if !is_done {
                return Ok(());
            }
            self.evict_first()?;
        }
        Ok(())
    }

    fn evict_first(&mut self) -> Result<()> {
        if let Some((_, group)) = self.copying.pop_front() {
            let places: Vec<u64> = group.iter().map(|(place, _)| *place).collect();
            self.gone.extend(&places);
            self.site.state.extents.evict(group)?;
            if self.is_guarded {
                self.site.state.extents.guard(&places)?;
            }
        }
        Ok(())
    }

    /// Waits until all have gone.
    pub fn finish(&mut self) -> Result<()> {
        self.end_group()?;
        while let Some((fence, _)) = self.copying.front() {
            fence.wait()?;
            self.evict_first()?;
        }
        self.queue.wait()
    }

    /// Brings back what has gone, and reports it; the error to return.
    pub fn come_back(&mut self, error: Error, report: &mut Report) -> Error {
        // Nobody names the host's room any more once the copies are done.
        let waited = self.queue.wait();
        self.copying.clear();
        self.group.clear();
        // Nobody need populate pages any more.
        self.room = None;
        let was_let_go: FxHashSet<u64> = self.gone.iter().copied().collect();
        let places = self.site.state.extents.places(|_| true);
        let is_gone = |place: &Place| {
            place.residency != Residency::Mapped && was_let_go.contains(&place.address)
        };
        let gone: Vec<_> = places.into_iter().filter(&is_gone).collect();
        match waited.and_then(|()| wake::bring_back(self.site, &gone, report)) {
            Ok(()) => {
                // What is awake is written to; a later sleep must not take these for its contents.
                self.site.state.extents.drop_backups(&self.gone);
                report.clear_amounts();
                error
            }
            Err(second) => {
                let device = self.site.state.device.ordinal();
                let places = self.site.state.extents.places(|_| true);
                for place in places.into_iter().filter(is_gone) {
                    report.note_stuck(place.tag, device, place.address, place.bytes);
                }
                error.advice(format!(
                    "Some of it sleeps, and did not come back either ({second}): wake it when there is memory"
                ))
            }
        }
    }
}
