//! What the driver itself answers, call by call: the same cases on the simulated driver and on a
//! card, so that what is built and tested on the one holds on the other. Expected answers are those
//! of an H200 with driver 580 (CUDA 13.0); `differences` holds where the simulated driver departs.

mod abi;
mod across;
mod calls;
mod capture;
mod chunks;
mod contexts;
mod devices;
mod differences;
mod events;
mod gate;
mod graphs;
mod guards;
mod managed;
mod mappings;
mod memory;
mod misuse;
mod pointers;
mod pools;
mod reservations;
mod sharing;
mod steps;
mod streams;
mod transfers;
mod waiting;

use super::Suite;

/// The suite of the driver's own answers.
pub const SUITE: Suite = Suite {
    name: "driver",
    about: "the driver's answers, alike on the simulated driver and on a card",
    cases: &[
        devices::CASES,
        contexts::CASES,
        reservations::CASES,
        chunks::CASES,
        mappings::CASES,
        sharing::CASES,
        memory::CASES,
        transfers::CASES,
        managed::CASES,
        pools::CASES,
        streams::CASES,
        events::CASES,
        across::CASES,
        waiting::CASES,
        capture::CASES,
        graphs::CASES,
        pointers::CASES,
        misuse::CASES,
    ],
};

/// Cases of this suite by name.
macro_rules! cases {
    ($($name:literal => $body:expr),* $(,)?) => {
        &[$(crate::selftest::Case {
            name: $name,
            run: |context| super::steps::run(context, $name, $body),
        }),*]
    };
}
use cases;
