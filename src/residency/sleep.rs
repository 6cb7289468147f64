//! To sleep: copies go out group by group, and chunks go behind them. If anything fails, what has gone
//! comes back.

use super::host::HostStore;
use super::plan::{self, Choice, Dead, Item, Site};
use super::room::{Asked, Room, Works};
use super::saved::Saved;
use super::{GROUP_BYTES, Report, wake};
use crate::error::{Error, Result, Status};
use crate::extent::residency::Backup;
use crate::extent::table::Residency;
use crate::gpu::{CopyQueue, Fence};
use crate::pool::Pools;
use std::collections::VecDeque;
use std::sync::Arc;

/// Where contents go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Pinned memory of the host.
    Host,
    /// Nowhere.
    Nothing,
}

/// How to sleep.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Where contents go.
    pub to: To,
    /// Whether what has been saved before and kept was not written since.
    pub is_clean: bool,
    /// The most bytes of the host that may be pinned.
    pub budget: u64,
}

/// Places whose copies stand behind one event.
type Group = Vec<(u64, Option<Backup>)>;

/// Sleeps what of a device is chosen. What sleeps already sleeps on, but that with [`To::Nothing`] its
/// contents are given up.
pub fn sleep(
    pools: &Pools,
    site: &Site,
    store: &Arc<HostStore>,
    choice: &Choice,
    dead: &Dead,
    manner: Manner,
) -> Result<Report> {
    let device = &site.state.device;
    if device.capture_open() {
        return Err(Error::new(Status::Capturing, "sleep")
            .detail(format!("a capture is open on device {}", device.ordinal()))
            .advice("Sleep before the capture begins or after it has ended"));
    }
    let (items, paused) = plan::take_out_of_use(pools, site, choice, dead)?;
    let outcome = put_to_sleep(site, store, items, manner);
    drop(paused);
    if outcome.is_err() {
        wake::use_what_is_awake(pools, site, choice);
    }
    outcome
}

fn put_to_sleep(
    site: &Site,
    store: &Arc<HostStore>,
    items: Vec<Item>,
    manner: Manner,
) -> Result<Report> {
    let mut report = Report::default();
    // All work that anybody has given the device so far.
    Fence::order_point(&site.state.device)?.wait()?;
    let is_pinned = |item: &Item| item.place.is_pinned && item.is_awake();
    let pinned = items.iter().filter(|item| is_pinned(item));
    report.pinned = pinned.map(|item| item.place.bytes).sum();
    let (going, asleep): (Vec<Item>, Vec<Item>) = (items.into_iter())
        .filter(|item| !is_pinned(item))
        .partition(|item| item.is_awake());
    if manner.to == To::Nothing {
        let places: Vec<u64> = asleep.iter().map(|item| item.place.address).collect();
        site.state.extents.drop_backups(&places);
    }
    report.moved = going.iter().map(|item| item.place.bytes).sum();
    report.copied = save_all(site, store, &going, manner)?;
    Ok(report)
}

/// The bytes copied.
fn save_all(site: &Site, store: &Arc<HostStore>, going: &[Item], manner: Manner) -> Result<u64> {
    let is_saved = |item: &Item| manner.is_clean && is_kept(item);
    let copied = match manner.to {
        To::Nothing => 0,
        To::Host => {
            let unsaved = going.iter().filter(|item| !is_saved(item));
            unsaved.map(Item::live_bytes).sum()
        }
    };
    // What was kept of earlier sleeps and is saved anew makes room first.
    let stale = going
        .iter()
        .filter(|item| manner.to == To::Nothing || !is_saved(item));
    let stale: Vec<u64> = stale.map(|item| item.place.address).collect();
    site.state.extents.drop_backups(&stale);
    let promise = store.promise(copied, manner.budget)?;
    let works = Works::for_promise(&promise)?;
    let device = &site.state.device;
    std::thread::scope(|scope| {
        let room = Room::begin(scope, device, promise, &works)?;
        let mut leaving = Leaving::begin(site, room)?;
        let outcome = going
            .iter()
            .try_for_each(|item| match manner.to == To::Nothing || is_saved(item) {
                true => leaving.let_go(item, None, 0),
                false => leaving.save(item),
            })
            .and_then(|()| leaving.finish());
        if let Err(error) = outcome {
            return Err(leaving.come_back(error));
        }
        Ok(copied)
    })
}

/// Whether all that is live of a place has been kept since it was saved.
fn is_kept(item: &Item) -> bool {
    let saved = item.place.backup.as_ref().and_then(Saved::of);
    saved.is_some_and(|saved| saved.covers(item.place.address, &item.live))
}

/// Places on their way out.
struct Leaving<'a> {
    site: &'a Site,
    queue: CopyQueue,
    room: Room<'a>,
    group: Group,
    group_bytes: u64,
    copying: VecDeque<(Fence, Group)>,
    gone: Vec<u64>,
}

impl<'a> Leaving<'a> {
    fn begin(site: &'a Site, room: Room<'a>) -> Result<Leaving<'a>> {
        Ok(Leaving {
            site,
            queue: CopyQueue::create(&site.state.device)?,
            room,
            group: Vec::new(),
            group_bytes: 0,
            copying: VecDeque::new(),
            gone: Vec::new(),
        })
    }

    /// Copies what is live of a place.
    fn save(&mut self, item: &Item) -> Result<()> {
        let mut saved = Saved::default();
        for (begin, bytes) in &item.live {
            let (mut at, end) = (*begin, begin + bytes);
            while at < end {
                let span = match self.room.ask(end - at, false)? {
                    Asked::Span(span) => span,
                    Asked::NotYet => {
                        self.let_go_of_copied()?;
                        match self.room.ask(end - at, true)? {
                            Asked::Span(span) => span,
                            Asked::NotYet => continue,
                        }
                    }
                };
                self.queue.save(at, &span.piece)?;
                let offset = at - item.place.address;
                at += span.piece.bytes;
                saved.pieces.push((offset, span));
            }
        }
        let (bytes, is_empty) = (saved.bytes(), saved.pieces.is_empty());
        let backup = (!is_empty).then(|| saved.into_backup());
        self.let_go(item, backup, bytes)
    }

    /// A place may go once the copies so far are done.
    fn let_go(&mut self, item: &Item, backup: Option<Backup>, copied: u64) -> Result<()> {
        self.group.push((item.place.address, backup));
        // What is not copied need not wait, but is unmapped by one call with its neighbours.
        self.group_bytes += copied.max(1);
        if self.group_bytes >= GROUP_BYTES {
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
            self.gone.extend(group.iter().map(|(place, _)| *place));
            self.site.state.extents.evict(group)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.end_group()?;
        while let Some((fence, _)) = self.copying.front() {
            fence.wait()?;
            self.evict_first()?;
        }
        self.queue.wait()
    }

    /// Brings back what has gone; the error to return.
    fn come_back(&mut self, error: Error) -> Error {
        // Nobody names the host's room any more once the copies are done.
        let waited = self.queue.wait();
        self.copying.clear();
        self.group.clear();
        let places = self.site.state.extents.places(|_| true);
        let is_gone = |place: &crate::extent::residency::Place| {
            place.residency != Residency::Mapped && self.gone.contains(&place.address)
        };
        let gone: Vec<_> = places.into_iter().filter(is_gone).collect();
        match waited.and_then(|()| wake::bring_back(self.site, &gone, &mut Report::default())) {
            Ok(()) => {
                // What is awake is written to; a later sleep must not take these for its contents.
                self.site.state.extents.drop_backups(&self.gone);
                error
            }
            Err(second) => error.advice(format!(
                "Some of it sleeps, and did not come back either ({second}): wake it when there is memory"
            )),
        }
    }
}
