//! What a replay is asked to do.

use crate::json::quoted;
use hbmalloc::config::table;
use hbmalloc::error::Result;
use hbmalloc::observe;
use hbmalloc::process::Process;
use hbmalloc::source::Kind;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Options {
    /// Recorded programs: CSV with op,id,size,stream,t_us or RMM's log, plain or gzipped
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,
    /// Which backends, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = backend_name)]
    pub backend: Vec<Kind>,
    /// Replay so many times and print medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Which way the pool leans: less driver time, or less memory held
    #[arg(long, value_name = "balanced|tight")]
    pub waste: Option<String>,
    /// Let work on the device lag N events behind the allocations, instead of none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub lag: u32,
    /// Print one JSON object a line instead of the table
    #[arg(long)]
    pub json: bool,
    /// Draw the memory asked for, allocated and held over the events, into an .svg or .png file
    #[arg(long, value_name = "FILE", value_parser = picture)]
    pub plot: Option<PathBuf>,
    /// Replay through other allocators too: torch's own, RMM's, cudaMallocAsync (the default with a GPU)
    #[arg(long, overrides_with = "no_peers")]
    peers: bool,
    /// Replay through our own backends only
    #[arg(long)]
    no_peers: bool,
    /// End with status 1 where we lose: a ratio above a peer's, more time than torch's own allocator
    #[arg(long)]
    pub compare: bool,
    /// Replay on one backend in this process and tell the parent
    #[arg(long, value_name = "BACKEND", hide = true, value_parser = backend_name)]
    pub child: Option<Kind>,
    /// So many points for a plot, in place of exact times
    #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
    pub points: usize,
}

fn backend_name(name: &str) -> std::result::Result<Kind, String> {
    Kind::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("no such backend; there are {}", names.join(", "))
    })
}

fn picture(name: &str) -> std::result::Result<PathBuf, String> {
    match name.ends_with(".svg") || name.ends_with(".png") {
        true => Ok(PathBuf::from(name)),
        false => Err("its name must end in .svg or .png".to_owned()),
    }
}

impl Options {
    /// Whether other allocators are to be replayed too.
    pub fn wants_peers(&self, is_simulated: bool) -> bool {
        match (self.peers, self.no_peers) {
            (true, _) => true,
            (_, true) => false,
            _ => !is_simulated,
        }
    }

    /// Sets the library's options as asked for.
    pub fn apply(&self, process: &Process) -> Result<()> {
        match &self.waste {
            Some(waste) => process.settings().set("waste", waste).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The value of the option `waste`, where this version has it.
    fn waste(&self) -> Option<String> {
        let spec = table::find("waste")?;
        Some(observe::process().settings().describe(spec.opt).0)
    }

    /// What the figures are of, in words.
    pub fn describe(&self) -> String {
        let mut text = match self.lag {
            0 => "Work on the device is done when asked for".to_owned(),
            lag => format!("Work on the device lags {lag} events behind"),
        };
        if let Some(waste) = self.waste() {
            text.push_str(&format!("; waste {waste}"));
        }
        if self.repeat > 1 {
            text.push_str(&format!("; medians of {} runs", self.repeat));
        }
        text + "."
    }

    /// The same as `"name":value` for JSON.
    pub fn json(&self) -> String {
        let waste = self.waste().map(|waste| quoted(&waste));
        format!(
            "\"lag\":{},\"waste\":{},\"repeat\":{}",
            self.lag,
            waste.as_deref().unwrap_or("null"),
            self.repeat
        )
    }

    pub fn backends(&self) -> Vec<Kind> {
        match self.backend.as_slice() {
            [] => vec![Kind::Pool],
            named => named.to_vec(),
        }
    }
}
