//! A retried request takes effect once, whatever happened to its first attempt.

use super::invariants::check;
use super::world::{Replica, World};
use metadata_server::state::key;
use metadata_server::state::layers::View;
use metadata_server::state::prep::{Prep, PrepError};
use protocol::meta::{MetaError, MetaReply, NewNode, ReadOp, WriteOp};
use protocol::{EntryName, Errno, FileKind, InodeId, Timestamp};
use zab::Zxid;

fn mkdir(name: &str) -> WriteOp {
    let node = NewNode { kind: FileKind::Directory, mode: 0o755, uid: 0, gid: 0, rdev: 0, target: vec![] };
    WriteOp::Create { parent: InodeId::ROOT, name: EntryName::new(name).expect("legal"), node, handle: None }
}

fn rmdir(name: &str) -> WriteOp {
    WriteOp::Rmdir { parent: InodeId::ROOT, name: EntryName::new(name).expect("legal") }
}

#[test]
fn a_retry_gets_the_first_reply_and_changes_nothing() {
    let mut world = World::new();
    let (a, b) = (world.open_session(), world.open_session());
    let first = world.write_as(a, 1, mkdir("d")).expect("the name is free");
    assert_eq!(world.write_as(a, 1, mkdir("d")), Ok(first.clone()), "while the first attempt is under way");
    world.settle();
    let revision = world.revision();
    assert_eq!(world.write_as(a, 1, mkdir("d")), Ok(first.clone()), "after it");
    assert_eq!(world.revision(), revision);
    assert_eq!(world.write_as(a, 2, mkdir("d")), Err(MetaError::Errno(Errno::EEXIST)), "another request");
    world.write_as(b, 1, rmdir("d")).expect("it is empty");
    assert_eq!(world.write_as(a, 1, mkdir("d")), Ok(first), "it is not made again");
    assert!(world.model.nodes[&InodeId::ROOT].entries.is_empty());
}

#[test]
fn a_new_leader_repeats_what_was_lost_and_only_that() {
    for (kept, swap) in [(0, false), (0, true), (1, false), (1, true), (2, true)] {
        let mut world = World::new();
        let session = world.open_session();
        world.settle();
        let first = ["one", "two"].map(|name| world.write(session, mkdir(name)));
        world.change_leader(kept, swap, false);
        world.attach(session);
        for (at, name) in ["one", "two"].into_iter().enumerate() {
            let again = world.write_as(session, at as u64 + 1, mkdir(name));
            // Of a lost attempt nobody was told: the second one has its own time.
            assert!(matches!(again, Ok(MetaReply::Entry(_))), "{again:?}");
            assert!(at >= kept || again == first[at], "{again:?} after {kept} commits");
        }
        world.settle();
        assert_eq!(world.model.nodes[&InodeId::ROOT].entries.len(), 2);
        check(&world.follower.machine.committed());
    }
}

#[test]
fn replies_go_when_the_client_has_seen_them_and_with_its_session() {
    let mut world = World::new();
    let session = world.open_session();
    let count = |world: &World| {
        let prefix = key::prefix1(key::REPLY, session.0);
        let rows = world.leader.machine.committed().scan(&prefix, &key::prefix_end(&prefix), 100);
        rows.expect("memory reads").len()
    };
    for sequence in 1..=20 {
        world.write_as(session, sequence, mkdir(&sequence.to_string())).expect("the name is free");
    }
    world.settle();
    assert_eq!(count(&world), 8, "each forgets the one that lies eight back");
    world.end_session(session, false);
    world.settle();
    assert_eq!(count(&world), 0);
}

#[test]
fn nothing_takes_effect_behind_the_end_of_its_session() {
    let mut world = World::new();
    let session = world.open_session();
    world.settle();
    world.end_session(session, true);
    assert_eq!(world.write_as(session, 1, mkdir("d")), Err(MetaError::SessionExpired), "the end is proposed");
    world.change_leader(0, false, false);
    world.attach(session);
    assert!(matches!(world.write_as(session, 1, mkdir("d")), Ok(MetaReply::Entry(_))), "the end was lost");
    world.end_session(session, true);
    world.settle();
    assert_eq!(world.write_as(session, 1, mkdir("d")), Err(MetaError::SessionExpired));
}

/// The answer to O_TMPFILE got lost with the leader: the mount does not know yet that it has the file open.
#[test]
fn a_file_without_a_name_waits_for_the_retry_that_opens_it() {
    let mut world = World::new();
    let session = world.open_session();
    let node = NewNode { kind: FileKind::File, mode: 0o600, uid: 0, gid: 0, rdev: 0, target: vec![] };
    let op = WriteOp::Tmpfile { parent: InodeId::ROOT, node, handle: 7 };
    let first = world.write_as(session, 1, op.clone()).expect("it is allowed");
    world.settle();
    world.change_leader(0, true, false);
    world.open.clear();
    world.attach(session);
    world.settle();
    assert_eq!(world.write_as(session, 1, op), Ok(first));
    assert_eq!(world.model.nodes.len(), 2, "the root and the file");
    check(&world.leader.machine.committed());
}

/// The answer to O_CREAT got lost with the leader, and before the retry somebody else removes the name.
#[test]
fn a_file_whose_name_goes_waits_for_the_retry_that_opens_it() {
    let mut world = World::new();
    let (session, other) = (world.open_session(), world.open_session());
    let node = NewNode { kind: FileKind::File, mode: 0o600, uid: 0, gid: 0, rdev: 0, target: vec![] };
    let name = EntryName::new("f").expect("legal");
    let op = WriteOp::Create { parent: InodeId::ROOT, name: name.clone(), node, handle: Some(7) };
    world.write_as(session, 1, op.clone()).expect("the name is free");
    world.settle();
    world.change_leader(0, true, false);
    let prepared = world.leader.machine.prepare(Timestamp::default(), |prep| prep.opened_by_replies(session));
    let (_, unseen) = prepared.expect("memory reads");
    let inode = unseen[0].1;
    for attached in [session, other] {
        let replies = unseen.iter().copied().filter(|_| attached == session);
        world.leader.machine.open.assert_all(attached, &[], replies);
        world.unknown.remove(&attached);
    }
    world.unmodelled(other, WriteOp::Unlink { parent: InodeId::ROOT, name }).expect("it is there");
    world.settle();
    assert!(
        matches!(world.write_as(session, 1, op), Ok(MetaReply::Opened(view)) if view.attr.inode == inode)
    );
    assert!(matches!(world.read(session, &ReadOp::Getattr(inode)), Ok(MetaReply::Attr(_))));
    check(&world.leader.machine.committed());
}

/// A session that owns very much ends in several transactions, none of them too large for the log.
#[test]
fn the_end_of_a_large_session_comes_in_pieces() {
    const FILES: usize = 12_000;
    const TXN_BYTES_MAX: usize = 4 << 20;
    let mut world = World::new();
    let session = world.open_session();
    world.settle();
    let Replica { machine, .. } = &mut world.leader;
    let (mut counter, mut largest) = (100, 0);
    let mut step = |decide: &dyn Fn(&mut Prep<'_>) -> Result<(), PrepError>| {
        let (txn, ()) = machine.prepare(Timestamp::default(), decide).expect("it is allowed");
        counter += 1;
        largest = largest.max(txn.encode().len());
        machine.apply(Zxid { epoch: 2, counter }, &txn.encode()).expect("it follows");
        machine.committed().scan(&[key::ENDING], &[key::ENDING + 1], 10).expect("memory reads").len()
    };
    let node = NewNode { kind: FileKind::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: vec![] };
    let file = |handle: u64| WriteOp::Tmpfile { parent: InodeId::ROOT, node: node.clone(), handle };
    for handle in 0..FILES as u64 {
        step(&|prep| prep.execute(session, &file(handle)).map(drop));
    }
    let mut pieces = 1;
    let mut left = step(&|prep| prep.end_session(session, true));
    while left > 0 {
        left = step(&|prep| prep.go_on_ending(session));
        pieces += 1;
    }
    assert!(pieces > 1 && largest < TXN_BYTES_MAX / 2, "{pieces} pieces, the largest of {largest} bytes");
    check(&world.leader.machine.committed());
    assert_eq!(world.leader.machine.inodes(), 1, "every file is gone");
}
