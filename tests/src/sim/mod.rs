//! Whole metadata clusters in one thread, from one seed: the real peer, core, state machine and log store, with
//! simulated network, clocks and disks, clients that retry, and everything checked after every step.
//!
//! One seed is one world: the same seed gives the same [`Report::digest`].
//!
//! | file | what |
//! |---|---|
//! | `world`, `drive` | the event loop; a server's driver |
//! | `server`, `disk`, `network` | what runs, where it writes, how it talks |
//! | `actor`, `program`, `times`, `data_server`, `reader` | clients, what they do, data servers, who reads from followers |
//! | `admin` | changes of who the servers are |
//! | `faults` | kinds of worlds, what goes wrong, healing and the demand for liveness |
//! | `oracle`, `linear` | what clients were told, judged |
//!
//! The named invariants are those of `zab/tests/simulation/invariants`.

mod actor;
mod admin;
mod coverage;
mod data_server;
mod disk;
mod drive;
mod faults;
mod linear;
mod network;
mod oracle;
mod program;
mod reader;
mod server;
mod times;
mod trace;
mod world;

pub use coverage::Coverage;
pub use oracle::Decided;
pub use trace::TraceMode;

use trace::Trace;
use world::World;

/// What happened, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events.
    pub steps: u64,
    /// Transactions that committed.
    pub committed: u64,
    /// Transactions that were proposed.
    pub proposals: u64,
    /// Established leaders.
    pub leaders: u64,
    /// Starts of servers.
    pub boots: u64,
    /// Checkpoints that became durable.
    pub checkpoints: u64,
    /// Changes of the membership that were committed and answered.
    pub changes: u64,
    /// Snapshots installed.
    pub installs: u64,
    /// Requests to cut objects.
    pub trims: u64,
    /// Faults.
    pub faults: u64,
    /// Answers that clients got.
    pub answers: u64,
    /// Locks granted.
    pub grants: u64,
    /// Sessions ended.
    pub ended: u64,
    /// Overwrites whose times were deferred.
    pub deferred: u64,
    /// Messages by the receiver's phase.
    pub coverage: Coverage,
}

impl Counts {
    /// Adds another world's.
    pub fn add(&mut self, other: &Counts) {
        let mine = [
            &mut self.steps,
            &mut self.committed,
            &mut self.proposals,
            &mut self.leaders,
            &mut self.boots,
            &mut self.checkpoints,
            &mut self.installs,
            &mut self.changes,
            &mut self.trims,
            &mut self.faults,
            &mut self.answers,
            &mut self.grants,
            &mut self.ended,
            &mut self.deferred,
        ];
        let theirs = [
            other.steps,
            other.committed,
            other.proposals,
            other.leaders,
            other.boots,
            other.checkpoints,
            other.installs,
            other.changes,
            other.trims,
            other.faults,
            other.answers,
            other.grants,
            other.ended,
            other.deferred,
        ];
        mine.into_iter().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        self.coverage.add(&other.coverage);
    }
}

/// What a world did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of everything that happened, in its order.
    pub digest: u64,
    /// Simulated time in milliseconds.
    pub simulated_ms: u64,
    /// Events and their kinds.
    pub counts: Counts,
    /// Histories of clients.
    pub decided: Decided,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The world.
    pub seed: u64,
    /// What it is.
    pub what: String,
    /// The kind of world.
    pub shape: String,
    /// The last things that happened, if they were kept.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "world: {}", self.shape)
    }
}

/// Lives through the world of `seed` until `simulated_ms` have passed, at least one round of faults and healing.
///
/// # Errors
/// Something that must not be, with the end of its trace.
pub fn run(seed: u64, simulated_ms: u64, mode: TraceMode) -> Result<Report, Box<Failure>> {
    let shape = faults::shape(seed);
    let described = format!("{shape:?}");
    let mut world = World::new(seed, shape, Trace::new(mode));
    let result = world.live(simulated_ms);
    world.counts.answers = world.oracle.answers;
    world.counts.grants = world.oracle.grants;
    world.counts.ended = world.oracle.expired;
    world.counts.deferred = world.oracle.deferred;
    match result {
        Ok(()) => Ok(Report {
            digest: world.digest,
            simulated_ms: world.time,
            counts: world.counts,
            decided: world.oracle.decided,
        }),
        Err(_) if mode == TraceMode::Off => run(seed, simulated_ms, TraceMode::Keep),
        Err(what) => {
            let what = format!("after {} ms: {what}", world.time);
            Err(Box::new(Failure { seed, what, shape: described, trace: world.trace.into_lines() }))
        }
    }
}
