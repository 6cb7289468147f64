//! A stack of blocks in one range of addresses: the next block lies on the last, and only the last comes off.
//! Knows how large a range would have held all the blocks there were at one time, wherever it began.

use super::size::Align;

/// What every block is a multiple of, and where it begins at a multiple of.
pub const ALIGN: Align = Align::new(256).unwrap();

/// The most that a block has: sizes above are negative ones of callers who count with a sign.
pub const MOST: u64 = i64::MAX as u64;

/// What a block of `bytes` takes of a range, wherever the range begins.
pub fn need(bytes: u64, align: Align) -> Option<u64> {
    let slack = align.get().saturating_sub(ALIGN.get());
    ALIGN.round_up(bytes)?.checked_add(slack)
}

#[derive(Clone, Copy, Debug)]
struct Block {
    address: u64,
    bytes: u64,
    /// Where the stack ended before it, which padding may lie behind.
    top_before: u64,
    need_before: u64,
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

/// The stack.
#[derive(Debug, Default)]
pub struct Stack {
    base: u64,
    /// Where the range ends; 0 while nothing may be put on.
    end: u64,
    top: u64,
    need: u64,
    requested: u64,
    blocks: Vec<Block>,
}

impl Stack {
    /// An empty stack in the `bytes` at `base`, a multiple of [`ALIGN`].
    pub fn new(base: u64, bytes: u64) -> Stack {
        Stack {
            base,
            end: base.saturating_add(bytes),
            top: base,
            ..Stack::default()
        }
    }

    /// Puts a block on and returns where it begins; none where there is no room for it. `bytes` is
    /// above 0 and at most [`MOST`].
    #[inline]
    pub fn push(&mut self, bytes: u64, align: Align) -> Option<u64> {
        let align = align.max(ALIGN);
        let address = align.round_up(self.top)?;
        let rounded = ALIGN.round_up(bytes)?;
        let top = address.checked_add(rounded)?;
        if top > self.end {
            return None;
        }
        if self.blocks.len() == self.blocks.capacity() {
            self.blocks.try_reserve(1).ok()?;
        }
        self.blocks.push(Block {
            address,
            bytes,
            top_before: self.top,
            need_before: self.need,
        });
        self.need += rounded + (align.get() - ALIGN.get());
        self.requested += bytes;
        self.top = top;
        Some(address)
    }

    /// Whether the block at `address`, of `bytes` where that is told, may come off.
    pub fn check(&self, address: u64, bytes: Option<u64>) -> Result<(), Refusal> {
        let at = (self.blocks)
            .binary_search_by_key(&address, |block| block.address)
            .map_err(|_| Refusal::Foreign)?;
        let is = self.blocks[at].bytes;
        if bytes.is_some_and(|bytes| bytes != is) {
            return Err(Refusal::OtherSize(is));
        }
        match self.blocks.len() - 1 - at {
            0 => Ok(()),
            above => Err(Refusal::Below(above)),
        }
    }

    /// Takes the block at `address` off, if it is the last and has as many bytes as are told.
    #[inline]
    pub fn pop(&mut self, address: u64, bytes: Option<u64>) -> bool {
        let Some(block) = self.blocks.last() else {
            return false;
        };
        if block.address != address || bytes.is_some_and(|bytes| bytes != block.bytes) {
            return false;
        }
        self.top = block.top_before;
        self.need = block.need_before;
        self.requested -= block.bytes;
        self.blocks.pop();
        true
    }

    /// Nothing is put on any more.
    pub fn close(&mut self) {
        self.end = 0;
    }

    /// Whether nothing may be put on.
    pub fn is_closed(&self) -> bool {
        self.end == 0
    }

    /// How many blocks there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Bytes from the beginning of the range to the end of the last block.
    #[inline]
    pub fn used(&self) -> u64 {
        self.top - self.base
    }

    /// Bytes of the blocks as asked for.
    #[inline]
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// As many bytes hold these blocks in any range that begins at a multiple of [`ALIGN`].
    #[inline]
    pub fn need(&self) -> u64 {
        self.need
    }

    /// Finds what contradicts itself.
    pub fn audit(&self) -> Result<(), String> {
        let (mut top, mut requested) = (self.base, 0);
        for block in &self.blocks {
            if block.top_before != top || block.address < top {
                return Err(format!("{block:?} does not lie on {top:#x}"));
            }
            if !ALIGN.divides(block.address) || block.bytes == 0 {
                return Err(format!("{block:?}"));
            }
            top = block.address + ALIGN.round_up(block.bytes).unwrap_or(0);
            requested += block.bytes;
        }
        let is_within = self.is_closed() || top <= self.end;
        match top == self.top && requested == self.requested && is_within {
            true if self.used() <= self.need => Ok(()),
            _ => Err(format!("{self:?}")),
        }
    }
}
