//! Where our backends lose against other allocators on the same traces, in the same run.

use super::outcome::Outcome;

/// The peer whose time counts.
const TIME_OF: &str = "torch-native";

/// What came of it.
#[derive(Debug, Default, PartialEq)]
pub struct Comparison {
    /// One line a loss: more memory held for what was asked than a peer, or more time than torch's own
    /// allocator, the driver's included.
    pub losses: Vec<String>,
    /// What could not be compared, a line each: a loss may hide there.
    pub gaps: Vec<String>,
}

/// Compares each of ours that came to its end with the peers that did.
pub fn compare(outcomes: &[Outcome]) -> Comparison {
    let good = || outcomes.iter().filter(|outcome| outcome.is_good());
    let mut found = Comparison::default();
    for ours in good().filter(|outcome| !outcome.is_peer) {
        let peers = || good().filter(|outcome| outcome.is_peer && outcome.trace == ours.trace);
        let who = format!("{}, {}", ours.trace, ours.backend);
        if peers().next().is_none() {
            found.gaps.push(format!(
                "{who}: compared with nobody, since no other allocator ran"
            ));
        } else if peers().all(|theirs| theirs.backend != TIME_OF) {
            found.gaps.push(format!(
                "{who}: time was compared with nobody, since {TIME_OF} did not run"
            ));
        }
        let losses = &mut found.losses;
        for theirs in peers() {
            let above = |name| {
                let (ours, theirs) = (ours.figure(name)?, theirs.figure(name)?);
                (ours > theirs).then_some((ours, theirs))
            };
            if let Some((ours, peer)) = above("ratio") {
                losses.push(format!(
                    "{who}: ratio {ours:.4}, {} {peer:.4}",
                    theirs.backend
                ));
            }
            if let Some((ours, peer)) = above("total_ms").filter(|_| theirs.backend == TIME_OF) {
                losses.push(format!(
                    "{who}: {ours:.1} ms with the driver's, {} {peer:.1} ms",
                    theirs.backend
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figures;
    use super::*;

    fn outcome(backend: &str, is_peer: bool, held: f64, total_ms: f64) -> Outcome {
        let mut figures = Figures::default();
        figures.set("peak_requested", 100.0);
        figures.set("peak_reserved", held);
        figures.set("total_ms", total_ms);
        Outcome {
            figures: Some(figures),
            ..Outcome::new("train", backend, is_peer)
        }
    }

    #[test]
    fn ratios_count_against_all_and_time_against_torch() {
        let all = [
            outcome("pool", false, 103.0, 50.0),
            outcome("torch-native", true, 133.0, 49.0),
            outcome("cudaMallocAsync", true, 102.0, 5.0),
            outcome("rmm-pool", true, 103.0, 1.0),
        ];
        let found = compare(&all);
        assert_eq!(
            found.losses,
            [
                "train, pool: 50.0 ms with the driver's, torch-native 49.0 ms",
                "train, pool: ratio 1.0300, cudaMallocAsync 1.0200"
            ]
        );
        assert!(found.gaps.is_empty(), "{found:?}");
        let without_torch = compare(&[
            outcome("pool", false, 103.0, 50.0),
            outcome("rmm-pool", true, 103.0, 1.0),
        ]);
        assert!(without_torch.losses.is_empty(), "{without_torch:?}");
        assert_eq!(
            without_torch.gaps,
            ["train, pool: time was compared with nobody, since torch-native did not run"]
        );
    }

    #[test]
    fn other_traces_and_failed_runs_do_not_count() {
        let mut other = outcome("torch-native", true, 100.0, 0.0);
        other.trace = "serve".to_owned();
        let mut failed = outcome("torch-native", true, 100.0, 0.0);
        failed.problems.push("bad".to_owned());
        let all = [outcome("pool", false, 103.0, 50.0), other, failed];
        let found = compare(&all);
        assert!(found.losses.is_empty());
        assert_eq!(
            found.gaps,
            ["train, pool: compared with nobody, since no other allocator ran"]
        );
    }
}
