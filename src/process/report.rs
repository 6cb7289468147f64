//! What an error says that memory has run out: who holds it, and what could be done.

use super::{DeviceEntry, tags};
use crate::config::table::Opt;
use crate::config::value::Location;
use crate::error::{Error, Status};
use crate::pool::LARGEST;
use crate::source::Kind;
use crate::sys::linux;

/// How many tags an error names, those whose blocks take most.
const TOLD_TAGS: usize = 3;

/// What contexts of CUDA itself take of a device, which nobody can give back.
const CONTEXTS: u64 = 1 << 30;

/// How things stood when memory ran out, in bytes.
struct Situation {
    asked: u64,
    /// Of the device, where it says so.
    free: Option<u64>,
    total: u64,
    limit: Option<u64>,
    held: u64,
    /// The part of it that is memory of the host.
    on_host: u64,
    in_blocks: u64,
    /// Of the device, and in no block.
    idle: u64,
    /// Whether the pool could hold less beside its blocks.
    could_lean: bool,
}

impl Situation {
    /// What to do next: first what would surely have helped.
    fn advice(&self) -> String {
        const LESS: &str = "ask for less at a time, such as a smaller batch";
        if self.asked > self.total {
            return format!("The device as a whole is smaller: {LESS}");
        }
        if let Some(limit) = self.limit.filter(|limit| self.asked > *limit) {
            return format!(
                "Raise the limit of {limit} bytes (set_limit, HBMALLOC_LIMIT), or {LESS}"
            );
        }
        let mut steps = Vec::new();
        let over = |limit| self.of_device().saturating_add(self.asked) > limit;
        if self.limit.is_some_and(over) {
            steps.push("raise the limit (set_limit, HBMALLOC_LIMIT)".to_owned());
        }
        steps.push(format!("free blocks, or {LESS}"));
        if self.could_lean && self.idle >= self.asked {
            steps.push("set HBMALLOC_WASTE=tight, which leaves less memory idle".to_owned());
        }
        let elsewhere = self.elsewhere();
        if elsewhere > CONTEXTS {
            steps.push(format!(
                "look who else holds {elsewhere} bytes of the device: nvidia-smi names processes, and \
                 caches of other allocators in this one go back by their own calls, such as \
                 torch.cuda.empty_cache()"
            ));
        }
        let text = steps.join("; ");
        let (first, rest) = text.split_at(1);
        first.to_uppercase() + rest
    }

    /// What this process holds of the device.
    fn of_device(&self) -> u64 {
        self.held.saturating_sub(self.on_host)
    }

    /// What others hold of the device.
    fn elsewhere(&self) -> u64 {
        self.free.map_or(0, |free| {
            let taken = self.total.saturating_sub(free);
            taken.saturating_sub(self.of_device())
        })
    }
}

/// What to do next where a node of the host has no more, which has `total` bytes with all its nodes.
fn advice_on_host(node: i32, asked: u64, total: u64) -> String {
    let whose = format!("It was to be memory of the host, of NUMA node {node}");
    match asked > total {
        true => format!("{whose}, which as a whole has {total} bytes: ask for less at a time"),
        false => {
            format!("{whose}: free blocks there, or memory of other programs, or take the device's")
        }
    }
}

impl DeviceEntry {
    /// Adds to an error that memory has run out what is free, held, in blocks and waiting, the limit,
    /// the tags whose blocks take most, and what to do next for more memory at `location`.
    pub(super) fn out_of_memory(&self, error: Error, location: Location) -> Error {
        if error.status() != Status::OutOfMemory {
            return error;
        }
        let (waiting, waiting_bytes) = self.pending();
        let situation = self.situation(&error);
        let Situation { total, held, .. } = situation;
        let ordinal = self.state().device.ordinal();
        let mut text = match situation.free {
            Some(free) => format!("device {ordinal} has {free} bytes free of {total} bytes"),
            None => format!("device {ordinal} does not say what it has free of {total} bytes"),
        };
        if let Some(limit) = situation.limit {
            text += &format!(", its limit is {limit} bytes");
        }
        let on_host = match situation.on_host {
            0 => String::new(),
            bytes => format!(" ({bytes} bytes of the host)"),
        };
        text += &format!(
            "; this process holds {held} bytes{on_host}, {} bytes of them in blocks, and {waiting} freed blocks of {waiting_bytes} bytes wait for work to end",
            situation.in_blocks,
        );
        let top = self.top_tags(TOLD_TAGS);
        // A program that uses no tags learns nothing by this.
        if top.iter().any(|(tag, _)| !tag.is_none()) {
            let told = top.iter().map(|(tag, bytes)| {
                let name = tags::table().name(*tag);
                let name = name.map_or("no tag".to_owned(), |name| format!("'{name}'"));
                format!("{bytes} bytes under {name}")
            });
            text += &format!("; its blocks take {}", told.collect::<Vec<_>>().join(", "));
        }
        let advice = match location {
            Location::Device => situation.advice(),
            Location::HostNuma(node) => {
                advice_on_host(node, situation.asked, linux::total_memory())
            }
        };
        match error.is_explained() {
            // It is not what was asked for that has run out.
            true => error.also(&text),
            false => error.detail(text).advice(advice),
        }
    }

    fn situation(&self, error: &Error) -> Situation {
        let device = &self.state().device;
        self.recharge();
        let (held, in_blocks) = (self.held_by_all(), self.in_blocks());
        Situation {
            on_host: held.saturating_sub(self.state().limit.used()),
            idle: (held.saturating_sub(in_blocks)).saturating_sub(self.cached_on_host()),
            asked: error.asked().unwrap_or(0),
            free: device.memory_info().ok().map(|(free, _)| free),
            total: device.total_memory(),
            limit: self.state().limit.get(),
            held,
            in_blocks,
            could_lean: self.pool_in_use().is_some()
                && self.settings().text(Opt::Waste) == "balanced",
        }
    }

    /// [`DeviceEntry::out_of_memory`] of the pool: what it holds too.
    pub(super) fn pool_out_of_memory(&self, error: Error, location: Option<Location>) -> Error {
        let (Status::OutOfMemory, Some(pool)) = (error.status(), self.pool_in_use()) else {
            return error;
        };
        let mut text = format!(
            "the pool holds {} bytes, {} bytes of them in blocks; its largest free piece has {} bytes",
            self.held(Kind::Pool).now,
            pool.total().allocated,
            pool.largest_free(),
        );
        if error.asked() > Some(LARGEST) {
            text += &format!("; it serves blocks of up to {LARGEST} bytes");
        }
        let location = location.unwrap_or(Location::Device);
        self.out_of_memory(error, location).also(&text)
    }

    /// Freed blocks that wait for work to end, and their bytes.
    pub(super) fn pending(&self) -> (u64, u64) {
        let deferral = &self.state().deferral;
        let pooled = self.pool_in_use().map_or((0, 0), |pool| pool.pending());
        let (blocks, bytes) = (deferral.entries(), deferral.bytes());
        (blocks + pooled.0, bytes + pooled.1)
    }

    /// Bytes of live blocks of all kinds.
    fn in_blocks(&self) -> u64 {
        let pooled = self.pool_in_use().map_or(0, |pool| pool.total().allocated);
        let sources = Kind::SOURCES.into_iter();
        pooled
            + sources
                .map(|kind| self.counters(kind).allocated())
                .sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A device of 80 GiB of which this process holds 10, 4 of them in blocks.
    fn situation(asked: u64, free: u64) -> Situation {
        Situation {
            asked,
            free: Some(free),
            total: 80 * GIB,
            limit: None,
            held: 10 * GIB,
            on_host: 0,
            in_blocks: 4 * GIB,
            idle: 6 * GIB,
            could_lean: false,
        }
    }

    #[test]
    fn what_cannot_be_is_said_first() {
        let text = situation(81 * GIB, 70 * GIB).advice();
        assert!(
            text.starts_with("The device as a whole is smaller: ask for less"),
            "{text}"
        );
        let limited = Situation {
            limit: Some(12 * GIB),
            ..situation(13 * GIB, 70 * GIB)
        };
        let text = limited.advice();
        assert!(
            text.starts_with("Raise the limit of 12884901888 bytes"),
            "{text}"
        );
        let nearly = Situation {
            asked: 3 * GIB,
            ..limited
        };
        let text = nearly.advice();
        assert!(
            text.starts_with("Raise the limit (set_limit, HBMALLOC_LIMIT); free blocks"),
            "{text}"
        );
        assert!(!text.contains("nvidia-smi"), "{text}");
    }

    #[test]
    fn what_is_on_the_host_is_nobodys_on_the_device() {
        let placed = Situation {
            held: 60 * GIB,
            on_host: 50 * GIB,
            limit: Some(20 * GIB),
            ..situation(8 * GIB, GIB)
        };
        let text = placed.advice();
        assert!(text.starts_with("Free blocks, or ask for less"), "{text}");
        assert!(text.contains("who else holds 74088185856 bytes"), "{text}");
        let text = advice_on_host(1, 8 * GIB, 64 * GIB);
        assert!(text.contains("NUMA node 1: free blocks there"), "{text}");
        let text = advice_on_host(1, 80 * GIB, 64 * GIB);
        assert!(text.contains("as a whole has 68719476736 bytes"), "{text}");
    }

    #[test]
    fn a_full_device_says_who_else_could_give() {
        let text = situation(8 * GIB, GIB).advice();
        assert!(text.starts_with("Free blocks, or ask for less"), "{text}");
        assert!(text.contains("who else holds 74088185856 bytes"), "{text}");
        assert!(!text.contains("WASTE"), "{text}");
        let context = situation(8 * GIB, 69 * GIB).advice();
        assert!(!context.contains("nvidia-smi"), "{context}");
        let leaning = Situation {
            could_lean: true,
            ..situation(5 * GIB, 0)
        };
        assert!(leaning.advice().contains("HBMALLOC_WASTE=tight"));
        let unknown = Situation {
            free: None,
            ..situation(8 * GIB, 0)
        };
        assert!(!unknown.advice().contains("nvidia-smi"));
    }
}
