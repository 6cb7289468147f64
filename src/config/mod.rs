//! Options: one table, and for each the value in force with where it came from. A call beats the
//! environment, which beats the default.

pub mod table;
pub mod value;

use crate::error::{Error, Result, Status};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use table::{Opt, Spec, TABLE, Value};
use value::{Location, Placement, Size, Threshold};

/// Where the value of an option came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// An environment variable, by name.
    Environment(String),
    /// A call of `hbm_option_set` or one of the faces over it.
    Call,
}

impl Origin {
    /// The origin in words.
    pub fn describe(&self) -> String {
        match self {
            Origin::Default => "default".to_owned(),
            Origin::Environment(variable) => format!("environment ({variable})"),
            Origin::Call => "call".to_owned(),
        }
    }
}

struct Setting {
    text: String,
    value: Value,
    origin: Origin,
    /// Set once something has been built from the value, so that a change could no longer act.
    fixed: bool,
    problem: Option<Error>,
}

/// The values in force.
pub struct Settings {
    rows: RwLock<Vec<Setting>>,
    version: AtomicU64,
    notices: Vec<String>,
}

impl Settings {
    /// Reads `variables`, usually the process's environment. Bad values are kept as problems, which
    /// [`Settings::check`] reports, so that a program learns of them at its first allocation.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Settings {
        let mut rows: Vec<Setting> = TABLE.iter().map(default_setting).collect();
        let mut notices = Vec::new();
        let mut vllm_chunk = None;
        for (variable, text) in variables {
            if variable == VLLM_CHUNK {
                vllm_chunk = Some(text);
                continue;
            }
            if !variable.starts_with("HBMALLOC_")
                || table::FOREIGN_VARIABLES.contains(&variable.as_str())
            {
                continue;
            }
            match TABLE.iter().find(|spec| spec.variable() == variable) {
                Some(spec) => {
                    read_variable(&mut rows[spec.opt as usize], spec, variable, text);
                }
                None => notices.push(format!(
                    "unknown variable {variable}; did you mean HBMALLOC_{}?",
                    table::nearest(&variable).to_ascii_uppercase()
                )),
            }
        }
        if let Some(text) = vllm_chunk {
            read_vllm_chunk(&mut rows[Opt::RocmChunkSize as usize], text, &mut notices);
        }
        Settings {
            rows: RwLock::new(rows),
            version: AtomicU64::new(1),
            notices,
        }
    }

    /// What the environment held that is no error but worth a warning.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The first bad value found in the environment and not set right since.
    pub fn check(&self) -> Result<()> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        match rows.iter().find_map(|row| row.problem.clone()) {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    /// Sets an option by call, checked against the table.
    pub fn set(&self, name: &str, text: &str) -> Result<Opt> {
        let (spec, value) = self.accept(name, text)?;
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let row = &mut rows[spec.opt as usize];
        row.text = text.to_owned();
        row.value = value;
        row.origin = Origin::Call;
        row.problem = None;
        self.version.fetch_add(1, Ordering::Release);
        Ok(spec.opt)
    }

    /// A number above 0 that grows with every option set: what was read under the same one holds.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether [`Settings::set`] would succeed now; changes nothing.
    pub fn validate(&self, name: &str, text: &str) -> Result<()> {
        self.accept(name, text).map(|_| ())
    }

    fn accept(&self, name: &str, text: &str) -> Result<(&'static Spec, Value)> {
        let spec = table::find(name).ok_or_else(|| {
            Error::new(Status::BadOption, "option_set")
                .detail(format!("there is no option '{name}'"))
                .advice(format!("Did you mean '{}'?", table::nearest(name)))
        })?;
        let value = (spec.parse)(text).ok_or_else(|| bad_value(spec, spec.name, text))?;
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let row = &rows[spec.opt as usize];
        if row.fixed && row.value != value {
            return Err(Error::new(Status::Busy, "option_set")
                .detail(format!(
                    "'{}' is already in use as '{}'",
                    spec.name, row.text
                ))
                .advice("Set it before the first allocation."));
        }
        Ok((spec, value))
    }

    /// The text and origin in force.
    pub fn describe(&self, opt: Opt) -> (String, Origin) {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let row = &rows[opt as usize];
        (row.text.clone(), row.origin.clone())
    }

    /// Declares that something was built from the option: from now on it cannot change.
    pub fn fix(&self, opt: Opt) {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)[opt as usize].fixed = true;
    }

    /// The value of a text option.
    pub fn text(&self, opt: Opt) -> String {
        match self.value(opt) {
            Value::Text(text) => text,
            other => unreachable!("option {opt:?} holds {other:?}"),
        }
    }

    /// The value of a size option.
    pub fn size(&self, opt: Opt) -> Size {
        match self.value(opt) {
            Value::Size(size) => size,
            other => unreachable!("option {opt:?} holds {other:?}"),
        }
    }

    /// The value of a threshold option.
    pub fn threshold(&self, opt: Opt) -> Threshold {
        match self.value(opt) {
            Value::Threshold(threshold) => threshold,
            other => unreachable!("option {opt:?} holds {other:?}"),
        }
    }

    /// The value of a location option.
    pub fn location(&self, opt: Opt) -> Location {
        match self.value(opt) {
            Value::Location(location) => location,
            other => unreachable!("option {opt:?} holds {other:?}"),
        }
    }

    /// The place of a tag, by name, as the option `placement` says.
    pub fn placement_of(&self, tag: &str) -> Option<Placement> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        match &rows[Opt::Placement as usize].value {
            Value::Placements(map) => map.of(tag),
            other => unreachable!("the option placement holds {other:?}"),
        }
    }

    fn value(&self, opt: Opt) -> Value {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)[opt as usize]
            .value
            .clone()
    }
}

const VLLM_CHUNK: &str = "VLLM_ROCM_SLEEP_MEM_CHUNK_SIZE";

fn default_setting(spec: &Spec) -> Setting {
    Setting {
        text: spec.default.to_owned(),
        value: (spec.parse)(spec.default).expect("the table accepts its own defaults (tested)"),
        origin: Origin::Default,
        fixed: false,
        problem: None,
    }
}

fn read_variable(row: &mut Setting, spec: &Spec, variable: String, text: String) {
    match (spec.parse)(&text) {
        Some(value) => {
            row.value = value;
            row.text = text;
            row.origin = Origin::Environment(variable);
        }
        None => row.problem = Some(bad_value(spec, &variable, &text)),
    }
}

/// vLLM's variable counts in MB, and a bad or zero value means its default, as there.
fn read_vllm_chunk(row: &mut Setting, text: String, notices: &mut Vec<String>) {
    if row.origin != Origin::Default {
        return;
    }
    match text
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|mb| mb.checked_mul(1 << 20))
    {
        None | Some(0) => notices.push(format!(
            "{VLLM_CHUNK}='{text}' is not a number of MB above 0; the default of {} is used",
            row.text
        )),
        Some(bytes) => {
            row.text = value::format_bytes(bytes);
            row.value = Value::Size(Size::Bytes(bytes));
            row.origin = Origin::Environment(VLLM_CHUNK.to_owned());
        }
    }
}

fn bad_value(spec: &Spec, name: &str, text: &str) -> Error {
    Error::new(Status::BadOption, "options")
        .detail(format!("{name}='{text}' is not accepted"))
        .advice(format!("Accepted: {}.", spec.accepted))
}

/// The levels of the log, in the order of their verbosity.
pub const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Whether a log specification is one: levels and `target=level`, separated by commas.
pub fn log_spec_is_valid(spec: &str) -> bool {
    !spec.trim().is_empty()
        && spec.split(',').all(|part| {
            let (target, level) = part.split_once('=').unwrap_or(("all", part));
            !target.trim().is_empty()
                && LOG_LEVELS.contains(&level.trim().to_ascii_lowercase().as_str())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Settings {
        Settings::from_variables(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())))
    }

    #[test]
    fn call_beats_environment_beats_default() {
        let settings = variables(&[("HBMALLOC_BACKEND", "vmm")]);
        assert_eq!(settings.text(Opt::Backend), "vmm");
        assert_eq!(settings.describe(Opt::Driver).1, Origin::Default);
        settings.set("backend", "managed").unwrap();
        assert_eq!(settings.text(Opt::Backend), "managed");
        assert_eq!(settings.describe(Opt::Backend).1, Origin::Call);
    }

    #[test]
    fn a_bad_value_names_variable_value_and_what_is_accepted() {
        let settings = variables(&[("HBMALLOC_PREFETCH_THRESHOLD", "lots")]);
        let text = settings.check().unwrap_err().to_string();
        for part in ["HBMALLOC_PREFETCH_THRESHOLD", "lots", "all"] {
            assert!(text.contains(part), "{text}");
        }
        settings.set("prefetch_threshold", "all").unwrap();
        settings.check().unwrap();
    }

    #[test]
    fn an_unknown_variable_is_a_notice_with_the_nearest_name() {
        let settings = variables(&[("HBMALLOC_BAKEND", "vmm"), ("HBMALLOC_LIBRARY", "x")]);
        assert_eq!(settings.notices().len(), 1);
        assert!(settings.notices()[0].contains("HBMALLOC_BACKEND"));
        settings.check().unwrap();
    }

    #[test]
    fn vllms_chunk_size_counts_in_mb_and_ours_wins() {
        let chunk = |pairs: &[(&str, &str)]| variables(pairs).size(Opt::RocmChunkSize);
        assert_eq!(chunk(&[(VLLM_CHUNK, "64")]), Size::Bytes(64 << 20));
        assert_eq!(chunk(&[(VLLM_CHUNK, "0")]), Size::Bytes(256 << 20));
        assert_eq!(chunk(&[(VLLM_CHUNK, "many")]), Size::Bytes(256 << 20));
        assert_eq!(variables(&[(VLLM_CHUNK, "0")]).notices().len(), 1);
        let both = [(VLLM_CHUNK, "64"), ("HBMALLOC_ROCM_CHUNK_SIZE", "32MiB")];
        assert_eq!(chunk(&both), Size::Bytes(32 << 20));
    }

    #[test]
    fn a_fixed_option_cannot_change_but_can_be_said_again() {
        let settings = variables(&[]);
        settings.fix(Opt::AsyncPool);
        settings.set("async_pool", "default").unwrap();
        let error = settings.set("async_pool", "own").unwrap_err();
        assert_eq!(error.status(), Status::Busy);
        assert!(settings.validate("async_pool", "own").is_err());
    }
}
