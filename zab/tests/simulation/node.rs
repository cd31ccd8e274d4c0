//! One simulated server: its disk, its clock and, while it runs, its peer.

use std::collections::VecDeque;

use zab::{Config, DataUuid, Membership, Peer, PeerId, Record, Role};

use super::disk::{Checkpoint, Disk};
use super::world::Happening;

/// A clock that starts anywhere and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) offset: u64,
    /// Milliseconds that it counts in 1,000.
    pub(crate) rate: u64,
}

impl Clock {
    pub(crate) fn read(self, time: u64) -> u64 {
        self.offset + time * self.rate / 1000
    }

    /// The first time at which it reads at least `tick`.
    pub(crate) fn when(self, tick: u64) -> u64 {
        (tick.saturating_sub(self.offset) * 1000).div_ceil(self.rate)
    }
}

pub(crate) struct Node {
    pub(crate) id: PeerId,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    pub(crate) disk_busy: bool,
    pub(crate) disk_stalled_until: u64,
    pub(crate) peer: Option<Peer>,
    pub(crate) incarnation: u64,
    pub(crate) paused: bool,
    pub(crate) inbox: VecDeque<Happening>,
    pub(crate) tick_at: Option<u64>,
    /// Its machine was given away after it was removed: it never starts again.
    pub(crate) gone: bool,
}

impl Node {
    pub(crate) fn new(
        id: PeerId,
        config: Config,
        clock: Clock,
        uuid: DataUuid,
        membership: Membership,
    ) -> Node {
        Node {
            id,
            config,
            clock,
            disk: Disk::new(Record::fresh(uuid, membership)),
            disk_busy: false,
            disk_stalled_until: 0,
            peer: None,
            incarnation: 0,
            paused: false,
            inbox: VecDeque::new(),
            tick_at: None,
            gone: false,
        }
    }

    /// A new incarnation, from what is on disk. Returns the state it starts from.
    pub(crate) fn boot(&mut self, time: u64, seed: u64) -> Result<Checkpoint, String> {
        let (recovered, checkpoint) = self.disk.recover();
        let now = self.clock.read(time);
        let peer = Peer::new(self.config.clone(), recovered, now, seed);
        self.peer = Some(peer.map_err(|error| format!("{} does not start: {error}", self.id))?);
        self.incarnation += 1;
        self.paused = false;
        self.disk_busy = false;
        self.tick_at = None;
        Ok(checkpoint)
    }

    pub(crate) fn uuid(&self) -> DataUuid {
        self.disk.record.data_uuid
    }

    /// Whether it remembers everything that it acknowledged.
    pub(crate) fn is_whole(&self) -> bool {
        let pending = self.peer.as_ref().is_some_and(|peer| peer.record().needs_sync);
        !self.gone && !self.disk.record.needs_sync && !pending
    }

    /// Every membership that counts here, or may after a restart.
    pub(crate) fn memberships(&self) -> Vec<Membership> {
        let peer = self.peer.iter();
        let known = peer.flat_map(|peer| std::iter::once(peer.membership()).chain(peer.pending_membership()));
        known.cloned().chain(self.disk.memberships()).collect()
    }

    pub(crate) fn role(&self) -> Option<Role> {
        self.peer.as_ref().map(Peer::role)
    }

    pub(crate) fn is_leading(&self) -> bool {
        matches!(self.role(), Some(Role::Leading { .. }))
    }
}
