//! Free pieces by size: the two-level segregated fit of Masmano, Ripoll, Crespo and Real ("TLSF: a new
//! dynamic memory allocator for real-time systems", ECRTS 2004), kept out of band. Classes are powers
//! of two, each cut into 64 of equal width; a bit says which have pieces, so that the search takes a
//! fixed number of steps. Sizes are counted in whatever unit the caller divides memory into.
//!
//! The original rounds a request up to the next class and so passes by a piece of just the size asked
//! for. Here the request's own class is looked through first, a few pieces deep.

/// No piece.
pub const NONE: u32 = u32::MAX;

const SUB_BITS: u32 = 6;
const SUB_CLASSES: usize = 1 << SUB_BITS;
/// Sizes of 2 to the power 36 and more share the last class.
const CLASSES: usize = 36 - SUB_BITS as usize + 1;

/// How many pieces of the request's own class are looked at. Most classes hold pieces of one size.
const PROBES: usize = 8;

/// Where a piece stands in its class's list.
#[derive(Clone, Copy)]
struct Links {
    before: u32,
    after: u32,
    size: u64,
}

const UNLISTED: Links = Links {
    before: NONE,
    after: NONE,
    size: 0,
};

/// Pieces, by numbers that the caller gives, listed by size.
pub struct SizeIndex {
    filled: u64,
    sub_filled: [u64; CLASSES],
    heads: Vec<u32>,
    links: Vec<Links>,
}

impl Default for SizeIndex {
    fn default() -> SizeIndex {
        SizeIndex {
            filled: 0,
            sub_filled: [0; CLASSES],
            heads: vec![NONE; CLASSES * SUB_CLASSES],
            links: Vec::new(),
        }
    }
}

/// The class of a size above 0 and its part.
fn class_of(size: u64) -> (usize, usize) {
    let size = size.min((1 << 36) - 1);
    if size < SUB_CLASSES as u64 {
        return (0, size as usize);
    }
    let high = size.ilog2();
    let sub = (size >> (high - SUB_BITS)) as usize & (SUB_CLASSES - 1);
    ((high - SUB_BITS) as usize + 1, sub)
}

impl SizeIndex {
    /// Lists the piece `number` of `size` above 0.
    pub fn insert(&mut self, number: u32, size: u64) {
        let (class, sub) = class_of(size);
        let slot = class * SUB_CLASSES + sub;
        let first = self.heads[slot];
        if self.links.len() <= number as usize {
            self.links.resize(number as usize + 1, UNLISTED);
        }
        self.links[number as usize] = Links {
            before: NONE,
            after: first,
            size,
        };
        if first != NONE {
            self.links[first as usize].before = number;
        }
        self.heads[slot] = number;
        self.filled |= 1 << class;
        self.sub_filled[class] |= 1 << sub;
    }

    /// Takes the piece `number`, which is listed, off its list.
    pub fn remove(&mut self, number: u32) {
        let Links {
            before,
            after,
            size,
        } = std::mem::replace(&mut self.links[number as usize], UNLISTED);
        if after != NONE {
            self.links[after as usize].before = before;
        }
        if before != NONE {
            self.links[before as usize].after = after;
            return;
        }
        let (class, sub) = class_of(size);
        self.heads[class * SUB_CLASSES + sub] = after;
        if after == NONE {
            self.sub_filled[class] &= !(1 << sub);
            if self.sub_filled[class] == 0 {
                self.filled &= !(1 << class);
            }
        }
    }

    /// A piece of at least `size` above 0 that wastes little: the best of a few of the size's own
    /// class, else one of the next class that has any.
    pub fn find(&self, size: u64) -> Option<u32> {
        let (class, sub) = class_of(size);
        self.best_of(class, sub, size)
            .or_else(|| self.first_above(class, sub, size))
    }

    fn best_of(&self, class: usize, sub: usize, size: u64) -> Option<u32> {
        let mut best: Option<(u64, u32)> = None;
        let mut number = self.heads[class * SUB_CLASSES + sub];
        for _ in 0..PROBES {
            if number == NONE {
                break;
            }
            let links = self.links[number as usize];
            if links.size == size {
                return Some(number);
            }
            if links.size > size && best.is_none_or(|(least, _)| links.size < least) {
                best = Some((links.size, number));
            }
            number = links.after;
        }
        best.map(|(_, number)| number)
    }

    fn first_above(&self, class: usize, sub: usize, size: u64) -> Option<u32> {
        let beside = self.sub_filled[class] & !(u64::MAX >> (SUB_CLASSES - 1 - sub));
        let (class, sub) = if beside != 0 {
            (class, beside.trailing_zeros() as usize)
        } else {
            let above = self.filled & !(u64::MAX >> (63 - class));
            if above == 0 {
                return None;
            }
            let class = above.trailing_zeros() as usize;
            (class, self.sub_filled[class].trailing_zeros() as usize)
        };
        let number = self.heads[class * SUB_CLASSES + sub];
        // Only the last class holds sizes below those that lead to it.
        (self.links[number as usize].size >= size).then_some(number)
    }

    /// Every piece of at least `size`, largest classes first, in no order within a class.
    pub fn at_least(&self, size: u64) -> Vec<u32> {
        let (lowest, lowest_sub) = class_of(size.max(1));
        let mut found = Vec::new();
        let mut classes = self.filled & (u64::MAX << lowest);
        while let Some(class) = classes.checked_ilog2() {
            classes ^= 1 << class;
            let class = class as usize;
            let mut subs = self.sub_filled[class];
            if class == lowest {
                subs &= u64::MAX << lowest_sub;
            }
            while let Some(sub) = subs.checked_ilog2() {
                subs ^= 1 << sub;
                let mut number = self.heads[class * SUB_CLASSES + sub as usize];
                while number != NONE {
                    let links = self.links[number as usize];
                    if links.size >= size {
                        found.push(number);
                    }
                    number = links.after;
                }
            }
        }
        found
    }

    /// Every piece that is listed and its size, found without trust in the lists; what is wrong with them.
    pub fn checked(&self) -> Result<Vec<(u32, u64)>, String> {
        let mut found = Vec::new();
        let mut filled = 0;
        for class in 0..CLASSES {
            let mut sub_filled = 0;
            for sub in 0..SUB_CLASSES {
                let (mut number, mut before) = (self.heads[class * SUB_CLASSES + sub], NONE);
                sub_filled |= u64::from(number != NONE) << sub;
                while number != NONE {
                    let links = (self.links.get(number as usize))
                        .filter(|links| links.before == before && links.size > 0)
                        .filter(|links| class_of(links.size) == (class, sub))
                        .ok_or_else(|| format!("piece {number} is listed wrongly"))?;
                    found.push((number, links.size));
                    if found.len() > self.links.len() {
                        return Err("free pieces lie in a circle".to_owned());
                    }
                    (before, number) = (number, links.after);
                }
            }
            filled |= u64::from(sub_filled != 0) << class;
            if sub_filled != self.sub_filled[class] {
                return Err(format!("class {class} of sizes is marked wrongly"));
            }
        }
        let listed =
            |links: &&Links| links.size != 0 || links.before != NONE || links.after != NONE;
        if filled != self.filled || self.links.iter().filter(listed).count() != found.len() {
            return Err("sizes are marked wrongly".to_owned());
        }
        Ok(found)
    }

    /// The largest size listed.
    pub fn largest(&self) -> Option<u64> {
        let class = self.filled.checked_ilog2()? as usize;
        let sub = self.sub_filled[class].ilog2() as usize;
        let mut number = self.heads[class * SUB_CLASSES + sub];
        let mut largest = 0;
        while number != NONE {
            largest = largest.max(self.links[number as usize].size);
            number = self.links[number as usize].after;
        }
        Some(largest)
    }
}

#[cfg(test)]
impl SizeIndex {
    /// The fields of what is known of a piece.
    pub const FIELDS: usize = 3;

    /// Damages one of them.
    pub fn flip(&mut self, number: u32, field: usize, bit: u32) {
        let links = &mut self.links[number as usize];
        match field {
            0 => links.before ^= 1 << (bit % 32),
            1 => links.after ^= 1 << (bit % 32),
            _ => links.size ^= 1 << bit,
        }
    }

    /// Damages what is known of a class.
    pub fn flip_class(&mut self, class: usize, sub: usize, field: usize) {
        match field {
            0 => self.filled ^= 1 << class,
            1 => self.sub_filled[class] ^= 1 << sub,
            _ => self.heads[class * SUB_CLASSES + sub] ^= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn classes_are_in_the_order_of_their_sizes() {
        let sizes = (1..2000u64).chain((11..40).flat_map(|high| {
            let power = 1u64 << high;
            [
                power - 1,
                power,
                power + 1,
                power + power / 64,
                power + power / 2,
            ]
        }));
        let mut before = (0, 0);
        for size in sizes.filter(|size| *size < 1 << 36) {
            let class = class_of(size);
            assert!(class >= before || size < 2048, "{size}");
            before = class;
        }
        assert_eq!(class_of(u64::MAX), (CLASSES - 1, SUB_CLASSES - 1));
    }

    #[test]
    fn a_piece_of_just_the_size_is_found_among_others_of_its_class() {
        let mut index = SizeIndex::default();
        index.insert(0, 10_001);
        index.insert(1, 10_000);
        index.insert(2, 10_002);
        assert_eq!(index.find(10_000), Some(1));
        assert_eq!(index.find(10_002), Some(2));
        index.remove(2);
        assert_eq!(index.find(10_002), None);
        assert_eq!(index.largest(), Some(10_001));
    }

    proptest! {
        #[test]
        fn what_is_found_is_large_enough_and_of_a_class_near(
            steps in proptest::collection::vec((any::<bool>(), 1u64..1 << 30, 0u32..40), 1..300),
        ) {
            let mut index = SizeIndex::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (insert, size, shift) in steps {
                let (size, number) = ((size >> (shift % 30)).max(1), shift);
                match model.remove(&number) {
                    Some(_) => index.remove(number),
                    None if insert => {
                        index.insert(number, size);
                        model.insert(number, size);
                    }
                    None => {}
                }
                prop_assert_eq!(index.largest(), model.values().max().copied());
                let mut expected: Vec<u32> = model.iter().filter(|(_, s)| **s >= size).map(|(n, _)| *n).collect();
                let mut listed = index.at_least(size);
                listed.sort();
                expected.sort();
                prop_assert_eq!(listed, expected.clone());
                match index.find(size) {
                    Some(found) => {
                        let given = model[&found];
                        prop_assert!(given >= size);
                        let best = model.values().filter(|s| **s >= size).min().unwrap();
                        prop_assert!(class_of(given) <= class_of(*best).max(class_of(size + size / 32 + 1)));
                    }
                    // Own classes are looked through only so deep.
                    None => prop_assert!(
                        model.values().all(|s| *s < size || class_of(*s) == class_of(size))
                    ),
                }
            }
        }
    }
}
