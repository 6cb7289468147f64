//! `hbmalloc run`: an unmodified program under the preload library, and what it held.

use crate::stopped::is_ignored;
use crate::{inherited, kinds, python};
use hbmalloc::config::value::{format_bytes, parse_size};
use hbmalloc::source::Kind;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};

#[derive(clap::Args)]
pub struct Options {
    /// Where memory comes from: pool, vmm, async, managed, device, pinned
    #[arg(long, value_parser = kinds::parse)]
    backend: Option<Kind>,
    /// The most that each process may hold of a device, such as 20GiB or 80%
    #[arg(long, value_parser = limit)]
    limit: Option<String>,
    /// Tells all figures at the end, and which processes did not tell theirs
    #[arg(long)]
    stats: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn limit(text: &str) -> Result<String, String> {
    match parse_size(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("a size such as 20GiB, 512MiB, 80%".to_owned()),
    }
}

/// As shells say that a program could not be run, and that there is none.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// On standard error, since the output is the program's. Where nobody can read it, the program's end still counts.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(io::stderr(), $($text)*);
    }};
}

pub fn run(options: &Options) -> ExitCode {
    // A reader of standard error that is gone would end this command.
    // SAFETY: ignoring is a valid handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let ready = library().and_then(|library| {
        let folder =
            Folder::make().map_err(|error| format!("no folder for its report: {error}"))?;
        Ok((library, folder))
    });
    let (library, folder) = match ready {
        Ok(ready) => ready,
        Err(text) => {
            say!("hbmalloc run: {text}");
            return ExitCode::from(CANNOT_RUN);
        }
    };
    match under(&library, &folder.0, options) {
        Ok(status) => {
            tell(&folder.0, options.stats);
            // As shells tell of a signal.
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
        }
        Err(error) => {
            let program = options.command[0].to_string_lossy();
            say!("hbmalloc run: {program}: {error}");
            ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => CANNOT_RUN,
            })
        }
    }
}

/// The preload library, beside the other.
fn library() -> Result<PathBuf, String> {
    let beside = python::library()?;
    let found = beside.with_file_name("libhbmalloc_preload.so");
    let found =
        std::fs::canonicalize(&found).map_err(|error| format!("{}: {error}", found.display()))?;
    // The loader takes both for the end of a name.
    match found.to_string_lossy().contains([' ', ':']) {
        true => Err(format!(
            "{}: LD_PRELOAD takes no path with a space or a colon; install the library elsewhere",
            found.display()
        )),
        false => Ok(found),
    }
}

/// A folder of this user's alone, removed with this.
struct Folder(PathBuf);

impl Folder {
    fn make() -> io::Result<Folder> {
        let template = std::env::temp_dir().join("hbmalloc-run-XXXXXX");
        let mut template = template.into_os_string().into_vec();
        template.push(0);
        // SAFETY: a text that ends with a zero, which the call overwrites within its length.
        if unsafe { libc::mkdtemp(template.as_mut_ptr().cast()) }.is_null() {
            return Err(io::Error::last_os_error());
        }
        template.pop();
        Ok(Folder(OsString::from_vec(template).into()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the program to its end. Signals that this command is sent go to it, those apart that a terminal sends to both.
fn under(library: &Path, folder: &Path, options: &Options) -> io::Result<ExitStatus> {
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]);
    let mut preloaded = library.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preloaded.push(":");
        preloaded.push(others);
    }
    command.env("LD_PRELOAD", preloaded);
    command.env("HBMALLOC_RUN_REPORT", folder);
    if let Some(backend) = options.backend {
        command.env("HBMALLOC_BACKEND", backend.name());
    }
    if let Some(limit) = &options.limit {
        command.env("HBMALLOC_LIMIT", limit);
    }
    inherited::pass_on(&mut command);
    // What is ignored (nohup) stays so for the program.
    let all = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
    let mut signals = Signals::new(all.into_iter().filter(|signal| !is_ignored(*signal)))?;
    let handle = signals.handle();
    let mut child = command.spawn()?;
    let number = child.id() as i32;
    let forwarding = std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal != SIGINT && signal != SIGQUIT {
                // SAFETY: sends a signal, to a child that is not waited for before this thread ends.
                unsafe { libc::kill(number, signal) };
            }
        }
    });
    wait_until_over(&child)?;
    handle.close();
    let _ = forwarding.join();
    child.wait()
}

/// Its number stays its own.
fn wait_until_over(child: &Child) -> io::Result<()> {
    loop {
        // SAFETY: all zero is a valid siginfo_t, which the call fills in.
        let answer = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(
                libc::P_PID,
                child.id(),
                &mut info,
                libc::WEXITED | libc::WNOWAIT,
            )
        };
        if answer == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// What each process that used a device said at its end.
fn tell(folder: &Path, is_whole: bool) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    if files.is_empty() && is_whole {
        say!("hbmalloc: no process asked CUDA's runtime for memory");
    }
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let number = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut lines = text.lines();
        let who = format!("hbmalloc: {} ({number})", lines.next().unwrap_or_default());
        let mut devices = lines.map(Figures).peekable();
        if devices.peek().is_none() && is_whole {
            say!("{who}: ended without telling what it held: killed, or by _exit");
        }
        for device in devices {
            say!("{who}, {}", device.said(is_whole));
        }
    }
}

/// Names and numbers, in turn.
struct Figures<'a>(&'a str);

impl Figures<'_> {
    fn get(&self, name: &str) -> u64 {
        let mut words = self.0.split_whitespace();
        let found = words.position(|word| word == name);
        found.and_then(|_| words.next()?.parse().ok()).unwrap_or(0)
    }

    /// What was held at most, by kinds of memory where there were several: each at a time of its own.
    fn held(&self) -> String {
        let mut words = self.0.split_whitespace();
        let mut kinds = Vec::new();
        while let Some(word) = words.next() {
            if let Some(kind) = word.strip_prefix("held.") {
                let bytes = words.next().and_then(|bytes| bytes.parse().ok());
                kinds.push(format!("{} of {kind}", format_bytes(bytes.unwrap_or(0))));
            }
        }
        match kinds.len() {
            0 | 1 => format!(
                "{} at most, {} of it in blocks",
                format_bytes(self.get("peak_reserved")),
                format_bytes(self.get("peak_allocated"))
            ),
            _ => format!("at most {}", kinds.join(", ")),
        }
    }

    fn said(&self, is_whole: bool) -> String {
        let bytes = |name| format_bytes(self.get(name));
        let mut said = format!(
            "device {}: held {}; {} allocations of {} in all, {} frees",
            self.get("device"),
            self.held(),
            self.get("allocations"),
            bytes("total_allocated"),
            self.get("deallocations"),
        );
        if is_whole {
            let limit = match self.get("limit") {
                u64::MAX => "none".to_owned(),
                limit => format_bytes(limit),
            };
            said += &format!(
                "; limit {limit}, {} times out of memory, {} pieces of memory at most, {} warnings",
                self.get("out_of_memory"),
                self.get("segments"),
                self.get("warnings"),
            );
        }
        said
    }
}
