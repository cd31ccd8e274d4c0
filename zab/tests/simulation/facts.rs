//! What peers did, as far as the protocol promises something about it: the trace that a model can be asked to accept.

use std::collections::BTreeMap;

use zab::{Body, Output, Peer, PeerId, Record, Role, Zxid};

use super::history::Txn;

/// A write that is on disk now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Written {
    Append(Vec<Txn>),
    Truncate(Zxid),
    Record(Record),
    /// The state that replaced all that was there.
    Install(Vec<Txn>, Record),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    /// It starts with this record, history (log included) and state.
    Started {
        record: Record,
        history: Vec<Txn>,
        state: Vec<Txn>,
    },
    Wrote(Written),
    /// ACK-E leaves.
    SentAckEpoch {
        to: PeerId,
        epoch: u64,
        current_epoch: u64,
        last: Zxid,
    },
    /// ACK or ACK-LD leaves.
    SentAck {
        epoch: u64,
        durable: Zxid,
        synced: bool,
    },
    /// A quorum promised; its history is the one to adopt.
    FixedHistory {
        epoch: u64,
    },
    Established {
        epoch: u64,
    },
    Proposed(Txn),
    /// As a leader.
    Committed {
        epoch: u64,
        zxid: Zxid,
    },
    Delivered(Txn),
    Crashed,
    /// All but this history is gone.
    Damaged(Vec<Txn>),
    Wiped,
}

/// Facts in the order in which they happened, each with the peer that it is about.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) facts: Vec<(PeerId, Fact)>,
    pub(crate) is_on: bool,
    committed: BTreeMap<PeerId, (u64, Zxid)>,
}

impl Recorder {
    pub(crate) fn note(&mut self, node: PeerId, fact: impl FnOnce() -> Fact) {
        if self.is_on {
            self.facts.push((node, fact()));
        }
    }

    /// Looks at a peer that is about to have `output` executed.
    pub(crate) fn look(&mut self, node: PeerId, peer: &Peer, output: Option<&Output>) {
        if !self.is_on {
            return;
        }
        if let Role::Leading { epoch } = peer.role() {
            let now = (epoch, peer.committed());
            if self.committed.insert(node, now) != Some(now) {
                self.facts.push((node, Fact::Committed { epoch, zxid: now.1 }));
            }
        }
        match output {
            Some(Output::Send { to, message }) => self.look_at_message(node, *to, &message.body),
            Some(Output::RoleChanged { role: Role::Leading { epoch } }) => {
                self.facts.push((node, Fact::Established { epoch: *epoch }));
            }
            Some(Output::SaveRecord { record, .. })
                if record.accepted_leader == Some(node) && record.current_epoch == record.accepted_epoch =>
            {
                self.facts.push((node, Fact::FixedHistory { epoch: record.current_epoch }));
            }
            _ => {}
        }
    }

    fn look_at_message(&mut self, node: PeerId, to: PeerId, body: &Body) {
        match body {
            Body::AckEpoch { epoch, current_epoch, last, .. } => {
                let (epoch, current_epoch, last) = (*epoch, *current_epoch, *last);
                self.facts.push((node, Fact::SentAckEpoch { to, epoch, current_epoch, last }));
            }
            Body::Ack { epoch, progress, .. } => {
                let (epoch, durable, synced) = (*epoch, progress.durable, progress.synced);
                self.facts.push((node, Fact::SentAck { epoch, durable, synced }));
            }
            _ => {}
        }
    }
}
