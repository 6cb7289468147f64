//! Cycles at random against a model: blocks of all holders and sizes come and go, tags sleep, wake, are
//! discarded and refused, and what each block holds is known all the time.

use super::{Egg, HOLDERS, KIB, MIB, Nest, request, tag};
use crate::extent::table::Owner;
use crate::process::residency::To;
use crate::selftest::check::ensure;
use crate::selftest::stress::random::Random;
use crate::selftest::stress::seed;
use crate::selftest::stress::shadow::Shadow;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::collections::BTreeSet;

const CYCLES: usize = 50;
const TAGS: [&str; 4] = ["cycle one", "cycle two", "cycle three", ""];
const CROWD: usize = 60;

/// A block, of which tag, and whether it can be touched and still holds what it held.
struct Known {
    egg: Egg,
    tag: usize,
    is_asleep: bool,
    is_gone: bool,
}

struct Model<'a> {
    nest: &'a Nest,
    holders: &'a [(Kind, Owner)],
    random: Random,
    shadow: Shadow,
    known: Vec<Known>,
    seeds: u64,
    keeps: bool,
}

/// Over all that can sleep, in one process.
pub fn cycles() -> Outcome {
    run(&HOLDERS)
}

/// Without the pool, whose part in sleep waits for much by itself.
pub fn cycles_without_a_pool() -> Outcome {
    run(&HOLDERS[..2])
}

fn run(holders: &[(Kind, Owner)]) -> Outcome {
    let seed = seed()?;
    println!("residency: {CYCLES} cycles; HBMALLOC_TEST_SEED={seed}");
    let at = |stop: Stop| stop.at(format_args!("HBMALLOC_TEST_SEED={seed}"));
    let nest = Nest::plain()?;
    TAGS.iter().try_for_each(|name| tag(name).map(|_| ()))?;
    let mut model = Model {
        nest: &nest,
        holders,
        random: Random::new(seed),
        shadow: Shadow::default(),
        known: Vec::new(),
        seeds: 0,
        keeps: false,
    };
    for cycle in 0..CYCLES {
        (model.cycle())
            .and_then(|()| model.check())
            .map_err(|stop| at(stop.at(format_args!("cycle {cycle}"))))?;
    }
    model.close().map_err(at)?;
    nest.finish().map_err(at)
}

impl Model<'_> {
    fn cycle(&mut self) -> Outcome {
        for _ in 0..self.random.below(12) {
            match self.random.below(10) {
                0..=5 if self.known.len() < CROWD => self.allocate()?,
                6 => drop(self.nest.house.process.trim_all()?),
                7 => self.change_keep()?,
                _ => self.free()?,
            }
        }
        let tags = self.choose();
        match self.random.below(8) {
            0..=2 => self.sleep(&tags, To::Host)?,
            3 => self.sleep(&tags, To::Nothing)?,
            4 => drop(self.nest.house.process.trim_host(0)?),
            _ => self.wake(&tags)?,
        }
        if self.random.once_in(3) {
            // As a program does most: everything at once, and back.
            self.sleep(&[], To::Host)?;
            self.free()?;
            self.allocate()?;
            self.wake(&[])?;
        }
        Ok(())
    }

    /// Some tags in some order, or none, which is everything. What has no tag cannot be named.
    fn choose(&mut self) -> Vec<usize> {
        let first = self.random.below(3);
        let mut tags: Vec<usize> = (0..3).map(|tag| (tag + first) % 3).collect();
        tags.truncate(self.random.below(4));
        tags
    }

    fn allocate(&mut self) -> Outcome {
        let holder = self.holders[self.random.below(self.holders.len())];
        let tag = self.random.below(TAGS.len());
        let bytes = match self.random.below(4) {
            0 => self.random.size(9),
            1 => self.random.size(20),
            2 => KIB * (1 + self.random.number() % 3000),
            _ => MIB * (1 + self.random.number() % 12),
        };
        self.seeds += 1;
        let egg = self.nest.lay(holder, TAGS[tag], bytes, self.seeds)?;
        self.shadow.gave(egg.address, bytes)?;
        self.known.push(Known {
            egg,
            tag,
            is_asleep: false,
            is_gone: false,
        });
        Ok(())
    }

    fn free(&mut self) -> Outcome {
        if self.known.is_empty() {
            return Ok(());
        }
        let at = self.random.below(self.known.len());
        let known = self.known.swap_remove(at);
        self.verify(&known)?;
        self.shadow.takes(known.egg.address)?;
        let free = || self.nest.house.free(known.egg.address);
        match known.egg.seed % 3 {
            0 => std::thread::scope(|scope| {
                let joined = scope.spawn(free).join();
                joined.unwrap_or_else(|_| Err("a thread panicked".into()))
            }),
            _ => free(),
        }
    }

    fn change_keep(&mut self) -> Outcome {
        self.keeps = !self.keeps;
        let keep = if self.keeps { "40MiB" } else { "0" };
        (self.nest.house.process.settings()).set("keep_host", keep)?;
        Ok(())
    }

    fn sleep(&mut self, tags: &[usize], to: To) -> Outcome {
        // New contents for some, which must not be taken for those that were kept.
        for at in 0..self.known.len() {
            let is_written = !self.known[at].is_asleep && self.random.once_in(3);
            if is_written || (self.known[at].is_gone && !self.known[at].is_asleep) {
                self.seeds += 1;
                self.known[at].egg.seed = self.seeds;
                self.known[at].is_gone = false;
                self.nest.write(&self.known[at].egg)?;
            }
        }
        let names: Vec<&str> = tags.iter().map(|tag| TAGS[*tag]).collect();
        let report = match to {
            To::Nothing => self.nest.discard(&names)?,
            _ => self.nest.sleep(&names)?,
        };
        let mut live = 0;
        for known in (self.known.iter_mut()).filter(|known| is_chosen(tags, known.tag)) {
            if !known.is_asleep {
                live += known.egg.bytes;
            }
            known.is_asleep = true;
            known.is_gone |= to == To::Nothing;
        }
        ensure!(
            report.total().moved >= live,
            "{live} bytes lay down: {report:?}"
        );
        let left = self.nest.house.process.whereabouts(None, None)?;
        ensure!(!tags.is_empty() || left.device == 0, "awake: {left:?}");
        Ok(())
    }

    fn wake(&mut self, tags: &[usize]) -> Outcome {
        let names: Vec<&str> = tags.iter().map(|tag| TAGS[*tag]).collect();
        self.nest.wake(&names)?;
        for known in (self.known.iter_mut()).filter(|known| is_chosen(tags, known.tag)) {
            known.is_asleep = false;
        }
        Ok(())
    }

    fn verify(&self, known: &Known) -> Outcome {
        match known.is_asleep || known.is_gone {
            true => Ok(()),
            false => self.nest.verify(&known.egg),
        }
    }

    fn check(&mut self) -> Outcome {
        self.known.iter().try_for_each(|known| self.verify(known))?;
        self.nest.audit()?;
        let process = &self.nest.house.process;
        ensure!(
            process.live_blocks() == self.known.len() && self.shadow.len() == self.known.len(),
            "{} blocks, of {}",
            process.live_blocks(),
            self.known.len()
        );
        let requested: u64 = self.known.iter().map(|known| known.egg.bytes).sum();
        let told = process.stats(0, None)?.requested;
        ensure!(told == requested, "{told} bytes requested, of {requested}");
        // Every tag that a block of the model has, asleep or not, is where the model says.
        let asleep: BTreeSet<usize> = (self.known.iter().filter(|known| known.is_asleep))
            .map(|known| known.tag)
            .collect();
        for tag in asleep.into_iter().filter(|tag| *tag < 3) {
            let there = process.whereabouts(None, Some(TAGS[tag]))?;
            ensure!(there.host + there.discarded > 0, "{tag}: {there:?}");
        }
        Ok(())
    }

    fn close(&mut self) -> Outcome {
        self.nest.house.process.settings().set("keep_host", "0")?;
        if self.random.once_in(2) {
            self.wake(&[])?;
        }
        while !self.known.is_empty() {
            self.free()?;
        }
        self.nest.house.process.wake(&request(&[]))?;
        Ok(())
    }
}

fn is_chosen(tags: &[usize], tag: usize) -> bool {
    tags.is_empty() || tags.contains(&tag)
}
