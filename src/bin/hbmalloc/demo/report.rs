//! The figures of a replay: told by one process to another, and shown as a table or as JSON.

use crate::json::quoted;
use hbmalloc::source::Kind;
use std::fmt::Write;

/// What a backend's replay measured. The first group is what hbmalloc's own calls came to, without
/// what the demo does to move data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    pub blocks: u64,
    pub calls: u64,
    /// What the calls cost on the simulator's virtual clock.
    pub driver_ns: u64,

    /// Peaks: of bytes asked for and held by hbmalloc's statistics, of the same by the simulator's
    /// count, and of the card's physical memory.
    pub asked: u64,
    pub held: u64,
    pub counted: u64,
    pub card: u64,

    /// Bytes read back and compared, and their checksum.
    pub verified: u64,
    pub checksum: u32,
    pub seconds: f64,
    /// Every function of the driver that was called, by anybody.
    pub log: Vec<(String, u64)>,
}

impl Figures {
    /// Tells the parent.
    pub fn print(&self) {
        let entries = [
            ("blocks", self.blocks),
            ("calls", self.calls),
            ("driver_ns", self.driver_ns),
            ("asked", self.asked),
            ("held", self.held),
            ("counted", self.counted),
            ("card", self.card),
            ("verified", self.verified),
            ("checksum", self.checksum.into()),
        ];
        for (name, value) in entries {
            println!("figure {name} {value}");
        }
        println!("seconds {}", self.seconds);
        for (name, count) in &self.log {
            println!("call {name} {count}");
        }
        println!("done");
    }

    fn set(&mut self, name: &str, value: u64) {
        match name {
            "blocks" => self.blocks = value,
            "calls" => self.calls = value,
            "driver_ns" => self.driver_ns = value,
            "asked" => self.asked = value,
            "held" => self.held = value,
            "counted" => self.counted = value,
            "card" => self.card = value,
            "verified" => self.verified = value,
            "checksum" => self.checksum = value as u32,
            _ => {}
        }
    }

    /// The calls about memory itself, most frequent first.
    fn memory_calls(&self) -> Vec<(&str, u64)> {
        let is_memory = |name: &str| {
            name.starts_with("cuMem")
                && !name.starts_with("cuMemcpy")
                && !name.starts_with("cuMemset")
        };
        let mut calls: Vec<(&str, u64)> = (self.log.iter())
            .filter(|(name, _)| is_memory(name))
            .map(|(name, count)| (name.strip_suffix("_v2").unwrap_or(name), *count))
            .collect();
        calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        calls
    }
}

/// How a backend's replay ended.
pub struct Outcome {
    pub kind: Kind,
    /// None where it did not come to its end.
    pub figures: Option<Figures>,
    pub problems: Vec<String>,
}

impl Outcome {
    /// Before anything has been heard.
    pub fn new(kind: Kind) -> Outcome {
        Outcome {
            kind,
            figures: None,
            problems: Vec::new(),
        }
    }

    /// Whether it ended and nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.figures.is_some() && self.problems.is_empty()
    }
}

/// One thing that a replay tells its parent.
pub enum News {
    Progress(usize),
    Problem(String),
    Done,
}

/// Takes in one line of a child; `figures` gathers what it measured.
pub fn hear(line: &str, figures: &mut Figures) -> Option<News> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match (word, rest.split_once(' ')) {
        ("progress", _) => return rest.parse().ok().map(News::Progress),
        ("problem", _) => return Some(News::Problem(rest.to_owned())),
        ("done", _) => return Some(News::Done),
        ("seconds", _) => figures.seconds = rest.parse().unwrap_or_default(),
        ("figure", Some((name, value))) => figures.set(name, value.parse().ok()?),
        ("call", Some((name, count))) => figures.log.push((name.to_owned(), count.parse().ok()?)),
        _ => {}
    }
    None
}

/// The table, and how to read it.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 8]| {
        let [backend, calls, time, each, held, counted, card, data] = cells;
        let _ = writeln!(
            text,
            "{backend:8} {calls:>8} {time:>10} {each:>8}   {held:>9} {counted:>11} {card:>9}   {data}"
        );
    };
    line([
        "",
        "driver",
        "driver",
        "a block,",
        "peak held,",
        "the same by",
        "peak on",
        "data read",
    ]);
    line([
        "backend",
        "calls",
        "time, ms",
        "us",
        "MiB",
        "simulator",
        "the card",
        "back, CRC-32",
    ]);
    for outcome in outcomes {
        let verdict = if outcome.is_good() { "ok" } else { "WRONG" };
        let Some(figures) = &outcome.figures else {
            line([outcome.kind.name(), "-", "-", "-", "-", "-", "-", "FAILED"]);
            continue;
        };
        line([
            outcome.kind.name(),
            &figures.calls.to_string(),
            &format!("{:.1}", milliseconds(figures)),
            &format!(
                "{:.1}",
                figures.driver_ns as f64 / 1e3 / figures.blocks.max(1) as f64
            ),
            &mib(figures.held),
            &mib(figures.counted),
            &mib(figures.card),
            &format!("{:08x} {verdict}", figures.checksum),
        ]);
    }
    text
}

/// What the default backend made of the program; None where it failed.
pub fn headline(outcomes: &[Outcome], is_tight: bool) -> Option<String> {
    let figures_of = |kind| {
        let outcome = outcomes.iter().find(|outcome| outcome.kind == kind)?;
        outcome.figures.as_ref().filter(|_| outcome.is_good())
    };
    let pool = figures_of(Kind::Pool)?;
    let mut text = format!(
        "The pool, the default, served {} blocks with {} driver calls that take {:.1} ms",
        pool.blocks,
        pool.calls,
        milliseconds(pool)
    );
    if let Some(device) = figures_of(Kind::Device) {
        let _ = write!(
            text,
            " (plain memory: {} in {:.1} ms)",
            device.calls,
            milliseconds(device)
        );
    }
    let _ = write!(
        text,
        ",\nand held {} MiB at most for {} asked for.",
        mib(pool.held),
        mib(pool.asked)
    );
    if !is_tight {
        text.push_str(
            " It may hold some 60 MiB more than is asked for,\nwhich shows in a program as small as this, \
             and finds memory sooner for it; HBMALLOC_WASTE=tight holds less.",
        );
    }
    Some(text)
}

fn milliseconds(figures: &Figures) -> f64 {
    figures.driver_ns as f64 / 1e6
}

/// What explains the figures, a line or two each.
pub const READING: &str = "\
How to read it: each row is the same program on another backend. Calls and time are those of the
allocator, at what each call costs on an H200; a block is one allocation and its free. What hbmalloc
says that it held must equal what the simulator counted, and what is read back what was written.
  pool      the default: what is freed serves again without the driver, which is asked for what is missing
  device    as cudaMalloc: small blocks share 2 MiB of the card, others take whole 2 MiB: more on the card
  managed   advice and prefetch at every block; the simulator leaves this memory on the host: none on the card
  async     the driver's pool: cheap calls, but for every block; it takes 32 MiB at a time and keeps some
  vmm       uncached: a mapping and whole 2 MiB chunks for every block, however small: dear in time and memory
  pinned    memory of the host: none on the card; dear to make, as the driver registers every page";

/// The most frequent calls about memory, a line a backend.
pub fn calls(outcomes: &[Outcome]) -> String {
    const SHOWN: usize = 7;
    let mut text = String::new();
    for outcome in outcomes {
        let Some(figures) = &outcome.figures else {
            continue;
        };
        let calls: Vec<String> = (figures.memory_calls().iter().take(SHOWN))
            .map(|(name, count)| format!("{} {count}", name.trim_start_matches("cuMem")))
            .collect();
        let _ = writeln!(text, "  {:9} {}", outcome.kind.name(), calls.join(", "));
    }
    text
}

/// One JSON object.
pub fn json(outcome: &Outcome) -> String {
    let mut text = format!(
        "{{\"backend\":\"{}\",\"simulated\":true,\"ok\":{}",
        outcome.kind.name(),
        outcome.is_good()
    );
    if let Some(figures) = &outcome.figures {
        let log: Vec<String> = (figures.log.iter())
            .map(|(name, count)| format!("\"{name}\":{count}"))
            .collect();
        let _ = write!(
            text,
            ",\"blocks\":{},\"driver_calls\":{},\"driver_ns\":{},\"peak_requested\":{},\"peak_held\":{},\"peak_held_simulator\":{},\"peak_card\":{},\"verified_bytes\":{},\"crc32\":\"{:08x}\",\"seconds\":{:.3},\"calls\":{{{}}}",
            figures.blocks,
            figures.calls,
            figures.driver_ns,
            figures.asked,
            figures.held,
            figures.counted,
            figures.card,
            figures.verified,
            figures.checksum,
            figures.seconds,
            log.join(",")
        );
    }
    let problems: Vec<String> = outcome.problems.iter().map(|text| quoted(text)).collect();
    let _ = write!(text, ",\"problems\":[{}]}}", problems.join(","));
    text
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_quoted_for_json() {
        let mut outcome = Outcome::new(Kind::Vmm);
        outcome.problems.push("a \"b\" \\ \n c".to_owned());
        let expected = "{\"backend\":\"vmm\",\"simulated\":true,\"ok\":false,\"problems\":[\"a \\\"b\\\" \\\\ \\u000a c\"]}";
        assert_eq!(json(&outcome), expected);
    }

    #[test]
    fn a_line_that_says_nothing_is_ignored() {
        let mut figures = Figures::default();
        for line in ["", "figure", "figure held x", "call cuInit", "warning: x"] {
            assert!(hear(line, &mut figures).is_none());
        }
        assert_eq!(figures, Figures::default());
        hear("figure held 12", &mut figures);
        hear("call cuInit 1", &mut figures);
        assert_eq!((figures.held, figures.log.len()), (12, 1));
    }
}
