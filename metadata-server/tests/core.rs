//! The core of a leader, one rule per test: when answers leave, who lives on, what is given back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use metadata_server::core::{Broadcast, Core, CoreConfig, Now, Output};
use metadata_server::quorum::PeerStatus;
use metadata_server::state::key::{self, Key};
use metadata_server::state::layers::View;
use protocol::identity::{ClusterId, Fingerprint, Limits, PeerIdentity, Role as Certificate};
use protocol::meta::{
    MetaError, MetaReply, MetaRequest, MetaResponse, NewNode, Push, ReadOp, Refusals, WriteOp,
};
use protocol::{EntryName, Errno, FileKind, InodeId, MetadataServerId, SessionId, Timestamp};
use zab::{ChangeError, Membership, MembershipChange, ProposeError, ReadError, Role, Zxid};

#[path = "core/deferral.rs"]
mod deferral;

const TIMEOUT_MS: u32 = 4_000;

/// A quorum that decides when the test says so.
#[derive(Default)]
struct Quorum {
    epoch: u64,
    proposed: Vec<(Zxid, Bytes)>,
    rounds: Vec<u64>,
    has_lease: bool,
    counter: u64,
}

impl Broadcast for Quorum {
    fn propose(&mut self, txn: Bytes) -> Result<Zxid, ProposeError> {
        self.counter += 1;
        let zxid = Zxid::new(self.epoch, self.counter);
        self.proposed.push((zxid, txn));
        Ok(zxid)
    }

    fn read_index(&mut self, number: u64) -> Result<(), ReadError> {
        self.rounds.push(number);
        Ok(())
    }

    fn lease_valid(&self) -> bool {
        self.has_lease
    }

    fn peers(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    fn refusals(&self) -> Refusals {
        Refusals::default()
    }

    fn membership(&self) -> (Membership, bool) {
        (Membership::default(), true)
    }

    fn change_membership(&mut self, _: &MembershipChange) -> Result<Zxid, ChangeError> {
        Err(ChangeError::NotLeading)
    }
}

struct Rig {
    core: Core<BTreeMap<Key, Bytes>, u64>,
    quorum: Quorum,
    /// Milliseconds; the wall clock shows the same, but for its offset.
    ms: u64,
    wall_offset: i64,
    asked: u64,
    answers: BTreeMap<u64, MetaResponse>,
    /// What connections were told unasked.
    pushed: Vec<(u64, Push)>,
    sequence: u64,
}

/// A client that is attached.
#[derive(Clone, Copy)]
struct Owner {
    connection: u64,
    session: SessionId,
}

fn name(text: &str) -> EntryName {
    EntryName::new(text.as_bytes()).expect("a short plain name")
}

fn create(text: &str, handle: Option<u64>) -> WriteOp {
    let node = NewNode { kind: FileKind::File, mode: 0o600, uid: 1, gid: 1, rdev: 0, target: Vec::new() };
    WriteOp::Create { parent: InodeId::ROOT, name: name(text), node, handle }
}

fn unlink(text: &str) -> WriteOp {
    WriteOp::Unlink { parent: InodeId::ROOT, name: name(text) }
}

fn lookup(text: &str) -> MetaRequest {
    MetaRequest::Read(ReadOp::Lookup { parent: InodeId::ROOT, name: name(text) })
}

fn opens(nonce: u128) -> MetaRequest {
    MetaRequest::OpenSession { nonce, timeout_ms: TIMEOUT_MS, info: Default::default() }
}

impl Rig {
    /// A formed cluster with this server as the leader of epoch 1.
    fn new() -> Rig {
        let config = CoreConfig {
            id: MetadataServerId(1),
            cluster: ClusterId(*b"testtesttesttest"),
            voters: BTreeMap::new(),
            pool_size: 2,
            down_out_ms: 30_000,
        };
        let core = Core::new(config, BTreeMap::new()).expect("an empty state");
        let mut rig = Rig {
            core,
            quorum: Quorum::default(),
            ms: 1_000,
            wall_offset: 0,
            asked: 0,
            answers: BTreeMap::new(),
            pushed: Vec::new(),
            sequence: 0,
        };
        rig.lead();
        rig.settle();
        rig
    }

    fn now(&self) -> Now {
        let wall = 1_700_000_000_000 + self.wall_offset + self.ms as i64;
        let nanoseconds = (wall.rem_euclid(1000) * 1_000_000) as u32;
        Now { ms: self.ms, wall: Timestamp { seconds: wall.div_euclid(1000), nanoseconds } }
    }

    /// Becomes the leader of the next epoch; what an earlier one proposed and did not commit is lost.
    fn lead(&mut self) {
        let now = self.now();
        if self.core.is_leader() {
            self.core.handle_lost_proposals();
            self.core.handle_role_changed(Role::Looking, now);
        }
        let epoch = self.quorum.epoch + 1;
        self.quorum = Quorum { epoch, ..Quorum::default() };
        self.core.handle_role_changed(Role::Leading { epoch }, now);
        self.core.handle_tick(&mut self.quorum, now);
        self.poll();
    }

    fn poll(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Reply { token, response } => {
                    assert!(self.answers.insert(token, response).is_none(), "answered twice");
                }
                Output::Push { client, push } => self.pushed.push((client, push)),
                Output::Fatal(why) => panic!("it stops: {why}"),
                _ => {}
            }
        }
    }

    /// Commits what was proposed.
    fn commit(&mut self) {
        let now = self.now();
        for (zxid, txn) in std::mem::take(&mut self.quorum.proposed) {
            self.core.handle_applied(zxid, &txn, &mut self.quorum, now);
        }
        self.poll();
    }

    /// Ends the rounds that have begun.
    fn end_rounds(&mut self) {
        let now = self.now();
        for number in std::mem::take(&mut self.quorum.rounds) {
            self.core.handle_read_ready(number, &mut self.quorum, now);
        }
        self.poll();
    }

    /// Until nothing waits for the quorum.
    fn settle(&mut self) {
        while !(self.quorum.proposed.is_empty() && self.quorum.rounds.is_empty()) {
            self.commit();
            self.end_rounds();
        }
    }

    fn connect(&mut self) -> u64 {
        self.asked += 1;
        let identity = PeerIdentity {
            cluster: ClusterId([7; 16]),
            role: Certificate::Client,
            name: "client".to_owned(),
            id: 1,
            limits: Limits::NONE,
            fingerprint: Fingerprint([0; 32]),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        self.core.handle_connected(self.asked, Arc::new(identity), address);
        self.asked
    }

    /// Asks without waiting for the quorum. Returns the token.
    fn ask(&mut self, connection: u64, request: MetaRequest) -> u64 {
        self.asked += 1;
        let now = self.now();
        self.core.handle_request(connection, self.asked, request, &mut self.quorum, now);
        self.poll();
        self.asked
    }

    fn answer(&mut self, connection: u64, request: MetaRequest) -> MetaResponse {
        let token = self.ask(connection, request);
        self.settle();
        self.answers.remove(&token).expect("an answer")
    }

    fn open(&mut self, nonce: u128) -> Owner {
        let connection = self.connect();
        match self.answer(connection, opens(nonce)) {
            Ok(MetaReply::Session { session, .. }) => Owner { connection, session },
            other => panic!("a session was answered by {other:?}"),
        }
    }

    fn attach(&mut self, owner: Owner, nonce: u128, open: &[(InodeId, u64)]) -> Owner {
        let connection = self.connect();
        let request = MetaRequest::Attach { session: owner.session, nonce, open: open.to_vec() };
        self.answer(connection, request).expect("the session lives");
        Owner { connection, ..owner }
    }

    fn write(&mut self, owner: Owner, low_water: u64, op: WriteOp) -> MetaResponse {
        self.sequence += 1;
        let request = MetaRequest::Write { sequence: self.sequence, low_water, op };
        self.answer(owner.connection, request)
    }

    /// Lets time pass while `alive` are heard.
    fn pass(&mut self, ms: u64, alive: &[Owner]) {
        let end = self.ms + ms;
        while self.ms < end {
            self.ms += 100;
            if self.ms.is_multiple_of(1_000) {
                for owner in alive {
                    let _ = self.ask(owner.connection, MetaRequest::Heartbeat { low_water: 0 });
                }
            }
            let now = self.now();
            self.core.handle_tick(&mut self.quorum, now);
            self.poll();
            self.settle();
        }
    }

    fn rows(&self, table: u8) -> usize {
        self.core.machine().committed().scan(&[table], &[table + 1], usize::MAX).expect("memory").len()
    }
}

fn opened(response: MetaResponse) -> InodeId {
    match response {
        Ok(MetaReply::Opened(view)) => view.attr.inode,
        other => panic!("a file was to be opened: {other:?}"),
    }
}

#[test]
fn a_change_is_answered_when_it_is_committed() {
    let mut rig = Rig::new();
    let owner = rig.open(1);
    let request = MetaRequest::Write { sequence: 1, low_water: 1, op: create("f", None) };
    let token = rig.ask(owner.connection, request);
    assert!(!rig.answers.contains_key(&token), "it is proposed only");
    rig.commit();
    assert!(matches!(rig.answers.remove(&token), Some(Ok(MetaReply::Entry(_)))));
}

#[test]
fn a_read_sees_what_is_committed_once_a_round_or_the_lease_proves_it_new() {
    let mut rig = Rig::new();
    let owner = rig.open(1);
    let request = MetaRequest::Write { sequence: 1, low_water: 1, op: create("f", None) };
    rig.ask(owner.connection, request);
    let read = rig.ask(owner.connection, lookup("f"));
    assert!(!rig.answers.contains_key(&read), "no round has ended, and there is no lease");
    rig.end_rounds();
    assert_eq!(rig.answers.remove(&read), Some(Err(MetaError::Errno(Errno::ENOENT))), "it is proposed only");
    rig.quorum.has_lease = true;
    rig.commit();
    let read = rig.ask(owner.connection, lookup("f"));
    assert!(matches!(rig.answers.remove(&read), Some(Ok(MetaReply::Entry(_)))));
}

/// A deposed leader confirms nothing.
#[test]
fn a_heartbeat_is_answered_after_a_round_that_began_after_it() {
    let mut rig = Rig::new();
    rig.quorum.has_lease = true;
    let owner = rig.open(1);
    let beat = rig.ask(owner.connection, MetaRequest::Heartbeat { low_water: 0 });
    assert!(!rig.answers.contains_key(&beat), "the lease is not enough");
    rig.end_rounds();
    assert!(matches!(rig.answers.remove(&beat), Some(Ok(MetaReply::Session { .. }))));
}

/// Whoever was told that its session goes on would count on it after its end.
#[test]
fn a_session_whose_end_is_under_way_is_not_renewed() {
    let mut rig = Rig::new();
    let owner = rig.open(1);
    while rig.quorum.proposed.is_empty() {
        rig.ms += 100;
        let now = rig.now();
        rig.core.handle_tick(&mut rig.quorum, now);
    }
    let beat = rig.ask(owner.connection, MetaRequest::Heartbeat { low_water: 0 });
    let connection = rig.connect();
    let attach = MetaRequest::Attach { session: owner.session, nonce: 1, open: Vec::new() };
    let attach = rig.ask(connection, attach);
    rig.end_rounds();
    assert!(
        !rig.answers.contains_key(&beat) && !rig.answers.contains_key(&attach),
        "its end is not committed"
    );
    rig.settle();
    for token in [beat, attach] {
        assert_eq!(rig.answers.remove(&token), Some(Err(MetaError::SessionExpired)));
    }
}

#[test]
fn a_retry_under_the_next_leader_gets_the_first_answer() {
    let mut rig = Rig::new();
    let owner = rig.open(1);
    let first = rig.write(owner, 1, create("f", None));
    rig.lead();
    let owner = rig.attach(owner, 1, &[]);
    let request = MetaRequest::Write { sequence: rig.sequence, low_water: 1, op: create("f", None) };
    assert_eq!(rig.answer(owner.connection, request), first);
}

#[test]
fn time_rises_although_the_clock_goes_back() {
    let mut rig = Rig::new();
    let owner = rig.open(1);
    rig.write(owner, 1, create("f", None)).expect("a new name");
    let before = rig.core.machine().progress().time;
    rig.wall_offset = -100_000;
    rig.write(owner, 1, create("g", None)).expect("a new name");
    assert!(rig.core.machine().progress().time > before);
}

/// The answer to the first attempt was lost with the leader: nobody knows whether its owner learned of the session.
#[test]
fn a_session_asked_for_again_under_the_next_leader_pins_nothing_for_ever() {
    let mut rig = Rig::new();
    let first = rig.open(1);
    rig.lead();
    let owner = rig.open(1);
    rig.sequence = 0;
    rig.write(owner, 1, create("f", None)).expect("a new name");
    rig.write(owner, 1, unlink("f")).expect("it is there");
    rig.pass(2 * u64::from(TIMEOUT_MS), &[owner]);
    assert_eq!((rig.rows(key::PIN), rig.rows(key::SESSION)), (0, 1));
    assert_ne!(first.session, owner.session);
}

/// The reply to a request that opened a file keeps it until the low-water mark is past it, and no longer.
#[test]
fn what_only_a_forgotten_reply_kept_open_is_given_back() {
    for by_heartbeat in [false, true] {
        let mut rig = Rig::new();
        let (owner, other) = (rig.open(1), rig.open(2));
        opened(rig.write(owner, 1, create("f", Some(1))));
        rig.lead();
        let owner = rig.attach(owner, 1, &[]);
        let other = rig.attach(other, 2, &[]);
        rig.write(other, 1, unlink("f")).expect("it is there");
        assert_eq!(rig.rows(key::PIN), 1, "a retry may still come for it");
        if by_heartbeat {
            rig.answer(owner.connection, MetaRequest::Heartbeat { low_water: 2 }).expect("it lives");
            rig.settle();
        } else {
            rig.write(owner, 2, create("g", None)).expect("a new name");
        }
        assert_eq!(rig.rows(key::PIN), 0, "nobody came for it");
    }
}

#[test]
fn the_last_close_gives_an_unlinked_file_back() {
    let mut rig = Rig::new();
    let owner = rig.open(1);
    let inode = opened(rig.write(owner, 1, create("f", Some(1))));
    rig.write(owner, 2, unlink("f")).expect("it is there");
    assert_eq!(rig.rows(key::PIN), 1);
    let close = MetaRequest::CloseFile { inode, handle: 1, release_hold: false };
    rig.answer(owner.connection, close).expect("it was open");
    assert_eq!(rig.rows(key::PIN), 0);
}
