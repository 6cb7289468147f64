//! Random numbers that a seed repeats: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom
//! number generators, 2014).

/// A generator.
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is above zero.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Sizes of every magnitude alike, up to 2 to the power of `most`.
    pub fn size(&mut self, most: u32) -> u64 {
        let magnitude = 1u64 << self.below(most as usize + 1);
        1 + self.number() % magnitude
    }
}
