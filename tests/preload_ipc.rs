//! Memory between processes under the preload library, with a stand-in for CUDA's runtime over the simulated driver.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use support::{Language, Run, Workbench, built};
use tempfile::TempDir;

struct Preloaded {
    bench: Workbench,
    library: PathBuf,
    program: PathBuf,
    /// Where its processes meet: paths of sockets are short.
    meet: TempDir,
}

impl Preloaded {
    fn new(name: &str, source: &str) -> Preloaded {
        let bench = Workbench::new(name);
        let library = bench.libraries().join("libhbmalloc_preload.so");
        let runtime = bench.libraries().join("libcudart.so.13");
        support::place(&built("libhbmalloc_preload.so"), &library);
        bench
            .compiler(Language::C11)
            .args(["-std=gnu11", "-Wno-pedantic", "-shared", "-fPIC"])
            .args(["-Wl,-soname,libcudart.so.13", "preload/contexts.c", "-o"])
            .arg(&runtime)
            .args(["-ldl", "-lpthread"])
            .run();
        let program = bench.path(Path::new(source).file_stem().unwrap().to_str().unwrap());
        bench
            .compiler(Language::C11)
            .args(["-std=gnu11", "-I../include", source, "-o"])
            .arg(&program)
            .arg(&runtime)
            .arg(&library)
            .args(["-lpthread", "-ldl"])
            .run();
        let meet = tempfile::tempdir().unwrap();
        Preloaded {
            meet,
            bench,
            library,
            program,
        }
    }

    fn run(&self, part: &str) -> Run {
        self.bench
            .run(&self.program)
            .arg(part)
            .env("LD_PRELOAD", &self.library)
            .env("XDG_RUNTIME_DIR", self.meet.path())
            .env("HBMALLOC_SIM", "devices=2,memory=4GiB")
            .env(
                "STAND_IN_DRIVER",
                self.bench.libraries().join("libhbmalloc_sim.so"),
            )
    }

    /// Nothing is left where the processes met.
    fn succeeds(&self, part: &str) {
        self.run(part).succeeds();
        let left: Vec<_> = fs::read_dir(self.meet.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

macro_rules! tests {
    ($source:literal; $($name:ident: $part:literal;)*) => { $(
        #[test]
        fn $name() {
            Preloaded::new(concat!("context_", $part), $source).succeeds($part);
        }
    )* };
}

tests! {
    "preload/reset.c";
    a_device_begins_anew: "anew";
    no_reset_while_a_stream_captures: "capture";
    graphs_go_with_their_device: "graphs";
    a_broken_context_is_mended: "broken";
    a_broken_context_of_another_device: "beside";
    a_reset_without_memory_of_ours: "unused";
    a_device_that_only_works_begins_anew: "worked";
    devices_reach_each_other: "peers";
}

tests! {
    "preload/ipc.c";
    bytes_go_both_ways: "bytes";
    blocks_over_several_chunks: "chunks";
    from_where_the_driver_says_that_memory_begins: "driver";
    handles_that_are_none: "wrong";
    an_opener_without_the_library: "without";
    on_another_device: "device";
    by_many_threads: "threads";
    calls_that_fail: "fails";
    a_close_that_fails: "close";
}

tests! {
    "preload/ipc_ends.c";
    the_exporter_is_killed: "killed";
    freed_while_it_is_open: "freed";
    exit_while_it_is_open: "exit";
    nobody_else_gets_in: "modes";
    of_another_user: "user";
    strange_visitors: "strange";
    after_a_fork: "fork";
    the_same_address_again: "again";
    a_reset_that_is_refused: "refused";
    while_others_clean_up: "cleaned";
    freed_in_the_order_of_a_stream: "ordered";
    freed_in_a_chunk_that_is_open: "chunk";
    others_are_stopped: "stopped";
    many_openers_of_one_process: "many";
}

tests! {
    "preload/streams.c";
    arenas_are_told_of_streams: "arenas";
    a_reset_takes_handles: "handles";
    streams_of_another_device: "elsewhere";
    captures_of_threads: "per-thread";
    ends_of_captures_that_fail: "ends";
    pools_of_the_program: "pools";
    errors_are_remembered: "errors";
}

#[test]
fn streams_of_the_only_device() {
    let preloaded = Preloaded::new("context_one", "preload/streams.c");
    let run = preloaded.run("one").env("HBMALLOC_SIM", "devices=1");
    run.succeeds();
}

/// Drivers before 12.5 do not say whose a stream is that captures.
#[test]
fn streams_of_another_device_with_an_older_driver() {
    let preloaded = Preloaded::new("context_older", "preload/streams.c");
    let run = preloaded
        .run("elsewhere")
        .env("HBMALLOC_SIM", "devices=2,memory=4GiB,version=12020");
    run.succeeds();
}

#[test]
fn blocks_of_their_own_go_both_ways() {
    let preloaded = Preloaded::new("context_vmm", "preload/ipc.c");
    let run = preloaded.run("bytes").env("HBMALLOC_BACKEND", "vmm");
    run.succeeds();
}

/// Of a folder that cannot be had, and of one whose sockets would have names that are too long.
#[test]
fn processes_meet_elsewhere() {
    let preloaded = Preloaded::new("context_meet", "preload/ipc.c");
    let long = preloaded.meet.path().join("x".repeat(100));
    fs::create_dir(&long).unwrap();
    for folder in [preloaded.meet.path().join("none"), long.clone()] {
        let run = preloaded.run("bytes").env("XDG_RUNTIME_DIR", folder);
        run.succeeds();
    }
    assert_eq!(fs::read_dir(long).unwrap().count(), 0);
}

/// Memory that the driver's own handles are for goes that way, but not parts of it.
#[test]
fn memory_of_the_driver() {
    let preloaded = Preloaded::new("context_of_driver", "preload/ipc.c");
    let run = |part| preloaded.run(part);
    run("plain").env("HBMALLOC_BACKEND", "device").succeeds();
    run("part").env("HBMALLOC_POOL_SOURCE", "device").succeeds();
}
