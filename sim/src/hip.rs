//! Playing HIP: its version, and what some versions of it do wrong, each to be switched on by itself.

use crate::config::{flag, number, size};

/// What `hip` alone means.
pub const USUAL: &str = "6.4";

const MAJOR: i32 = 10_000_000;
const MINOR: i32 = 100_000;
/// From here on a descriptor is imported by its value, before through a pointer to it.
pub const IMPORTS_BY_VALUE: i32 = 7 * MAJOR + MINOR;

/// `6.4` as `hipRuntimeGetVersion` tells it.
pub fn version(text: &str) -> Result<i32, String> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let part = |text, most| number(text, 0, most).map(|part| part as i32);
    Ok(part(major, 99)? * MAJOR + part(minor, 99)? * MINOR)
}

/// What is wrong with the HIP that is played.
#[derive(Clone, Debug, Default)]
pub struct Quirks {
    /// Chunks above this size are refused; 0 for none.
    pub create_limit: u64,
    /// Of a chunk above this size only so much can be used; 0 for no such size.
    pub large: u64,
    /// A handle holds a file descriptor.
    pub fds: bool,
    /// A chunk is made on the current device, whatever the properties name.
    pub set_device: bool,
    /// Access is set, and a range unmapped, only mapping by mapping.
    pub whole: bool,
    /// Reserving with an explicit alignment is refused.
    pub align: bool,
    /// A chunk that was released takes memory until the addresses where it was mapped are freed.
    pub holds: bool,
    /// So often setting access to a mapping fails before it works.
    pub access_fails: u64,
    /// New chunks hold what old ones held.
    pub stale: bool,
}

impl Quirks {
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "hip_create_limit" => self.create_limit = size(value)?,
            "hip_large" => self.large = size(value)?,
            "hip_fds" => self.fds = flag(value)?,
            "hip_set_device" => self.set_device = flag(value)?,
            "hip_whole" => self.whole = flag(value)?,
            "hip_align" => self.align = flag(value)?,
            "hip_holds" => self.holds = flag(value)?,
            "hip_access_fails" => self.access_fails = number(value, 0, 1000)?,
            "hip_stale" => self.stale = flag(value)?,
            _ => return Err("unknown key (sim/README.md lists them)".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.4"), Ok(60_400_000));
        assert_eq!(version("7"), Ok(70_000_000));
        assert!(version("six").is_err() && version("6.x").is_err());
    }
}
