//! What both roles of a replica share: the configuration, the local copy, and what is to be done outside.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use protocol::DataServerId;
use protocol::map::PgConfig;
use protocol::replication::{GroupObject, PeerMessage, Unit};

use super::copy::{How, LocalCopy};
use super::stats::Stats;
use super::types::{GroupView, Me, Output, Settings};
use crate::store::StoreError;

#[derive(Debug)]
pub(super) struct Group {
    pub(super) me: Me,
    pub(super) settings: Settings,
    pub(super) view: GroupView,
    pub(super) copy: LocalCopy,
    pub(super) stats: Stats,
    pub(super) outputs: VecDeque<Output>,
    /// The store is busy: nothing is submitted until it has room.
    pub(super) stalled: bool,
}

impl Group {
    pub(super) fn config(&self) -> &PgConfig {
        &self.view.config
    }

    pub(super) fn version(&self) -> u64 {
        self.view.config.version
    }

    /// A split is executed here and the configuration that follows from it is not there yet.
    pub(super) fn is_undivided(&self) -> bool {
        self.copy.pg_num > self.config().pg_num
    }

    pub(super) fn send(&mut self, to: DataServerId, message: PeerMessage, payload: Bytes) {
        self.outputs.push_back(Output::Send { to, message, payload });
    }

    /// Takes note of an error that no caller handles better.
    pub(super) fn note(&mut self, doing: &str, error: StoreError) {
        match error {
            StoreError::Busy => self.stall(),
            StoreError::Corrupt { key, block } => {
                self.outputs.push_back(Output::CorruptBlock);
                tracing::warn!("block {block} of {key} is corrupt on this server (found while {doing})");
            }
            error @ (StoreError::Failed(_) | StoreError::Damaged(_)) => {
                self.outputs.push_back(Output::Fatal(error));
            }
            error => tracing::error!("placement group {}: could not go on {doing}: {error}", self.copy.pg),
        }
    }

    /// Nothing more is submitted until the store has room.
    pub(super) fn stall(&mut self) {
        if !self.stalled {
            self.stalled = true;
            self.outputs.push_back(Output::WaitRoom);
        }
    }

    /// Requests durability of everything so far.
    pub(super) fn request_durable(&mut self) {
        let ticket = self.copy.want_durable();
        self.outputs.push_back(Output::RequestDurable(ticket));
    }

    /// Executes operations that are ordered: space is no reason to refuse them.
    pub(super) fn ordered<'a>(&self, skip: &'a BTreeSet<GroupObject>) -> How<'a> {
        let trim = Some((self.settings.log_max, self.settings.log_trim));
        How { skip, fill: None, use_reserve: true, trim }
    }
}

/// Whether an operation on `unit` concerns `other`.
pub(super) fn touches(unit: Unit, other: Unit) -> bool {
    match (unit, other) {
        (Unit::Object(a), Unit::Object(b)) => a == b,
        (Unit::Inode(a), Unit::Inode(b)) => a == b,
        (Unit::Inode(inode), Unit::Object(object)) | (Unit::Object(object), Unit::Inode(inode)) => {
            object.inode == inode
        }
        (Unit::Group, _) | (_, Unit::Group) => true,
    }
}
