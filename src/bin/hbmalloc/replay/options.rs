//! What a replay is asked to do.

use crate::json::quoted;
use crate::kinds;
use hbmalloc::config::table::Opt;
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
    /// Which backends, separated by commas [default: pool]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = kinds::parse)]
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
    /// End with status 1 where we lose (a ratio above another's, more time than torch's own allocator), with 2 where memory or time could be compared with nobody
    #[arg(long)]
    pub compare: bool,
    /// Replay on one backend in this process and tell the parent
    #[arg(long, value_name = "BACKEND", hide = true, value_parser = kinds::parse)]
    pub child: Option<Kind>,
    /// So many points for a plot, in place of exact times
    #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
    pub points: usize,
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

    /// The value of the option `waste`.
    fn waste(&self) -> String {
        observe::process().settings().text(Opt::Waste)
    }

    /// What the figures are of, in words.
    pub fn describe(&self) -> String {
        let mut text = match self.lag {
            0 => "Work on the device is done when asked for".to_owned(),
            lag => format!("Work on the device lags {lag} events behind"),
        };
        text.push_str(&format!("; waste {}", self.waste()));
        if self.repeat > 1 {
            text.push_str(&format!("; medians of {} runs", self.repeat));
        }
        text + "."
    }

    /// The same as `"name":value` for JSON.
    pub fn json(&self) -> String {
        format!(
            "\"lag\":{},\"waste\":{},\"repeat\":{}",
            self.lag,
            quoted(&self.waste()),
            self.repeat
        )
    }

    pub fn backends(&self) -> Vec<Kind> {
        kinds::chosen(&self.backend)
    }
}
