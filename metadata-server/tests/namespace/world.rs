//! Two replicas, the log between them, and what clients and the service know beside the replicated state.

use super::model::{Context, Model, Said};
use bytes::Bytes;
use metadata_server::state::key::{self, Key};
use metadata_server::state::layers::{View, Writes};
use metadata_server::state::machine::Machine;
use metadata_server::state::open::OpenTable;
use metadata_server::state::prep::{NewSession, Prep, PrepError, load};
use metadata_server::state::read::{ReadError, read};
use metadata_server::state::record::{Inode, SessionKind};
use protocol::meta::{ClientInfo, MetaError, MetaReply, Push, ReadOp, Space, WriteOp};
use protocol::{FileView, InodeId, SessionId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use zab::Zxid;

pub(crate) type Disk = BTreeMap<Key, Bytes>;

/// One server: its machine and what its checkpoints wrote.
pub(crate) struct Replica {
    pub(crate) machine: Machine<Disk>,
    disk: Disk,
    frozen: Option<Arc<Writes>>,
}

impl Replica {
    fn new() -> Self {
        let machine = Machine::open(Disk::new()).expect("an empty disk opens");
        Self { machine, disk: Disk::new(), frozen: None }
    }

    /// Begins a checkpoint, or ends the one that is under way.
    pub(crate) fn checkpoint(&mut self) {
        match self.frozen.take() {
            None => self.frozen = Some(self.machine.freeze().0),
            Some(writes) => {
                for (key, value) in writes.iter() {
                    match value {
                        Some(value) => drop(self.disk.insert(key.clone(), value.clone())),
                        None => drop(self.disk.remove(key)),
                    }
                }
                self.machine.thaw(self.disk.clone());
            }
        }
    }

    /// Everything committed, without the position of the last checkpoint.
    pub(crate) fn rows(&self) -> Disk {
        let mut rows = rows(&self.machine.committed());
        rows.remove(&key::system("progress"));
        rows
    }
}

pub(crate) fn rows(view: &dyn View) -> Disk {
    view.scan(&[], &[0xff; 8], usize::MAX).expect("memory reads").into_iter().collect()
}

/// A transaction that is proposed and not committed.
struct Proposal {
    bytes: Bytes,
    /// The model after it.
    model: Model,
    /// The client's request, to be sent again if the proposal is lost.
    request: Option<(SessionId, u64, WriteOp)>,
}

/// See the module.
pub(crate) struct World {
    pub(crate) leader: Replica,
    pub(crate) follower: Replica,
    log: Vec<(Zxid, Bytes)>,
    proposals: VecDeque<Proposal>,
    zab_epoch: u64,
    counter: u64,
    clock: Timestamp,
    /// The model of the committed state.
    pub(crate) committed: Model,
    /// The model with every proposal.
    pub(crate) model: Model,
    /// Open handles, as clients know them.
    pub(crate) open: BTreeMap<(SessionId, u64), InodeId>,
    /// Sessions that have not attached to this leader.
    pub(crate) unknown: BTreeSet<SessionId>,
    sequences: BTreeMap<SessionId, u64>,
    next_handle: u64,
    /// What the leader pushed after commits.
    pub(crate) pushed: Vec<(SessionId, Push)>,
}

pub(crate) type Answer = Result<MetaReply, MetaError>;

impl World {
    /// A new cluster, its first transaction committed.
    pub(crate) fn new() -> Self {
        let mut world = Self {
            leader: Replica::new(),
            follower: Replica::new(),
            log: Vec::new(),
            proposals: VecDeque::new(),
            zab_epoch: 1,
            counter: 0,
            clock: Timestamp { seconds: 1_000_000, nanoseconds: 0 },
            committed: Model::default(),
            model: Model::default(),
            open: BTreeMap::new(),
            unknown: BTreeSet::new(),
            sequences: BTreeMap::new(),
            next_handle: 1,
            pushed: Vec::new(),
        };
        let (txn, ()) =
            world.leader.machine.prepare(world.clock, |prep| prep.bootstrap(3)).expect("an empty state");
        world.model = Model::new(txn.time);
        let wire = txn.encode();
        world.leader.machine.speculate(txn, wire.clone());
        world.submit(wire, None);
        world.settle();
        world
    }

    fn submit(&mut self, bytes: Bytes, request: Option<(SessionId, u64, WriteOp)>) {
        self.proposals.push_back(Proposal { bytes, model: self.model.clone(), request });
    }

    /// Proposes what `decide` decides, as the service does; the model follows with `follow`.
    pub(crate) fn propose<T>(
        &mut self,
        request: Option<(SessionId, u64, WriteOp)>,
        subject: Option<InodeId>,
        decide: impl FnOnce(&mut Prep<'_>) -> Result<T, PrepError>,
        follow: impl FnOnce(&mut Model, &Context) -> Result<Said, MetaError>,
    ) -> (Result<T, MetaError>, Result<Said, MetaError>) {
        self.clock = self.clock.next();
        let mut with = self.context(subject);
        let result = match self.leader.machine.prepare(self.clock, decide) {
            Ok((txn, value)) => {
                (with.time, with.revision) = (txn.time, txn.revision);
                let wire = txn.encode();
                self.leader.machine.speculate(txn, wire.clone());
                Ok((wire, value))
            }
            Err((PrepError::Refused(error), _)) => Err(error),
            Err((PrepError::Store(error), _)) => panic!("memory does not read: {error}"),
        };
        let expected = follow(&mut self.model, &with);
        let result = result.map(|(wire, value)| {
            self.submit(wire, request);
            value
        });
        (result, expected)
    }

    fn context(&self, subject: Option<InodeId>) -> Context {
        let record = subject.and_then(|id| self.record(id));
        Context {
            time: Timestamp::default(),
            revision: 0,
            open: self.open.iter().map(|((session, _), inode)| (*session, *inode)).collect(),
            unknown: self.unknown.clone(),
            remembered: record.map_or(vec![], |inode| inode.truncations.iter().map(|t| t.size).collect()),
        }
    }

    /// The inode with every proposal.
    pub(crate) fn record(&self, id: InodeId) -> Option<Inode> {
        load(&self.leader.machine.proposed(), &key::inode(id)).expect("memory reads")
    }

    pub(crate) fn new_handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    /// Opens a session.
    pub(crate) fn open_session(&mut self) -> SessionId {
        let new = NewSession {
            nonce: 1,
            timeout_ms: 1000,
            certificate: "client".into(),
            info: ClientInfo::default(),
            kind: SessionKind::Client,
        };
        let mut expected = SessionId(0);
        let follow = |model: &mut Model, _: &Context| {
            expected = model.open_session();
            Ok(Said::Done)
        };
        let (session, _) = self.propose(None, None, |prep| prep.open_session(new), follow);
        assert_eq!(session, Ok(expected));
        expected
    }

    /// Ends a session.
    pub(crate) fn end_session(&mut self, session: SessionId, fenced: bool) {
        let decide = |prep: &mut Prep<'_>| prep.end_session(session, fenced);
        let (result, expected) =
            self.propose(None, None, decide, |model, with| model.end_session(session, with));
        assert_eq!(result.map(|()| Said::Done), expected);
    }

    /// A client's change under the session's next sequence.
    pub(crate) fn write(&mut self, session: SessionId, op: WriteOp) -> Answer {
        let sequence = self.sequences.entry(session).or_default();
        *sequence += 1;
        let sequence = *sequence;
        self.write_as(session, sequence, op)
    }

    /// A client's change under a sequence that it may have sent before.
    pub(crate) fn write_as(&mut self, session: SessionId, sequence: u64, op: WriteOp) -> Answer {
        let stored =
            load(&self.leader.machine.proposed(), &key::reply(session, sequence)).expect("memory reads");
        if let Some(reply) = stored {
            return Ok(reply);
        }
        let decide = |prep: &mut Prep<'_>| {
            let reply = prep.execute(session, &op)?;
            prep.remember_reply(session, sequence, &reply, sequence.checked_sub(8));
            Ok(reply)
        };
        let request = Some((session, sequence, op.clone()));
        let (result, expected) =
            self.propose(request, subject(&op), decide, |model, with| model.write(session, &op, with));
        assert_eq!(result.as_ref().map(said).map_err(Clone::clone), expected, "{session}: {op:?}");
        if let (Ok(MetaReply::Opened(view)), Some(handle)) = (&result, opened_handle(&op)) {
            self.leader.machine.open.open(session, view.attr.inode, handle);
            self.open.insert((session, handle), view.attr.inode);
        }
        result
    }

    /// A change that the model knows nothing of (locks), proposed and not committed.
    pub(crate) fn unmodelled(&mut self, session: SessionId, op: WriteOp) -> Answer {
        let decide = |prep: &mut Prep<'_>| prep.execute(session, &op);
        self.propose(None, None, decide, |_, _| Ok(Said::Done)).0
    }

    /// A linearizable read, which sees what is committed.
    pub(crate) fn read(&self, session: SessionId, op: &ReadOp) -> Answer {
        match read(&self.leader.machine.committed(), session, op, Space::default()) {
            Ok(reply) => Ok(reply),
            Err(ReadError::Errno(errno)) => Err(MetaError::Errno(errno)),
            Err(ReadError::Deferred { .. }) => Err(MetaError::Busy),
            Err(ReadError::Store(error)) => panic!("memory does not read: {error}"),
        }
    }

    /// The committed view of a file.
    pub(crate) fn view(&self, inode: InodeId) -> FileView {
        match self.read(SessionId(0), &ReadOp::View { inode, known: 0 }) {
            Ok(MetaReply::View(view)) => view,
            other => panic!("inode {inode} has no view: {other:?}"),
        }
    }

    /// Commits the oldest proposal on both replicas.
    pub(crate) fn commit(&mut self) {
        let Some(proposal) = self.proposals.pop_front() else { return };
        self.counter += 1;
        let zxid = Zxid { epoch: self.zab_epoch, counter: self.counter };
        self.log.push((zxid, proposal.bytes.clone()));
        let applied = self.leader.machine.apply(zxid, &proposal.bytes).expect("it follows");
        self.follower.machine.apply(zxid, &proposal.bytes).expect("it follows");
        self.committed = proposal.model;
        for session in applied.sessions {
            if !self.committed.sessions.contains(&session) {
                self.leader.machine.open.forget(session);
                self.open.retain(|(of, _), _| *of != session);
                self.unknown.remove(&session);
            }
        }
        self.pushed.extend(applied.pushes);
        let (a, b) = (self.leader.machine.progress(), self.follower.machine.progress());
        assert_eq!(a, b, "replicas agree on position, time and digest");
    }

    /// Commits everything.
    pub(crate) fn settle(&mut self) {
        while !self.proposals.is_empty() {
            self.commit();
        }
    }

    /// Revision of the newest proposal.
    pub(crate) fn revision(&self) -> u64 {
        self.leader.machine.progress().revision + self.proposals.len() as u64
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.proposals.is_empty()
    }

    /// The leader loses its role after `kept` more commits; the other replica takes over if `swap`. Clients send
    /// what got lost again if `resend`.
    pub(crate) fn change_leader(&mut self, kept: usize, swap: bool, resend: bool) {
        for _ in 0..kept.min(self.proposals.len()) {
            self.commit();
        }
        let lost: Vec<Proposal> = self.proposals.drain(..).collect();
        self.leader.machine.drop_proposals();
        if swap {
            std::mem::swap(&mut self.leader, &mut self.follower);
        }
        (self.zab_epoch, self.counter) = (self.zab_epoch + 1, 0);
        self.model = self.committed.clone();
        self.unknown = self.model.sessions.clone();
        self.leader.machine.open = OpenTable::new(self.unknown.iter().copied());
        let opened = |proposal: &Proposal| match &proposal.request {
            Some((session, _, op)) => opened_handle(op).map(|handle| (*session, handle)),
            None => None,
        };
        for handle in lost.iter().filter_map(opened) {
            self.open.remove(&handle);
        }
        assert!(!self.leader.machine.has_proposals());
        for (session, sequence, op) in lost.into_iter().filter(|_| resend).filter_map(|p| p.request) {
            if self.model.sessions.contains(&session) {
                self.attach(session);
                let _ = self.write_as(session, sequence, op);
            }
        }
    }

    /// A session tells a new leader what it has open.
    pub(crate) fn attach(&mut self, session: SessionId) {
        if !self.unknown.contains(&session) {
            return;
        }
        self.settle();
        if !self.unknown.remove(&session) {
            return;
        }
        let mine = self.open.iter().filter(|((of, _), _)| *of == session);
        let open: Vec<(InodeId, u64)> = mine.map(|((_, handle), inode)| (*inode, *handle)).collect();
        let prepared = self
            .leader
            .machine
            .prepare(self.clock, |prep| Ok((prep.pins(session)?, prep.opened_by_replies(session)?)));
        let (_, (pins, unseen)) = prepared.expect("memory reads");
        self.leader.machine.open.assert_all(session, &open, unseen.clone());
        let needless: Vec<InodeId> =
            pins.into_iter().filter(|id| !self.leader.machine.open.is_open(session, *id)).collect();
        // These clients have seen every reply that they did not ask for again.
        for (sequence, _) in unseen {
            self.leader.machine.open.seen(session, sequence);
        }
        if !needless.is_empty() {
            self.release_pins(session, &needless);
        }
    }

    fn release_pins(&mut self, session: SessionId, inodes: &[InodeId]) {
        let decide = |prep: &mut Prep<'_>| prep.release_pins(session, inodes.iter().copied());
        let follow = |model: &mut Model, _: &Context| {
            inodes.iter().for_each(|id| model.unpin(session, *id));
            Ok(Said::Done)
        };
        let (result, _) = self.propose(None, None, decide, follow);
        assert_eq!(result, Ok(()));
    }

    /// Opens an inode that exists.
    pub(crate) fn open(&mut self, session: SessionId, inode: InodeId) {
        if self.leader.machine.is_speculative(&key::inode(inode)) {
            self.settle();
        }
        // The session may have ended with what was just committed.
        if self.model.nodes.contains_key(&inode) && self.model.sessions.contains(&session) {
            let handle = self.new_handle();
            self.leader.machine.open.open(session, inode, handle);
            self.open.insert((session, handle), inode);
        }
    }

    /// Closes a handle.
    pub(crate) fn close(&mut self, session: SessionId, handle: u64) {
        let Some(inode) = self.open.remove(&(session, handle)) else { return };
        let last = self.leader.machine.open.close(session, inode, handle);
        let pin = self.leader.machine.proposed().get(&key::pin(inode, session)).expect("memory reads");
        if last && pin.is_some() {
            self.release_pins(session, &[inode]);
        }
    }

    /// The follower starts again from its last checkpoint and applies the log from there.
    pub(crate) fn restart_follower(&mut self) {
        let before = (self.follower.machine.progress(), self.follower.rows());
        let disk = self.follower.disk.clone();
        self.follower =
            Replica { machine: Machine::open(disk.clone()).expect("a checkpoint opens"), disk, frozen: None };
        let from = self.follower.machine.progress().revision as usize;
        for (zxid, bytes) in &self.log[from..] {
            self.follower.machine.apply(*zxid, bytes).expect("it follows");
        }
        assert_eq!(
            (self.follower.machine.progress(), self.follower.rows()),
            before,
            "a restart loses nothing"
        );
        assert_eq!(self.follower.machine.map(), self.leader.machine.map());
    }
}

/// The inode whose truncations the outcome depends on.
fn subject(op: &WriteOp) -> Option<InodeId> {
    match op {
        WriteOp::Setattr { inode, .. } | WriteOp::Hold(inode) | WriteOp::Defer(inode) => Some(*inode),
        _ => None,
    }
}

fn opened_handle(op: &WriteOp) -> Option<u64> {
    match op {
        WriteOp::Create { handle, .. } => *handle,
        WriteOp::Tmpfile { handle, .. } => Some(*handle),
        _ => None,
    }
}

fn said(reply: &MetaReply) -> Said {
    match reply {
        MetaReply::Done => Said::Done,
        MetaReply::Entry(attr) | MetaReply::Attr(attr) => Said::Node(attr.inode),
        MetaReply::Opened(view) | MetaReply::View(view) => Said::View(view.attr.inode),
        MetaReply::Written { attr, offset, .. } => Said::Written(attr.inode, *offset),
        other => panic!("no change is answered with {other:?}"),
    }
}
