//! Memory over the events, as a picture: SVG written here, PNG drawn by matplotlib where Python has it.

use super::memory_file;
use super::points::Point;
use crate::python;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Stdio;

/// Points a panel, a little more than it is wide.
pub const POINTS: usize = 1500;

const DRAW: &str = include_str!("draw.py");

/// One trace on one backend.
pub struct Panel {
    pub title: String,
    pub points: Vec<Point>,
}

/// What is drawn: its name, its colour, and where it is found. Held lies behind, asked for in front.
type Line = (&'static str, &'static str, fn(&Point) -> u64);
const LINES: [Line; 3] = [
    ("held", "#c23b22", |point| point.reserved),
    ("allocated", "#e0a030", |point| point.allocated),
    ("asked for", "#2060a0", |point| point.requested),
];

/// Sizes in pixels.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;

/// Whether `file` can be written, and drawn in the form that its name asks for. Whoever replays for
/// minutes learns so at once.
pub fn check(file: &Path) -> Result<(), String> {
    let is_new = !file.exists();
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    if is_new {
        let _ = fs::remove_file(file);
    }
    if is_svg(file) {
        return Ok(());
    }
    let program = python::program();
    let output = python::command(&program)
        .args(["-c", "import matplotlib"])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(cannot_draw(file, &program, &last_line(&output.stderr))),
        Err(error) => Err(cannot_draw(file, &program, &error.to_string())),
    }
}

fn is_svg(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "svg")
}

fn last_line(told: &[u8]) -> String {
    let told = String::from_utf8_lossy(told);
    told.lines().last().unwrap_or("it said nothing").to_owned()
}

fn cannot_draw(file: &Path, program: &OsString, reason: &str) -> String {
    format!(
        "{}: {} cannot draw it ({reason}); a name that ends in .svg needs no Python",
        file.display(),
        program.to_string_lossy()
    )
}

/// Draws one panel below the other into `file`, in the form that its name asks for.
pub fn draw(file: &Path, panels: &[Panel]) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{}: {error}", file.display());
    if is_svg(file) {
        return fs::write(file, svg(panels)).map_err(told);
    }
    let program = python::program();
    let points = memory_file::filled(|out| out.write_all(table(panels).as_bytes()));
    let output = python::command(&program)
        .args(["-c", DRAW])
        .arg(file)
        .stdin(points.map_err(told)?)
        .output()
        .map_err(|error| cannot_draw(file, &program, &error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(cannot_draw(file, &program, &last_line(&output.stderr))),
    }
}

/// The panels for the Python program: a line with the title, then one a point.
fn table(panels: &[Panel]) -> String {
    let mut text = String::new();
    for panel in panels {
        let _ = writeln!(text, "panel {}", panel.title);
        for point in &panel.points {
            let Point {
                event,
                requested,
                allocated,
                reserved,
            } = point;
            let _ = writeln!(text, "{event} {reserved} {allocated} {requested}");
        }
    }
    text
}

fn svg(panels: &[Panel]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let _ = writeln!(
            text,
            "<g transform=\"translate(0 {})\">",
            HEIGHT * index as f64
        );
        add_panel(&mut text, panel);
        text.push_str("</g>\n");
    }
    text + "</svg>\n"
}

fn add_panel(text: &mut String, panel: &Panel) {
    let most = panel
        .points
        .iter()
        .map(|point| point.reserved.max(point.allocated))
        .max();
    let step = step(most.unwrap_or(0));
    let top = most.unwrap_or(0).div_ceil(step).max(1) * step;
    let last = panel.points.last().map_or(1, |point| point.event.max(1));
    let x = |event: u64| LEFT + (WIDTH - LEFT - RIGHT) * event as f64 / last as f64;
    let y = |bytes: u64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * bytes as f64 / top as f64;
    let title = escaped(&panel.title);
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{title}</text>"
    );
    for bytes in (0..=top / step).map(|count| count * step) {
        let (at, label) = (y(bytes), size(bytes, step));
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (index, (name, colour, of)) in LINES.into_iter().enumerate() {
        let mut path = String::new();
        for (index, point) in panel.points.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", x(point.event), y(of(point)));
        }
        let at = WIDTH - RIGHT - 90.0 * (LINES.len() - index) as f64;
        let _ = writeln!(
            text,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <path d=\"M{at} 16h16\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"20\">{name}</text>",
            at + 20.0
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{0}\">0</text><text x=\"{1}\" y=\"{0}\" text-anchor=\"end\">{last} events</text>",
        HEIGHT - BOTTOM + 20.0,
        WIDTH - RIGHT
    );
}

/// The distance of the lines on the scale of bytes: a power of two that gives four to eight of them.
fn step(most: u64) -> u64 {
    (most / 8).max(1).next_power_of_two()
}

fn size(bytes: u64, step: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| step >= *unit) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_has_a_few_lines_in_round_sizes() {
        assert_eq!((step(0), step(100), step(300 << 20)), (1, 16, 64 << 20));
        assert_eq!(size(3 << 30, 1 << 30), "3 GiB");
        assert_eq!(
            (size(5, 1), size(128 << 20, 64 << 20)),
            ("5 B".to_owned(), "128 MiB".to_owned())
        );
    }

    #[test]
    fn titles_are_escaped_and_nothing_is_divided_by_nothing() {
        let panels = [Panel {
            title: "a<b & c".to_owned(),
            points: Vec::new(),
        }];
        let text = svg(&panels);
        assert!(
            text.contains("a&lt;b &amp; c") && !text.contains("NaN"),
            "{text}"
        );
    }
}
