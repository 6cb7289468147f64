//! Fork, exit, loading: calls return, nothing hangs, nothing crashes.
#![allow(missing_docs)]

mod support;

use support::{Language, Workbench};

#[test]
fn forks() {
    let bench = Workbench::new("lifetime_forks");
    let program = bench.program(Language::C11, "c/forks.c");
    bench.run(&program).succeeds();
}

#[test]
fn exits() {
    let bench = Workbench::new("lifetime_exits");
    let program = bench.program(Language::C11, "c/exits.c");
    print!("{}", bench.run(&program).succeeds());
}
