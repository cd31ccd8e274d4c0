//! A bounded run of the simulation of whole metadata clusters. `sim` lives through more and longer worlds; its
//! failures print the seed that shows them again.

use cluster_tests::sim::{self, Counts, Decided, Report, TraceMode};
use std::time::{Duration, Instant};

/// Simulated time of a world.
const WORLD_MS: u64 = 60_000;

fn live(seed: u64) -> Report {
    match sim::run(seed, WORLD_MS, TraceMode::Off) {
        Ok(report) => report,
        Err(failure) => {
            panic!("{failure}\nagain: sim --seed {seed} --hours {}", WORLD_MS as f64 / 3_600_000.0)
        }
    }
}

#[test]
fn one_seed_is_one_world() {
    for seed in [3, 77] {
        assert_eq!(live(seed), live(seed));
    }
    assert_ne!(live(3).digest, live(4).digest);
}

/// As many worlds as there is time for; never fewer than show that everything takes part.
#[test]
fn worlds_keep_every_promise_and_recover() {
    const ALWAYS: u64 = 12;
    let begun = Instant::now();
    let (mut total, mut decided, mut worlds) = (Counts::default(), Decided::default(), 0);
    for seed in 10_000.. {
        if worlds >= ALWAYS && begun.elapsed() > Duration::from_secs(25) {
            break;
        }
        let report = live(seed);
        worlds += 1;
        total.add(&report.counts);
        decided.linearizable += report.decided.linearizable;
        decided.undecided += report.decided.undecided;
    }
    println!("{worlds} worlds: {total:?} {decided:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(total.committed >= 50 * worlds, "too few transactions: {total:?}");
    assert!(total.leaders >= 2 * worlds, "too few leaders: {total:?}");
    assert!(total.grants > 0 && total.ended > 0 && total.installs > 0, "{total:?}");
    assert!(decided.linearizable > decided.undecided, "{decided:?}");
}
