//! To sleep: what is live is saved, and chunks go behind the copies. If anything fails, what has gone comes
//! back.

use super::Report;
use super::file::{self, FileStore};
use super::host::HostStore;
use super::leaving::Leaving;
use super::plan::{self, Choice, Dead, Item, Site};
use super::room::{Room, Works};
use super::saved::Saved;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::table::Residency;
use crate::gpu::Fence;
use crate::pool::Pools;
use std::path::PathBuf;
use std::sync::Arc;

/// Where contents go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Pinned memory of the host.
    Host,
    /// A file.
    File,
    /// Nowhere.
    Nothing,
}

/// How to sleep.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Where contents go.
    pub to: To,
    /// Whether what has been saved before and kept was not written since.
    pub is_clean: bool,
    /// Whether zeros are to be read at the addresses meanwhile.
    pub is_guarded: bool,
    /// The most bytes of the host that may be pinned.
    pub budget: u64,
    /// Where files are made.
    pub folder: PathBuf,
}

/// Where contents are kept, for the whole process.
pub struct Stores {
    /// On the host.
    pub host: Arc<HostStore>,
    /// In files.
    pub files: FileStore,
    /// The name of a tag.
    pub name_of: fn(TagId) -> String,
}

/// Sleeps what of a device is chosen. What sleeps already sleeps on, but that with [`To::Nothing`] its
/// contents are given up. The report is of what sleeps, and after an error of what has other chunks than before.
pub fn sleep(
    pools: &Pools,
    site: &Site,
    stores: &Stores,
    choice: &Choice,
    dead: &Dead,
    manner: &Manner,
    report: &mut Report,
) -> Result<()> {
    let device = &site.state.device;
    if device.capture_open() {
        return Err(Error::new(Status::Capturing, "sleep")
            .detail(format!("a capture is open on device {}", device.ordinal()))
            .advice("Sleep before the capture begins or after it has ended"));
    }
    // What was freed before need not be saved, and what could not be taken down is no place.
    site.state.deferral.wait();
    site.state.extents.sweep();
    let dozing = plan::doze(pools, site, choice)?;
    // From here on nothing goes under our copies, nor comes to be where it was.
    let paused = site.state.deferral.pause();
    let items = plan::items(site, choice, dozing, dead);
    let outcome = put_to_sleep(site, stores, items, manner, report);
    drop(paused);
    if let (Err(_), Some(pool)) = (&outcome, &site.pool) {
        pools.wake(pool, &choice.numbers(), false);
    }
    outcome
}

fn put_to_sleep(
    site: &Site,
    stores: &Stores,
    items: Vec<Item>,
    manner: &Manner,
    report: &mut Report,
) -> Result<()> {
    // All work that anybody has given the device so far, and work of others that may use its memory.
    let mut work = Fence::DONE;
    for device in &site.users {
        work.join(Fence::order_point(device)?);
    }
    work.wait()?;
    let is_pinned = |item: &Item| item.place.is_pinned && item.is_awake();
    for item in items.iter().filter(|item| is_pinned(item)) {
        report.of(item.place.tag).pinned += item.place.bytes;
    }
    let (mut going, asleep): (Vec<Item>, Vec<Item>) = (items.into_iter())
        .filter(|item| !is_pinned(item))
        .partition(|item| item.is_awake());
    if manner.to == To::Nothing {
        let places: Vec<u64> = asleep.iter().map(|item| item.place.address).collect();
        site.state.extents.drop_backups(&places);
    }
    forget_stale(site, &mut going, manner);
    match manner.to {
        To::Nothing => let_go(site, &going, manner, report)?,
        To::Host => save_on_host(site, &stores.host, &going, manner, report)?,
        To::File => save_in_files(site, stores, &going, manner, report)?,
    }
    for item in &going {
        let (device, place) = (site.state.device.ordinal(), &item.place);
        report.note(place.tag, device, place.address, place.bytes);
        if manner.to != To::Nothing && place.backup.is_none() {
            report.of(place.tag).copied += item.live_bytes();
        }
    }
    Ok(())
}

/// What was kept of earlier sleeps and is saved anew, or not at all, makes room first. What is left of it
/// is all that is live.
fn forget_stale(site: &Site, going: &mut [Item], manner: &Manner) {
    let is_good = |item: &Item| {
        let saved = item.place.backup.as_ref().and_then(Saved::of);
        saved.is_some_and(|saved| saved.covers(item.place.address, &item.live))
    };
    let mut stale = Vec::new();
    for item in going {
        if manner.to == To::Nothing || !manner.is_clean || !is_good(item) {
            item.place.backup = None;
            stale.push(item.place.address);
        }
    }
    site.state.extents.drop_backups(&stale);
}

fn let_go(site: &Site, going: &[Item], manner: &Manner, report: &mut Report) -> Result<()> {
    let mut leaving = Leaving::begin(site, None, manner.is_guarded)?;
    let outcome = (going.iter())
        .try_for_each(|item| leaving.let_go(item, None, 0))
        .and_then(|()| leaving.finish());
    outcome.map_err(|error| leaving.come_back(error, report))
}

fn save_on_host(
    site: &Site,
    store: &Arc<HostStore>,
    going: &[Item],
    manner: &Manner,
    report: &mut Report,
) -> Result<()> {
    let unsaved = going.iter().filter(|item| item.place.backup.is_none());
    let bytes = unsaved.map(Item::live_bytes).sum();
    let promise = store.promise(bytes, manner.budget).or_else(|error| {
        // What is kept only in case it is not written makes room.
        let awake = site.state.extents.places(|_| true).into_iter();
        let is_kept = |address: &u64| going.iter().any(|item| item.place.address == *address);
        let others: Vec<u64> = (awake.filter(|place| place.backup.is_some()))
            .filter(|place| place.residency == Residency::Mapped)
            .map(|place| place.address)
            .filter(|address| !is_kept(address))
            .collect();
        site.state.extents.drop_backups(&others);
        match others.is_empty() {
            true => Err(error),
            false => store.promise(bytes, manner.budget),
        }
    })?;
    let works = Works::for_promise(&promise)?;
    let device = &site.state.device;
    std::thread::scope(|scope| {
        let room = Room::begin(scope, device, promise, &works)?;
        let mut leaving = Leaving::begin(site, Some(room), manner.is_guarded)?;
        let outcome = (going.iter())
            .try_for_each(|item| match item.place.backup {
                Some(_) => leaving.let_go(item, None, 0),
                None => leaving.save(item),
            })
            .and_then(|()| leaving.finish());
        outcome.map_err(|error| leaving.come_back(error, report))
    })
}

/// All is written before anything goes: a full disk changes nothing.
fn save_in_files(
    site: &Site,
    stores: &Stores,
    going: &[Item],
    manner: &Manner,
    report: &mut Report,
) -> Result<()> {
    let unsaved: Vec<&Item> = (going.iter())
        .filter(|item| item.place.backup.is_none())
        .collect();
    let (device, files) = (&site.state.device, &stores.files);
    let mut saved = Vec::new();
    for of_tag in unsaved.chunk_by(|one, other| one.place.tag == other.place.tag) {
        let tag = of_tag[0].place.tag;
        let name = (stores.name_of)(tag);
        saved.extend(file::save(
            device,
            files,
            &manner.folder,
            (tag, &name),
            of_tag,
        )?);
    }
    let mut saved = saved.into_iter();
    let mut leaving = Leaving::begin(site, None, manner.is_guarded)?;
    let outcome = (going.iter())
        .try_for_each(|item| match item.place.backup {
            Some(_) => leaving.let_go(item, None, 0),
            None => {
                let backup = saved.next().and_then(Saved::into_backup);
                leaving.let_go(item, backup, 0)
            }
        })
        .and_then(|()| leaving.finish());
    outcome.map_err(|error| leaving.come_back(error, report))
}
