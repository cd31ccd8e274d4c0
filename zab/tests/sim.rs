//! Seeded simulation: thousands of short lives of a quorum under faults. One seed is one world.
//!
//! ```text
//! ZAB_SEED=42 cargo test -p zab --test sim seeds -- --nocapture     one seed, with a trace
//! ZAB_RUNS=100000 cargo test -p zab --test sim seeds                more of them
//! ```

#[path = "simulation/mod.rs"]
mod simulation;

use simulation::faults::{self, Report};
use simulation::network::Weather;
use simulation::world::{Shape, Trace, World};
use zab::{Config, PeerId};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn run(seed: u64, trace: Trace) -> Report {
    match faults::run(seed, trace) {
        Ok(report) => report,
        Err(what) => panic!(
            "seed {seed}: {what}\n  shape: {:?}\n  rerun with: ZAB_SEED={seed} cargo test -p zab --test sim seeds -- --nocapture",
            faults::shape(seed)
        ),
    }
}

#[test]
fn seeds_keep_every_invariant_and_recover() {
    if let Some(seed) = number("ZAB_SEED") {
        println!("{:?}", run(seed, Trace::Print));
        return;
    }
    let runs = number("ZAB_RUNS").unwrap_or(10_000);
    let start = number("ZAB_START").unwrap_or(0);
    let mut total = Report::default();
    for seed in start..start + runs {
        let report = run(seed, Trace::Off);
        total.delivered += report.delivered;
        total.leaders += report.leaders;
        total.lease_reads += report.lease_reads;
        total.index_reads += report.index_reads;
        total.snapshots += report.snapshots;
        total.changes += report.changes;
    }
    println!("{runs} runs: {total:?}");
    // A simulation in which nothing happens proves nothing.
    let per_run = |count: u64| count / runs.max(1);
    assert!(per_run(total.delivered as u64) >= 10, "too few deliveries: {total:?}");
    assert!(total.leaders as u64 >= runs, "too few leaders: {total:?}");
    assert!(total.changes >= runs / 2, "too few changes of the membership: {total:?}");
    assert!(total.lease_reads > 0 && total.index_reads > 0 && total.snapshots > 0, "{total:?}");
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 77, 4_711] {
        assert_eq!(run(seed, Trace::Off), run(seed, Trace::Off));
    }
    assert_ne!(run(3, Trace::Off).digest, run(4, Trace::Off).digest);
}

/// A new leader serves within a second of the old one's death, at default timeouts and with slow disks; the election
/// proper (from the first who looks to the first who leads) takes less than 200 ms.
#[test]
fn a_new_leader_serves_within_a_second() {
    let mut worst = 0;
    for seed in 0..50 {
        let calm = Weather { delay_max_ms: 3, loss: 0, repeat: 0 };
        let shape = Shape {
            voters: 3 + 2 * (seed % 2) as u32,
            observer: false,
            unbound: false,
            changing: false,
            config: Config::new(PeerId(0)),
            weather: calm,
            sync_max_ms: 10,
            ..faults::shape(seed)
        };
        let mut world = World::new(seed, shape, Trace::Off).expect("a start");
        world.run_until(1_000).expect("no violation");
        let old = world.leader().expect("a first leader");
        world.crash(old);
        let crashed_at = world.time;
        while world.leader().is_none() {
            let next = world.time + 1;
            world.run_until(next).expect("no violation");
            assert!(world.time < crashed_at + 1_000, "seed {seed}: nobody leads after a second");
        }
        let elected_in = world.time - crashed_at;
        worst = worst.max(elected_in);
        let new = world.leader().expect("a second leader");
        assert!(world.propose(new).expect("no violation").is_some(), "it serves at once");
    }
    println!("from kill to serving: at most {worst} ms");
    let detection = Config::new(PeerId(0)).election_timeout_ms;
    assert!(worst < detection + 200, "the election itself took {} ms", worst - detection);
}
