//! The caching pool against a model: any sequence of what a process can do with it, on streams that
//! stand still and go on, by two threads, under limits, with graphs, to the end of memory.
//!
//! A sequence is a string of bytes (`step.rs`), so the property test, the fuzzer and the seeded runs
//! here are one test. `HBMALLOC_TEST_SEED` repeats a run.

mod blocks;
mod crew;
mod figures;
mod graphs;
mod heaps;
mod lanes;
mod model;
mod need;
mod passing;
mod races;
mod run;
pub mod step;
mod untold;

use super::stress::random::Random;
use super::stress::{seconds, seed};
use super::{Case, Outcome, Stop, Suite};
use run::Run;
use std::time::{Duration, Instant};

/// The suite.
pub const SUITE: Suite = Suite {
    name: "pool",
    about: "the caching pool, at random, against a model",
    cases: &[&[
        Case {
            name: "sequences",
            run: |_| sequences(),
        },
        Case {
            name: "one after another",
            run: |_| need::one_after_another(),
        },
        Case {
            name: "graphs one after another",
            run: |_| need::graphs_one_after_another(),
        },
        Case {
            name: "many streams in turn",
            run: |_| heaps::many_streams_in_turn(),
        },
        Case {
            name: "streams for ever",
            run: |_| passing::streams(),
        },
        Case {
            name: "late streams for ever",
            run: |_| passing::late_streams(),
        },
        Case {
            name: "threads for ever",
            run: |_| passing::threads(),
        },
        Case {
            name: "graphs for ever",
            run: |_| passing::graphs(),
        },
        Case {
            name: "graphs of many streams for ever",
            run: |_| passing::graphs_of_streams(),
        },
        Case {
            name: "a forgotten stream that still works",
            run: |_| passing::late_work(),
        },
        Case {
            name: "streams that end while others free",
            run: |_| races::run(),
        },
        Case {
            name: "an untold capture of a recorded stream",
            run: |_| untold::recorded_stream(),
        },
        Case {
            name: "an untold capture of memory's own stream",
            run: |_| untold::own_stream(),
        },
    ]],
};

const STEPS: usize = 150;

/// Takes the steps of a string of bytes, and tells which one shows what is wrong.
pub fn run(bytes: &[u8]) -> Outcome {
    let (setting, steps) = step::read(bytes);
    let mut run = Run::new(setting)?;
    for (number, step) in steps.iter().enumerate() {
        let place = format!("step {number} of {setting:?}, {step:?}");
        run.take(step).map_err(|stop| stop.at(&place))?;
        run.check()
            .map_err(|stop| stop.at(format_args!("after {place}")))?;
    }
    run.finish().map_err(|stop| stop.at("at the end"))
}

/// A setting and steps; of every other seed with many holds, captures, replays and limits.
fn random_steps(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let step = |number: u64| {
        let mut bytes = number.to_le_bytes();
        let is_rare = bytes[step::BYTES - 1] % 3 == 0;
        if seed % 2 == 1 && is_rare {
            bytes[0] = step::RARE + bytes[0] % (u8::MAX - step::RARE);
        }
        bytes
    };
    (0..=STEPS).flat_map(|_| step(random.number())).collect()
}

fn sequences() -> Outcome {
    let (seed, seconds) = (seed()?, seconds(2)?);
    println!("pool: sequences for {seconds} s; HBMALLOC_TEST_SEED={seed}");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut count = 0;
    while count == 0 || Instant::now() < end {
        let seed = seed.wrapping_add(count);
        run(&random_steps(seed))
            .map_err(|stop: Stop| stop.at(format_args!("HBMALLOC_TEST_SEED={seed}")))?;
        count += 1;
    }
    println!("pool: {count} sequences of {STEPS} steps");
    Ok(())
}
