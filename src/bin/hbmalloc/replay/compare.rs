//! Where our backends lose against other allocators on the same traces, in the same run.

use super::outcome::Outcome;

/// The peer whose time counts.
const TIME_OF: &str = "torch-native";

/// One line a loss: more memory held for what was asked than a peer, or more time than torch's own
/// allocator, the driver's included.
pub fn losses(outcomes: &[Outcome]) -> Vec<String> {
    let good = || outcomes.iter().filter(|outcome| outcome.is_good());
    let mut losses = Vec::new();
    for ours in good().filter(|outcome| !outcome.is_peer) {
        let peers = good().filter(|outcome| outcome.is_peer && outcome.trace == ours.trace);
        for theirs in peers {
            let above = |name| {
                let (ours, theirs) = (ours.figure(name)?, theirs.figure(name)?);
                (ours > theirs).then_some((ours, theirs))
            };
            let who = format!("{}, {}", ours.trace, ours.backend);
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
    losses
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
        assert_eq!(
            losses(&all),
            [
                "train, pool: 50.0 ms with the driver's, torch-native 49.0 ms",
                "train, pool: ratio 1.0300, cudaMallocAsync 1.0200"
            ]
        );
    }

    #[test]
    fn other_traces_and_failed_runs_do_not_count() {
        let mut other = outcome("torch-native", true, 100.0, 0.0);
        other.trace = "serve".to_owned();
        let mut failed = outcome("torch-native", true, 100.0, 0.0);
        failed.problems.push("bad".to_owned());
        let all = [outcome("pool", false, 103.0, 50.0), other, failed];
        assert!(losses(&all).is_empty());
    }
}
