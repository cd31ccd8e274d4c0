//! One follower as its leader sees it, from FollowerInfo to broadcast.
//!
//! There is one pump: history, NEWLEADER, proposals and UPTODATE leave in this order from one position in the
//! leader's own log. Proposals therefore reach a follower from the instant its synchronization point is fixed,
//! without a second queue that could overlap or leave a gap, and what is sent is contiguous because the log is.

use crate::core::Core;
use crate::mutant;
use crate::{Body, DataUuid, PeerId, Progress, SnapshotDescriptor, Tick, Zxid};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// FollowerInfo arrived; NEWEPOCH may have been sent.
    Discovering { asked: bool },
    /// ACK-E arrived; waits until the leader's history is fixed.
    Promised { current_epoch: u64, last: Zxid, tails: Vec<Zxid> },
    /// The driver takes and sends a checkpoint; the log from `pin` is kept.
    Snapshotting { pin: Zxid },
    /// The snapshot was sent; the follower installs it.
    Installing { zxid: Zxid },
    /// Entries flow.
    Streaming,
}

/// What the leader knows of one follower's session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) uuid: DataUuid,
    pub(crate) accepted_epoch: u64,
    /// Its promises and acks count, if the membership says so.
    pub(crate) may_vote: bool,
    pub(crate) stage: Stage,
    pub(crate) heard_at: Tick,
    /// The newest heartbeat round acknowledged.
    pub(crate) round: u64,
    /// Durable at the follower, within the leader's history.
    pub(crate) acked: Zxid,
    /// ACK-LD arrived: `acked` counts for commits.
    pub(crate) synced: bool,
    pub(crate) disk_ok: bool,
    /// The version of the committed membership that is on its disk.
    pub(crate) recorded: u64,
    seq: u64,
    /// The last position sent.
    sent: Zxid,
    /// Where NEWLEADER stands in the stream.
    sync_point: Zxid,
    new_leader_sent: bool,
    up_to_date_sent: bool,
    /// The commit position that the follower was told.
    commit_told: Zxid,
}

impl Session {
    pub(crate) fn new(id: u64, uuid: DataUuid, accepted_epoch: u64, may_vote: bool, now: Tick) -> Session {
        Session {
            id,
            uuid,
            accepted_epoch,
            may_vote,
            stage: Stage::Discovering { asked: false },
            heard_at: now,
            round: 0,
            acked: Zxid::ZERO,
            synced: false,
            disk_ok: true,
            recorded: 0,
            seq: 0,
            sent: Zxid::ZERO,
            sync_point: Zxid::ZERO,
            new_leader_sent: false,
            up_to_date_sent: false,
            commit_told: Zxid::ZERO,
        }
    }

    /// What the log must keep for this session.
    pub(crate) fn pin(&self) -> Option<Zxid> {
        match self.stage {
            Stage::Discovering { .. } | Stage::Promised { .. } => None,
            Stage::Snapshotting { pin } => Some(pin),
            Stage::Installing { zxid } => Some(zxid),
            Stage::Streaming => Some(self.sent),
        }
    }

    pub(crate) fn is_promised(&self) -> bool {
        !matches!(self.stage, Stage::Discovering { .. })
    }

    pub(crate) fn needs_driver(&self) -> bool {
        matches!(self.stage, Stage::Snapshotting { .. } | Stage::Installing { .. })
    }

    pub(crate) fn ask_for_promise(&mut self, core: &mut Core, to: PeerId, epoch: u64, established: bool) {
        if matches!(self.stage, Stage::Discovering { .. }) {
            self.stage = Stage::Discovering { asked: true };
            let counts = core.is_voter(to, self.uuid);
            core.send(to, Body::NewEpoch { session: self.id, epoch, established, counts });
        }
    }

    /// Fixes the synchronization point and decides between DIFF, TRUNC and SNAP. Returns whether a snapshot is
    /// needed.
    pub(crate) fn start_sync(&mut self, core: &mut Core, to: PeerId, epoch: u64) -> bool {
        let Stage::Promised { tails, .. } = &self.stage else { return false };
        // A snapshot is used only if the common prefix ends before our log does begin. It then always contains more
        // than the follower loses: it could otherwise replace committed transactions, which the follower
        // acknowledged, by a checkpoint that is older.
        let Some(common) = core.log.common_with(tails) else {
            if mutant!("diff-across-a-gap") {
                return self.sync_from(core, to, epoch, core.log.start());
            }
            self.stage = Stage::Snapshotting { pin: core.log.start() };
            return true;
        };
        self.sync_from(core, to, epoch, common)
    }

    /// A DIFF, possibly after a TRUNC: no snapshot is needed.
    fn sync_from(&mut self, core: &mut Core, to: PeerId, epoch: u64, common: Zxid) -> bool {
        self.seq += 1;
        core.send(to, Body::SyncFrom { session: self.id, epoch, seq: self.seq, common });
        self.start_streaming(core, common);
        false
    }

    fn start_streaming(&mut self, core: &Core, from: Zxid) {
        self.sent = from;
        self.acked = from;
        self.sync_point = core.log.last();
        self.stage = Stage::Streaming;
    }

    pub(crate) fn send_snapshot(
        &mut self,
        core: &mut Core,
        to: PeerId,
        epoch: u64,
        snapshot: SnapshotDescriptor,
    ) {
        self.seq += 1;
        let membership = core.record.membership.clone();
        core.send(to, Body::Snapshot { session: self.id, epoch, seq: self.seq, snapshot, membership });
        self.stage = Stage::Installing { zxid: snapshot.zxid };
    }

    /// Takes an ack of this session. `Err` if it claims what was never sent.
    pub(crate) fn handle_ack(&mut self, core: &Core, round: u64, progress: Progress) -> Result<(), ()> {
        self.heard_at = core.now;
        self.round = self.round.max(round);
        self.disk_ok = progress.disk_ok;
        self.recorded = self.recorded.max(progress.membership);
        match self.stage {
            Stage::Installing { zxid } if progress.durable >= zxid => {
                if progress.durable > zxid || !core.log.contains(zxid) {
                    return Err(());
                }
                self.start_streaming(core, zxid);
            }
            Stage::Streaming => {
                // An ack from before SyncFrom arrived there claims nothing (ZERO).
                if progress.durable > self.sent || (progress.synced && !self.new_leader_sent) {
                    return Err(());
                }
                self.acked = self.acked.max(progress.durable);
                if progress.synced && self.acked < self.sync_point {
                    return Err(());
                }
                self.synced |= progress.synced;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends what may be sent. `Err` if the log no longer reaches back far enough.
    pub(crate) fn pump(&mut self, core: &mut Core, to: PeerId, epoch: u64) -> Result<(), ()> {
        if self.stage != Stage::Streaming {
            return Ok(());
        }
        loop {
            if self.sent == self.sync_point && !self.new_leader_sent {
                self.send_new_leader(core, to, epoch);
            }
            let end = if self.new_leader_sent { core.log.last() } else { self.sync_point };
            if self.new_leader_sent && !self.synced && mutant!("no-proposals-before-newleader-ack") {
                self.sent = end;
            }
            let in_flight = core.log.bytes_between(self.acked, self.sent);
            let room = core.config.inflight_bytes_max.saturating_sub(in_flight);
            if self.sent >= end || room == 0 {
                return Ok(());
            }
            let bytes_max = room.min(core.config.message_bytes_max);
            let entries = core.log.entries_after(self.sent, end, bytes_max).ok_or(())?;
            let Some(last) = entries.last().map(|entry| entry.zxid) else { return Ok(()) };
            self.seq += 1;
            self.commit_told = core.commit;
            let body = Body::Entries {
                session: self.id,
                epoch,
                seq: self.seq,
                prev: self.sent,
                entries,
                commit: core.commit,
            };
            core.send(to, body);
            self.sent = last;
        }
    }

    fn send_new_leader(&mut self, core: &mut Core, to: PeerId, epoch: u64) {
        self.seq += 1;
        self.new_leader_sent = true;
        let membership = core.record.membership.clone();
        let body =
            Body::NewLeader { session: self.id, epoch, seq: self.seq, last: self.sync_point, membership };
        core.send(to, body);
    }

    /// How many transactions it lacks of what is committed; `None` while it does not serve.
    pub(crate) fn lag(&self, core: &Core) -> Option<usize> {
        self.up_to_date_sent.then(|| core.log.count_between(self.acked, core.commit))
    }

    /// Tells an established leader's follower how far it may deliver.
    pub(crate) fn tell_commit(&mut self, core: &mut Core, to: PeerId, epoch: u64) {
        if !self.synced {
            return;
        }
        if !self.up_to_date_sent {
            // A follower that serves is at most one window behind.
            if core.log.count_between(self.acked, core.commit) > core.config.inflight_entries_max {
                return;
            }
            self.seq += 1;
            self.up_to_date_sent = true;
            self.commit_told = core.commit;
            let commit = if mutant!("uptodate-carries-the-ack") { self.sync_point } else { core.commit };
            core.send(to, Body::UpToDate { session: self.id, epoch, seq: self.seq, commit });
        } else if self.commit_told < core.commit {
            self.commit_told = core.commit;
            core.send(to, Body::Commit { session: self.id, epoch, commit: core.commit });
        }
    }

    pub(crate) fn send_heartbeat(&self, core: &mut Core, to: PeerId, epoch: u64, round: u64) {
        if self.stage != (Stage::Discovering { asked: false }) {
            let commit = core.commit;
            core.send(to, Body::Heartbeat { session: self.id, epoch, round, commit, sent: self.seq });
        }
    }
}
