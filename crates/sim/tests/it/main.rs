//! Some hundred seeds keep every promise; every rule that is broken on purpose is noticed.

mod node;

use flumen_sim::{Broken, Report, run};

const SEEDS: u64 = 300;

#[test]
fn every_seed_keeps_every_promise() {
    let mut sum = Report::default();
    for seed in 0..SEEDS {
        let report = run(seed, None).unwrap_or_else(|violation| panic!("{violation}"));
        sum.records += report.records;
        sum.grants += report.grants;
        sum.forced += report.forced;
        sum.silent += report.silent;
        sum.stale += report.stale;
        sum.restarts += report.restarts;
        sum.shards += report.shards;
        sum.missed += report.missed;
        sum.deleted += report.deleted;
        sum.nonsense += report.nonsense;
    }
    // It is worth something only if these things happen.
    assert!(sum.records > SEEDS * 1_000, "{sum:?}");
    assert!(sum.grants > SEEDS * 20, "{sum:?}");
    assert!(sum.shards > SEEDS * 8, "{sum:?}");
    assert!(sum.missed > SEEDS * 20, "{sum:?}");
    let often = [sum.forced, sum.silent, sum.stale, sum.restarts];
    for often in often.into_iter().chain([sum.deleted, sum.nonsense]) {
        assert!(often > SEEDS, "{sum:?}");
    }
}

#[test]
fn equal_seeds_give_equal_runs() {
    assert_eq!(run(7, None), run(7, None));
    assert_ne!(run(7, None), run(8, None));
}

#[track_caller]
fn check_noticed(broken: Broken, by: &str) {
    let found = (0..100).find_map(|seed| run(seed, Some(broken)).err());
    let found = found.unwrap_or_else(|| panic!("{broken:?} is not noticed"));
    assert!(found.what.contains(by), "{found}");
}

#[test]
fn broken_rules_are_noticed() {
    check_noticed(Broken::IgnoresGenerations, "");
    check_noticed(Broken::TellsBeforeDurable, "");
    check_noticed(Broken::ForgetsCheckpoints, "after a restart");
    check_noticed(Broken::ForgetsParents, "before its parent");
    check_noticed(Broken::IgnoresDeadline, "for being silent");
    check_noticed(Broken::ForgetsTimeouts, "is still held");
    check_noticed(Broken::TakesNonsense, "nonsense was granted");
    check_noticed(Broken::ForgetsHorizon, "");
    check_noticed(Broken::ForgetsGone, "");
}
