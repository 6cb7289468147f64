//! What must hold of the table of extents at any time, for tests.

use super::table::{Extents, Owner, Run, Table};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;

impl Extents {
    /// Finds whatever contradicts itself in the table.
    pub fn audit(&self) -> std::result::Result<(), String> {
        let table = lock(&self.table);
        let (mut held, mut known) = (0, FxHashSet::default());
        let mut end_before = 0;
        for (address, run) in &table.runs {
            if *address < end_before {
                return Err(format!("the range at {address:#x} overlaps the one before"));
            }
            end_before = address + run.reservation.bytes();
            audit_cover(*address, end_before, run)?;
            for chunk in run.extents.values().filter_map(|e| e.chunk.as_ref()) {
                if known.insert(Arc::as_ptr(chunk)) {
                    held += chunk.bytes();
                }
            }
        }
        let mut homes = FxHashSet::default();
        let extents = table.runs.values().flat_map(|run| run.extents.iter());
        for (address, extent) in extents.filter(|(_, extent)| !extent.alias) {
            if let Some(chunk) = &extent.chunk {
                if !homes.insert(Arc::as_ptr(chunk)) {
                    return Err(format!("the chunk at {address:#x} is at home twice"));
                }
            }
        }
        let counted = self.physical().now;
        if held != counted {
            return Err(format!("{held} bytes in chunks, {counted} counted"));
        }
        self.audit_tags(&table)
    }
}

impl Extents {
    fn audit_tags(&self, table: &Table) -> std::result::Result<(), String> {
        let mut at_home: FxHashMap<TagId, u64> = FxHashMap::default();
        for run in table.runs.values() {
            let homes = (run.extents.values()).filter(|e| e.chunk.is_some() && !e.alias);
            *at_home.entry(run.tag).or_default() += homes.map(|e| e.bytes).sum::<u64>();
        }
        for (tag, gauge) in lock(&self.by_tag).iter() {
            let (held, counted) = (at_home.remove(tag).unwrap_or(0), gauge.read().now);
            if held != counted {
                return Err(format!("{held} bytes under {tag:?}, {counted} counted"));
            }
        }
        Ok(())
    }
}

fn audit_cover(begin: u64, end: u64, run: &Run) -> std::result::Result<(), String> {
    let mut next = begin;
    for (address, extent) in &run.extents {
        let fits = match run.owner {
            Owner::Pool => *address >= next,
            Owner::Block | Owner::Segment | Owner::Cell => *address == next,
        };
        if !fits {
            return Err(format!("a gap or overlap at {next:#x}"));
        }
        match &extent.chunk {
            None if extent.mapping.is_some() => {
                return Err(format!("{address:#x} is mapped without a chunk"));
            }
            Some(chunk) if chunk.bytes() != extent.bytes => {
                return Err(format!("the chunk at {address:#x} has another size"));
            }
            _ if !run.shows_handle(*address, extent) => {
                return Err(format!(
                    "the handle of the cell at {address:#x} is not shown"
                ));
            }
            _ => {}
        }
        next = address + extent.bytes;
    }
    match run.owner {
        Owner::Pool if next <= end => Ok(()),
        Owner::Block | Owner::Segment | Owner::Cell if next == end => Ok(()),
        _ => Err(format!("the range at {begin:#x} is not covered")),
    }
}
