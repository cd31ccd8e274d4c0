//! Who the members are, and how that changes through the log.

use super::*;

fn remove(id: PeerId) -> MembershipChange {
    MembershipChange::Remove { id }
}

fn replace(id: PeerId) -> MembershipChange {
    MembershipChange::Replace { id, address: None }
}

/// What follows from removing `id` from three.
fn without(id: PeerId) -> Membership {
    let mut membership = record(A, 0).membership;
    membership.version = 2;
    membership.voters.remove(&id);
    membership.removed.push(uuid(id));
    membership
}

/// The directory of C after it lost its own.
const NEW_DISK: DataUuid = DataUuid(333);

impl Rig {
    fn change(&mut self, change: &MembershipChange) -> Result<Zxid, ChangeError> {
        let zxid = self.peer.change_membership(change, self.now);
        self.poll();
        zxid
    }

    /// The record of a follower's membership arrives with every ack.
    fn hear_ack(&mut self, from: PeerId, epoch: u64, round: u64, durable: Zxid, membership: u64) {
        let progress = Progress { durable, synced: true, disk_ok: true, membership };
        self.hear(from, Body::Ack { session: session(from), epoch, round, progress });
    }

    /// Brings a learner, whatever its directory, up to date with this leader.
    fn take_in(&mut self, id: PeerId, directory: DataUuid, epoch: u64) {
        let last = self.peer.last_zxid();
        self.hear_from_directory(id, directory, info(id, 0));
        self.hear_from_directory(id, directory, ack_epoch(id, epoch, 0, Zxid::ZERO));
        self.hear_from_directory(id, directory, ack(id, epoch, 0, last));
        self.take();
    }
}

/// A change commits by a quorum of what was before it *and* one of what comes after it.
#[test]
fn a_change_needs_a_quorum_of_the_membership_before_it() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.hear(C, Body::Leave { session: session(C), resigned: false });
    rig.take_in(C, NEW_DISK, epoch);
    let zxid = rig.change(&replace(C)).expect("C is up to date with another directory");
    rig.sync();
    rig.hear_from_directory(C, NEW_DISK, ack(C, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), Zxid::ZERO, "two of the new three, one of the old three");
    rig.hear(B, ack(B, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), zxid);
}

#[test]
fn a_change_needs_a_quorum_of_the_membership_after_it() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    let zxid = rig.change(&remove(C)).expect("B is there");
    rig.sync();
    rig.hear(C, ack(C, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), Zxid::ZERO, "two of the old three, one of the new two");
    rig.hear(B, ack(B, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), zxid);
}

/// What is proposed while a change is under way is in the same hands.
#[test]
fn what_follows_a_change_needs_both_quorums_too() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.change(&remove(C)).expect("B is there");
    let zxid = rig.peer.propose(Bytes::from_static(b"x"), rig.now).expect("it leads");
    rig.poll();
    rig.sync();
    rig.hear(C, ack(C, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), Zxid::ZERO);
    rig.hear(B, ack(B, epoch, 0, zxid));
    assert_eq!(rig.peer.committed(), zxid, "the change, and at once what follows it");
}

/// The newest membership in the log counts, committed or not: also in elections.
#[test]
fn an_election_needs_both_quorums() {
    let log = vec![Entry::membership(z(1, 1), without(C))];
    let mut rig = Rig::new(record(A, 1), log);
    rig.wait(500);
    let vote = Some(Vote { current_epoch: 1, last: z(1, 1), candidate: A });
    let notification =
        |vote| Body::Notification { round: 1, vote, standing: Standing::Looking, membership: 1 };
    rig.hear(C, notification(vote)).wait(30);
    rig.hear(C, info(C, 1));
    assert_eq!(rig.peer.record().accepted_epoch, 1, "two of the old three, one of the new two");
    rig.hear(B, notification(vote)).wait(30);
    rig.hear(B, info(B, 1));
    assert_eq!(rig.peer.record().accepted_epoch, 2);
}

/// Phase 1 and phase 2 count like the election.
#[test]
fn discovery_and_synchronization_need_both_quorums() {
    let log = vec![Entry::membership(z(1, 1), without(C))];
    let mut rig = Rig::new(record(A, 1), log);
    let epoch = rig.stand();
    rig.sync();
    rig.hear(C, ack_epoch(C, epoch, 1, z(1, 1))).sync();
    assert_eq!(rig.peer.record().current_epoch, 1, "a promise of C alone");
    rig.hear(B, ack_epoch(B, epoch, 1, z(1, 1))).sync();
    assert_eq!(rig.peer.record().current_epoch, epoch);
    rig.hear(C, ack(C, epoch, 0, z(1, 1)));
    assert_eq!(rig.peer.role(), Role::Looking, "C alone adopted it");
    rig.hear(B, ack(B, epoch, 0, z(1, 1)));
    assert_eq!(rig.peer.role(), Role::Leading { epoch });
    assert_eq!(rig.peer.membership(), &without(C), "and what it had in its log is committed");
}

#[test]
fn leases_and_reads_need_both_quorums() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    rig.change(&remove(C)).expect("B is there");
    rig.peer.read_index(1, rig.now).expect("it leads");
    rig.poll();
    let round = |body| match body {
        Body::Heartbeat { round, .. } => Some(round),
        _ => None,
    };
    let round = rig.said_to(C).into_iter().find_map(round).expect("a round for the read");
    let ready = |rig: &mut Rig| rig.take().iter().any(|out| matches!(out, Output::ReadReady { .. }));
    rig.hear(C, ack(C, epoch, round, Zxid::ZERO));
    assert!(!ready(&mut rig) && !rig.peer.lease_valid(rig.now));
    rig.hear(B, ack(B, epoch, round, Zxid::ZERO));
    assert!(ready(&mut rig) && rig.peer.lease_valid(rig.now));
}

/// One change at a time: the next may come when the last is committed and in the records of a quorum, so that no
/// quorum of what was before is needed again.
#[test]
fn a_change_is_settled_when_a_quorum_recorded_it() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    let add = MembershipChange::Add { id: D, address: "d:1".to_owned() };
    let zxid = rig.change(&add).expect("it leads");
    assert_eq!(rig.change(&remove(C)), Err(ChangeError::InProgress));
    rig.sync();
    rig.hear_ack(B, epoch, 0, zxid, 1);
    assert_eq!(rig.peer.membership().version, 2, "committed");
    rig.sync();
    assert_eq!(
        (rig.peer.is_membership_settled(), rig.change(&remove(C))),
        (false, Err(ChangeError::InProgress))
    );
    rig.hear_ack(B, epoch, 0, zxid, 2);
    assert!(rig.peer.is_membership_settled());
    rig.change(&remove(C)).expect("the next");
}

/// A new voter is an observer that is up to date.
#[test]
fn promote_refuses_who_is_away_or_behind() {
    let mut membership = record(A, 1).membership;
    membership.observers.insert(D);
    let log: Vec<Entry> = (1..=1_000).map(|counter| entry(1, counter)).collect();
    let mut rig = Rig::new(Record { membership, ..record(A, 1) }, log);
    let epoch = rig.lead();
    let promote = MembershipChange::Promote { id: D };
    assert_eq!(rig.change(&promote), Err(ChangeError::Absent(D)));
    rig.hear(D, info(D, 0));
    rig.hear(D, ack_epoch(D, epoch, 0, Zxid::ZERO));
    let behind = Progress { durable: z(1, 10), synced: false, disk_ok: true, membership: 1 };
    rig.hear(D, Body::Ack { session: session(D), epoch, round: 0, progress: behind });
    assert_eq!(rig.change(&promote), Err(ChangeError::Behind { id: D, entries: 990 }));
    rig.hear(D, ack(D, epoch, 0, z(1, 1_000)));
    rig.change(&promote).expect("it has everything");
    let pending = rig.peer.pending_membership().expect("in the log");
    assert!(pending.is_voter(D, uuid(D)) && pending.observers.is_empty());
}

/// A removal that leaves no majority of servers at work would stop the cluster with its own commit.
#[test]
fn a_removal_that_leaves_no_majority_is_refused() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    rig.lead();
    rig.hear(B, Body::Leave { session: session(B), resigned: false });
    assert_eq!(rig.change(&remove(C)), Err(ChangeError::NoQuorum { live: 1, voters: 2 }));
    rig.change(&remove(B)).expect("who is away may go");
    let single = Membership::bound([(A, uuid(A))]);
    let mut rig = Rig::new(Record { membership: single, ..record(A, 1) }, vec![]);
    rig.wait(500).wait(100);
    rig.sync().wait(50);
    rig.sync();
    assert!(matches!(rig.peer.role(), Role::Leading { .. }), "{}", rig.peer);
    assert_eq!(rig.change(&remove(A)), Err(ChangeError::LastVoter(A)));
}

/// A removed leader commits its removal without counting itself, and leaves when the others know.
#[test]
fn a_removed_leader_commits_and_steps_down() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    let zxid = rig.change(&remove(A)).expect("B and C are there");
    rig.sync();
    rig.hear_ack(B, epoch, 0, zxid, 1);
    assert_eq!(rig.peer.committed(), Zxid::ZERO, "one of the two that stay");
    rig.hear_ack(C, epoch, 0, zxid, 1);
    assert_eq!((rig.peer.committed(), rig.peer.role()), (zxid, Role::Leading { epoch }));
    rig.sync();
    rig.hear_ack(C, epoch, 0, zxid, 2);
    assert_eq!(rig.peer.role(), Role::Leading { epoch }, "one of two knows");
    rig.hear_ack(B, epoch, 0, zxid, 2);
    rig.sync();
    assert_eq!(rig.peer.role(), Role::NotMember);
    let resigned = |body: &Body| matches!(body, Body::Leave { resigned: true, .. });
    assert!(rig.said_to(B).iter().any(resigned), "they need not wait for its lease");
}

/// A follower that learns its removal leaves, and neither votes nor asks for a leader any more.
#[test]
fn a_removed_follower_is_silent() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.follow(C, 2, Zxid::ZERO);
    let (prev, entries) = (Zxid::ZERO, vec![Entry::membership(z(2, 1), without(A))]);
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 4, prev, entries, commit: Zxid::ZERO }).sync();
    assert_eq!(rig.peer.role(), Role::Following { leader: C }, "it is not committed");
    rig.hear(C, Body::Commit { session, epoch: 2, commit: z(2, 1) }).sync();
    assert_eq!((rig.peer.role(), rig.peer.delivered()), (Role::NotMember, z(2, 1)));
    rig.take();
    rig.wait(5_000).wait(5_000);
    let is_question = |body: &Body| matches!(body, Body::Hello { .. });
    assert!(rig.said_to(B).iter().all(is_question));
}

/// Who was away when it was removed is told, and disturbs nobody meanwhile.
#[test]
fn a_removed_server_disturbs_no_leader_and_learns_of_its_removal() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let epoch = rig.lead();
    let zxid = rig.change(&remove(C)).expect("B is there");
    rig.sync();
    rig.hear_ack(B, epoch, 0, zxid, 1);
    rig.sync();
    rig.hear(C, Body::Leave { session: session(C), resigned: false });
    rig.take();
    rig.hear(C, Body::FollowerInfo { session: 77, accepted_epoch: epoch + 9, may_vote: true });
    assert_eq!(rig.peer.role(), Role::Leading { epoch });
    let tells = |body: &Body| matches!(body, Body::Hello { membership, .. } if *membership == without(C));
    assert!(rig.said_to(C).iter().any(tells));
    let vote = Some(Vote { current_epoch: 9, last: z(9, 9), candidate: C });
    let standing = Standing::Looking;
    rig.hear(C, Body::Notification { round: 99, vote, standing, membership: 1 });
    assert!(rig.said_to(C).iter().any(tells));
    let mut removed = Rig::starting(C, record(C, 1), vec![], Zxid::ZERO);
    removed.hear(A, Body::Hello { membership: without(C), pending: None }).sync();
    assert_eq!(removed.peer.role(), Role::NotMember);
    assert_eq!(removed.peer.record().membership, without(C), "also after a restart");
}

/// Cutting an entry that changed the membership restores the one before it.
#[test]
fn a_cut_change_is_undone() {
    let log = vec![entry(1, 1), Entry::membership(z(1, 2), without(C))];
    let mut rig = Rig::new(record(A, 1), log);
    assert_eq!(rig.peer.pending_membership(), Some(&without(C)));
    rig.join_and_sync(C, 2, z(1, 1));
    assert_eq!(rig.peer.pending_membership(), None);
    assert_eq!(rig.peer.membership(), &record(A, 1).membership);
}

/// The record names the committed membership, and never one that is only in the log.
#[test]
fn the_record_names_the_committed_membership() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.follow(C, 2, Zxid::ZERO);
    let versions = |rig: &mut Rig| -> Vec<u64> {
        let saved = |output| match output {
            Output::SaveRecord { record, .. } => Some(record.membership.version),
            _ => None,
        };
        rig.take().into_iter().filter_map(saved).collect()
    };
    let (prev, entries) = (Zxid::ZERO, vec![Entry::membership(z(2, 1), without(B))]);
    rig.hear(C, Body::Entries { session, epoch: 2, seq: 4, prev, entries, commit: Zxid::ZERO }).sync();
    assert!(versions(&mut rig).is_empty() && rig.peer.record().membership.version == 1);
    rig.hear(C, Body::Commit { session, epoch: 2, commit: z(2, 1) });
    assert_eq!(versions(&mut rig), vec![2]);
}

/// A snapshot replaces entries, changes of the membership among them: its membership goes into the same record.
#[test]
fn a_snapshot_brings_its_membership() {
    let mut rig = Rig::new(record(A, 1), vec![]);
    let session = rig.join(C);
    rig.hear(C, Body::NewEpoch { session, epoch: 2, established: true, counts: true }).sync();
    let snapshot = SnapshotDescriptor { id: 5, zxid: z(1, 9), length: 1, crc: 0 };
    rig.hear(C, Body::Snapshot { session, epoch: 2, seq: 1, snapshot, membership: without(B) });
    rig.take();
    rig.peer.snapshot_received(C, snapshot, rig.now);
    rig.poll();
    let names_it = |output: &Output| match output {
        Output::InstallSnapshot { record, .. } => record.membership == without(B),
        _ => false,
    };
    assert!(rig.take().iter().any(names_it));
}

/// A leader proposes a change only when the one before it is committed: a log with both proves that.
#[test]
fn a_change_behind_another_proves_the_first() {
    let next = Membership { version: 3, ..without(C) };
    let log = vec![Entry::membership(z(1, 1), without(C)), Entry::membership(z(1, 2), next.clone())];
    let rig = Rig::new(record(A, 1), log);
    assert_eq!((rig.peer.membership(), rig.peer.pending_membership()), (&without(C), Some(&next)));
}

/// A voter of a membership that it has not in its own log takes part when it is told: the others may need it.
#[test]
fn a_new_voter_that_is_told_takes_part() {
    let mut membership = record(A, 1).membership;
    membership.observers.insert(D);
    let start = Record { data_uuid: uuid(D), membership: membership.clone(), ..record(A, 1) };
    let mut rig = Rig::starting(D, start, vec![], Zxid::ZERO);
    let votes = |body: &Body| matches!(body, Body::Notification { vote: Some(_), .. });
    rig.wait(1_000);
    assert!(!rig.said_to(B).iter().any(votes));
    let mut pending = Membership { version: 2, observers: Default::default(), ..membership.clone() };
    pending.voters.insert(D, Some(uuid(D)));
    rig.hear(B, Body::Hello { membership, pending: Some(pending) }).wait(1_000);
    assert!(rig.said_to(B).iter().any(votes));
}

/// A learner that becomes a voter must not have promised a later epoch to somebody else.
#[test]
fn who_promised_a_later_epoch_does_not_count() {
    let mut membership = record(A, 1).membership;
    membership.observers.insert(D);
    let mut rig = Rig::new(Record { membership, ..record(A, 1) }, vec![]);
    let epoch = rig.lead();
    rig.hear(D, info(D, epoch + 5));
    rig.hear(D, ack_epoch(D, epoch, 0, Zxid::ZERO));
    rig.hear(D, ack(D, epoch, 0, Zxid::ZERO));
    assert_eq!(rig.peer.role(), Role::Leading { epoch }, "an observer deposes nobody");
    assert_eq!(rig.change(&MembershipChange::Promote { id: D }), Err(ChangeError::CannotVote(D)));
}
