//! The simulator answers as a card did: the same questions, with the laxness of the driver switched on. Where they differ, it is listed here and in the README.

mod common;

use std::process::Command;

/// What one H200 with driver 580.159 (CUDA 13.0) answered.
const CARD: &str = include_str!("card-h200.txt");

/// Lines that may differ, by what they begin with.
const KNOWN: [&str; 10] = [
    // The machine's own name and place on the bus.
    "attributes: 1=",
    "short name:",
    // The driver lets a mapping run past its reservation; a simulator cannot, since other memory of the process may lie there.
    "map outside:",
    "map over two reservations:",
    "address free:",
    // The driver crashes.
    "map a released handle:",
    "GROUP ENDED: released_handle",
    // Numbers that nobody should rely on.
    "ids of 0 and 1 alike:",
    // Small managed allocations share a block on a card; here each has pages of its own.
    "managed: ",
    // A refused allocation leaves its mark on the card's high water.
    "pool: limited",
];

/// Only a card runs a kernel.
const CARD_ONLY: [&str; 2] = ["load:", "launch:"];

fn comparable(text: &str) -> Vec<&str> {
    let skipped = |line: &str| {
        KNOWN
            .iter()
            .chain(&CARD_ONLY)
            .any(|start| line.starts_with(start))
    };
    text.lines().filter(|line| !skipped(line)).collect()
}

#[test]
fn the_simulator_agrees_with_a_card() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compare.py");
    let run = Command::new("python3")
        .arg(script)
        .arg(common::library_path())
        .env("HBMALLOC_SIM", "strict=0")
        .output();
    let Ok(output) = run else {
        eprintln!("skipped: no python3 here");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let (card, sim) = (comparable(CARD), comparable(&text));
    let different: Vec<_> = card.iter().zip(&sim).filter(|(a, b)| a != b).collect();
    assert!(different.is_empty(), "{different:#?}");
    assert_eq!(
        card.len(),
        sim.len(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
