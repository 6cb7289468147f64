//! The caching pool against its model (`src/selftest/pool`): sequences that proptest finds and makes
//! short, and those that a fuzzer found worth keeping. Those that once failed are named with their bugs.
#![allow(missing_docs)]

mod support;

use hbmalloc::process::Process;
use hbmalloc::selftest::pool::{run, step};
use proptest::prelude::*;
use std::fs;

const FUZZED: &str = "fuzz/corpus/pool";

fn simulated() {
    let settings = Process::current().settings();
    let driver = support::built("libhbmalloc_sim.so");
    settings.set("driver", driver.to_str().unwrap()).unwrap();
    settings.set("log", "off").unwrap();
}

/// As often as `PROPTEST_CASES` says, or so that it takes seconds.
fn cases() -> u32 {
    let said = std::env::var("PROPTEST_CASES");
    said.ok().and_then(|said| said.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_to_the_model(parts in prop::collection::vec(any::<[u8; step::BYTES]>(), 1..120)) {
        simulated();
        let bytes = parts.concat();
        run(&bytes).map_err(|stop| {
            let (setting, steps) = step::read(&bytes);
            TestCaseError::fail(format!("{stop:?}\n{setting:?}\n{steps:#?}\nbytes: {bytes:?}"))
        })?;
    }
}

#[test]
fn sequences_worth_keeping() {
    simulated();
    let folder = support::repository().join(FUZZED);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{FUZZED} is empty");
    for file in files {
        let outcome = run(&fs::read(&file).unwrap());
        assert_eq!(outcome, Ok(()), "{}", file.display());
    }
}
