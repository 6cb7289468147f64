//! Recorded workloads: every allocation and free of a program, in order, as CSV with the columns
//! `op,id,size,stream,t_us`, plain or gzipped. `op` is `a` or `f`; `id` names one block; `stream` is
//! a number in order of appearance; `t_us` counts from the first event. Blocks may live to the end.
//! RMM's log is read too, known by its own columns.

mod rmm;

use flate2::read::MultiGzDecoder;
use hbmalloc::source::Kind;
use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};

const COLUMNS: &str = "op,id,size,stream,t_us";
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Streams are numbered from 0, so a number beyond this is a damaged file and not a program.
const MOST_STREAMS: usize = 4096;

/// What happens to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allocate,
    Free,
}

/// One event: what happens, and the place of its block in [`Trace::blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub action: Action,
    pub block: usize,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub bytes: u64,
    pub stream: usize,
}

/// A recorded workload, checked: every free follows its allocation, once.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub events: Vec<Event>,
    /// In order of allocation.
    pub blocks: Vec<Wanted>,
}

/// Why a file is no recorded workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError {
    file: String,
    /// Counted from 1; none where it is the whole file.
    line: Option<usize>,
    problem: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(out, "{}, line {line}: {}", self.file, self.problem),
            None => write!(out, "{}: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for TraceError {}

impl Trace {
    /// Reads a workload; `file` is what errors call it.
    pub fn read(file: &str, source: impl Read) -> Result<Trace, TraceError> {
        let fail = |line, problem| TraceError {
            file: file.to_owned(),
            line,
            problem,
        };
        let mut source = BufReader::new(source);
        let start = source
            .fill_buf()
            .map_err(|error| fail(None, error.to_string()))?;
        let lines: Box<dyn BufRead + '_> = if start.starts_with(&GZIP) {
            Box::new(BufReader::new(MultiGzDecoder::new(source)))
        } else {
            Box::new(source)
        };
        let mut builder = Builder::default();
        let mut rmm: Option<rmm::Log> = None;
        let mut is_empty = true;
        for (index, line) in lines.lines().enumerate() {
            let number = Some(index + 1);
            let line = line.map_err(|error| fail(number, error.to_string()))?;
            is_empty = false;
            let outcome = match index {
                0 if line.trim() == COLUMNS => Ok(()),
                0 if line.trim() == rmm::COLUMNS => {
                    rmm = Some(rmm::Log::default());
                    Ok(())
                }
                0 => Err(format!(
                    "'{COLUMNS}' or '{}' was expected, not '{}'",
                    rmm::COLUMNS,
                    short(&line)
                )),
                _ => match &mut rmm {
                    Some(log) => log.add(&mut builder, line.trim()),
                    None => builder.add(line.trim()),
                },
            };
            outcome.map_err(|problem| fail(number, problem))?;
        }
        if is_empty {
            return Err(fail(None, format!("empty; '{COLUMNS}' was expected")));
        }
        Ok(builder.trace)
    }

    /// Keeps the first `count` events.
    pub fn shorten(&mut self, count: usize) {
        self.events.truncate(count);
        let allocations = |event: &&Event| event.action == Action::Allocate;
        let kept = self.events.iter().filter(allocations).count();
        self.blocks.truncate(kept);
    }

    /// How many streams it uses.
    pub fn streams(&self) -> usize {
        let last = self.blocks.iter().map(|wanted| wanted.stream).max();
        last.map_or(0, |last| last + 1)
    }

    /// The most bytes and the most blocks alive at a time.
    pub fn peak(&self) -> (u64, u64) {
        let (mut bytes, mut blocks, mut peak) = (0, 0, (0, 0));
        for event in &self.events {
            let size = self.blocks[event.block].bytes;
            match event.action {
                Action::Allocate => (bytes, blocks) = (bytes + size, blocks + 1),
                Action::Free => (bytes, blocks) = (bytes - size, blocks - 1),
            }
            peak = (bytes.max(peak.0), blocks.max(peak.1));
        }
        peak
    }
}

/// What a file calls a block, and how that is written there.
#[derive(Clone, Copy)]
struct Name<'a> {
    id: u64,
    text: &'a str,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&short(self.text))
    }
}

/// By how many bytes the peak of what is asked for may be counted wrong: a pool's heaps add theirs up a
/// mebibyte at a time.
pub fn slack(kind: Kind, trace: &Trace) -> u64 {
    const A_HEAP: u64 = 1 << 20;
    match Kind::SOURCES.contains(&kind) || trace.streams() <= 1 {
        true => 0,
        false => A_HEAP * trace.streams() as u64,
    }
}

#[derive(Default)]
struct Builder {
    trace: Trace,
    live: HashMap<u64, usize>,
}

impl Builder {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let fields: Vec<&str> = line.split(',').collect();
        let [op, id, size, stream, time] = fields[..] else {
            return Err(format!("5 fields were expected, not {}", fields.len()));
        };
        let name = Name {
            id: number("id", id)?,
            text: id,
        };
        let bytes = number("size", size)?;
        let stream = number("stream", stream)? as usize;
        number("t_us", time)?;
        match op {
            "a" if bytes == 0 => Err("an allocation of 0 bytes".to_owned()),
            "a" => self.allocate(name, Wanted { bytes, stream }),
            "f" => self.free(name),
            _ => Err(format!("op '{}' is neither a nor f", short(op))),
        }
    }

    fn allocate(&mut self, name: Name<'_>, wanted: Wanted) -> Result<(), String> {
        if wanted.stream >= MOST_STREAMS {
            return Err(format!("stream {} is too large a number", wanted.stream));
        }
        let block = self.trace.blocks.len();
        if self.live.insert(name.id, block).is_some() {
            return Err(format!("block {name} is allocated while it is alive"));
        }
        self.trace.blocks.push(wanted);
        let action = Action::Allocate;
        self.trace.events.push(Event { action, block });
        Ok(())
    }

    fn free(&mut self, name: Name<'_>) -> Result<(), String> {
        let block = self
            .live
            .remove(&name.id)
            .ok_or_else(|| format!("block {name} is freed and not alive"))?;
        let action = Action::Free;
        self.trace.events.push(Event { action, block });
        Ok(())
    }
}

fn number(name: &str, text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{name} '{}' is no whole number", short(text)))
}

/// As much of a text as an error should show.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    const GOOD: &str = "op,id,size,stream,t_us\na,7,100,0,0\na,8,50,1,3\nf,7,100,0,5\na,7,10,0,9\n";

    fn read(text: &str) -> Result<Trace, String> {
        Trace::read("some.csv", text.as_bytes()).map_err(|error| error.to_string())
    }

    fn gzipped(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_id_may_serve_again_once_its_block_is_freed() {
        let trace = read(GOOD).unwrap();
        let order: Vec<_> = trace.events.iter().map(|e| (e.action, e.block)).collect();
        use Action::{Allocate, Free};
        assert_eq!(
            order,
            [(Allocate, 0), (Allocate, 1), (Free, 0), (Allocate, 2)]
        );
        assert_eq!(
            trace.blocks[2],
            Wanted {
                bytes: 10,
                stream: 0
            }
        );
        assert_eq!((trace.streams(), trace.peak()), (2, (150, 2)));
    }

    #[test]
    fn gzipped_files_are_known_by_their_beginning() {
        let trace = Trace::read("some.csv", &gzipped(GOOD)[..]).unwrap();
        assert_eq!(trace.events, read(GOOD).unwrap().events);
        let cut = &gzipped(GOOD)[..20];
        assert!(Trace::read("some.csv.gz", cut).is_err());
    }

    #[test]
    fn a_shorter_trace_knows_only_its_own_blocks() {
        let mut trace = read(GOOD).unwrap();
        trace.shorten(3);
        assert_eq!((trace.events.len(), trace.blocks.len()), (3, 2));
        trace.shorten(0);
        assert_eq!((trace.streams(), trace.peak()), (0, (0, 0)));
    }

    #[test]
    fn an_error_names_file_line_and_value() {
        let cases = [
            ("", "some.csv: empty"),
            (
                "id,op\n",
                "some.csv, line 1: 'op,id,size,stream,t_us' or 'Thread,Time,Action,Pointer,Size,Stream' was expected, not 'id,op'",
            ),
            ("a,1,2,0\n", "line 2: 5 fields were expected, not 4"),
            ("a,1,x,0,0\n", "line 2: size 'x' is no whole number"),
            ("a,1,-2,0,0\n", "line 2: size '-2'"),
            ("a,1,0,0,0\n", "line 2: an allocation of 0 bytes"),
            ("a,1,2,99999,0\n", "line 2: stream 99999"),
            ("b,1,2,0,0\n", "line 2: op 'b' is neither a nor f"),
            (
                "a,1,2,0,0\na,1,2,0,1\n",
                "line 3: block 1 is allocated while",
            ),
            (
                "a,1,2,0,0\nf,1,2,0,1\nf,1,2,0,1\n",
                "line 4: block 1 is freed and",
            ),
        ];
        for (lines, expected) in cases {
            let text = match lines {
                "" | "id,op\n" => lines.to_owned(),
                _ => format!("{COLUMNS}\n{lines}"),
            };
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected), "{error} / {expected}");
            assert!(error.starts_with("some.csv"), "{error}");
        }
    }
}
