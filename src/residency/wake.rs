//! To wake: chunks are made a group ahead of the copies. If one cannot be had, those made go again and
//! everything sleeps on.

use super::file::Loader;
use super::plan::{self, Choice, Site};
use super::saved::{Saved, Stored};
use super::{GROUP_BYTES, Report};
use crate::error::{Error, Result, Status};
use crate::extent::residency::Place;
use crate::extent::table::Residency;
use crate::gpu::CopyQueue;
use crate::pool::Pools;
use rustc_hash::FxHashSet;
use std::time::Instant;

/// Wakes what of a device is chosen. What was saved to the host is kept there up to `keep` bytes, for a sleep
/// that says that nothing was written since.
pub fn wake(
    pools: &Pools,
    site: &Site,
    choice: &Choice,
    keep: u64,
    report: &mut Report,
) -> Result<()> {
    let device = &site.state.device;
    if device.capture_open() {
        return Err(Error::new(Status::Capturing, "wake")
            .detail(format!("a capture is open on device {}", device.ordinal()))
            .advice("Wake before the capture begins or after it has ended"));
    }
    // What was freed asleep need not come back.
    site.state.deferral.drain();
    site.state.extents.sweep();
    let numbers = choice.numbers();
    let dozing = (site.pool.as_ref()).map_or_else(Vec::new, |pool| pools.dozing(pool, &numbers));
    let asleep = {
        // What is freed meanwhile stays until all is done.
        let _paused = site.state.deferral.pause();
        let items = plan::items(site, choice, dozing, &[]).into_iter();
        let asleep = items.filter(|item| !item.is_awake());
        let asleep: Vec<Place> = asleep.map(|item| item.place).collect();
        make_room(site, &asleep)?;
        bring_back(site, &asleep, report)?;
        asleep
    };
    if let Some(pool) = &site.pool {
        pools.wake(pool, &numbers, true);
    }
    forget_backups(site, &asleep, keep);
    Ok(())
}

/// Refuses at once what there is no memory for.
fn make_room(site: &Site, asleep: &[Place]) -> Result<()> {
    let needed: u64 = asleep.iter().map(|place| place.bytes).sum();
    let (free, _) = site.state.device.memory_info()?;
    if needed <= free {
        return Ok(());
    }
    Err(Error::new(Status::OutOfMemory, "wake")
        .bytes(needed)
        .detail(format!(
            "device {} has {free} bytes left",
            site.state.device.ordinal()
        ))
        .advice("It sleeps on: free memory of the device, then wake it again, or wake fewer tags"))
}

/// Makes chunks for places and fills them; all or nothing.
pub(super) fn bring_back(site: &Site, asleep: &[Place], report: &mut Report) -> Result<()> {
    let mut queue = CopyQueue::create(&site.state.device)?;
    let (mut made, mut loader) = (Vec::new(), None);
    let begin = Instant::now();
    let asked = (groups(asleep)).try_for_each(|group| {
        bring_group(site, (&mut queue, &mut loader), group, &mut made, report)
    });
    let mapped = begin.elapsed();
    let outcome = asked.and_then(|()| queue.wait());
    tracing::debug!(
        "device {}: {} places mapped in {mapped:?}, filled {:?} later",
        site.state.device.ordinal(),
        made.len(),
        begin.elapsed() - mapped
    );
    let extents = &site.state.extents;
    if outcome.is_ok() {
        extents.set_filled(&made);
    }
    if let Err(error) = outcome {
        // Whatever becomes of the copies: the host's are whole.
        let guarded = asleep.iter().filter(|place| place.is_guarded);
        let guarded: Vec<u64> = guarded.map(|place| place.address).collect();
        let undone = (queue.wait())
            .and_then(|()| extents.evict(made.into_iter().map(|place| (place, None)).collect()))
            .and_then(|_| extents.guard(&guarded));
        report.take_back();
        return Err(match undone {
            Ok(()) => error,
            Err(second) => {
                error.advice(format!("Not all of it sleeps on ({second}): wake it again"))
            }
        });
    }
    Ok(())
}

/// Groups of small places are up to so long.
const LARGEST_GROUP: u64 = 256 << 20;

/// Neighbours in the list, of bytes enough for the link's full speed at first, so that copies begin at once,
/// then twice as many each time: while copies run, access costs less for many places at once (0.24 ms for each
/// of 16 MiB where it is 0.3 one by one, one H200).
fn groups(places: &[Place]) -> impl Iterator<Item = &[Place]> {
    let (mut left, mut most) = (places, GROUP_BYTES);
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let is_within = |place: &&Place| {
            bytes += place.bytes;
            bytes - place.bytes < most
        };
        let count = left.iter().take_while(is_within).count();
        let (group, rest) = left.split_at(count);
        left = rest;
        most = (2 * most).min(LARGEST_GROUP);
        (!group.is_empty()).then_some(group)
    })
}

fn bring_group(
    site: &Site,
    (queue, loader): (&mut CopyQueue, &mut Option<Loader>),
    group: &[Place],
    made: &mut Vec<u64>,
    report: &mut Report,
) -> Result<()> {
    let addresses: Vec<u64> = group.iter().map(|place| place.address).collect();
    site.state.extents.restore(&addresses)?;
    made.extend(&addresses);
    for place in group {
        report.note(
            place.tag,
            site.state.device.ordinal(),
            place.address,
            place.bytes,
        );
        let saved = place.backup.as_ref().and_then(Saved::of);
        if saved.is_none() {
            queue.wipe(place.address, place.bytes)?;
        }
        for (offset, stored) in saved.iter().flat_map(|saved| &saved.pieces) {
            let to = place.address + offset;
            match stored {
                Stored::Host(span) => queue.load(&span.piece, to)?,
                Stored::File(span) => {
                    let loader = match loader {
                        Some(loader) => loader,
                        None => loader.insert(Loader::begin(&site.state.device)?),
                    };
                    loader.load(queue, span, to)?;
                }
            }
            report.of(place.tag).copied += stored.bytes();
        }
    }
    Ok(())
}

fn is_awake(place: &Place) -> bool {
    place.residency == Residency::Mapped
}

/// The bytes on the host that a place was saved to.
fn kept_of(place: &Place) -> Option<u64> {
    let backup = place.backup.as_ref();
    let on_host = backup.filter(|backup| backup.at == Residency::Host);
    on_host.and_then(Saved::of).map(|saved| saved.bytes())
}

/// Gives up what awake places were saved to, but for `keep` bytes in all.
fn forget_backups(site: &Site, awake: &[Place], keep: u64) {
    let is_here: FxHashSet<u64> = awake.iter().map(|place| place.address).collect();
    let places = site.state.extents.places(|_| true).into_iter();
    let others = places.filter(|place| !is_here.contains(&place.address) && is_awake(place));
    let mut kept: u64 = others.filter_map(|place| kept_of(&place)).sum();
    let is_dropped = |place: &&Place| {
        let Some(bytes) = kept_of(place) else {
            return true;
        };
        let is_kept = bytes <= keep.saturating_sub(kept);
        kept += if is_kept { bytes } else { 0 };
        !is_kept
    };
    let dropped: Vec<u64> = (awake.iter().filter(is_dropped))
        .map(|place| place.address)
        .collect();
    site.state.extents.drop_backups(&dropped);
}
