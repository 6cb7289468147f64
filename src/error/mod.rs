//! One error type for the whole library, so that every failure can say the same things: which
//! operation, what the driver answered, which sizes were involved, and what to do next.

pub mod last;
mod warning;

pub use warning::{Warning, Warnings};

use std::borrow::Cow;
use std::fmt;

/// What kind of failure it was; the integer is the status the C ABI returns.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// No failure.
    Ok = 0,
    /// An argument is outside what the operation accepts.
    InvalidArgument = 1,
    /// Memory of the kind asked for has run out.
    OutOfMemory = 2,
    /// The driver or the device lacks what the operation needs.
    Unsupported = 3,
    /// No GPU driver could be loaded or initialised.
    NoDriver = 4,
    /// The driver refused; its code is in the error.
    Driver = 5,
    /// The address is not, or is no longer, a block of this library.
    NotOwned = 6,
    /// Not possible while a stream capture is open on the device.
    Capturing = 7,
    /// The process was forked after the driver was initialised; the driver does not work in the child.
    Forked = 8,
    /// The process is exiting.
    Shutdown = 9,
    /// An option has a bad name or value.
    BadOption = 10,
    /// The object is still in use.
    Busy = 11,
    /// A defect of this library; please report it.
    Internal = 12,
    /// A file could not be made, written or read, or does not hold what was written.
    Io = 13,
}

impl Status {
    /// Every status, in the order of their integers.
    pub const ALL: [Status; 14] = [
        Status::Ok,
        Status::InvalidArgument,
        Status::OutOfMemory,
        Status::Unsupported,
        Status::NoDriver,
        Status::Driver,
        Status::NotOwned,
        Status::Capturing,
        Status::Forked,
        Status::Shutdown,
        Status::BadOption,
        Status::Busy,
        Status::Internal,
        Status::Io,
    ];

    /// The status in words, as C programs print it.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::InvalidArgument => "invalid argument",
            Status::OutOfMemory => "out of memory",
            Status::Unsupported => "unsupported",
            Status::NoDriver => "no driver",
            Status::Driver => "driver error",
            Status::NotOwned => "not owned",
            Status::Capturing => "stream capture open",
            Status::Forked => "forked process",
            Status::Shutdown => "process exiting",
            Status::BadOption => "bad option",
            Status::Busy => "busy",
            Status::Internal => "internal error",
            Status::Io => "file error",
        }
    }
}

/// A result code of the driver, kept as the plain integer it is: a newer driver's codes are values too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DriverCode(pub i32);

impl DriverCode {
    /// An argument the driver does not accept, or does not know yet.
    pub const INVALID_VALUE: DriverCode = DriverCode(1);
    /// Out of memory, on the device or of what the driver keeps on the host.
    pub const OUT_OF_MEMORY: DriverCode = DriverCode(2);
    /// The driver is not initialised; also what it answers in a forked child.
    pub const NOT_INITIALIZED: DriverCode = DriverCode(3);
    /// The driver has been taken down: the process is exiting.
    pub const DEINITIALIZED: DriverCode = DriverCode(4);
    /// What a toolkit's link-time stub of libcuda answers to everything.
    pub const STUB_LIBRARY: DriverCode = DriverCode(34);
    /// Initialised, but there is no device.
    pub const NO_DEVICE: DriverCode = DriverCode(100);
    /// Work asked about has not finished.
    pub const NOT_READY: DriverCode = DriverCode(600);
    /// Pages of the host are not pinned.
    pub const NOT_REGISTERED: DriverCode = DriverCode(713);
    /// The device, the driver or the configuration lacks the feature.
    pub const NOT_SUPPORTED: DriverCode = DriverCode(801);
    /// The operation is not allowed while a stream captures.
    pub const CAPTURE_UNSUPPORTED: DriverCode = DriverCode(900);
}

/// A failure, with everything needed to act on it.
#[derive(Clone, Debug)]
pub struct Error(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    status: Status,
    operation: Cow<'static, str>,
    code: Option<(DriverCode, Cow<'static, str>)>,
    bytes: Option<u64>,
    detail: Cow<'static, str>,
    advice: Cow<'static, str>,
}

/// What can be done whenever memory has run out; who knows more says more.
const ASK_FOR_LESS: &str = "Free memory, or ask for less at a time";

/// The result of every fallible operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of `operation`, with no detail yet.
    pub fn new(status: Status, operation: impl Into<Cow<'static, str>>) -> Error {
        Error(Box::new(Parts {
            status,
            operation: operation.into(),
            code: None,
            bytes: None,
            detail: Cow::Borrowed(""),
            advice: Cow::Borrowed(""),
        }))
    }

    /// A driver call that answered `code`, with the driver's text for it.
    pub fn driver(
        call: &'static str,
        code: DriverCode,
        text: impl Into<Cow<'static, str>>,
    ) -> Error {
        let status = match code {
            DriverCode::OUT_OF_MEMORY => Status::OutOfMemory,
            DriverCode::DEINITIALIZED => Status::Shutdown,
            DriverCode::NOT_SUPPORTED => Status::Unsupported,
            DriverCode::CAPTURE_UNSUPPORTED => Status::Capturing,
            _ => Status::Driver,
        };
        let mut error = Error::new(status, call);
        error.0.code = Some((code, text.into()));
        error
    }

    /// An argument that is not accepted, and why.
    pub fn invalid(
        operation: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Error {
        Error::new(Status::InvalidArgument, operation).detail(detail)
    }

    /// Adds what exactly was wrong.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Error {
        self.0.detail = detail.into();
        self
    }

    /// Says more, after what was said before.
    #[must_use]
    pub fn also(mut self, more: &str) -> Error {
        self.0.detail = match self.0.detail.is_empty() {
            true => more.to_owned().into(),
            false => format!("{}; {more}", self.0.detail).into(),
        };
        self
    }

    /// Whether more is said of a driver's refusal than the driver did.
    pub fn is_explained(&self) -> bool {
        self.0.code.is_some() && !self.0.detail.is_empty()
    }

    /// Names the operation that the caller asked for, in place of the step of it that failed.
    #[must_use]
    pub fn during(mut self, operation: impl Into<Cow<'static, str>>) -> Error {
        self.0.operation = operation.into();
        self
    }

    /// Adds the size that was asked for.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Error {
        self.0.bytes = Some(bytes);
        self
    }

    /// Adds what the caller can do about it.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<Cow<'static, str>>) -> Error {
        self.0.advice = advice.into();
        self
    }

    /// The kind of failure.
    pub fn status(&self) -> Status {
        self.0.status
    }

    /// The bytes that were asked for, where that is known.
    pub fn asked(&self) -> Option<u64> {
        self.0.bytes
    }

    /// The driver's code, where the driver refused.
    pub fn code(&self) -> Option<DriverCode> {
        self.0.code.as_ref().map(|(code, _)| *code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &*self.0;
        write!(f, "{}: {}", parts.operation, parts.status.name())?;
        if let Some((code, text)) = &parts.code {
            write!(f, " (driver code {}", code.0)?;
            if !text.is_empty() {
                write!(f, ", {text}")?;
            }
            f.write_str(")")?;
        }
        if let Some(bytes) = parts.bytes {
            write!(f, "; {bytes} bytes asked for")?;
        }
        if !parts.detail.is_empty() {
            write!(f, "; {}", parts.detail)?;
        }
        match (&*parts.advice, parts.status) {
            ("", Status::OutOfMemory) => write!(f, ". {ASK_FOR_LESS}"),
            ("", _) => Ok(()),
            (advice, _) => write!(f, ". {advice}"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_has_run_out_always_comes_with_what_to_do() {
        let driver = Error::driver("cuMemCreate", DriverCode::OUT_OF_MEMORY, "");
        assert_eq!(
            driver.bytes(3).to_string(),
            "cuMemCreate: out of memory (driver code 2); 3 bytes asked for. Free memory, or ask for less at a time"
        );
        let advised = Error::new(Status::OutOfMemory, "allocate").advice("Wait");
        assert_eq!(advised.to_string(), "allocate: out of memory. Wait");
        assert_eq!(
            Error::invalid("step", "no").during("whole").to_string(),
            "whole: invalid argument; no"
        );
    }
}
