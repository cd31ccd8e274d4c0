//! The protocol, explored completely within bounds by a model that shares nothing with `zab/src`; and what real peers
//! do, as steps of that model.
//!
//! ```text
//! cargo test -p zab --test model                                                        small bounds, traces
//! ZAB_RUNS=2000 cargo test --release -p zab --test model what_real -- --nocapture       more traces of real peers
//! ZAB_MODEL=full cargo test --release -p zab --test model every_state -- --nocapture    3 servers, 2 crashes, 3 transactions
//! ```

#[path = "model/mod.rs"]
mod model;
#[path = "simulation/mod.rs"]
mod simulation;

use model::explore::{Bounds, Found, Zab};
use model::mutation::Mutation;
use model::refinement::follow;
use simulation::facts::{Fact, Written};
use simulation::faults;
use simulation::world::Shape;
use zab::PeerId;

const SMALL: Bounds = Bounds { servers: 3, crashes: 1, transactions: 2, candidacies: 3, snapshots: true };
const FULL: Bounds = Bounds { servers: 3, crashes: 2, transactions: 3, candidacies: 4, snapshots: true };

/// Peak memory of this process in KiB, where the system tells it.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn summary(found: &Found) -> String {
    let Found { states, generated, depth, .. } = found;
    format!(
        "{states} states, {generated} transitions, longest path {depth}, peak memory {:?} KiB",
        peak_kib()
    )
}

fn is_full() -> bool {
    std::env::var("ZAB_MODEL").is_ok_and(|bounds| bounds == "full")
}

#[test]
fn every_state_satisfies_the_invariants() {
    let bounds = if is_full() { FULL } else { SMALL };
    let found = Zab::new(bounds.clone()).explore(1);
    println!("{bounds:?}: {}", summary(&found));
    assert!(found.violated.is_empty(), "{:#?}", found.violated);
    // Invariants of a model in which nothing happens prove nothing.
    assert!(found.missed.is_empty(), "never reached: {:?}", found.missed);
    assert!(found.states > 100_000, "{}", summary(&found));
}

/// Large enough for a counterexample, and small enough to find it soon.
fn bounds_for(mutation: Mutation) -> Bounds {
    let candidacies = match mutation {
        Mutation::SkipTrunc
        | Mutation::DeliverUnsynchronized
        | Mutation::GapInStream
        | Mutation::ProposeEarly => 2,
        _ => 3,
    };
    Bounds { candidacies, snapshots: false, ..SMALL }
}

#[test]
fn every_mutation_is_refuted() {
    for mutation in Mutation::ALL {
        let found = Zab::new(bounds_for(mutation)).with(mutation).refute();
        let named = found.violated.iter().find(|(name, _)| *name != "delivered_is_durable");
        let (name, steps) =
            named.unwrap_or_else(|| panic!("{mutation:?} is not noticed: {}", summary(&found)));
        println!("{mutation:?}: {name} is violated after {} steps", steps.len());
        for step in steps {
            println!("    {step:?}");
        }
    }
}

/// The reductions are argued in the model's documentation. Here the model without any of them agrees: what it can
/// reach within bounds that it can exhaust is as good, and what is wrong with it is the same.
#[test]
fn the_reductions_hide_nothing() {
    let crashes = u32::from(is_full());
    let bounds = Bounds { crashes, transactions: 1, candidacies: 2, ..SMALL };
    let reduced = Zab::new(bounds.clone()).explore(1);
    let whole = Zab::new(bounds.clone()).step_by_step().explore(1);
    println!("{bounds:?}: {} reduced, {} step by step", summary(&reduced), summary(&whole));
    assert!(whole.violated.is_empty(), "{:#?}", whole.violated);
    assert_eq!(reduced.missed, whole.missed, "both reach the same situations");
    assert!(whole.states > 10 * reduced.states, "the other one is reduced, too");
    let bounds = Bounds { crashes: 1, ..bounds };
    let refutes = |zab: Zab| zab.find_any().violated.first().map(|(name, _)| *name);
    for mutation in [
        Mutation::AckBeforeDurable,
        Mutation::CommitAlone,
        Mutation::FollowOlder,
        Mutation::EpochReuse,
        Mutation::PromiseBackwards,
    ] {
        let reduced = refutes(Zab::new(bounds.clone()).with(mutation));
        assert!(reduced.is_some(), "{mutation:?} is not noticed");
        assert_eq!(reduced, refutes(Zab::new(bounds.clone()).with(mutation).step_by_step()), "{mutation:?}");
    }
}

// ---- the implementation ---------------------------------------------------------------------------------------------

fn trace_of(seed: u64) -> (u32, Vec<PeerId>, Vec<(PeerId, Fact)>) {
    // The model has one membership.
    let shape = Shape { changing: false, ..faults::shape(seed) };
    let voters = shape.voters;
    let observers = shape.observer.then_some(PeerId(9)).into_iter().collect();
    let facts = faults::record(seed, shape).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    (voters, observers, facts)
}

#[test]
fn what_real_peers_do_is_explained_by_steps_of_the_model() {
    let runs = std::env::var("ZAB_RUNS").ok().map_or(300, |text| text.parse().expect("ZAB_RUNS is a number"));
    let mut total = std::collections::BTreeMap::new();
    let mut told = 0;
    for seed in 0..runs {
        let (voters, observers, facts) = trace_of(seed);
        let steps = follow(voters, &observers, &facts).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        told += facts.len();
        steps.into_iter().for_each(|(name, count)| *total.entry(name).or_insert(0) += count);
    }
    println!("{runs} runs, {told} facts: {total:?}");
    // Traces in which little happens prove little.
    let rare = ["Crash", "Damage", "FollowEstablished", "Learn", "Recover", "Rejoin", "Snap", "Wipe"];
    let missing: Vec<_> = rare.iter().filter(|name| runs >= 300 && !total.contains_key(**name)).collect();
    assert!(missing.is_empty(), "no trace has {missing:?}");
}

type Facts = Vec<(PeerId, Fact)>;

/// Applies `forge` to the first trace that has what it needs, and returns why the model does not accept the result.
fn refusal(forge: impl Fn(&mut Facts) -> Option<()>) -> String {
    for seed in 0..200 {
        let (voters, observers, mut facts) = trace_of(seed);
        if forge(&mut facts).is_some() {
            let why = follow(voters, &observers, &facts).expect_err("a forged trace is refused");
            println!("seed {seed}, {} facts: {why}", facts.len());
            return why;
        }
    }
    panic!("no trace can be forged this way");
}

fn find<T>(facts: &Facts, is_it: impl Fn(PeerId, &Fact) -> Option<T>) -> Option<(usize, T)> {
    facts.iter().enumerate().find_map(|(at, (peer, fact))| Some((at, is_it(*peer, fact)?)))
}

/// A promise to another peer, then a later one: the first one is written again.
fn forge_promise(facts: &mut Facts) -> Option<()> {
    let promise = |from: usize, of: Option<PeerId>| {
        let rest = facts.iter().enumerate().skip(from);
        let mut promises = rest.filter_map(|(at, (peer, fact))| match fact {
            Fact::Wrote(Written::Record(record)) if of.is_none_or(|of| of == *peer) => {
                (record.accepted_leader != Some(*peer)).then(|| (at, *peer, record.clone()))
            }
            _ => None,
        });
        promises.find(|(_, _, record)| record.accepted_epoch > 0)
    };
    let (at, peer, early) = promise(0, None)?;
    let later = (at + 1..facts.len())
        .map_while(|from| promise(from, Some(peer)))
        .find(|(_, _, record)| record.accepted_epoch > early.accepted_epoch)?;
    facts.insert(later.0 + 1, (peer, Fact::Wrote(Written::Record(early))));
    Some(())
}

#[test]
fn forged_traces_are_refused() {
    let proposed = |peer, fact: &Fact| match fact {
        Fact::Proposed(txn) => Some((peer, *txn)),
        _ => None,
    };
    let appended = |peer, fact: &Fact| match fact {
        Fact::Wrote(Written::Append(txns)) => txns.last().map(|txn| (peer, *txn)),
        _ => None,
    };
    let why = refusal(|facts| {
        let (at, (peer, txn)) = find(facts, proposed)?;
        facts.insert(at + 1, (peer, Fact::Committed { epoch: txn.zxid.epoch, zxid: txn.zxid }));
        Some(())
    });
    assert!(why.contains("a quorum acknowledged the proposal"), "a commit without a quorum: {why}");

    let why = refusal(|facts| {
        let (at, (peer, txn)) = find(facts, proposed)?;
        facts.insert(at + 1, (peer, Fact::Delivered(txn)));
        Some(())
    });
    assert!(why.contains("a quorum acknowledged what is delivered"), "a delivery without a commit: {why}");

    let why = refusal(forge_promise);
    assert!(why.contains("a promise is larger than the last one"), "a promise that goes back: {why}");

    let why = refusal(|facts| {
        let (at, (peer, epoch)) = find(facts, |peer, fact| match fact {
            Fact::FixedHistory { epoch } => Some((peer, *epoch)),
            _ => None,
        })?;
        facts.insert(at + 1, (peer, Fact::Established { epoch }));
        Some(())
    });
    assert!(why.contains("a quorum sent ACK-LD"), "a leader without a quorum: {why}");

    let why = refusal(|facts| {
        let (at, (peer, epoch)) = find(facts, |peer, fact| match fact {
            Fact::Wrote(Written::Record(record)) if record.accepted_leader == Some(peer) => {
                Some((peer, record.accepted_epoch))
            }
            _ => None,
        })?;
        facts.insert(at + 1, (peer, Fact::FixedHistory { epoch }));
        Some(())
    });
    assert!(why.contains("a quorum sent ACK-E"), "a history that no quorum chose: {why}");

    let why = refusal(|facts| {
        let (at, (peer, txn)) = find(facts, appended)?;
        facts.insert(at, (peer, Fact::SentAck { epoch: txn.zxid.epoch, durable: txn.zxid, synced: true }));
        Some(())
    });
    assert!(why.contains("not on its disk"), "an ack before the write: {why}");

    let why = refusal(|facts| {
        let (at, _) = find(facts, appended)?;
        facts.remove(at);
        Some(())
    });
    let said = ["next entry", "not on its disk", "its history is"];
    assert!(said.iter().any(|part| why.contains(part)), "a lost write: {why}");

    let why = refusal(|facts| {
        let (at, ()) =
            find(facts, |_, fact| matches!(fact, Fact::Wrote(Written::Truncate(_))).then_some(()))?;
        facts.remove(at);
        Some(())
    });
    assert!(why.contains("the length of its history"), "a truncation that did not happen: {why}");

    let why = refusal(|facts| {
        let (at, _) = find(facts, |_, fact| match fact {
            Fact::Started { history, state, .. } => (history.len() > state.len()).then_some(()),
            _ => None,
        })?;
        if let Fact::Started { history, .. } = &mut facts[at].1 {
            history.pop();
        }
        Some(())
    });
    assert!(why.contains("its history"), "a restart that forgot something: {why}");
}
