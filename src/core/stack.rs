//! A stack of blocks in one range of addresses: the next block lies on the last, and only the last comes off.
//! Knows how large a range would have held all the blocks there were at one time, wherever it began.

use super::size::Align;

/// What every block is a multiple of, and where it begins at a multiple of.
pub const ALIGN: Align = Align::new(256).unwrap();

/// The most that a block has: sizes above are negative ones of callers who count with a sign.
pub const MOST: u64 = i64::MAX as u64;

/// What a block of `bytes` takes of a range, wherever the range begins.
pub fn need(bytes: u64, align: Align) -> Option<u64> {
    ALIGN.round_up(bytes)?.checked_add(most_padding(align))
}

/// The most that lies before a block because of its alignment.
pub fn most_padding(align: Align) -> u64 {
    align.get().saturating_sub(ALIGN.get())
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    address: u64,
    bytes: u64,
}

/// What lies before a block that was asked for with a larger alignment.
#[derive(Clone, Copy, Debug)]
struct Padding {
    /// Where that block begins.
    before: u64,
    bytes: u64,
    most: u64,
}

/// Why a block does not come off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No block begins there.
    Foreign,
    /// It has so many bytes.
    OtherSize(u64),
    /// So many blocks lie on it.
    Below(usize),
}

/// Up to where blocks come without a look at anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// [`Stack::used`].
    pub used: u64,
    /// [`Stack::requested`].
    pub requested: u64,
    /// [`Stack::len`].
    pub blocks: usize,
}

/// The stack.
#[derive(Debug, Default)]
pub struct Stack {
    base: u64,
    end: u64,
    top: u64,
    /// [`Marks`], the first as an address within the range.
    top_mark: u64,
    requested_mark: u64,
    len_mark: usize,
    requested: u64,
    len: usize,
    /// More than `len` where there were more.
    blocks: Vec<Block>,
    paddings: Vec<Padding>,
    /// What paddings could have been more than they are.
    slack: u64,
}

impl Stack {
    /// An empty stack in the `bytes` at `base`, a multiple of [`ALIGN`].
    pub fn new(base: u64, bytes: u64) -> Stack {
        Stack {
            base,
            end: base.saturating_add(bytes),
            top: base,
            top_mark: base,
            ..Stack::default()
        }
    }

    /// Sets up to where [`Stack::push_below_marks`] goes.
    pub fn set_marks(&mut self, marks: Marks) {
        self.top_mark = self.base.saturating_add(marks.used).min(self.end);
        self.requested_mark = marks.requested;
        self.len_mark = marks.blocks;
    }

    /// Puts a block on, if it stays below the marks, and returns where it begins and what it takes. `bytes`
    /// is above 0 and at most [`MOST`].
    #[inline(always)]
    pub fn push_below_marks(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let (address, len) = (self.top, self.len);
        let rounded = (bytes + (ALIGN.get() - 1)) & !(ALIGN.get() - 1);
        let requested = self.requested + bytes;
        if rounded > self.top_mark.wrapping_sub(address)
            || address > self.top_mark
            || requested > self.requested_mark
            || len >= self.len_mark
        {
            return None;
        }
        *self.blocks.get_mut(len)? = Block { address, bytes };
        self.len = len + 1;
        self.requested = requested;
        self.top = address + rounded;
        Some((address, rounded))
    }

    /// Puts a block on at a multiple of `align` and returns where it begins; none where there is no room for
    /// it, or on the host for its record. `bytes` is above 0 and at most [`MOST`].
    pub fn push(&mut self, bytes: u64, align: Align) -> Option<u64> {
        let address = align.max(ALIGN).round_up(self.top)?;
        let top = address.checked_add(ALIGN.round_up(bytes)?)?;
        if top > self.end {
            return None;
        }
        if self.len == self.blocks.len() {
            let more = self.len.max(16);
            self.blocks.try_reserve(more).ok()?;
            self.blocks.resize(self.len + more, Block::default());
        }
        let most = most_padding(align);
        if most > 0 {
            self.paddings.try_reserve(1).ok()?;
            let bytes = address - self.top;
            self.slack += most - bytes;
            self.paddings.push(Padding {
                before: address,
                bytes,
                most,
            });
        }
        self.blocks[self.len] = Block { address, bytes };
        self.len += 1;
        self.requested += bytes;
        self.top = top;
        Some(address)
    }

    /// Whether the block at `address`, of `bytes` where that is told, may come off.
    pub fn check(&self, address: u64, bytes: Option<u64>) -> Result<(), Refusal> {
        let at = (self.blocks[..self.len])
            .binary_search_by_key(&address, |block| block.address)
            .map_err(|_| Refusal::Foreign)?;
        let is = self.blocks[at].bytes;
        if bytes.is_some_and(|bytes| bytes != is) {
            return Err(Refusal::OtherSize(is));
        }
        match self.len - 1 - at {
            0 => Ok(()),
            above => Err(Refusal::Below(above)),
        }
    }

    /// Takes the block at `address` off, if it is the last, has as many bytes as are told, and no block was
    /// asked for with a larger alignment.
    #[inline(always)]
    pub fn pop_unpadded(&mut self, address: u64, bytes: Option<u64>) -> bool {
        let last = self.len.wrapping_sub(1);
        let Some(block) = self.blocks.get(last) else {
            return false;
        };
        let is_right = block.address == address && bytes.is_none_or(|bytes| bytes == block.bytes);
        if !is_right || !self.paddings.is_empty() {
            return false;
        }
        self.requested -= block.bytes;
        self.top = address;
        self.len = last;
        true
    }

    /// Takes the block at `address` off, if it is the last and has as many bytes as are told.
    pub fn pop(&mut self, address: u64, bytes: Option<u64>) -> Result<(), Refusal> {
        self.check(address, bytes)?;
        self.len -= 1;
        self.requested -= self.blocks[self.len].bytes;
        self.top = address;
        if let Some(last) = self.paddings.last().filter(|last| last.before == address) {
            self.top -= last.bytes;
            self.slack -= last.most - last.bytes;
            self.paddings.pop();
        }
        Ok(())
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes from the beginning of the range to the end of the last block.
    pub fn used(&self) -> u64 {
        self.top - self.base
    }

    /// Bytes of the blocks as asked for.
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// As many bytes hold these blocks in any range that begins at a multiple of [`ALIGN`].
    pub fn need(&self) -> u64 {
        self.used() + self.slack
    }

    /// Finds what contradicts itself.
    pub fn audit(&self) -> Result<(), String> {
        let (mut top, mut requested, mut slack) = (self.base, 0, 0);
        let mut paddings = self.paddings.iter().peekable();
        for block in &self.blocks[..self.len] {
            if let Some(padding) = paddings.next_if(|next| next.before == block.address) {
                top += padding.bytes;
                slack += padding.most - padding.bytes;
            }
            if block.address != top || !ALIGN.divides(top) || block.bytes == 0 {
                return Err(format!("{block:?} does not lie on {top:#x}"));
            }
            top += ALIGN.round_up(block.bytes).unwrap_or(0);
            requested += block.bytes;
        }
        let is_right = top == self.top
            && requested == self.requested
            && slack == self.slack
            && paddings.next().is_none()
            && self.top <= self.end
            && self.top_mark <= self.end;
        match is_right {
            true => Ok(()),
            false => Err(format!("{self:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 0x7f00_0000_0100;
    const LENGTH: u64 = 16 << 10;

    fn align(bits: u32) -> Align {
        Align::new(1 << bits).unwrap()
    }

    #[test]
    fn only_the_last_block_comes_off_and_only_with_its_size() {
        let mut stack = Stack::new(BASE, LENGTH);
        let first = stack.push(1, ALIGN).unwrap();
        let second = stack.push(300, ALIGN).unwrap();
        assert_eq!((first, second), (BASE, BASE + 256));
        assert_eq!(stack.pop(first, Some(1)), Err(Refusal::Below(1)));
        assert_eq!(stack.pop(second, Some(299)), Err(Refusal::OtherSize(300)));
        assert_eq!(stack.pop(second + 256, None), Err(Refusal::Foreign));
        assert_eq!(stack.pop(BASE - 256, Some(256)), Err(Refusal::Foreign));
        assert_eq!(stack.pop(second, Some(300)), Ok(()));
        assert_eq!(stack.pop(second, Some(300)), Err(Refusal::Foreign));
        assert_eq!((stack.used(), stack.requested()), (256, 1));
        assert_eq!(stack.pop(first, None), Ok(()));
        assert_eq!((stack.used(), stack.requested(), stack.need()), (0, 0, 0));
    }

    #[test]
    fn sizes_near_the_end_of_numbers_find_no_room() {
        let mut stack = Stack::new(BASE, LENGTH);
        for bytes in [MOST, MOST - 1, MOST - 256, LENGTH + 1] {
            assert_eq!(stack.push(bytes, ALIGN), None);
            assert_eq!(stack.push_below_marks(bytes), None);
        }
        assert_eq!(stack.push(1, align(63)), None);
        assert_eq!(stack.push(LENGTH, ALIGN), Some(BASE));
        assert_eq!(stack.push(1, ALIGN), None);
        assert_eq!(need(u64::MAX, ALIGN), None);
    }

    #[test]
    fn nothing_goes_above_a_mark() {
        let mut stack = Stack::new(BASE, LENGTH);
        stack.push(1, ALIGN).unwrap();
        stack.pop(BASE, None).unwrap();
        let open = Marks {
            used: 512,
            requested: 400,
            blocks: 2,
        };
        for (marks, bytes) in [
            (Marks { used: 256, ..open }, 257),
            (
                Marks {
                    requested: 99,
                    ..open
                },
                100,
            ),
            (Marks { blocks: 0, ..open }, 1),
        ] {
            stack.set_marks(marks);
            assert_eq!(stack.push_below_marks(bytes), None, "{marks:?}");
            stack.set_marks(open);
            assert_eq!(stack.push_below_marks(bytes).map(|(at, _)| at), Some(BASE));
            assert!(stack.pop_unpadded(BASE, Some(bytes)));
        }
        assert!(!stack.pop_unpadded(BASE, None));
        stack.audit().unwrap();
    }

    proptest! {
        /// Against a plain list of blocks; and what it needed suffices wherever the range begins.
        #[test]
        fn agrees_with_a_list(
            steps in proptest::collection::vec((0u8..6, 1u64..2000, 0u32..13), 1..200),
            elsewhere in 0u64..64,
        ) {
            let mut stack = Stack::new(BASE, LENGTH);
            let mut model: Vec<(u64, u64)> = Vec::new();
            let (mut most, mut kept) = (0, Vec::new());
            stack.set_marks(Marks { used: u64::MAX, requested: u64::MAX, blocks: usize::MAX });
            for (step, bytes, bits) in steps {
                if step < 4 {
                    let made = match step {
                        0 => stack.push_below_marks(bytes).map(|(address, _)| address),
                        _ => stack.push(bytes, align(bits)),
                    };
                    if let Some(address) = made {
                        let end = model.last().map_or(BASE, |(last, bytes)| last + bytes);
                        let align = if step == 0 { ALIGN } else { align(bits).max(ALIGN) };
                        prop_assert!(align.divides(address) && address >= end);
                        prop_assert!(address + bytes <= BASE + LENGTH);
                        prop_assert!(address - end < align.get() + 256);
                        model.push((address, bytes));
                        kept.push(Some((bytes, align)));
                    }
                    most = most.max(stack.need());
                } else if let Some((address, bytes)) = model.last().copied() {
                    prop_assert!(!stack.pop_unpadded(address, Some(bytes + 1)));
                    prop_assert!(stack.pop(address, Some(bytes + 1)).is_err());
                    if step == 4 || !stack.pop_unpadded(address, Some(bytes)) {
                        prop_assert_eq!(stack.pop(address, Some(bytes)), Ok(()));
                    }
                    model.pop();
                    kept.push(None);
                }
                stack.audit().map_err(TestCaseError::fail)?;
                prop_assert_eq!(stack.len(), model.len());
                prop_assert_eq!(stack.requested(), model.iter().map(|(_, bytes)| bytes).sum::<u64>());
            }
            let mut again = Stack::new(BASE + elsewhere * 256, most);
            let mut live = Vec::new();
            for step in kept {
                match step {
                    Some((bytes, align)) => live.push(again.push(bytes, align).unwrap()),
                    None => again.pop(live.pop().unwrap(), None).unwrap(),
                }
            }
        }
    }
}
