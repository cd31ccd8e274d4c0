//! A disk that loses what was not synced: the storage stream's operations become durable in order, a crash keeps a
//! prefix, and the last append of that prefix may be torn.

use std::collections::{BTreeMap, VecDeque};

use zab::{Entry, Membership, Payload, Record, Recovered, SnapshotDescriptor, Zxid};

use super::facts::Written;
use super::history::Txn;
use super::membership::membership_value;
use super::rng::Rng;
use super::world::value_of;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Append(Vec<Entry>),
    Truncate(Zxid),
    Save(Record),
    Probe,
    Install(SnapshotDescriptor, Record),
    Purge(Zxid),
}

/// A state of the state machine: everything it ever applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checkpoint {
    pub(crate) zxid: Zxid,
    pub(crate) state: Vec<Txn>,
}

pub(crate) struct Disk {
    pub(crate) record: Record,
    /// Entries with the generation that was valid when they were appended: an older one is garbage that a crash
    /// left behind.
    log: Vec<(u64, Entry)>,
    checkpoint: Checkpoint,
    /// Received, complete, not necessarily installed.
    snapshots: BTreeMap<u64, Checkpoint>,
    pending: VecDeque<(Option<u64>, Op)>,
    /// Changes of the membership that became durable here, for the oracle.
    pub(crate) changes: Vec<Membership>,
    /// What became durable and was not taken yet, if somebody takes it.
    pub(crate) written: Option<Vec<Written>>,
}

impl Disk {
    pub(crate) fn new(record: Record) -> Disk {
        Disk {
            record,
            log: Vec::new(),
            checkpoint: Checkpoint::default(),
            snapshots: BTreeMap::new(),
            pending: VecDeque::new(),
            changes: Vec::new(),
            written: None,
        }
    }

    pub(crate) fn push(&mut self, token: Option<u64>, op: Op) {
        self.pending.push_back((token, op));
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes the oldest `count` operations durable. Returns the last token among them and what was installed.
    pub(crate) fn sync(&mut self, count: usize) -> (Option<u64>, Option<Checkpoint>) {
        let (mut last_token, mut installed) = (None, None);
        for (token, op) in self.pending.drain(..count.min(self.pending.len())).collect::<Vec<_>>() {
            installed = self.apply(op).or(installed);
            last_token = token.or(last_token);
        }
        (last_token, installed)
    }

    fn apply(&mut self, op: Op) -> Option<Checkpoint> {
        self.note(&op);
        match op {
            Op::Append(entries) => {
                let generation = self.record.log_generation;
                self.changes.extend(entries.iter().filter_map(change));
                self.log.extend(entries.into_iter().map(|entry| (generation, entry)));
            }
            Op::Truncate(after) => {
                let generation = self.record.log_generation;
                self.log.retain(|(of, entry)| *of != generation || entry.zxid <= after);
            }
            Op::Save(record) => self.record = record,
            Op::Probe => {}
            Op::Install(descriptor, record) => {
                self.record = record;
                let snapshot =
                    self.snapshots.get(&descriptor.id).expect("installed only after it was received");
                self.checkpoint = snapshot.clone();
                return Some(snapshot.clone());
            }
            Op::Purge(upto) => {
                let generation = self.record.log_generation;
                self.log.retain(|(of, entry)| *of == generation && entry.zxid > upto);
            }
        }
        None
    }

    fn note(&mut self, op: &Op) {
        let Some(written) = &mut self.written else { return };
        written.extend(match op {
            Op::Append(entries) => Some(Written::Append(entries.iter().map(txn).collect())),
            Op::Truncate(after) => Some(Written::Truncate(*after)),
            Op::Save(record) => Some(Written::Record(record.clone())),
            Op::Install(snapshot, record) => {
                Some(Written::Install(self.snapshots[&snapshot.id].state.clone(), record.clone()))
            }
            Op::Probe | Op::Purge(_) => None,
        });
    }

    /// The whole history on disk: the state, and the log behind it.
    pub(crate) fn history(&self) -> Vec<Txn> {
        let (recovered, Checkpoint { zxid, mut state }) = self.recover();
        state.extend(recovered.log.iter().filter(|entry| entry.zxid > zxid).map(txn));
        state
    }

    /// Forgets what was not synced.
    pub(crate) fn lose_pending(&mut self) {
        self.pending.clear();
    }

    /// Power is lost: some prefix of the stream had reached the disk.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let kept = rng.below(self.pending.len() as u64 + 1) as usize;
        self.sync(kept);
        if let Some((_, Op::Append(mut entries))) = self.pending.pop_front() {
            entries.truncate(rng.below(entries.len() as u64 + 1) as usize);
            self.apply(Op::Append(entries));
        }
        self.pending.clear();
    }

    /// Damage below the durable end, found at start: what lies behind it is unusable.
    pub(crate) fn damage(&mut self, rng: &mut Rng) {
        self.log.truncate(rng.below(self.log.len() as u64 + 1) as usize);
        self.record.needs_sync = true;
    }

    pub(crate) fn save_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
    }

    pub(crate) fn save_snapshot(&mut self, id: u64, snapshot: Checkpoint) {
        self.snapshots.insert(id, snapshot);
    }

    /// Every membership that a peer may find here at its start.
    pub(crate) fn memberships(&self) -> impl Iterator<Item = Membership> + '_ {
        let logged = self.log.iter().filter_map(|(_, entry)| change(entry));
        std::iter::once(self.record.membership.clone()).chain(logged)
    }

    pub(crate) fn recover(&self) -> (Recovered, Checkpoint) {
        let valid = |(generation, entry): &&(u64, Entry)| {
            *generation == self.record.log_generation && entry.zxid > self.record.log_start
        };
        let log = self.log.iter().filter(valid).map(|(_, entry)| entry.clone()).collect();
        let recovered = Recovered { record: self.record.clone(), log, applied: self.checkpoint.zxid };
        (recovered, self.checkpoint.clone())
    }
}

fn change(entry: &Entry) -> Option<Membership> {
    match &entry.payload {
        Payload::Membership(membership) => Some((**membership).clone()),
        Payload::Txn(_) => None,
    }
}

fn txn(entry: &Entry) -> Txn {
    let value = match &entry.payload {
        Payload::Txn(txn) => value_of(txn),
        Payload::Membership(_) => membership_value(entry.zxid),
    };
    Txn { zxid: entry.zxid, value }
}
