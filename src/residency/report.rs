//! What sleep and wake say they did: how many bytes of each tag, and where.

use crate::core::tags::TagId;

/// What became of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Given back by the device, or had again.
    pub moved: u64,
    /// Copied.
    pub copied: u64,
    /// Whose chunks have to stay where they are.
    pub pinned: u64,
}

impl Amounts {
    fn add(&mut self, other: Amounts) {
        self.moved += other.moved;
        self.copied += other.copied;
        self.pinned += other.pinned;
    }
}

/// What an operation did on one device or more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of each tag: those asked for in their order, or else those with which something was done.
    pub by_tag: Vec<(TagId, Amounts)>,
    /// The stretches that lost their chunks or got new ones: device, first address and length.
    pub ranges: Vec<(i32, u64, u64)>,
    /// Of a sleep that failed and could not be undone, those that sleep.
    pub stuck: Vec<(i32, u64, u64)>,
}

impl Report {
    /// Nothing yet of these tags.
    pub fn of_tags(tags: &[TagId]) -> Report {
        let mut report = Report::default();
        tags.iter().for_each(|tag| _ = report.of(*tag));
        report
    }

    /// What is said of a tag.
    pub(super) fn of(&mut self, tag: TagId) -> &mut Amounts {
        let known = self.by_tag.iter().position(|(other, _)| *other == tag);
        let at = known.unwrap_or_else(|| {
            self.by_tag.push((tag, Amounts::default()));
            self.by_tag.len() - 1
        });
        &mut self.by_tag[at].1
    }

    /// All tags together.
    pub fn total(&self) -> Amounts {
        let mut total = Amounts::default();
        (self.by_tag.iter()).for_each(|(_, amounts)| total.add(*amounts));
        total
    }

    /// Notes that a place lost its chunk or got one.
    pub(super) fn note(&mut self, tag: TagId, device: i32, address: u64, bytes: u64) {
        self.of(tag).moved += bytes;
        match self.ranges.last_mut() {
            Some((on, begin, length)) if *on == device && *begin + *length == address => {
                *length += bytes;
            }
            _ => self.ranges.push((device, address, bytes)),
        }
    }

    /// Notes that a place sleeps although the sleep has failed.
    pub(super) fn note_stuck(&mut self, tag: TagId, device: i32, address: u64, bytes: u64) {
        self.of(tag).moved += bytes;
        self.stuck.push((device, address, bytes));
    }

    /// Forgets how much was done, since it was undone; where that was stays.
    pub(super) fn clear_amounts(&mut self) {
        (self.by_tag.iter_mut()).for_each(|(_, amounts)| *amounts = Amounts::default());
    }

    /// Forgets what was done, since it was undone.
    pub(super) fn take_back(&mut self) {
        let tags: Vec<TagId> = self.by_tag.iter().map(|(tag, _)| *tag).collect();
        *self = Report::of_tags(&tags);
    }

    /// Adds what was done elsewhere.
    pub fn add(&mut self, other: Report) {
        for (tag, amounts) in other.by_tag {
            self.of(tag).add(amounts);
        }
        self.ranges.extend(other.ranges);
        self.stuck.extend(other.stuck);
    }
}
