//! All reachable states within bounds.

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::mutation::Mutation;
use super::properties::{INVARIANTS, SITUATIONS};
use super::protocol::{Action, Protocol};
use super::state::{Role, Standing, State};

/// What is explored.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) servers: usize,
    /// Crashes that lose something; others cost nothing.
    pub(crate) crashes: u32,
    pub(crate) transactions: usize,
    /// Attempts to lead.
    pub(crate) candidacies: u64,
    pub(crate) snapshots: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Zab {
    pub(crate) protocol: Protocol,
    pub(crate) bounds: Bounds,
    /// Explore representatives, see the module's documentation.
    pub(crate) reduced: bool,
}

/// What an exploration found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) generated: usize,
    pub(crate) depth: usize,
    /// Invariants with a counterexample, and the steps that lead to it.
    pub(crate) violated: Vec<(&'static str, Vec<Action>)>,
    /// Situations that were never reached.
    pub(crate) missed: Vec<&'static str>,
}

impl Zab {
    pub(crate) fn new(bounds: Bounds) -> Zab {
        let quorum = bounds.servers as u32 / 2 + 1;
        Zab { protocol: Protocol { quorum, eager: true, mutation: None }, bounds, reduced: true }
    }

    pub(crate) fn with(mut self, mutation: Mutation) -> Zab {
        self.protocol.mutation = Some(mutation);
        self
    }

    /// Without any reduction but symmetry.
    pub(crate) fn step_by_step(mut self) -> Zab {
        self.protocol.eager = false;
        self.reduced = false;
        self
    }

    /// Explores everything, depth first: the memory needed is little more than eight bytes for each state.
    pub(crate) fn explore(self, threads: usize) -> Found {
        let checker = self.clone().checker().symmetry_fn(State::representative).threads(threads);
        self.report(checker.spawn_dfs().join())
    }

    /// Explores breadth first until one of the eight invariants is violated: the counterexample is one of the
    /// shortest.
    pub(crate) fn refute(self) -> Found {
        let named = INVARIANTS[..8].iter().map(|(name, _)| *name).collect();
        let checker = self.clone().checker().finish_when(HasDiscoveries::AnyOf(named));
        self.report(checker.spawn_bfs().join())
    }

    /// Explores breadth first until any invariant is violated.
    pub(crate) fn find_any(self) -> Found {
        let checker = self.clone().checker().finish_when(HasDiscoveries::AnyFailures);
        self.report(checker.spawn_bfs().join())
    }

    fn report(&self, checker: impl Checker<Zab>) -> Found {
        let path = |name| checker.discovery(name).map(|path| (name, path.into_actions()));
        let violated = INVARIANTS.iter().filter_map(|(name, _)| path(name)).collect();
        let missed = SITUATIONS.iter().map(|(name, _)| *name);
        Found {
            states: checker.unique_state_count(),
            generated: checker.state_count(),
            depth: checker.max_depth(),
            violated,
            missed: missed.filter(|name| checker.discovery(name).is_none()).collect(),
        }
    }

    /// Whatever no crash could tell apart from what is durable: with all crashes used up, everything; before, what
    /// followers have in memory, since a follower that loses an entry is one that has not received it yet.
    fn make_durable(&self, state: &mut State) {
        let delays_matter =
            matches!(self.protocol.mutation, Some(Mutation::AckBeforeDurable | Mutation::AdoptBeforeDurable));
        for s in 0..state.servers.len() {
            let follows = matches!(state.servers[s].role, Role::Syncing(_) | Role::Synced(_));
            if state.crashes == self.bounds.crashes || follows && !delays_matter {
                while self.protocol.apply(state, &Action::Sync { s }).is_ok() {}
            }
        }
    }

    fn server_actions(&self, state: &State, s: usize, actions: &mut Vec<Action>) {
        let server = &state.servers[s];
        if !server.is_drained() {
            actions.push(Action::Sync { s });
        }
        if state.crashes < self.bounds.crashes {
            actions.push(Action::Crash { s });
        }
        match server.role {
            Role::Idle => {
                if state.begun < self.bounds.candidacies {
                    let promised = state.servers.iter().map(|server| server.accepted).max().unwrap_or(0);
                    actions
                        .extend((server.accepted..=promised + 1).map(|epoch| Action::Candidate { s, epoch }));
                }
                for c in 0..state.candidacies.len() {
                    actions.push(Action::Promise { s, c });
                    if state.candidacies[c].epoch == server.accepted {
                        actions.push(Action::Rejoin { s, c });
                        actions.push(Action::FollowEstablished { s, c });
                    }
                }
                return;
            }
            Role::Leading(c) => {
                actions.push(Action::Adopt { s });
                if state.ghost.broadcast.len() < self.bounds.transactions {
                    actions.push(Action::Propose { c, value: state.candidacies[c].serial });
                }
            }
            Role::Joined(c) => {
                actions.push(Action::SyncStart { s });
                if self.bounds.snapshots {
                    actions.push(Action::Snap { s, len: state.candidacies[c].delivered });
                }
            }
            Role::Syncing(_) => actions.extend([Action::Receive { s }, Action::Adopt { s }]),
            Role::Synced(_) => actions.push(Action::Receive { s }),
        }
        actions.push(Action::Leave { s });
    }
}

impl Model for Zab {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(vec![Standing::Voter; self.bounds.servers])]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for s in 0..state.servers.len() {
            self.server_actions(state, s, actions);
            if !self.reduced {
                actions.push(Action::Deliver { s });
            }
        }
        for c in 0..state.candidacies.len() {
            if !self.reduced {
                actions.extend([Action::Fix { c }, Action::Establish { c }, Action::Commit { c }]);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.protocol.apply(&mut state, &action).ok()?;
        if self.reduced {
            self.make_durable(&mut state);
            state.normalize();
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Zab>> {
        // `Property` takes functions without an environment: one wrapper per place in the tables.
        fn invariant<const I: usize>() -> Property<Zab> {
            Property::always(INVARIANTS[I].0, |_, state| INVARIANTS[I].1(state))
        }
        fn situation<const I: usize>() -> Property<Zab> {
            Property::sometimes(SITUATIONS[I].0, |_, state| SITUATIONS[I].1(state))
        }
        vec![
            invariant::<0>(),
            invariant::<1>(),
            invariant::<2>(),
            invariant::<3>(),
            invariant::<4>(),
            invariant::<5>(),
            invariant::<6>(),
            invariant::<7>(),
            invariant::<8>(),
            situation::<0>(),
            situation::<1>(),
            situation::<2>(),
            situation::<3>(),
            situation::<4>(),
            situation::<5>(),
            situation::<6>(),
            situation::<7>(),
            situation::<8>(),
            situation::<9>(),
        ]
    }
}
