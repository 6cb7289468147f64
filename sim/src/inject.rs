//! Faults on demand, and the count of every call: both are asked on each entry, so the common case is two atomic loads.

use crate::calls::{Call, TABLE, base_name};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

struct Armed {
    call: String,
    /// Matching calls still to let through.
    skip: u64,
    code: i32,
    /// Failures left; none means for ever.
    left: Option<u64>,
}

static ARMED: Mutex<Vec<Armed>> = Mutex::new(Vec::new());
static ANY: AtomicBool = AtomicBool::new(false);
static COUNTS: [AtomicU64; TABLE.len()] = [const { AtomicU64::new(0) }; TABLE.len()];

fn matches(pattern: &str, name: &str) -> bool {
    pattern == "*" || pattern == name || pattern == base_name(name)
}

/// Arms a failure; false when no call bears the name or the figures make no sense.
pub fn arm(call: &str, nth: u64, code: i32, times: u64) -> bool {
    let known = call == "*" || TABLE.iter().any(|info| matches(call, info.name));
    if !known || nth == 0 || code == 0 {
        return false;
    }
    let mut armed = ARMED.lock().unwrap_or_else(|e| e.into_inner());
    armed.push(Armed {
        call: call.to_owned(),
        skip: nth - 1,
        code,
        left: (times != 0).then_some(times),
    });
    ANY.store(true, Relaxed);
    true
}

pub fn clear() {
    let mut armed = ARMED.lock().unwrap_or_else(|e| e.into_inner());
    armed.clear();
    ANY.store(false, Relaxed);
}

/// Counts the call; a code when it is to fail.
pub fn enter(call: Call) -> Option<i32> {
    COUNTS[call as usize].fetch_add(1, Relaxed);
    if !ANY.load(Relaxed) {
        return None;
    }
    let name = call.info().name;
    let mut armed = ARMED.lock().unwrap_or_else(|e| e.into_inner());
    let mut verdict = None;
    for entry in armed.iter_mut().filter(|entry| matches(&entry.call, name)) {
        if entry.skip > 0 {
            entry.skip -= 1;
        } else if verdict.is_none() {
            verdict = Some(entry.code);
            if let Some(left) = &mut entry.left {
                *left -= 1;
            }
        }
    }
    armed.retain(|entry| entry.left != Some(0));
    ANY.store(!armed.is_empty(), Relaxed);
    verdict
}

pub fn count(pattern: &str) -> u64 {
    let counted = TABLE
        .iter()
        .zip(&COUNTS)
        .filter(|(info, _)| matches(pattern, info.name));
    counted.map(|(_, count)| count.load(Relaxed)).sum()
}

/// One line a call that was made: name, blank, count.
pub fn log() -> String {
    let lines = TABLE
        .iter()
        .zip(&COUNTS)
        .map(|(info, count)| (info.name, count.load(Relaxed)));
    lines
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}\n"))
        .collect()
}

pub fn reset_counts() {
    for count in &COUNTS {
        count.store(0, Relaxed);
    }
}
