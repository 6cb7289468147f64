//! What cases say of things that must hold.

use super::Stop;
use std::fmt;

impl Stop {
    /// For cases that steer or question the simulated driver.
    pub fn needs_simulator() -> Stop {
        Stop::skip("needs the simulated driver")
    }

    /// The same with a word on where it happened.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Stop {
        match self {
            Stop::Failed(text) => Stop::Failed(format!("{place}: {text}")),
            skipped @ Stop::Skipped(_) => skipped,
        }
    }
}

/// Fails the case with a text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::selftest::Stop::Failed(format!($($text)+)));
        }
    };
}

/// Fails the case unless both are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($text:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err($crate::selftest::Stop::Failed(format!(
                "{}: {left:?}, expected {right:?}", format_args!($($text)+)
            )));
        }
    }};
}

pub(crate) use {ensure, ensure_eq};
