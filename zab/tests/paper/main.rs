//! One peer, messages by hand: the rules of the protocol, each with its place in the paper (DSN 2011) or the failure
//! of another implementation that it excludes. What needs rare timing to matter in simulation is stated here plainly.

mod membership;

use bytes::Bytes;
use zab::{
    Body, ChangeError, Config, DataUuid, Entry, Membership, MembershipChange, Message, Output, Peer, PeerId,
    Progress, Record, Recovered, Role, SnapshotDescriptor, Standing, Vote, Zxid,
};

const A: PeerId = PeerId(1);
const B: PeerId = PeerId(2);
const C: PeerId = PeerId(3);
const D: PeerId = PeerId(4);

fn uuid(id: PeerId) -> DataUuid {
    DataUuid(u128::from(id.0) + 100)
}

fn z(epoch: u64, counter: u64) -> Zxid {
    Zxid::new(epoch, counter)
}

fn entry(epoch: u64, counter: u64) -> Entry {
    Entry::txn(z(epoch, counter), Bytes::from_static(b"txn"))
}

fn record(id: PeerId, epoch: u64) -> Record {
    let membership = Membership::bound([A, B, C].map(|id| (id, uuid(id))));
    Record { accepted_epoch: epoch, current_epoch: epoch, ..Record::fresh(uuid(id), membership) }
}

/// A peer under test, with a clock and a disk that syncs when told.
struct Rig {
    peer: Peer,
    now: u64,
    issued: u64,
    outputs: Vec<Output>,
}

impl Rig {
    fn new(record: Record, log: Vec<Entry>) -> Rig {
        Rig::starting(A, record, log, Zxid::ZERO)
    }

    fn starting(id: PeerId, record: Record, log: Vec<Entry>, applied: Zxid) -> Rig {
        let recovered = Recovered { record, log, applied };
        let peer = Peer::new(Config::new(id), recovered, 0, 7).expect("a good start");
        let mut rig = Rig { peer, now: 0, issued: 0, outputs: Vec::new() };
        rig.poll();
        rig
    }

    fn poll(&mut self) {
        while let Some(output) = self.peer.poll_output() {
            if let Output::Append { token, .. }
            | Output::Truncate { token, .. }
            | Output::SaveRecord { token, .. }
            | Output::ProbeDisk { token }
            | Output::InstallSnapshot { token, .. } = output
            {
                self.issued = token;
            }
            self.outputs.push(output);
        }
        self.peer.validate().expect("the state agrees with itself");
    }

    fn sync(&mut self) -> &mut Rig {
        self.peer.handle_durable(self.issued, self.now);
        self.poll();
        self
    }

    fn wait(&mut self, ms: u64) -> &mut Rig {
        self.now += ms;
        self.peer.handle_tick(self.now);
        self.poll();
        self
    }

    fn hear(&mut self, from: PeerId, body: Body) -> &mut Rig {
        self.hear_from_directory(from, uuid(from), body)
    }

    fn hear_from_directory(&mut self, from: PeerId, uuid: DataUuid, body: Body) -> &mut Rig {
        self.peer.handle_message(from, Message { uuid, body }, self.now);
        self.poll();
        self
    }

    /// What was put out since the last call.
    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The messages to `to` since the last call of this or of `take`.
    fn said_to(&mut self, to: PeerId) -> Vec<Body> {
        let to_it = |output| match output {
            Output::Send { to: other, message } if other == to => Some(message.body),
            _ => None,
        };
        self.take().into_iter().filter_map(to_it).collect()
    }

    /// Makes it join `leader`, which says that it is established. Returns the session.
    fn join(&mut self, leader: PeerId) -> u64 {
        self.take();
        self.hear(
            leader,
            Body::Notification {
                round: 1,
                vote: None,
                standing: Standing::Leading { epoch: 9 },
                membership: 1,
            },
        );
        let session = |body| match body {
            Body::FollowerInfo { session, .. } => Some(session),
            _ => None,
        };
        self.said_to(leader).into_iter().find_map(session).expect("it joins")
    }

    /// Brings it to the point where it receives history of epoch `epoch` after `common`.
    fn join_and_sync(&mut self, leader: PeerId, epoch: u64, common: Zxid) -> u64 {
        let session = self.join(leader);
        self.hear(leader, Body::NewEpoch { session, epoch, established: true, counts: true }).sync();
        self.hear(leader, Body::SyncFrom { session, epoch, seq: 1, common });
        self.take();
        session
    }

    /// Brings it into broadcast, with its log ending at `last`.
    fn follow(&mut self, leader: PeerId, epoch: u64, last: Zxid) -> u64 {
        let session = self.join_and_sync(leader, epoch, last);
        let membership = record(A, 0).membership;
        self.hear(leader, Body::NewLeader { session, epoch, seq: 2, last, membership }).sync();
        self.hear(leader, Body::UpToDate { session, epoch, seq: 3, commit: last });
        assert_eq!(self.peer.role(), Role::Following { leader });
        self.take();
        session
    }

    /// Makes it a candidate that B and C want to follow, in epoch 1 or the next. Returns that epoch.
    fn stand(&mut self) -> u64 {
        self.wait(500);
        let vote = Vote {
            current_epoch: self.peer.record().current_epoch,
            last: self.peer.last_zxid(),
            candidate: self.peer.id(),
        };
        for voter in [B, C] {
            self.hear(
                voter,
                Body::Notification { round: 1, vote: Some(vote), standing: Standing::Looking, membership: 1 },
            );
        }
        self.take();
        for follower in [B, C] {
            self.hear(follower, info(follower, 0));
        }
        self.peer.record().accepted_epoch
    }

    /// Makes it the leader of the epoch returned, with B and C in sync.
    fn lead(&mut self) -> u64 {
        let epoch = self.stand();
        self.sync();
        let last = self.peer.last_zxid();
        for follower in [B, C] {
            self.hear(follower, ack_epoch(follower, epoch, 0, Zxid::ZERO));
        }
        self.sync();
        for follower in [B, C] {
            self.hear(follower, ack(follower, epoch, 0, last));
        }
        assert_eq!(self.peer.role(), Role::Leading { epoch });
        self.take();
        epoch
    }
}

fn session(of: PeerId) -> u64 {
    u64::from(of.0) * 1_000
}

fn info(from: PeerId, accepted_epoch: u64) -> Body {
    Body::FollowerInfo { session: session(from), accepted_epoch, may_vote: true }
}

fn ack_epoch(from: PeerId, epoch: u64, current_epoch: u64, last: Zxid) -> Body {
    let tails = vec![last, Zxid::ZERO];
    Body::AckEpoch { session: session(from), epoch, current_epoch, last, tails }
}

fn ack(from: PeerId, epoch: u64, round: u64, durable: Zxid) -> Body {
    let progress = Progress { durable, synced: true, disk_ok: true, membership: 1 };
    Body::Ack { session: session(from), epoch, round, progress }
}

fn is_synced_ack(body: &Body) -> bool {
    matches!(body, Body::Ack { progress, .. } if progress.synced)
}

// ---- phase 1: discovery -------------------------------------------------------------------------------------------

/// f.1.1: the promise (`f.p`) is on stable storage before ACK-E leaves; a crash would otherwise forget it.
#[test]
fn a_promise_is_on_disk_before_it_is_given() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.join(C);
    rig.hear(C, Body::NewEpoch { session, epoch: 2, established: true, counts: true });
    assert!(rig.said_to(C).iter().all(|body| !matches!(body, Body::AckEpoch { .. })));
    rig.sync();
    assert!(rig.said_to(C).iter().any(|body| matches!(body, Body::AckEpoch { epoch: 2, .. })));
}

/// l.1.1: a candidate that crashed after it told an epoch, but before it knew it itself, could choose it twice.
#[test]
fn an_epoch_is_on_the_candidates_disk_before_anybody_hears_it() {
    let mut rig = Rig::new(record(A, 4), vec![]);
    assert_eq!(rig.stand(), 5);
    assert!(rig.said_to(B).iter().all(|body| !matches!(body, Body::NewEpoch { .. })));
    rig.sync();
    assert!(rig.said_to(B).iter().any(|body| matches!(body, Body::NewEpoch { epoch: 5, .. })));
}

/// l.1.1: the epoch is larger than every promise of the quorum.
#[test]
fn the_new_epoch_exceeds_every_promise() {
    let mut rig = Rig::new(record(A, 4), vec![]);
    rig.wait(500);
    let vote = Vote { current_epoch: 4, last: Zxid::ZERO, candidate: A };
    for voter in [B, C] {
        rig.hear(
            voter,
            Body::Notification { round: 1, vote: Some(vote), standing: Standing::Looking, membership: 1 },
        );
    }
    rig.hear(B, info(B, 17));
    assert_eq!(rig.peer.record().accepted_epoch, 18);
}

/// f.1.1: a promise of a later epoch is not taken back.
#[test]
fn an_earlier_epoch_is_refused() {
    let mut rig = Rig::new(record(A, 5), vec![]);
    let session = rig.join(C);
    rig.hear(C, Body::NewEpoch { session, epoch: 4, established: true, counts: true });
    assert!(rig.said_to(C).iter().any(|body| matches!(body, Body::Leave { .. })));
    assert_eq!(rig.peer.record().accepted_epoch, 5);
}

/// Two candidates may choose the same epoch. Whoever promised it to one does not help to establish the other.
#[test]
fn one_epoch_is_promised_to_one_candidate() {
    let mut rig = Rig::new(Record { accepted_leader: Some(B), ..record(A, 5) }, vec![]);
    let session = rig.join(C);
    rig.hear(C, Body::NewEpoch { session, epoch: 5, established: false, counts: true }).sync();
    assert!(rig.said_to(C).iter().all(|body| !matches!(body, Body::AckEpoch { .. })));
}

/// Elections only choose. The candidate proves that no member of its quorum has a newer history, or gives up.
#[test]
fn a_candidate_behind_its_quorum_gives_up() {
    let mut rig = Rig::new(record(A, 1), vec![entry(1, 1)]);
    let epoch = rig.stand();
    rig.sync();
    rig.take();
    rig.hear(B, ack_epoch(B, epoch, 1, z(1, 2)));
    assert!(rig.said_to(B).iter().any(|body| matches!(body, Body::Leave { resigned: true, .. })));
}

/// A voter that promised a later epoch to a candidate which failed can follow no earlier one: the leader makes room.
#[test]
fn a_leader_steps_down_for_a_voter_that_promised_more() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.hear(C, Body::FollowerInfo { session: 77, accepted_epoch: epoch + 3, may_vote: true });
    assert_eq!(rig.peer.role(), Role::Looking);
}

// ---- phase 2: synchronization -------------------------------------------------------------------------------------

/// f.2.1, ZOOKEEPER-3911, 4646, 4643: fsync the history, then the epoch, then acknowledge.
#[test]
fn history_then_epoch_then_ack() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.join_and_sync(C, 2, Zxid::ZERO);
    let entries = vec![entry(1, 1), entry(1, 2)];
    let prev = Zxid::ZERO;
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 2, prev, entries, commit: z(1, 2) });
    let membership = record(A, 0).membership;
    rig.hear(C, Body::NewLeader { session, epoch: 2, seq: 3, last: z(1, 2), membership });
    let outputs = rig.take();
    let position = |what: fn(&Output) -> bool| outputs.iter().position(what);
    let append = position(|output| matches!(output, Output::Append { .. })).expect("the history is written");
    let save =
        position(|output| matches!(output, Output::SaveRecord { record, .. } if record.current_epoch == 2));
    assert!(append < save.expect("the epoch is written"));
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Send { message, .. } if is_synced_ack(&message.body)))
    );
    rig.sync();
    assert!(rig.said_to(C).iter().any(is_synced_ack));
}

/// ZOOKEEPER-2418, 4925: what does not follow the end of the log is not appended, whoever sends it.
#[test]
fn a_gap_ends_the_session() {
    let mut rig = Rig::new(record(A, 1), vec![entry(1, 1)]);
    let session = rig.join_and_sync(C, 2, z(1, 1));
    let entries = vec![entry(1, 3)];
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 2, prev: z(1, 2), entries, commit: Zxid::ZERO });
    assert_eq!(rig.peer.last_zxid(), z(1, 1));
    assert!(rig.said_to(C).iter().any(|body| matches!(body, Body::Leave { .. })));
}

/// A missing end of an epoch looks contiguous by counters alone.
#[test]
fn a_missing_end_of_an_epoch_is_a_gap() {
    let mut rig = Rig::new(record(A, 1), vec![entry(1, 1)]);
    let session = rig.join_and_sync(C, 2, z(1, 1));
    let entries = vec![entry(2, 1)];
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 2, prev: z(1, 2), entries, commit: Zxid::ZERO });
    assert_eq!(rig.peer.last_zxid(), z(1, 1));
    assert_eq!(rig.peer.counters().gaps, 1);
}

/// A message lost by a reset is noticed at the next heartbeat, even if nothing else follows.
#[test]
fn a_lost_end_of_the_stream_is_noticed() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.follow(C, 2, Zxid::ZERO);
    rig.hear(C, Body::Heartbeat { session, epoch: 2, round: 4, commit: Zxid::ZERO, sent: 4 });
    assert_eq!(rig.peer.role(), Role::Looking);
    assert_eq!(rig.peer.counters().gaps, 1);
}

/// Specification issue 2: the same PROPOSE twice is legal.
#[test]
fn a_repeated_message_is_dropped() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.follow(C, 2, Zxid::ZERO);
    for _ in 0..2 {
        let entries = vec![entry(2, 1)];
        rig.hear(
            C,
            Body::Entries { session, epoch: 2, seq: 4, prev: Zxid::ZERO, entries, commit: Zxid::ZERO },
        );
    }
    assert_eq!((rig.peer.last_zxid(), rig.peer.role()), (z(2, 1), Role::Following { leader: C }));
    assert_eq!(rig.peer.counters().duplicates, 1);
}

/// ZOOKEEPER-4394: a COMMIT between NEWLEADER and UPTODATE is remembered and acted on afterwards.
#[test]
fn an_early_commit_waits_for_up_to_date() {
    let mut rig = Rig::new(record(A, 1), vec![entry(1, 1)]);
    let session = rig.join_and_sync(C, 2, z(1, 1));
    let membership = record(A, 0).membership;
    rig.hear(C, Body::NewLeader { session, epoch: 2, seq: 2, last: z(1, 1), membership });
    rig.hear(C, Body::Commit { session, epoch: 2, commit: z(1, 1) }).sync();
    assert!(!rig.take().iter().any(|output| matches!(output, Output::Deliver { .. })));
    rig.hear(C, Body::UpToDate { session, epoch: 2, seq: 3, commit: Zxid::ZERO });
    assert!(
        rig.take().iter().any(|output| matches!(output, Output::Deliver { zxid, .. } if *zxid == z(1, 1)))
    );
}

/// ZOOKEEPER-3642, 5094: the last zxid moves when the snapshot is in use on disk, not when its bytes are here.
#[test]
fn a_snapshot_counts_when_it_is_installed() {
    let mut rig = Rig::new(record(A, 1), vec![entry(1, 1)]);
    let session = rig.join(C);
    rig.hear(C, Body::NewEpoch { session, epoch: 2, established: true, counts: true }).sync();
    let snapshot = SnapshotDescriptor { id: 5, zxid: z(1, 9), length: 1, crc: 0 };
    rig.hear(C, Body::Snapshot { session, epoch: 2, seq: 1, snapshot, membership: record(A, 0).membership });
    assert!(
        !rig.take().iter().any(|output| matches!(output, Output::InstallSnapshot { .. })),
        "no bytes yet"
    );
    rig.peer.snapshot_received(C, snapshot, rig.now);
    rig.poll();
    assert_eq!(rig.peer.last_zxid(), z(1, 1));
    let installs = |output: &Output| match output {
        Output::InstallSnapshot { record, .. } => {
            record.log_start == z(1, 9) && record.log_generation == 1 && record.current_epoch == 1
        }
        _ => false,
    };
    assert!(rig.take().iter().any(installs));
    rig.sync();
    assert_eq!((rig.peer.last_zxid(), rig.peer.delivered()), (z(1, 9), z(1, 9)));
}

/// Only a log that no longer reaches back is replaced by a snapshot; NEWLEADER follows its installation.
#[test]
fn new_leader_follows_the_snapshot() {
    let start = Record { log_start: z(1, 5), ..record(A, 1) };
    let mut rig = Rig::starting(A, start, vec![entry(1, 6)], z(1, 5));
    let epoch = rig.stand();
    rig.sync();
    rig.hear(B, ack_epoch(B, epoch, 1, z(1, 2)));
    rig.hear(C, ack_epoch(C, epoch, 1, z(1, 6))).sync();
    let outputs = rig.take();
    assert!(outputs.iter().any(|output| matches!(output, Output::NeedSnapshot { to, .. } if *to == B)));
    let snapshot = SnapshotDescriptor { id: 5, zxid: z(1, 5), length: 1, crc: 0 };
    rig.peer.snapshot_started(B, session(B), z(1, 5));
    rig.peer.snapshot_sent(B, session(B), snapshot, rig.now);
    rig.poll();
    let said = rig.said_to(B);
    assert!(said.iter().any(|body| matches!(body, Body::Snapshot { .. })));
    assert!(!said.iter().any(|body| matches!(body, Body::NewLeader { .. } | Body::Entries { .. })));
    let progress = Progress { durable: z(1, 5), synced: false, disk_ok: true, membership: 1 };
    rig.hear(B, Body::Ack { session: session(B), epoch, round: 0, progress });
    let said = rig.said_to(B);
    let entries =
        said.iter().position(|body| matches!(body, Body::Entries { .. })).expect("from the snapshot on");
    let new_leader = said.iter().position(|body| matches!(body, Body::NewLeader { .. })).expect("the end");
    assert!(entries < new_leader);
}

/// A leader that would cut what was committed is refused, loudly.
#[test]
fn committed_transactions_are_not_cut() {
    let mut rig = Rig::starting(A, record(A, 1), vec![entry(1, 1), entry(1, 2)], z(1, 2));
    rig.join_and_sync(C, 2, z(1, 1));
    assert_eq!((rig.peer.last_zxid(), rig.peer.counters().refused_truncations), (z(1, 2), 1));
}

/// ZOOKEEPER-2845, 4712: nothing is said before the previous role's writes are on disk.
#[test]
fn a_new_role_waits_for_the_old_ones_writes() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.follow(C, 2, Zxid::ZERO);
    let entries = vec![entry(2, 1)];
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 4, prev: Zxid::ZERO, entries, commit: Zxid::ZERO });
    rig.hear(C, Body::Leave { session, resigned: true });
    rig.take();
    rig.wait(1_000);
    assert!(rig.take().iter().all(|output| !matches!(output, Output::Send { .. })));
    rig.sync();
    let last = |body: Body| match body {
        Body::Notification { vote: Some(vote), .. } => Some(vote.last),
        _ => None,
    };
    assert_eq!(rig.said_to(B).into_iter().find_map(last), Some(z(2, 1)));
}

// ---- phase 3: broadcast -------------------------------------------------------------------------------------------

/// f.3.1: a proposal is acknowledged when it is on disk.
#[test]
fn a_proposal_is_acknowledged_when_it_is_on_disk() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.follow(C, 2, Zxid::ZERO);
    let entries = vec![entry(2, 1)];
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 4, prev: Zxid::ZERO, entries, commit: Zxid::ZERO });
    let acks_it = |body: &Body| matches!(body, Body::Ack { progress, .. } if progress.durable == z(2, 1));
    rig.hear(C, Body::Heartbeat { session, epoch: 2, round: 4, commit: Zxid::ZERO, sent: 4 });
    assert!(!rig.said_to(C).iter().any(acks_it));
    rig.sync();
    assert!(rig.said_to(C).iter().any(acks_it));
}

/// ZOOKEEPER-4882: what is committed but not on this disk is not applied here.
#[test]
fn a_commit_is_delivered_when_it_is_on_this_disk() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.follow(C, 2, Zxid::ZERO);
    let entries = vec![entry(2, 1)];
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 4, prev: Zxid::ZERO, entries, commit: z(2, 1) });
    assert!(!rig.take().iter().any(|output| matches!(output, Output::Deliver { .. })));
    rig.sync();
    assert!(rig.take().iter().any(|output| matches!(output, Output::Deliver { .. })));
}

/// l.3.2: a quorum of disks commits, the leader's own among them or not; UPTODATE and COMMIT follow.
#[test]
fn a_quorum_of_disks_commits() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    let zxid = rig.peer.propose(Bytes::from_static(b"x"), rig.now).expect("it leads");
    rig.poll();
    rig.hear(B, ack(B, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), Zxid::ZERO, "one disk of three");
    rig.hear(C, ack(C, epoch, 0, zxid));
    assert_eq!(
        (rig.peer.committed(), rig.peer.delivered()),
        (zxid, Zxid::ZERO),
        "not on the leader's own disk yet"
    );
    rig.sync();
    assert_eq!(rig.peer.delivered(), zxid);
    assert!(rig.said_to(B).iter().any(|body| matches!(body, Body::Commit { commit, .. } if *commit == zxid)));
}

/// Specification issue 1: proposals flow to a follower from the instant its synchronization point is fixed.
#[test]
fn proposals_reach_a_follower_that_has_not_acknowledged_new_leader() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.hear(C, Body::FollowerInfo { session: 77, accepted_epoch: 0, may_vote: true });
    let body = ack_epoch(C, epoch, 0, Zxid::ZERO);
    let Body::AckEpoch { current_epoch, last, tails, .. } = body else { unreachable!("it is one") };
    rig.hear(C, Body::AckEpoch { session: 77, epoch, current_epoch, last, tails });
    rig.take();
    let zxid = rig.peer.propose(Bytes::from_static(b"x"), rig.now).expect("it leads");
    rig.poll();
    let has_it = |body: &Body| matches!(body, Body::Entries { entries, .. } if entries[0].zxid == zxid);
    assert!(rig.said_to(C).iter().any(has_it));
}

/// Specification issue 3: UPTODATE says what is committed now, not what was when the synchronization began.
#[test]
fn up_to_date_carries_the_newest_commit() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.hear(C, Body::FollowerInfo { session: 77, accepted_epoch: 0, may_vote: true });
    let body = ack_epoch(C, epoch, 0, Zxid::ZERO);
    let Body::AckEpoch { current_epoch, last, tails, .. } = body else { unreachable!("it is one") };
    rig.hear(C, Body::AckEpoch { session: 77, epoch, current_epoch, last, tails });
    let zxid = rig.peer.propose(Bytes::from_static(b"x"), rig.now).expect("it leads");
    rig.poll();
    rig.sync().hear(B, ack(B, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), zxid);
    rig.take();
    let Body::Ack { epoch, round, progress, .. } = ack(C, epoch, 0, Zxid::ZERO) else {
        unreachable!("it is one")
    };
    rig.hear(C, Body::Ack { session: 77, epoch, round, progress });
    let says_so = |body: &Body| matches!(body, Body::UpToDate { commit, .. } if *commit == zxid);
    assert!(rig.said_to(C).iter().any(says_so));
}

/// Acks of a history that was not adopted (NEWLEADER unacknowledged) do not commit.
#[test]
fn acks_count_after_ack_ld() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.hear(B, Body::Leave { session: session(B), resigned: false });
    rig.hear(C, Body::FollowerInfo { session: 77, accepted_epoch: 0, may_vote: true });
    let (last, tails) = (Zxid::ZERO, vec![Zxid::ZERO]);
    rig.hear(C, Body::AckEpoch { session: 77, epoch, current_epoch: 0, last, tails });
    let zxid = rig.peer.propose(Bytes::from_static(b"x"), rig.now).expect("it leads");
    rig.poll();
    rig.sync();
    let progress = Progress { durable: zxid, synced: false, disk_ok: true, membership: 1 };
    rig.hear(C, Body::Ack { session: 77, epoch, round: 0, progress });
    assert_eq!(rig.peer.committed(), Zxid::ZERO);
    let progress = Progress { synced: true, ..progress };
    rig.hear(C, Body::Ack { session: 77, epoch, round: 0, progress });
    assert_eq!(rig.peer.committed(), zxid);
}

/// Acks for what was never sent end the session instead of committing it.
#[test]
fn an_impossible_ack_is_refused() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.hear(B, ack(B, epoch, 0, z(epoch, 50)));
    assert_eq!((rig.peer.committed(), rig.peer.counters().malformed), (Zxid::ZERO, 1));
}

#[test]
fn proposals_in_flight_are_bounded() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    rig.lead();
    let max = Config::new(A).inflight_entries_max;
    let taken = (0..max + 10).filter(|_| rig.peer.propose(Bytes::new(), 0).is_ok()).count();
    assert_eq!(taken, max);
    assert_eq!(rig.peer.propose(Bytes::new(), 0), Err(zab::ProposeError::Overloaded));
}

// ---- who counts ---------------------------------------------------------------------------------------------------

/// A voter is (id, directory): a wiped one follows, and counts for nothing.
#[test]
fn a_foreign_directory_does_not_count() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    rig.wait(500);
    let vote = Vote { current_epoch: 1, last: Zxid::ZERO, candidate: A };
    for voter in [B, C] {
        let body =
            Body::Notification { round: 1, vote: Some(vote), standing: Standing::Looking, membership: 1 };
        rig.hear_from_directory(voter, DataUuid(1), body);
    }
    rig.wait(100);
    for follower in [B, C] {
        rig.hear_from_directory(follower, DataUuid(1), info(follower, 0));
    }
    assert_eq!(rig.peer.record().accepted_epoch, 1, "nobody to found an epoch with");
    assert!(rig.peer.counters().foreign >= 2);
}

/// Damage took what this peer had acknowledged: until a leader brought it back, it has no vote.
#[test]
fn a_damaged_log_does_not_vote() {
    let mut rig = Rig::new(Record { needs_sync: true, ..record(A, 1) }, vec![entry(1, 1)]);
    rig.wait(1_000);
    assert!(rig.said_to(B).iter().all(|body| !matches!(body, Body::Notification { vote: Some(_), .. })));
    let session = rig.join_and_sync(C, 2, z(1, 1));
    let membership = record(A, 0).membership;
    rig.hear(C, Body::NewLeader { session, epoch: 2, seq: 2, last: z(1, 1), membership }).sync();
    assert!(rig.peer.record().needs_sync, "only an established leader has everything");
    rig.hear(C, Body::UpToDate { session, epoch: 2, seq: 3, commit: z(1, 1) }).sync();
    assert!(!rig.peer.record().needs_sync);
}

/// A state machine ahead of its log means that the log lost something.
#[test]
fn a_log_shorter_than_the_state_is_damage() {
    let rig = Rig::starting(A, record(A, 1), vec![entry(1, 1)], z(1, 4));
    let record = rig.peer.record();
    assert!(record.needs_sync);
    assert_eq!((record.log_start, record.log_generation), (z(1, 4), 1));
}

// ---- leases, reads, disks -----------------------------------------------------------------------------------------

#[test]
fn the_lease_ends_before_the_followers_guards() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    assert!(!rig.peer.lease_valid(rig.now), "no round was confirmed");
    rig.wait(50);
    let sent_at = rig.now;
    let round = |body| match body {
        Body::Heartbeat { round, .. } => Some(round),
        _ => None,
    };
    let round = rig.said_to(B).into_iter().find_map(round).expect("a heartbeat");
    rig.now += 30;
    rig.hear(B, ack(B, epoch, round, Zxid::ZERO));
    assert!(rig.peer.lease_valid(sent_at + 349));
    assert!(!rig.peer.lease_valid(sent_at + 350), "counted from the sending, minus the margin");
}

/// A follower that heard a leader does not help elect another within the election timeout.
#[test]
fn a_follower_guards_its_leaders_lease() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let old = rig.follow(C, 2, Zxid::ZERO);
    rig.wait(100);
    rig.hear(C, Body::Heartbeat { session: old, epoch: 2, round: 1, commit: Zxid::ZERO, sent: 3 });
    rig.hear(C, Body::Leave { session: old, resigned: false });
    rig.take();
    rig.wait(399);
    assert!(rig.said_to(B).iter().all(|body| !matches!(body, Body::Notification { vote: Some(_), .. })));
    rig.wait(1);
    assert!(rig.said_to(B).iter().any(|body| matches!(body, Body::Notification { vote: Some(_), .. })));
}

/// A restarted peer does not know whom it heard.
#[test]
fn a_restarted_peer_waits_before_it_votes() {
    let votes = |body: &Body| matches!(body, Body::Notification { vote: Some(_), .. });
    let mut rig = Rig::new(record(A, 1), vec![]);
    rig.wait(399);
    assert!(!rig.said_to(B).iter().any(votes));
    rig.wait(1);
    assert!(rig.said_to(B).iter().any(votes));
    let mut fresh = Rig::new(record(A, 0), vec![]);
    assert!(fresh.said_to(B).iter().any(votes), "a new cluster has nothing to wait for");
}

#[test]
fn a_read_is_answered_by_a_round_begun_after_it() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    let ready =
        |outputs: Vec<Output>| outputs.iter().any(|output| matches!(output, Output::ReadReady { .. }));
    rig.wait(50);
    rig.peer.read_index(1, rig.now).expect("it leads");
    rig.poll();
    let rounds = |body| match body {
        Body::Heartbeat { round, .. } => Some(round),
        _ => None,
    };
    let rounds: Vec<u64> = rig.said_to(B).into_iter().filter_map(rounds).collect();
    let [before, after] = rounds[..] else { panic!("two rounds: {rounds:?}") };
    rig.hear(B, ack(B, epoch, before, Zxid::ZERO));
    assert!(!ready(rig.take()));
    rig.hear(B, ack(B, epoch, after, Zxid::ZERO));
    assert!(ready(rig.take()));
}

/// lavinmq#2151: a leader with a hung disk keeps heartbeating.
#[test]
fn a_stalled_disk_loses_leadership_unless_its_quorum_stalls_too() {
    for (disk_ok, role) in [(true, Role::Looking), (false, Role::Leading { epoch: 2 })] {
        let mut rig = Rig::new(record(A, 1), vec![]);
        let epoch = rig.lead();
        rig.peer.propose(Bytes::new(), rig.now).expect("it leads");
        rig.poll();
        for _ in 0..45 {
            rig.wait(50);
            for follower in [B, C] {
                let progress = Progress { durable: Zxid::ZERO, synced: true, disk_ok, membership: 1 };
                rig.hear(follower, Body::Ack { session: session(follower), epoch, round: 0, progress });
            }
        }
        assert_eq!(rig.peer.role(), role);
    }
}

/// A failed write ends the role at once and for good.
#[test]
fn a_failed_disk_ends_everything() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    rig.lead();
    rig.peer.handle_storage_failed();
    rig.poll();
    assert!(rig.said_to(B).iter().any(|body| matches!(body, Body::Leave { resigned: true, .. })));
    assert_eq!(rig.peer.role(), Role::Failed);
    rig.wait(10_000);
    rig.hear(B, info(B, 1)).sync();
    assert!(rig.take().is_empty());
}

#[test]
fn an_idle_disk_is_probed() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    rig.wait(999);
    assert!(!rig.take().iter().any(|output| matches!(output, Output::ProbeDisk { .. })));
    rig.wait(1);
    assert!(rig.take().iter().any(|output| matches!(output, Output::ProbeDisk { .. })));
}

/// A stream of nonsense is counted and changes nothing.
#[test]
fn strangers_change_nothing() {
    let mut rig = Rig::new(record(A, 1), vec![entry(1, 1)]);
    let (session, epoch, last) = (5, 3, z(3, 3));
    let membership = record(A, 0).membership;
    let progress = Progress { durable: last, synced: true, disk_ok: true, membership: 1 };
    let snapshot = SnapshotDescriptor { id: 1, zxid: last, length: 0, crc: 0 };
    let bodies = [
        Body::NewEpoch { session, epoch, established: true, counts: true },
        Body::AckEpoch { session, epoch, current_epoch: 9, last, tails: vec![] },
        Body::SyncFrom { session, epoch, seq: 1, common: Zxid::ZERO },
        Body::Snapshot { session, epoch, seq: 1, snapshot, membership: membership.clone() },
        Body::Entries { session, epoch, seq: 1, prev: z(1, 1), entries: vec![entry(3, 1)], commit: last },
        Body::NewLeader { session, epoch, seq: 1, last, membership },
        Body::UpToDate { session, epoch, seq: 1, commit: last },
        Body::Commit { session, epoch, commit: last },
        Body::Heartbeat { session, epoch, round: 9, commit: last, sent: 9 },
        Body::Ack { session, epoch, round: 9, progress },
        Body::FollowerInfo { session, accepted_epoch: u64::MAX, may_vote: true },
        Body::Leave { session, resigned: true },
    ];
    let mut leader = Rig::new(record(A, 1), vec![entry(1, 1)]);
    let role = Role::Leading { epoch: leader.lead() };
    for body in bodies {
        let before = (rig.peer.record().clone(), rig.peer.last_zxid(), rig.peer.committed(), rig.peer.role());
        rig.hear(B, body.clone());
        rig.hear(A, body.clone());
        assert_eq!(
            before,
            (rig.peer.record().clone(), rig.peer.last_zxid(), rig.peer.committed(), rig.peer.role())
        );
        leader.hear(B, body);
        assert_eq!((leader.peer.role(), leader.peer.last_zxid()), (role, z(1, 1)));
    }
}
