//! What machine to simulate: one line of `key=value` pairs, from `HBMALLOC_SIM` or `hbmsim_configure`.
//! A bad value names itself and makes `cuInit` fail: a test that silently runs on another machine proves nothing.

use crate::hip::{self, Quirks};
use std::sync::atomic::{AtomicPtr, Ordering};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fabric {
    /// The attribute says yes and `cuMemCreate` answers 800, as on a machine without the fabric manager.
    Advertised,
    None,
    Works,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub devices: u32,
    pub memory: u64,
    pub name: String,
    pub version: u32,
    pub coherent: bool,
    pub fabric: Fabric,
    pub concurrent_managed: bool,
    pub rdma: bool,
    pub vmm: bool,
    pub pools: bool,
    pub posix_fd: bool,
    pub multicast: bool,
    pub peers: bool,
    pub host_numa: bool,
    pub numa_nodes: u32,
    /// Whether it says which of them is nearest to a device.
    pub node_known: bool,
    pub granularity: u64,
    /// Play HIP, of this version, instead of the CUDA driver.
    pub hip: Option<i32>,
    /// What is wrong with it.
    pub quirks: Quirks,
    pub poison: bool,
    pub delay_us: u64,
    /// Refuse what the driver lets pass though it is a mistake: unmapping twice, ranges with gaps.
    pub strict: bool,
    pub missing: Vec<String>,
    /// (call, nth, code): armed once, when the configuration is read.
    pub fail: Vec<(String, u64, i32)>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            devices: 2,
            // What an H200 reports: 141 GB less what the card keeps for itself.
            memory: 150_754_820_096,
            name: "Simulated H200".into(),
            version: 13_000,
            coherent: false,
            fabric: Fabric::Advertised,
            concurrent_managed: true,
            rdma: true,
            vmm: true,
            pools: true,
            posix_fd: true,
            multicast: false,
            peers: true,
            host_numa: true,
            numa_nodes: 1,
            node_known: true,
            granularity: 2 << 20,
            hip: None,
            quirks: Quirks::default(),
            poison: false,
            delay_us: 0,
            strict: true,
            missing: Vec::new(),
            fail: Vec::new(),
        }
    }
}

/// Without a lock, since a forked child may ask too.
static SPEC: AtomicPtr<String> = AtomicPtr::new(std::ptr::null_mut());

/// Takes the place of the environment until the process ends.
pub fn set_spec(spec: &str) {
    SPEC.store(Box::into_raw(Box::new(spec.to_owned())), Ordering::Release);
}

/// The configuration in force: what was set by a call, else the environment, else the defaults.
pub fn current() -> Result<Config, String> {
    // SAFETY: what is stored there is never freed.
    let set = unsafe { SPEC.load(Ordering::Acquire).as_ref() };
    match set {
        Some(spec) => parse(spec),
        None => parse(&std::env::var("HBMALLOC_SIM").unwrap_or_default()),
    }
}

pub fn parse(spec: &str) -> Result<Config, String> {
    let mut config = Config::default();
    for pair in spec.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (key, value) = match pair {
            "hip" => ("hip", hip::USUAL),
            pair => pair
                .split_once('=')
                .ok_or_else(|| format!("HBMALLOC_SIM: {pair:?} is not key=value"))?,
        };
        set(&mut config, key.trim(), value.trim())
            .map_err(|what| format!("HBMALLOC_SIM: {key}={value}: {what}"))?;
    }
    if config.hip.is_some() && config.name == Config::default().name {
        config.name = "Simulated HIP device".into();
    }
    if config.devices > 0 && config.memory < config.granularity {
        return Err(format!(
            "HBMALLOC_SIM: memory={} is less than one chunk",
            config.memory
        ));
    }
    Ok(config)
}

fn set(config: &mut Config, key: &str, value: &str) -> Result<(), String> {
    match key {
        "devices" => config.devices = number(value, 0, 32)? as u32,
        "memory" => config.memory = size(value)?,
        "name" => config.name = value.to_owned(),
        "version" => config.version = number(value, 11_020, 99_999)? as u32,
        "coherent" => config.coherent = flag(value)?,
        "fabric" => config.fabric = fabric(value)?,
        "concurrent_managed" => config.concurrent_managed = flag(value)?,
        "rdma" => config.rdma = flag(value)?,
        "vmm" => config.vmm = flag(value)?,
        "pools" => config.pools = flag(value)?,
        "posix_fd" => config.posix_fd = flag(value)?,
        "multicast" => config.multicast = flag(value)?,
        "peers" => config.peers = flag(value)?,
        "host_numa" => config.host_numa = flag(value)?,
        "numa_nodes" => config.numa_nodes = number(value, 1, 64)? as u32,
        "node_known" => config.node_known = flag(value)?,
        "granularity" => config.granularity = granularity(value)?,
        "hip" => config.hip = Some(hip::version(value)?),
        quirk if quirk.starts_with("hip_") => config.quirks.set(quirk, value)?,
        "poison" => config.poison = flag(value)?,
        "delay_us" => config.delay_us = number(value, 0, 10_000_000)?,
        "strict" => config.strict = flag(value)?,
        "missing" => config.missing = value.split('+').map(str::to_owned).collect(),
        "fail" => config.fail = value.split('+').map(failure).collect::<Result<_, _>>()?,
        _ => return Err("unknown key (sim/README.md lists them)".into()),
    }
    Ok(())
}

pub fn number(value: &str, low: u64, high: u64) -> Result<u64, String> {
    let parsed = value
        .parse::<u64>()
        .map_err(|_| "a whole number is wanted".to_owned())?;
    if !(low..=high).contains(&parsed) {
        return Err(format!("from {low} to {high} is accepted"));
    }
    Ok(parsed)
}

pub fn flag(value: &str) -> Result<bool, String> {
    match value {
        "1" | "yes" | "true" | "on" => Ok(true),
        "0" | "no" | "false" | "off" => Ok(false),
        _ => Err("0 or 1 is accepted".into()),
    }
}

fn fabric(value: &str) -> Result<Fabric, String> {
    match value {
        "advertised" => Ok(Fabric::Advertised),
        "none" => Ok(Fabric::None),
        "works" => Ok(Fabric::Works),
        _ => Err("advertised, none or works is accepted".into()),
    }
}

fn granularity(value: &str) -> Result<u64, String> {
    let bytes = size(value)?;
    if !bytes.is_power_of_two() || bytes < 4 << 10 {
        return Err("a power of two of at least 4KiB is wanted".into());
    }
    Ok(bytes)
}

/// `call@nth=code` is not possible inside key=value pairs split at the first `=`, so the parts are joined by colons.
fn failure(value: &str) -> Result<(String, u64, i32), String> {
    let parts: Vec<&str> = value.split(':').collect();
    let [call, nth, code] = parts[..] else {
        return Err("CALL:NTH:CODE is wanted".into());
    };
    let nth = number(nth, 1, u64::MAX)?;
    let code = number(code, 1, 999)? as i32;
    Ok((call.to_owned(), nth, code))
}

pub fn size(value: &str) -> Result<u64, String> {
    let digits = value
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(value.len());
    let count = value[..digits]
        .parse::<u64>()
        .map_err(|_| "a size such as 141GiB is wanted".to_owned())?;
    let unit: u64 = match &value[digits..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err("B, KiB, MiB, GiB, TiB, KB, MB or GB is wanted as the unit".into()),
    };
    count
        .checked_mul(unit)
        .ok_or_else(|| "too large".to_owned())
}
