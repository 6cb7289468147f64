//! The one table of options. The environment variables, `hbm_option_set`, `hbmalloc doctor` and
//! `docs/options.md` are all derived from it.

use super::value::{self, Location, PlacementMap, Size, Threshold};

/// The options, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Opt {
    /// What `hbm_malloc` and `install()` take memory from.
    Backend,
    /// Which driver library is opened.
    Driver,
    /// What the simulated driver pretends to be.
    Sim,
    /// What is logged.
    Log,
    /// Where the log goes.
    LogFile,
    /// Which managed blocks are prefetched.
    PrefetchThreshold,
    /// Memory left free by managed blocks that prefer the device.
    ManagedHeadroom,
    /// Which stream-ordered pool is used.
    AsyncPool,
    /// What our own stream-ordered pool keeps.
    AsyncReleaseThreshold,
    /// Where virtual-memory blocks live.
    VmmLocation,
    /// Size of physical chunks on ROCm.
    RocmChunkSize,
    /// Which way the pool leans.
    Waste,
    /// The most memory that is held from a device.
    Limit,
    /// Where memory of tags lives.
    Placement,
    /// What the pool is over.
    PoolSource,
    /// Whether calls of the driver are timed.
    DriverTiming,
    /// The most host memory that is pinned for sleep.
    SleepHostLimit,
    /// What a wake keeps on the host.
    KeepHost,
    /// Where memory sleeps in files.
    SleepDir,
    /// What a system that refuses to place memory on a node is.
    NumaPolicy,
}

/// A checked value of an option.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Free text, or one of the words accepted.
    Text(String),
    /// A size.
    Size(Size),
    /// A threshold.
    Threshold(Threshold),
    /// A place for memory.
    Location(Location),
    /// Places of tags.
    Placements(PlacementMap),
}

/// One row of the table.
pub struct Spec {
    /// Which option it is.
    pub opt: Opt,
    /// Its name in calls; the environment variable is `HBMALLOC_` and this in capitals.
    pub name: &'static str,
    /// The value when nobody sets one.
    pub default: &'static str,
    /// What is accepted, in words.
    pub accepted: &'static str,
    /// What it does, in one sentence.
    pub help: &'static str,
    /// Checks and converts a text.
    pub parse: fn(&str) -> Option<Value>,
}

impl Spec {
    /// The environment variable of the option.
    pub fn variable(&self) -> String {
        format!("HBMALLOC_{}", self.name.to_ascii_uppercase())
    }
}

/// The words `backend` accepts.
pub const BACKENDS: [&str; 6] = ["pool", "device", "managed", "async", "vmm", "pinned"];

fn word(text: &str, accepted: &[&str]) -> Option<Value> {
    let text = text.trim();
    accepted
        .contains(&text)
        .then(|| Value::Text(text.to_owned()))
}

fn text(text: &str) -> Option<Value> {
    Some(Value::Text(text.to_owned()))
}

fn size(text: &str) -> Option<Value> {
    value::parse_size(text).map(Value::Size)
}

fn chunk(text: &str) -> Option<Value> {
    match value::parse_bytes(text)? {
        0 => None,
        bytes => Some(Value::Size(Size::Bytes(bytes))),
    }
}

/// The table, in the order of [`Opt`].
pub static TABLE: [Spec; 20] = [
    Spec {
        opt: Opt::Backend,
        name: "backend",
        default: "pool",
        accepted: "pool, device, managed, async, vmm or pinned",
        help: "What `hbm_malloc` and `install()` take memory from when nothing is named; `memory_pool()`, which caches by itself, takes for `pool` what that is over.",
        parse: |text| word(text, &BACKENDS),
    },
    Spec {
        opt: Opt::Driver,
        name: "driver",
        default: "auto",
        accepted: "auto, cuda, hip, sim, or the path of a driver library",
        help: "The driver library to open; `sim` is the simulated driver, found beside this library.",
        parse: |value| match value.trim() {
            "" => None,
            trimmed if trimmed.contains('/') => text(trimmed),
            trimmed => word(trimmed, &["auto", "cuda", "hip", "sim"]),
        },
    },
    Spec {
        opt: Opt::Sim,
        name: "sim",
        default: "",
        accepted: "key=value pairs separated by commas, such as devices=2,memory=141GiB,coherent=1",
        help: "What the simulated driver pretends to be; it reads the environment variable itself.",
        parse: text,
    },
    Spec {
        opt: Opt::Log,
        name: "log",
        default: "warn",
        accepted: "off, error, warn, info, debug or trace, alone or as target=level, separated by commas",
        help: "What is written to the log, for instance `info` or `warn,extent=debug`.",
        parse: |spec| crate::config::log_spec_is_valid(spec).then(|| Value::Text(spec.to_owned())),
    },
    Spec {
        opt: Opt::LogFile,
        name: "log_file",
        default: "",
        accepted: "the path of a file to append to; empty means standard error",
        help: "Where the log goes.",
        parse: text,
    },
    Spec {
        opt: Opt::PrefetchThreshold,
        name: "prefetch_threshold",
        default: "2GiB",
        accepted: "a size; 0 or never; all",
        help: "Managed blocks smaller than this are prefetched to the device when allocated.",
        parse: |text| value::parse_threshold(text).map(Value::Threshold),
    },
    Spec {
        opt: Opt::ManagedHeadroom,
        name: "managed_headroom",
        default: "1GiB",
        accepted: "a size or a percentage of the device's memory",
        help: "Managed blocks stop preferring the device once live managed bytes would exceed the memory that was free at first use less this.",
        parse: size,
    },
    Spec {
        opt: Opt::AsyncPool,
        name: "async_pool",
        default: "default",
        accepted: "default or own",
        help: "Whether the async source uses the device's default stream-ordered pool or one of its own.",
        parse: |text| word(text, &["default", "own"]),
    },
    Spec {
        opt: Opt::AsyncReleaseThreshold,
        name: "async_release_threshold",
        default: "100%",
        accepted: "a size or a percentage of the device's memory",
        help: "Free bytes that our own stream-ordered pool keeps over synchronisations; the default pool is left as it is.",
        parse: size,
    },
    Spec {
        opt: Opt::VmmLocation,
        name: "vmm_location",
        default: "device",
        accepted: "device or host_numa:N",
        help: "Where blocks of the vmm source live.",
        parse: |text| value::parse_location(text).map(Value::Location),
    },
    Spec {
        opt: Opt::RocmChunkSize,
        name: "rocm_chunk_size",
        default: "256MiB",
        accepted: "a size above 0, rounded up to the driver's granularity",
        help: "On ROCm, the size of one physical chunk; VLLM_ROCM_SLEEP_MEM_CHUNK_SIZE (in MB) is honoured when this is not set.",
        parse: chunk,
    },
    Spec {
        opt: Opt::Waste,
        name: "waste",
        default: "balanced",
        accepted: "balanced or tight",
        help: "Which way the pool leans: to less host and driver time (balanced), or to less memory held (tight).",
        parse: |text| word(text, &["balanced", "tight"]),
    },
    Spec {
        opt: Opt::Limit,
        name: "limit",
        default: "100%",
        accepted: "a size or a percentage above 0 of the device's memory; 100% or 0 for no limit",
        help: "The most memory of each device that is held, by all backends together; a limit set for one device by call goes before it.",
        parse: |text| value::parse_limit(text).map(Value::Size),
    },
    Spec {
        opt: Opt::Placement,
        name: "placement",
        default: "",
        accepted: "tag=device, tag=host or tag=none, separated by commas, each tag once, such as weights=device,kv_cache=host",
        help: "Where memory of a tag lives; a placement given with the tag by call goes before it. The pool over `vmm` asks at the tag's first block on a stream, and keeps to it.",
        parse: |text| value::parse_placements(text).map(Value::Placements),
    },
    Spec {
        opt: Opt::PoolSource,
        name: "pool_source",
        default: "vmm",
        accepted: "vmm, device, managed or pinned",
        help: "Where the pool gets its memory. Only over vmm does memory move between addresses; take device for programs that hand memory to other processes by cudaIpcGetMemHandle, managed for memory that host and device share, pinned for the host's, which devices reach over the link.",
        parse: |text| word(text, &["vmm", "device", "managed", "pinned"]),
    },
    Spec {
        opt: Opt::DriverTiming,
        name: "driver_timing",
        default: "off",
        accepted: "on or off",
        help: "Whether `hbm_driver_stats` and `driver_stats()` tell how long calls of the driver take; a call then costs two looks at the clock more, about 50 ns. May be changed at any time.",
        parse: |text| word(text, &["on", "off"]),
    },
    Spec {
        opt: Opt::SleepHostLimit,
        name: "sleep_host_limit",
        default: "80%",
        accepted: "a size, or a share of the host's memory such as 80%",
        help: "The most memory of the host that sleep pins, in the whole process.",
        parse: size,
    },
    Spec {
        opt: Opt::KeepHost,
        name: "keep_host",
        default: "0",
        accepted: "a size, or a share of the host's memory such as 50%",
        help: "How much of what was saved to the host a wake keeps there on each device, so that what is not written meanwhile sleeps again without a copy (`clean`).",
        parse: size,
    },
    Spec {
        opt: Opt::SleepDir,
        name: "sleep_dir",
        default: "",
        accepted: "a folder; empty for the one of temporary files",
        help: "Where memory that sleeps in files has them: a local disk with room, not memory.",
        parse: text,
    },
    Spec {
        opt: Opt::NumaPolicy,
        name: "numa_policy",
        default: "fallback",
        accepted: "fallback or strict",
        help: "What becomes of memory of the host for which nodes are named where the system refuses to bind it, as in many containers: memory from anywhere, counted as unbound, with one warning (fallback), or an error (strict).",
        parse: |text| word(text, &["fallback", "strict"]),
    },
];

/// Variables with our prefix that other parts read: the Python package, the tests.
pub const FOREIGN_VARIABLES: [&str; 10] = [
    "HBMALLOC_LIBRARY",
    "HBMALLOC_PYTHON",
    "HBMALLOC_RUN_REPORT",
    "HBMALLOC_VLLM",
    "HBMALLOC_VLLM_CUMEM_PY",
    "HBMALLOC_CHECK_OUT",
    "HBMALLOC_CHECK_SECONDS",
    "HBMALLOC_TEST_HIP",
    "HBMALLOC_TEST_SEED",
    "HBMALLOC_STRESS_SECONDS",
];

/// The name of an option.
pub fn name(opt: Opt) -> &'static str {
    TABLE[opt as usize].name
}

/// The row of `name`, given as in calls or as the environment variable.
pub fn find(name: &str) -> Option<&'static Spec> {
    let lower = name.trim().to_ascii_lowercase();
    let short = lower.strip_prefix("hbmalloc_").unwrap_or(&lower);
    TABLE.iter().find(|spec| spec.name == short)
}

/// The known name most like `name`, for "did you mean".
pub fn nearest(name: &str) -> &'static str {
    let lower = name.trim().to_ascii_lowercase();
    let short = lower.strip_prefix("hbmalloc_").unwrap_or(&lower);
    TABLE
        .iter()
        .min_by_key(|spec| edit_distance(spec.name, short))
        .map_or("", |spec| spec.name)
}

/// Levenshtein's distance, by the usual two-row dynamic programme.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_their_enum_and_accept_their_defaults() {
        for (index, spec) in TABLE.iter().enumerate() {
            assert_eq!(spec.opt as usize, index, "{}", spec.name);
            assert!((spec.parse)(spec.default).is_some(), "{}", spec.name);
        }
    }

    #[test]
    fn the_nearest_name_is_found() {
        assert_eq!(nearest("HBMALLOC_PREFETCH_TRESHOLD"), "prefetch_threshold");
        assert_eq!(nearest("bakend"), "backend");
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
