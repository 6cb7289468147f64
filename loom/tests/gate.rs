//! The owner of a gate and whoever shuts it are never inside together, and see what the other did.
#![allow(missing_docs)]

use hbmalloc_loom::core::gate::Gate;
use hbmalloc_loom::core::sync::{Ordering, fence};
use loom::cell::UnsafeCell;
use loom::sync::Arc;

struct Shared {
    gate: Gate,
    /// Loom finds who touches it while another does, or without having seen the other's doings.
    inside: UnsafeCell<u32>,
}

// SAFETY: only whoever is inside touches the cell, which is what the gate is for and loom looks at.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

fn model(asymmetric: bool, is_final: bool) {
    loom::model(move || {
        let shared = Arc::new(Shared {
            gate: Gate::new(asymmetric),
            inside: UnsafeCell::new(0),
        });
        let other = shared.clone();
        let thief = loom::thread::spawn(move || {
            let shut = other.gate.shut(|| fence(Ordering::SeqCst));
            // SAFETY: the owner is shut out.
            other.inside.with_mut(|inside| unsafe { *inside += 1 });
            if is_final {
                Gate::shut_for_good(shut);
            }
        });
        let mut entered = 0;
        for _ in 0..2 {
            if let Some(_inside) = shared.gate.enter() {
                // SAFETY: the owner is inside.
                shared.inside.with_mut(|inside| unsafe { *inside += 1 });
                entered += 1;
            }
        }
        thief.join().unwrap();
        assert_eq!(shared.gate.enter().is_none(), is_final);
        // SAFETY: alone.
        assert_eq!(shared.inside.with(|inside| unsafe { *inside }), entered + 1);
    });
}

#[test]
fn with_a_fence_of_its_owner() {
    model(false, false);
}

#[test]
fn with_a_barrier_on_all_threads() {
    model(true, false);
}

#[test]
fn shut_for_good() {
    model(false, true);
}
