//! What a process held and gave, for `hbmalloc run` to tell: written at its exit into a folder that the command made.

use hbmalloc::observe;
use hbmalloc::source::Kind;
use hbmalloc::sys::linux;
use std::ffi::c_int;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder's variable.
const FOLDER: &str = "HBMALLOC_RUN_REPORT";

struct Report {
    process: u32,
    path: PathBuf,
}

static REPORT: OnceLock<Option<Report>> = OnceLock::new();

/// From here on the process has a report. It is begun now, so that an end which runs no exit handlers shows.
pub fn begin() {
    REPORT.get_or_init(|| {
        let folder = std::env::var_os(FOLDER)?;
        let process = std::process::id();
        let path = Path::new(&folder).join(process.to_string());
        std::fs::write(&path, name()).ok()?;
        linux::at_exit(finish);
        Some(Report { process, path })
    });
}

fn name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    format!("{}\n", name.trim())
}

extern "C" fn finish() {
    let Some(Some(report)) = REPORT.get() else {
        return;
    };
    // A forked child has the handlers of its parent.
    if report.process == std::process::id() {
        let _ = std::fs::write(&report.path, text());
    }
}

/// The program's name, then a line a device: names of figures and the figures.
fn text() -> String {
    let process = observe::process();
    let mut text = name();
    for device in process.ordinals_in_use() {
        let Ok(stats) = process.stats(device, None) else {
            continue;
        };
        let figures: [(&str, u64); 9] = [
            ("peak_reserved", stats.peak_reserved),
            ("peak_allocated", stats.peak_allocated),
            ("allocations", stats.allocations),
            ("deallocations", stats.deallocations),
            ("total_allocated", stats.total_allocated),
            ("out_of_memory", stats.out_of_memory),
            ("segments", stats.peak_segments),
            ("limit", stats.limit),
            ("warnings", stats.warnings),
        ];
        let device: c_int = device;
        let _ = write!(text, "device {device}");
        for (name, figure) in figures {
            let _ = write!(text, " {name} {figure}");
        }
        // Of all together the most is not known: each may have had it at another time.
        for kind in Kind::ALL {
            match process.stats(device, Some(kind)) {
                Ok(stats) if stats.peak_reserved > 0 => {
                    let _ = write!(text, " held.{} {}", kind.name(), stats.peak_reserved);
                }
                _ => {}
            }
        }
        text.push('\n');
    }
    text
}
