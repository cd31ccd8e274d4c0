//! The eight invariants of `simulation/invariants`, this time as predicates of one state, and what must be reachable
//! lest they hold for want of opportunity.

use super::state::{Role, State, Txn, common};

/// A named predicate.
pub(crate) type Named = (&'static str, fn(&State) -> bool);

pub(crate) const INVARIANTS: [Named; 9] = [
    ("leadership", leadership),
    ("prefix_consistency", prefix_consistency),
    ("integrity", integrity),
    ("agreement", agreement),
    ("total_order", total_order),
    ("local_primary_order", local_primary_order),
    ("global_primary_order", global_primary_order),
    ("primary_integrity", primary_integrity),
    ("delivered_is_durable", delivered_is_durable),
];

pub(crate) const SITUATIONS: [Named; 10] = [
    ("leaders of two epochs are established", |state| state.ghost.established.len() >= 2),
    ("leaders of two epochs at once", |state| leading(state) >= 2),
    ("transactions of two epochs are committed", |state| epochs_delivered(state) >= 2),
    ("everything is committed everywhere", |state| {
        !state.ghost.broadcast.is_empty()
            && state.servers.iter().all(|server| server.delivered.len() == state.ghost.broadcast.len())
    }),
    ("a DIFF is due", |state| synchronizing(state, |ours, common, theirs| common == ours && ours < theirs)),
    ("a TRUNC is due", |state| synchronizing(state, |ours, common, _| common < ours)),
    ("a TRUNC and a DIFF are due at once", |state| {
        synchronizing(state, |ours, common, theirs| common < ours && common < theirs)
    }),
    ("a SNAP is possible", |state| {
        let possible = |server: &super::state::Server| match server.role {
            Role::Joined(c) => {
                let it = &state.candidacies[c];
                it.fixed && common(&server.log, &it.log) < it.delivered
            }
            _ => false,
        };
        state.servers.iter().any(possible)
    }),
    ("a candidate hears of a newer history", |state| {
        let is_ignored = |(s, server): (usize, &super::state::Server)| match server.role {
            Role::Joined(c) => !state.candidacies[c].fixed && state.candidacies[c].promised >> s & 1 == 0,
            _ => false,
        };
        state.servers.iter().enumerate().any(is_ignored)
    }),
    ("a broadcast transaction is lost for good", |state| {
        let newest = state.servers.iter().filter_map(|server| server.delivered.last()).max();
        let is_lost = |txn: &Txn| {
            newest.is_some_and(|newest| txn < newest)
                && state.servers.iter().all(|server| !server.log.contains(txn))
        };
        state.ghost.broadcast.iter().any(is_lost)
    }),
];

fn leading(state: &State) -> usize {
    (0..state.candidacies.len()).filter(|c| state.candidacies[*c].established && state.is_led(*c)).count()
}

fn epochs_delivered(state: &State) -> usize {
    let changes = |history: &[Txn]| history.windows(2).filter(|pair| pair[0].epoch != pair[1].epoch).count();
    histories(state)
        .filter(|history| !history.is_empty())
        .map(|history| 1 + changes(history))
        .max()
        .unwrap_or(0)
}

/// Whether a server waits for its synchronization with such a history, the part in common, and leader's history.
fn synchronizing(state: &State, is_it: fn(usize, usize, usize) -> bool) -> bool {
    state.servers.iter().any(|server| match server.role {
        Role::Joined(c) if state.candidacies[c].fixed => {
            let theirs = &state.candidacies[c].log;
            is_it(server.log.len(), common(&server.log, theirs), theirs.len())
        }
        _ => false,
    })
}

fn histories(state: &State) -> impl Iterator<Item = &[Txn]> {
    state.servers.iter().map(|server| server.delivered.as_slice())
}

fn every_pair(state: &State, holds: impl Fn(&[Txn], &[Txn]) -> bool) -> bool {
    histories(state).all(|f| histories(state).all(|g| holds(f, g)))
}

/// At most one leader is established per epoch.
fn leadership(state: &State) -> bool {
    state.ghost.established.windows(2).all(|pair| pair[0] != pair[1])
}

/// Of any two histories one is a prefix of the other.
fn prefix_consistency(state: &State) -> bool {
    every_pair(state, |f, g| common(f, g) == f.len().min(g.len()))
}

/// What is delivered was broadcast, and nobody delivers it twice.
fn integrity(state: &State) -> bool {
    histories(state).all(|history| {
        history
            .iter()
            .enumerate()
            .all(|(at, txn)| state.ghost.broadcast.binary_search(txn).is_ok() && !history[..at].contains(txn))
    })
}

/// If `f` delivered a and `g` delivered b, then `f` delivered b or `g` delivered a.
fn agreement(state: &State) -> bool {
    every_pair(state, |f, g| f.iter().all(|a| g.contains(a)) || g.iter().all(|b| f.contains(b)))
}

/// If `f` delivered a before b, then `g`, if it delivered b, delivered a before it.
fn total_order(state: &State) -> bool {
    every_pair(state, |f, g| {
        f.iter().enumerate().all(|(at, b)| match g.iter().position(|txn| txn == b) {
            Some(there) => f[..at].iter().all(|a| g[..there].contains(a)),
            None => true,
        })
    })
}

/// If a primary broadcast a before b, whoever delivered b delivered a before it.
fn local_primary_order(state: &State) -> bool {
    histories(state).all(|history| {
        history.iter().enumerate().all(|(at, b)| {
            let same = |a: &&Txn| a.epoch == b.epoch && a.value == b.value && a.counter < b.counter;
            state.ghost.broadcast.iter().filter(same).all(|a| history[..at].contains(a))
        })
    })
}

/// What an earlier primary broadcast is delivered before what a later one broadcast.
fn global_primary_order(state: &State) -> bool {
    histories(state).all(|history| history.windows(2).all(|pair| pair[0].epoch <= pair[1].epoch))
}

/// A primary delivered everything of earlier epochs that anybody ever delivers before it broadcast.
fn primary_integrity(state: &State) -> bool {
    state.ghost.primaries.iter().all(|(epoch, known)| {
        histories(state).flatten().all(|txn| txn.epoch >= *epoch || known.contains(txn))
    })
}

/// Nobody loses what it delivered. (Not one of the eight; the paper has it as a premise of restarts.)
fn delivered_is_durable(state: &State) -> bool {
    state.servers.iter().all(|server| {
        let durable = &server.log[..server.durable.min(server.log.len())];
        durable.starts_with(&server.delivered)
    })
}
