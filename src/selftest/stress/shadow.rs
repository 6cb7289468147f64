//! The model beside the real thing: which ranges are out, by the caller's own account.

use std::collections::BTreeMap;

/// Live ranges that must not overlap.
#[derive(Default)]
pub struct Shadow {
    /// Beginning to end.
    live: BTreeMap<u64, u64>,
}

impl Shadow {
    /// A range was given out.
    pub fn gave(&mut self, address: u64, bytes: u64) -> Result<(), String> {
        let end = address + bytes;
        if let Some((begin, other)) = self.live.range(..end).next_back() {
            if *other > address {
                return Err(format!(
                    "{address:#x}..{end:#x} was given out while {begin:#x}..{other:#x} is live"
                ));
            }
        }
        self.live.insert(address, end);
        Ok(())
    }

    /// A range is about to be given back.
    pub fn takes(&mut self, address: u64) -> Result<(), String> {
        match self.live.remove(&address) {
            Some(_) => Ok(()),
            None => Err(format!("{address:#x} is not live in the model")),
        }
    }

    /// How many ranges are live.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}
