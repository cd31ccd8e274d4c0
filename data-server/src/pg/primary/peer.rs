//! What the primary knows about one other member, and the link to it.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use protocol::map::Member;
use protocol::mutant;
use protocol::replication::{Cursor, Fill, GroupObject, PeerMessage, Position, StreamBody, Unit};

use crate::pg::group::Group;
use crate::pg::types::Tick;

/// What a member counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerRole {
    /// Every acknowledgement needs it.
    Certain,
    /// In the set, but to be caught up first.
    Uncertain,
    /// Being filled.
    Learner,
}

/// The link's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not begun.
    Idle,
    /// `Hello` was sent at this time.
    Probing(Tick),
    /// It answered; the takeover has to see the others first.
    Parked,
    /// It receives every operation.
    Streaming,
}

/// A member's answer to `Hello`.
#[derive(Clone, Debug)]
pub(super) struct PeerStatus {
    pub(super) common: Option<Position>,
    pub(super) head: Position,
    pub(super) stray: Vec<Unit>,
    pub(super) fill: Option<Fill>,
    pub(super) split_at: Position,
}

impl PeerStatus {
    /// The position up to which the member holds everything.
    pub(super) fn whole_to(&self) -> Position {
        self.fill.as_ref().map_or(self.head, |fill| fill.base)
    }
}

/// A fill in progress.
#[derive(Clone, Debug)]
pub(super) struct FillProgress {
    pub(super) cursor: Cursor,
    pub(super) missing: BTreeSet<Unit>,
    pub(super) current: Option<CurrentObject>,
    /// Objects pushed, for the estimate of what remains.
    pub(super) pushed: u64,
}

/// The object that is being pushed; its first piece was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct CurrentObject {
    pub(super) object: GroupObject,
    pub(super) offset: u32,
    pub(super) advances_cursor: bool,
}

impl FillProgress {
    pub(super) fn new(cursor: Cursor, missing: BTreeSet<Unit>) -> Self {
        FillProgress { cursor, missing, current: None, pushed: 0 }
    }

    /// Whether the backfill is beyond the object. What is created between the cursor and the current object was
    /// not there when that was chosen: it will not be copied, so that its operations must be executed.
    pub(super) fn has_passed(&self, object: GroupObject) -> bool {
        let next = self.current.filter(|current| current.advances_cursor);
        let passing = next.is_some_and(|current| object < current.object);
        Cursor::At(object) <= self.cursor || (passing && !mutant!("created-behind-the-cursor-is-lost"))
    }

    /// The current object cannot be read now: if nothing of it was sent, it is chosen again later.
    pub(super) fn put_back(&mut self) {
        if let Some(current) = self.current.filter(|current| current.offset == 0) {
            self.current = None;
            self.missing.extend((!current.advances_cursor).then_some(Unit::Object(current.object)));
        }
    }

    /// Whether the member executes operations on the object; otherwise it gets the object as a whole later.
    pub(super) fn covers(&self, object: GroupObject) -> bool {
        if self.current.is_some_and(|current| current.object == object) {
            return true;
        }
        self.has_passed(object)
            && !self.missing.contains(&Unit::Object(object))
            && !self.missing.contains(&Unit::Inode(object.inode))
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) member: Member,
    pub(super) role: PeerRole,
    pub(super) stage: Stage,
    pub(super) link: u64,
    /// Index of the last message sent on the link.
    sent: u64,
    /// Messages on their way: index and bytes.
    in_flight: VecDeque<(u64, usize)>,
    pub(super) in_flight_bytes: usize,
    pub(super) status: Option<PeerStatus>,
    pub(super) written: u64,
    pub(super) durable: u64,
    /// Sequence up to which it was asked to be durable on this link.
    pub(super) sync_sent: u64,
    pub(super) fill: Option<FillProgress>,
    /// Acknowledgements wait for it although its role does not say so yet, since it is about to be promoted;
    /// everything up to here must be durable for that.
    pub(super) counting: Option<u64>,
    pub(super) full: bool,
    /// The last split that it executed itself, as far as this primary knows or has told it to.
    pub(super) split_at: Position,
    /// It cannot read the end of its own log.
    pub(super) unreadable: bool,
    /// Index of the last message that changed what `written` and `durable` mean; older acknowledgements say nothing.
    barrier: u64,
    pub(super) link_since: Tick,
    /// End of the primary's log when the link began.
    pub(super) greeted_head: u64,
    /// Since when messages are on their way to it without an answer.
    pub(super) quiet_since: Option<Tick>,
    /// Since when something waits for it without progress.
    pub(super) waiting_since: Option<Tick>,
}

impl Peer {
    pub(super) fn new(member: Member, role: PeerRole) -> Self {
        Peer {
            member,
            role,
            stage: Stage::Idle,
            link: 0,
            sent: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            status: None,
            written: 0,
            durable: 0,
            sync_sent: 0,
            fill: None,
            counting: None,
            full: false,
            split_at: Position::default(),
            unreadable: false,
            barrier: 0,
            link_since: Tick(0),
            greeted_head: 0,
            quiet_since: None,
            waiting_since: None,
        }
    }

    /// Whether acknowledgements wait for it.
    pub(super) fn needed(&self) -> bool {
        self.role == PeerRole::Certain || (self.counting.is_some() && !mutant!("promoted-before-it-counts"))
    }

    /// Starts over with a new link; what was on its way on the old one is void.
    pub(super) fn restart(&mut self, group: &mut Group, link: u64, now: Tick) {
        self.stage = Stage::Probing(now);
        self.link = link;
        self.link_since = now;
        self.greeted_head = group.copy.head().sequence;
        self.sent = 0;
        self.barrier = 0;
        self.unreadable = false;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.quiet_since = None;
        self.status = None;
        self.split_at = Position::default();
        self.sync_sent = 0;
        self.fill = None;
        let log = &group.copy.log;
        let message = PeerMessage::Hello {
            config: group.view.config.clone(),
            link,
            floor: log.floor(),
            head: log.head(),
            runs: log.runs(),
        };
        group.send(self.member.server, message, Bytes::new());
    }

    /// Sends the next message of the link.
    pub(super) fn stream(&mut self, group: &mut Group, body: StreamBody, payload: Bytes) {
        self.sent += 1;
        self.in_flight.push_back((self.sent, payload.len() + 256));
        self.in_flight_bytes += payload.len() + 256;
        let message =
            PeerMessage::Stream { version: group.version(), link: self.link, index: self.sent, body };
        group.send(self.member.server, message, payload);
    }

    /// What it acknowledged holds up to `base` only: a fill begins, or just ended and nothing of it is known to
    /// be durable. Acknowledgements sent before the last message are ignored.
    pub(super) fn set_barrier(&mut self, base: u64) {
        self.barrier = self.sent;
        self.written = self.written.min(base);
        self.durable = self.durable.min(base);
        self.sync_sent = 0;
    }

    /// Whether it holds everything that was sent to it.
    pub(super) fn is_whole(&self) -> bool {
        self.stage == Stage::Streaming && self.fill.is_none()
    }

    /// Whether it executed the last message that changed what it holds.
    pub(super) fn has_passed_barrier(&self) -> bool {
        self.in_flight.front().is_none_or(|(index, _)| *index > self.barrier)
    }

    /// Takes in an acknowledgement; true if anything moved.
    pub(super) fn acknowledge(&mut self, written: u64, durable: u64, processed: u64) -> bool {
        let mut moved = false;
        if processed >= self.barrier || mutant!("acks-from-before-the-fill-count") {
            moved = written > self.written || durable > self.durable;
            self.written = self.written.max(written);
            self.durable = self.durable.max(durable);
        }
        while let Some((_, bytes)) = self.in_flight.front().copied().filter(|(index, _)| *index <= processed)
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
            moved = true;
        }
        moved
    }

    /// Asks it once to make everything up to `upto` durable.
    pub(super) fn sync(&mut self, group: &mut Group, upto: u64) {
        if self.stage == Stage::Streaming && self.durable < upto && self.sync_sent < upto {
            self.sync_sent = group.copy.head().sequence;
            self.stream(group, StreamBody::Sync, Bytes::new());
        }
    }

    /// Whether messages are on their way to it.
    pub(super) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether something that the group waits for depends on it.
    pub(super) fn is_awaited(&self, head: u64) -> bool {
        self.needed()
            && match self.stage {
                Stage::Idle | Stage::Probing(_) => true,
                Stage::Parked => false,
                Stage::Streaming => self.written < head || self.durable < self.sync_sent,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{DataServerId, InodeId, StoreUuid};

    fn object(inode: u64, chunk: u32) -> GroupObject {
        GroupObject { inode: InodeId(inode), chunk }
    }

    #[test]
    fn operations_are_executed_where_the_backfill_has_passed() {
        let missing = BTreeSet::from([Unit::Object(object(2, 0)), Unit::Inode(InodeId(1))]);
        let mut fill = FillProgress::new(Cursor::At(object(3, 0)), missing);
        assert!(fill.covers(object(2, 1)) && fill.covers(object(3, 0)));
        assert!(!fill.covers(object(2, 0)), "missing by itself");
        assert!(!fill.covers(object(1, 7)), "missing with its inode");
        assert!(!fill.covers(object(3, 5)), "not reached");
        // Chosen as the next that exists: what is created before it now would be skipped otherwise.
        fill.current = Some(CurrentObject { object: object(4, 2), offset: 1, advances_cursor: true });
        assert!(fill.covers(object(3, 5)) && fill.covers(object(4, 2)));
        assert!(!fill.covers(object(4, 3)));
        fill.current = Some(CurrentObject { object: object(2, 0), offset: 1, advances_cursor: false });
        assert!(fill.covers(object(2, 0)), "its later pieces contain the operation or it follows them");
        assert!(!fill.covers(object(3, 5)));
    }

    #[test]
    fn acknowledgements_from_before_a_fill_say_nothing_about_it() {
        let member =
            Member { server: DataServerId(2), store: StoreUuid(2), incarnation: 1, uncertain: false };
        let mut peer = Peer::new(member, PeerRole::Learner);
        assert!(peer.acknowledge(70, 60, 0));
        peer.sent = 5;
        peer.set_barrier(10);
        assert_eq!((peer.written, peer.durable), (10, 10));
        assert!(!peer.acknowledge(70, 60, 4), "sent before the fill began");
        assert_eq!((peer.written, peer.durable), (10, 10));
        assert!(peer.acknowledge(71, 10, 5));
        assert_eq!((peer.written, peer.durable), (71, 10));
    }
}
