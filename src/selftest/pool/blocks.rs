//! Blocks taken, written to by work of streams, looked at and given back.

use super::model::Block;
use super::run::{MARK, Run, demand_of};
use super::step::Ask;
use crate::core::size::Align;
use crate::error::{Error, Result, Status};
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::process::Demand;
use crate::selftest::check::ensure;
use crate::selftest::{Outcome, Stop};
use crate::source::{Kind, LastUse};

/// Marks of a large block.
const MARKS: u64 = 8;
/// More live blocks than this are not made.
const CROWD: usize = 400;

impl Run {
    fn demand(&self, ask: &Ask) -> Demand {
        Demand {
            bytes: ask.bytes,
            align: Align::new(ask.align).unwrap_or(crate::source::ALIGN),
            stream: match self.is_everywhere(ask) {
                true => Stream::LEGACY,
                false => self.lanes.stream(ask.stream),
            },
            owner: match ask.segment {
                true => Owner::Segment,
                false => Owner::Block,
            },
            last_use: match ask.unordered {
                true if self.is_everywhere(ask) => LastUse::Everywhere,
                true => LastUse::Anywhere,
                false => LastUse::Told,
            },
            tag: self.tags[ask.tag],
            ..demand_of(Kind::Pool, ask.bytes)
        }
    }

    /// Whether it is asked for as cudaMalloc does, which keeps nothing for graphs.
    fn is_everywhere(&self, ask: &Ask) -> bool {
        ask.everywhere && !self.captures(ask.stream)
    }

    /// Asks as the exports do: for a block at hand first.
    fn request(&mut self, ask: &Ask) -> std::result::Result<Result<u64>, Stop> {
        let demand = self.demand(ask);
        let quick = ask.align <= 256 && !ask.unordered && !ask.segment;
        let everywhere = ask.align <= 256 && self.is_everywhere(ask);
        let process = self.process.clone();
        let (lanes, crew) = (&self.lanes, &mut self.crew);
        lanes.patiently(|| {
            crew.on(ask.thread, move || {
                let Demand {
                    bytes, stream, tag, ..
                } = demand;
                let at_hand = match quick {
                    true => process.reuse_pooled(0, bytes, stream, None, tag),
                    false if everywhere => process.reuse_everywhere(0, bytes, tag),
                    false => None,
                };
                at_hand.map_or_else(|| process.allocate(demand), Ok)
            })
        })
    }

    pub(super) fn allocate(&mut self, ask: &Ask) -> std::result::Result<Option<u64>, Stop> {
        if self.model.live.len() >= CROWD {
            return Ok(None);
        }
        let before = self.figures()?;
        let address = match self.request(ask)? {
            Ok(address) => address,
            Err(error) => {
                self.refused(ask, &error, &before)?;
                return Ok(None);
            }
        };
        self.within_limits(&before)?;
        ensure!(
            address % ask.align == 0 && address != 0,
            "{address:#x} is not aligned as {ask:?} asks"
        );
        let stream = self.demand(ask).stream;
        let tag = self.tags[ask.tag].number();
        let capture = (self.capture.as_ref()).filter(|capture| capture.stream == ask.stream);
        let graph = capture.map(|capture| capture.graph);
        self.writers.insert((stream, tag, ask.thread, graph));
        let mut block = Block {
            address,
            requested: ask.bytes,
            stream: ask.stream,
            thread: ask.thread,
            handle: stream,
            lane: self.lanes.id(ask.stream, ask.thread),
            tag,
            unordered: ask.unordered,
            graph: graph.filter(|_| !ask.segment),
            mark: None,
            works: Vec::new(),
        };
        if graph.is_none() {
            self.marks += 1;
            block.mark = Some(1 + (self.marks % 250) as u8);
        }
        self.model.gave(block, &self.lanes)?;
        self.write(address, ask.stream, ask.thread)?;
        Ok(Some(address))
    }

    pub(super) fn burst(&mut self, ask: &Ask, count: usize, away: bool) -> Outcome {
        let ask = Ask {
            bytes: ask.bytes.min(96 << 10),
            ..*ask
        };
        let mut made = Vec::new();
        for _ in 0..count {
            made.extend(self.allocate(&ask)?);
        }
        let thread = if away { 1 - ask.thread } else { ask.thread };
        for address in made.iter().step_by(2).chain(made.iter().skip(1).step_by(4)) {
            self.free(*address, thread, None)?;
        }
        Ok(())
    }

    /// Gives a stream work that writes a block's marks.
    pub(super) fn write(&mut self, address: u64, stream: usize, thread: usize) -> Outcome {
        let Some(block) = self.model.live.get_mut(&address) else {
            return Ok(());
        };
        let Some(mark) = block.mark.filter(|_| block.requested > 0) else {
            return Ok(());
        };
        block.works.push(self.lanes.issue(stream, thread));
        let places = marks_of(block);
        let device = self.machine.device.clone();
        let handle = self.lanes.stream(stream);
        let lanes = &self.lanes;
        let filled = lanes.patiently(|| {
            self.crew.on(thread, move || {
                (places.into_iter())
                    .try_for_each(|(place, bytes)| device.fill(place, mark, bytes, handle))
            })
        })?;
        filled.map_err(|error| Stop::from(error).at(format_args!("writing to {address:#x}")))
    }

    /// Looks whether a block still holds what was written, where its stream can be waited for.
    fn verify(&mut self, address: u64) -> Outcome {
        let Some(block) = self.model.live.get(&address) else {
            return Ok(());
        };
        let idle = block.works.iter().all(|work| !self.lanes.is_waiting(*work));
        let same = self.lanes.id(block.stream, block.thread) == block.lane;
        let Some(mark) = block.mark.filter(|_| idle && same && !self.is_capturing()) else {
            return Ok(());
        };
        if self.lanes.is_held(block.stream) {
            return Ok(());
        }
        let places = marks_of(block);
        let (device, stream) = (self.machine.device.clone(), self.lanes.stream(block.stream));
        let thread = block.thread;
        let found = self.lanes.patiently(|| {
            self.crew.on(thread, move || {
                for (place, bytes) in places {
                    let mut seen = vec![0; bytes as usize];
                    device.copy_to_host(&mut seen, place, stream)?;
                    if seen.iter().any(|byte| *byte != mark) {
                        return Ok(Some((place, seen)));
                    }
                }
                Ok::<_, Error>(None)
            })
        })??;
        match found {
            None => Ok(()),
            Some((place, seen)) => Err(format!(
                "{place:#x} of {address:#x} holds {seen:x?}, not {mark:x} everywhere"
            )
            .into()),
        }
    }

    pub(super) fn free(&mut self, address: u64, thread: usize, used_on: Option<usize>) -> Outcome {
        self.verify(address)?;
        // A capturing stream's work would be the graph's.
        let used_on = used_on.filter(|stream| !self.captures(*stream));
        if let Some(stream) = used_on {
            self.write(address, stream, thread)?;
        }
        let Some(block) = self.model.takes(address) else {
            return Err(format!("{address:#x} is not live in the model").into());
        };
        self.writers
            .insert((block.handle, block.tag, thread, block.graph));
        let used_on = used_on.map(|stream| self.lanes.stream(stream));
        let process = self.process.clone();
        let lanes = &self.lanes;
        let (freed, again) = lanes.patiently(|| {
            self.crew.on(thread, move || {
                let freed = process.deallocate(address, None, used_on);
                (freed, process.deallocate(address, None, None))
            })
        })?;
        freed?;
        let status = again.err().map(|error| error.status());
        ensure!(
            status == Some(Status::NotOwned),
            "a second free of {address:#x} answered {status:?}"
        );
        Ok(())
    }

    pub(super) fn free_those(&mut self, thread: usize, wanted: impl Fn(&Block) -> bool) -> Outcome {
        let chosen = self.model.live.values().filter(|block| wanted(block));
        let chosen: Vec<u64> = chosen.map(|block| block.address).collect();
        for address in chosen {
            self.free(address, thread, None)?;
        }
        Ok(())
    }

    pub(super) fn free_wild(&mut self, index: usize, thread: usize, offset: u64) -> Outcome {
        let near = self.model.at(index).unwrap_or(0);
        let address = near.wrapping_add(offset);
        if self.model.live.contains_key(&address) {
            return Ok(());
        }
        let process = self.process.clone();
        let stream = Stream::LEGACY;
        let (freed, recorded) = self.crew.on(thread, move || {
            (
                process.deallocate(address, None, Some(stream)),
                process.record_stream(address, stream),
            )
        })?;
        ensure!(
            freed.is_err() && recorded.is_err(),
            "{address:#x} is no block, and was taken for one"
        );
        Ok(())
    }

    pub(super) fn work(&mut self, index: usize, stream: usize, thread: usize) -> Outcome {
        let Some(address) = self.model.at(index).filter(|_| !self.captures(stream)) else {
            return Ok(());
        };
        let block = &self.model.live[&address];
        let untold = block.unordered || block.lane == self.lanes.id(stream, thread);
        self.write(address, stream, thread)?;
        match untold {
            true => Ok(()),
            false => self.record(index, stream, thread),
        }
    }

    pub(super) fn record(&mut self, index: usize, stream: usize, thread: usize) -> Outcome {
        let Some(address) = self.model.at(index) else {
            return Ok(());
        };
        let (process, handle) = (self.process.clone(), self.lanes.stream(stream));
        let recorded = self
            .crew
            .on(thread, move || process.record_stream(address, handle))?;
        Ok(recorded?)
    }
}

/// Places of a block that hold its mark, and their lengths: both ends, and some between.
fn marks_of(block: &Block) -> Vec<(u64, u64)> {
    let mark = MARK.min(block.requested);
    let last = block.requested - mark;
    let mut places: Vec<(u64, u64)> = (0..=MARKS)
        .map(|part| (block.address + last / MARKS * part, mark))
        .collect();
    places.push((block.address + last, mark));
    if block.requested < 64 * MARK {
        places = vec![places[0], places[places.len() - 1]];
    }
    places
}
