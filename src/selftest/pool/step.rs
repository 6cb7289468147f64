//! What can be done with a pool, read from eight bytes a step: a test that shrinks, a fuzzer and a seed
//! all make the same sequences, and a failing one is a short file.

/// Streams that a test makes, before the legacy one and the calling thread's own.
pub const OWNED: usize = 3;
/// All streams.
pub const STREAMS: usize = OWNED + 2;
/// Threads.
pub const THREADS: usize = 2;
/// Tags, none among them.
pub const TAGS: usize = 3;
/// Graph pools.
pub const GRAPHS: u64 = 2;
/// From this first byte on a step is none of those that programs take all the time.
pub const RARE: u8 = 190;
/// Bytes of a step, and of the settings before the first.
pub const BYTES: usize = 8;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Bytes.
    pub bytes: u64,
    /// A power of two.
    pub align: u64,
    /// On which stream.
    pub stream: usize,
    /// By which thread.
    pub thread: usize,
    /// Under which tag.
    pub tag: usize,
    /// Whether work of streams that nobody names uses it.
    pub unordered: bool,
    /// Whether that holds for streams of all devices, as with cudaMalloc.
    pub everywhere: bool,
    /// Whether it is divided up by the caller.
    pub segment: bool,
}

/// One thing done. Blocks are chosen by a number that is taken modulo how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    Allocate(Ask),
    /// Many of one size, every other one freed at once, by the other thread where `away` says so.
    Burst {
        ask: Ask,
        count: usize,
        away: bool,
    },
    /// Work on `used_on` is given first and told of with the free.
    Free {
        index: usize,
        thread: usize,
        used_on: Option<usize>,
    },
    /// Frees every block of one stream.
    FreeAll {
        stream: usize,
        thread: usize,
    },
    /// An address that is no block, beside or inside one.
    FreeWild {
        index: usize,
        thread: usize,
        offset: u64,
    },
    /// Work that writes to a block, told of.
    Work {
        index: usize,
        stream: usize,
        thread: usize,
    },
    Record {
        index: usize,
        stream: usize,
        thread: usize,
    },
    Hold {
        stream: usize,
    },
    Release {
        stream: usize,
    },
    Synchronize,
    ReplaceStream {
        stream: usize,
    },
    ReplaceThread,
    BeginCapture {
        stream: usize,
        graph: u64,
    },
    EndCapture,
    /// What a graph's replay does: it uses all memory of its captures.
    Replay {
        graph: u64,
        stream: usize,
    },
    ReleaseGraph {
        graph: u64,
    },
    Trim {
        keep: u64,
    },
    Limit {
        bytes: u64,
    },
    /// How much the driver gives at most; 0 for all there is.
    Shrink {
        bytes: u64,
    },
    Lean {
        tight: bool,
    },
}

/// What is settled before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// What the pool is over.
    pub source: &'static str,
    /// Which way it leans.
    pub tight: bool,
    /// Whether the library is told of every capture, so that blocks at hand are had without asking.
    pub told: bool,
    /// Bytes of the device.
    pub memory: u64,
    /// The limit at the start, 0 for none.
    pub limit: u64,
    /// Whether the memory of one of the tags is the host's, on the simulator.
    pub host: bool,
}

impl Setting {
    /// The setting of some bytes.
    pub fn read(bytes: &[u8; BYTES]) -> Setting {
        const SOURCES: [&str; 8] = [
            "vmm", "device", "vmm", "managed", "vmm", "vmm", "pinned", "vmm",
        ];
        Setting {
            source: SOURCES[usize::from(bytes[0] % 8)],
            tight: bytes[1] % 2 == 1,
            told: bytes[2] % 4 != 1,
            memory: [512 * MIB, 192 * MIB, 2048 * MIB][usize::from(bytes[3] % 3)],
            limit: [0, 0, 160 * MIB, 64 * MIB][usize::from(bytes[4] % 4)],
            host: bytes[5] % 4 == 1,
        }
    }
}

fn size(class: u8, fine: u8) -> u64 {
    match class {
        // A few sizes again and again, as programs have them.
        0..=79 => [1, 512, 513, 4 * KIB, 32 * KIB, 33 * KIB, 300 * KIB, MIB][usize::from(fine % 8)],
        80..=119 => [2 * MIB, 5 * MIB, 16 * MIB, 20 * MIB][usize::from(fine % 4)],
        120..=251 => {
            let magnitude = 1 << (class % 26);
            magnitude + magnitude * u64::from(fine) / 256
        }
        252 => 64 * MIB,
        253 => 0,
        254 => 1 << 40,
        255 => u64::MAX - u64::from(fine),
    }
}

fn ask(bytes: &[u8; BYTES]) -> Ask {
    let [_, class, fine, align, stream, who, kind, _] = *bytes;
    Ask {
        bytes: size(class, fine),
        align: match align {
            0..=199 => 256,
            other => 1 << (other % 23),
        },
        stream: stream_of(stream),
        thread: usize::from(who % 8 == 1),
        tag: usize::from(who / 8) % TAGS,
        unordered: matches!(kind % 16, 1 | 3..=5),
        everywhere: matches!(kind % 16, 3..=5),
        segment: kind % 16 == 2,
    }
}

/// The streams that a test makes are those used most.
fn stream_of(byte: u8) -> usize {
    match byte % 8 {
        7 => OWNED + 1,
        6 => OWNED,
        other => usize::from(other) % OWNED,
    }
}

impl Step {
    /// The step of some bytes. Any bytes are one.
    pub fn read(bytes: &[u8; BYTES]) -> Step {
        let [what, a, b, c, d, e, f, _] = *bytes;
        let index = usize::from(u16::from_le_bytes([a, b]));
        let (stream, thread) = (stream_of(c), usize::from(d % 4 == 1));
        let owned = usize::from(c) % OWNED;
        let graph = u64::from(d) % GRAPHS;
        match what {
            0..=84 => Step::Allocate(ask(bytes)),
            85..=94 => Step::Burst {
                ask: ask(bytes),
                count: 1 + usize::from(f) % 80,
                away: e % 2 == 1,
            },
            95..=149 => Step::Free {
                index,
                thread,
                used_on: None,
            },
            150..=159 => Step::Free {
                index,
                thread,
                used_on: Some(stream),
            },
            160..=165 => Step::FreeAll { stream, thread },
            166..=169 => Step::FreeWild {
                index,
                thread,
                offset: u64::from(e) << (f % 40),
            },
            170..=184 => Step::Work {
                index,
                stream,
                thread,
            },
            185..=189 => Step::Record {
                index,
                stream,
                thread,
            },
            RARE..=199 => Step::Hold { stream: owned },
            200..=209 => Step::Release { stream: owned },
            210..=212 => Step::Synchronize,
            213..=215 => Step::ReplaceStream { stream: owned },
            216..=217 => Step::ReplaceThread,
            218..=223 => Step::BeginCapture {
                stream: owned,
                graph,
            },
            224..=229 => Step::EndCapture,
            230..=232 => Step::Replay {
                graph,
                stream: owned,
            },
            233..=235 => Step::ReleaseGraph { graph },
            236..=241 => Step::Trim {
                keep: u64::from(a % 4) * u64::from(b) * MIB,
            },
            242..=247 => Step::Limit {
                bytes: [0, 0, 512, 96, 32, 5, 300, 1][usize::from(a % 8)] * MIB,
            },
            248..=251 => Step::Shrink {
                bytes: [0, 0, 128, 64][usize::from(a % 4)] * MIB,
            },
            252..=255 => Step::Lean { tight: a % 2 == 1 },
        }
    }
}

/// The setting and the steps of a file: whatever its length, since a fuzzer makes it.
pub fn read(bytes: &[u8]) -> (Setting, Vec<Step>) {
    let mut parts = bytes.chunks(BYTES).map(|part| {
        let mut padded = [0; BYTES];
        padded[..part.len()].copy_from_slice(part);
        padded
    });
    let setting = Setting::read(&parts.next().unwrap_or_default());
    (setting, parts.map(|part| Step::read(&part)).collect())
}
