//! The known bugs that `scripts/mutants` brings back, and which suite has to notice each.
//!
//! `zab::mutant` (`protocol::mutant` where zab is not seen) is the switch. Every switch in the sources has a row here or
//! in `data` and every row a switch (a test compares).

mod data;

/// Something that may notice a bug. Each is a bounded run with fixed seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Whole metadata clusters, simulated.
    Sim,
    /// zab alone, simulated.
    ZabSim,
    /// zab, one rule per test.
    Paper,
    /// What simulated zab peers do are steps of the model.
    Model,
    /// The core of a leader, one rule per test.
    Core,
    /// The namespace beside its model.
    Namespace,
    /// Unit tests of the metadata server, its log on failing disks among them.
    Units,
    /// A placement group: its rules, and its simulation.
    Groups,
    /// The chunk store: beside its model, on disks that fail, lose and damage.
    Chunks,
    /// The client library, beside small servers.
    Client,
}

impl Suite {
    /// Whether it is about the data servers or their clients: those are built on their own.
    pub fn is_of_data(self) -> bool {
        matches!(self, Self::Groups | Self::Chunks | Self::Client)
    }
}

/// A known bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// As in the sources.
    pub name: &'static str,
    /// The row of the list of other implementations' bugs, or the rule of the design; begins with "data" where it is
    /// about file contents.
    pub lesson: &'static str,
    /// What is broken.
    pub broken: &'static str,
    /// Who has to notice, in the order in which they are asked.
    pub suites: &'static [Suite],
}

use Suite::{Core, Model, Namespace, Paper, Sim, Units, ZabSim};

const ZAB: &[Suite] = &[Paper, ZabSim, Sim, Model];
const CLUSTER: &[Suite] = &[Core, Units, Sim];
const STATE: &[Suite] = &[Core, Sim, Namespace];
const BYTES: &[Suite] = &[Namespace];
const UNITS: &[Suite] = &[Units, Sim];

const fn mutant(
    name: &'static str,
    lesson: &'static str,
    suites: &'static [Suite],
    broken: &'static str,
) -> Mutant {
    Mutant { name, lesson, broken, suites }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Mutant> {
    MUTANTS.iter().chain(data::MUTANTS)
}

/// Those of zab and of the metadata.
const MUTANTS: &[Mutant] = &[
    mutant(
        "no-proposals-before-newleader-ack",
        "1",
        ZAB,
        "proposals skip followers that did not acknowledge NEWLEADER",
    ),
    mutant("repetition-is-a-fault", "2", ZAB, "a message that comes twice ends the session"),
    mutant(
        "uptodate-carries-the-ack",
        "3",
        ZAB,
        "UPTODATE carries what was acknowledged, not what is committed",
    ),
    mutant(
        "newleader-acked-before-disk",
        "4, 9",
        ZAB,
        "NEWLEADER is acknowledged before history and epoch are on disk",
    ),
    mutant("ack-before-disk", "5", ZAB, "acks claim what is in memory"),
    mutant("epoch-before-history", "6", ZAB, "the epoch is written before the history that it stands for"),
    mutant("unsynced-acks-commit", "7", ZAB, "acks count before the ack of NEWLEADER"),
    mutant("commit-before-uptodate", "8", ZAB, "a COMMIT before UPTODATE delivers"),
    mutant("log-with-holes", "10", ZAB, "entries are taken that are no neighbours"),
    mutant("diff-across-a-gap", "11", ZAB, "a DIFF starts where the log starts, whatever the follower has"),
    mutant("snapshot-in-memory", "13", ZAB, "the last zxid moves before the snapshot is durable"),
    mutant(
        "next-role-before-the-disk",
        "9, 14, 17",
        ZAB,
        "a new role begins while the old one's writes are under way",
    ),
    mutant("failed-fsync-ignored", "15", UNITS, "a server goes on after a failed fsync"),
    mutant(
        "speculation-outlives-the-role",
        "16, ⚠ layers",
        CLUSTER,
        "a deposed leader keeps what it had proposed",
    ),
    mutant("promise-in-memory", "18", ZAB, "an epoch is promised before the promise is on disk"),
    mutant("epoch-told-before-disk", "18", ZAB, "a candidate names its epoch before that is on disk"),
    mutant("promise-goes-back", "18", ZAB, "a promise is given for an older epoch than the last"),
    mutant(
        "snapshot-keeps-the-log",
        "19, ⚠ record",
        ZAB,
        "what is left of the log before a snapshot stays valid",
    ),
    mutant(
        "old-log-removed-before-the-record",
        "19, 30",
        UNITS,
        "the old log goes before the record names the new one",
    ),
    mutant("checkpoint-without-sessions", "20", CLUSTER, "a checkpoint holds the tree and not the sessions"),
    mutant(
        "checkpoint-holds-speculation",
        "20, ⚠ layers",
        CLUSTER,
        "a checkpoint holds what is not committed",
    ),
    mutant("expiry-leaves-locks", "21", STATE, "the end of a session leaves its locks"),
    mutant("expiry-leaves-pins", "21", STATE, "the end of a session leaves its pins"),
    mutant(
        "expiry-leaves-holds",
        "21, ⚠ extension",
        STATE,
        "the end of a session leaves its extension marks",
    ),
    mutant("read-without-a-round", "22", CLUSTER, "reads are answered without lease or round"),
    mutant("read-joins-an-older-round", "22", ZAB, "a round confirms reads that came after it began"),
    mutant("lease-outlives-guard", "22", ZAB, "the leader's lease is longer than its followers' guards"),
    mutant(
        "followers-guard-nothing",
        "22",
        ZAB,
        "followers elect although they have just heard their leader",
    ),
    mutant(
        "no-guard-after-restart",
        "22",
        ZAB,
        "a restarted voter does not wait out the lease that it took part in",
    ),
    mutant("torn-tail-is-damage", "30", UNITS, "a torn tail counts as damage"),
    mutant("damage-is-a-torn-tail", "⚠ damage", UNITS, "damage counts as a torn tail"),
    mutant("damaged-log-votes", "⚠ damage", ZAB, "a server votes with a damaged log"),
    mutant("log-purged-ahead-of-checkpoint", "30", ZAB, "the log is purged up to what was delivered"),
    mutant("no-fsync", "4, 5", UNITS, "the log is written and not synced"),
    mutant("hung-disk-leads", "32", ZAB, "a leader whose disk hangs leads on"),
    mutant("minority-is-quorum", "(paper)", ZAB, "half of the voters decide"),
    mutant(
        "newer-history-ignored",
        "(paper)",
        ZAB,
        "a candidate leads although a promise came with a newer history",
    ),
    mutant("no-truncation", "(paper)", ZAB, "a follower keeps what its leader does not have"),
    mutant(
        "delivery-before-disk",
        "⚠ layers",
        ZAB,
        "committed transactions are applied before they are on the own disk",
    ),
    mutant(
        "wiped-voter-votes",
        "⚠ voter",
        ZAB,
        "the number suffices: an empty directory votes and acknowledges",
    ),
    mutant("new-membership-decides", "⚠ membership", ZAB, "a change counts alone while it is in the log"),
    mutant("old-membership-decides", "⚠ membership", ZAB, "a change counts for nothing until it commits"),
    mutant("reads-see-speculation", "⚠ layers", CLUSTER, "reads see what is not committed"),
    mutant("answer-before-commit", "⚠ layers", CLUSTER, "changes are answered when they are proposed"),
    mutant("retry-is-executed-again", "exactly once", CLUSTER, "a repeated request is carried out again"),
    mutant(
        "new-leader-forgets-replies",
        "exactly once",
        CLUSTER,
        "a new leader does not know the replies of the old one",
    ),
    mutant("time-goes-back", "time", STATE, "transactions take the leader's clock as it is"),
    mutant("only-the-last-truncation", "⚠ truncation", BYTES, "an inode remembers its last truncation only"),
    mutant(
        "mark-not-cut-at-expiry",
        "⚠ extension",
        BYTES,
        "the end of a writer does not cut what it wrote past the size",
    ),
    mutant(
        "heartbeat-without-a-round",
        "⚠ heartbeat",
        CLUSTER,
        "a heartbeat is answered without a quorum round",
    ),
    mutant(
        "renewal-of-an-ending-session",
        "⚠ heartbeat",
        CLUSTER,
        "a heartbeat renews a session whose end is proposed",
    ),
    mutant("sessions-end-early", "⚠ heartbeat", UNITS, "sessions end before their owners count on it"),
    mutant(
        "new-leader-counts-its-absence",
        "⚠ heartbeat",
        CLUSTER,
        "time without a leader counts against sessions",
    ),
    mutant("servers-pause-counts", "⚠ heartbeat", UNITS, "the leader's own pauses count against sessions"),
    mutant("expiry-without-a-fence", "⚠ fencing", STATE, "a session ends without a fence epoch"),
    mutant("two-holders", "locks", STATE, "a lock is granted to everybody"),
    mutant("close-keeps-the-pin", "pins", CLUSTER, "the last close leaves the pin of a file without a name"),
    mutant(
        "resumed-session-stays-unknown",
        "pins",
        CLUSTER,
        "whoever asks for its session again counts as having everything open",
    ),
    mutant(
        "deferred-times-stay-hidden",
        "deferral",
        STATE,
        "times are told although another session may have newer ones",
    ),
    mutant(
        "expiry-forgets-deferred-times",
        "deferral",
        STATE,
        "the end of a session leaves the times of what it overwrote",
    ),
    mutant(
        "times-are-set-over-deferred-ones",
        "deferral",
        STATE,
        "times are set although another session has older ones to commit",
    ),
    mutant(
        "forgotten-replies-keep-pins",
        "pins",
        CLUSTER,
        "a reply that is forgotten leaves the pin that it kept",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn switches(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).expect("a directory of sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                switches(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let names = text.split("mutant!(\"").skip(1).filter_map(|rest| rest.split('"').next());
                found.extend(names.map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_switch_has_a_row_and_every_row_a_switch() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
        let mut found = BTreeSet::new();
        for sources in ["zab/src", "metadata-server/src", "data-server/src", "fs-client/src"] {
            switches(&root.join(sources), &mut found);
        }
        let listed: BTreeSet<String> = all().map(|mutant| mutant.name.to_owned()).collect();
        assert_eq!(listed.len(), all().count(), "a name is listed twice");
        assert_eq!(found, listed);
    }
}
