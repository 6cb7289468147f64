//! When finding memory takes too long, memory is spent instead. Most programs settle after a few
//! hundred misses. Sizes at random in a full pool never do: every block then is put together from
//! others' chunks, at hundreds of microseconds each, and the pool is better off holding more, in larger
//! chunks.

/// What a miss knows of the pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Chunks made so far.
    pub creates: u64,
    /// Chunks moved so far.
    pub moves: u64,
    /// Chunks given back so far.
    pub releases: u64,
    /// Blocks given out so far.
    pub blocks: u64,
    /// The most bytes in use at a time.
    pub most: u64,
}

impl Account {
    /// What the driver took for it, in microseconds, by its measured costs (one H200, driver 580). Not
    /// by the clock: a program's memory must not depend on how busy the machine was.
    fn spent(&self) -> u64 {
        self.creates * 32 + self.moves * 40 + self.releases * 20
    }

    /// About what a caching allocator that moves nothing takes for such a program, in microseconds: a
    /// tenth a block, half a MiB that it holds, and a start.
    fn plain(&self) -> u64 {
        self.blocks / 10 + (self.most >> 20) / 2 + 6000
    }
}

/// Above 1, the pool may hold so many times the slack, in chunks so many times as long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace(f64);

impl Default for Pace {
    fn default() -> Pace {
        Pace(1.0)
    }
}

/// It is too long beyond so many times what the plain allocator takes.
const TOO_LONG: u64 = 3;
const STEP: f64 = 1.1;
const MOST: f64 = 64.0;

impl Pace {
    /// Looks at what misses have cost, at one that finds the pool as large as it may be.
    pub fn look(&mut self, account: &Account) {
        let wanted = match account.spent() > TOO_LONG * account.plain() {
            true => self.0 * STEP,
            false => self.0 / STEP,
        };
        self.0 = wanted.clamp(1.0, MOST);
    }

    /// A length or an amount, at this pace.
    pub fn stretch(self, bytes: u64) -> u64 {
        (bytes as f64 * self.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_spent_while_finding_it_takes_too_long() {
        let mut pace = Pace::default();
        let mut account = Account {
            creates: 256,
            blocks: 50_000,
            most: 8 << 30,
            ..Account::default()
        };
        pace.look(&account);
        assert_eq!(pace, Pace::default());
        account.moves = 2000;
        for _ in 0..100 {
            pace.look(&account);
        }
        assert_eq!(pace.stretch(10), 640);
        account.blocks = 10_000_000;
        pace.look(&account);
        assert_eq!(pace.stretch(110), 6400);
        for _ in 0..100 {
            pace.look(&account);
        }
        assert_eq!(pace, Pace::default());
    }
}
