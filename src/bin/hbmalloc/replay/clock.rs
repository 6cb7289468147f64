//! A clock for single calls of tens of nanoseconds. The system's costs about as much as such a call;
//! where the processor has a counter that always runs at one speed, that is read instead. What a pair
//! of readings costs by itself is measured first and taken off every time.

use std::time::{Duration, Instant};

/// For how long the counter is compared with the system's clock.
const COMPARED: Duration = Duration::from_millis(20);

/// Pairs of readings whose median is the clock's own cost.
const EMPTY_PAIRS: usize = 10_001;

/// A clock, calibrated.
pub struct Clock {
    start: Instant,
    has_counter: bool,
    nanoseconds_a_tick: f64,
    own_ticks: u64,
    /// What a pair of the system clock's readings costs, in nanoseconds.
    system_pair: f64,
}

impl Clock {
    /// Takes some 25 ms.
    pub fn calibrate() -> Clock {
        let mut clock = Clock {
            start: Instant::now(),
            has_counter: counter::is_steady(),
            nanoseconds_a_tick: 1.0,
            own_ticks: 0,
            system_pair: 0.0,
        };
        if clock.has_counter {
            clock.nanoseconds_a_tick = nanoseconds_a_tick();
        }
        clock.own_ticks = median(|| {
            let before = clock.now();
            clock.now() - before
        });
        let rounds = EMPTY_PAIRS as u32;
        let started = Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(Instant::now().elapsed());
        }
        clock.system_pair = started.elapsed().as_nanos() as f64 / f64::from(rounds);
        clock
    }

    /// A reading, after everything before it has been done.
    #[inline(always)]
    pub fn now(&self) -> u64 {
        if self.has_counter {
            counter::read()
        } else {
            self.start.elapsed().as_nanos() as u64
        }
    }

    /// Nanoseconds between two readings, less what reading costs.
    pub fn between(&self, before: u64, after: u64) -> f64 {
        let ticks = after.wrapping_sub(before).saturating_sub(self.own_ticks);
        ticks as f64 * self.nanoseconds_a_tick
    }

    /// What reading it twice costs, in nanoseconds.
    pub fn own_cost(&self) -> f64 {
        self.own_ticks as f64 * self.nanoseconds_a_tick
    }

    /// What timing a call by the system's clock costs, in nanoseconds.
    pub fn system_cost(&self) -> f64 {
        self.system_pair
    }
}

fn nanoseconds_a_tick() -> f64 {
    let (started, first) = (Instant::now(), counter::read());
    while started.elapsed() < COMPARED {
        std::hint::spin_loop();
    }
    let (elapsed, last) = (started.elapsed(), counter::read());
    elapsed.as_nanos() as f64 / last.wrapping_sub(first).max(1) as f64
}

fn median(mut measure: impl FnMut() -> u64) -> u64 {
    let mut all: Vec<u64> = (0..EMPTY_PAIRS).map(|_| measure()).collect();
    all.sort_unstable();
    all[EMPTY_PAIRS / 2]
}

#[cfg(target_arch = "x86_64")]
mod counter {
    use std::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};

    const POWER_LEAF: u32 = 0x8000_0007;
    const HIGHEST_LEAF: u32 = 0x8000_0000;
    const INVARIANT: u32 = 1 << 8;

    /// Whether it runs at one speed, whatever the processor does.
    pub fn is_steady() -> bool {
        #[allow(
            unused_unsafe,
            reason = "the instruction is safe to ask for from Rust 1.93 on"
        )]
        // SAFETY: every 64-bit processor has the instruction.
        unsafe {
            __cpuid(HIGHEST_LEAF).eax >= POWER_LEAF && __cpuid(POWER_LEAF).edx & INVARIANT != 0
        }
    }

    #[inline(always)]
    pub fn read() -> u64 {
        // SAFETY: every 64-bit processor has both. The fence lets what is measured end first.
        unsafe {
            _mm_lfence();
            _rdtsc()
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod counter {
    /// The architecture says so.
    pub fn is_steady() -> bool {
        true
    }

    #[inline(always)]
    pub fn read() -> u64 {
        let ticks: u64;
        // SAFETY: the register may be read by programs; the barrier lets what is measured end first.
        unsafe {
            std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack));
        }
        ticks
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod counter {
    pub fn is_steady() -> bool {
        false
    }

    pub fn read() -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_systems_clock() {
        let clock = Clock::calibrate();
        let (started, before) = (Instant::now(), clock.now());
        std::thread::sleep(Duration::from_millis(30));
        let (elapsed, after) = (started.elapsed(), clock.now());
        let measured = clock.between(before, after) / elapsed.as_nanos() as f64;
        assert!((0.9..1.1).contains(&measured), "{measured}");
    }

    #[test]
    fn nothing_takes_next_to_nothing() {
        let clock = Clock::calibrate();
        let empty = median(|| {
            let before = clock.now();
            let after = clock.now();
            clock.between(before, after) as u64
        });
        assert!(empty < 50, "{empty} ns");
        assert!(clock.own_cost() > 0.0 && clock.own_cost() < 1000.0);
        assert!(clock.system_cost() > 0.0);
    }
}
