//! Times of overwrites that are committed later: nobody else is told, or sets, others meanwhile.

use super::*;
use protocol::meta::{SetAttr, SetTime};
use protocol::{Attr, Timestamp};

/// Two mounts, and a file in chunks whose times the first may defer.
struct Scene {
    rig: Rig,
    owner: Owner,
    other: Owner,
    inode: InodeId,
}

impl Scene {
    fn new() -> Scene {
        let mut rig = Rig::new();
        let (owner, other) = (rig.open(1), rig.open(2));
        let inode = match rig.write(owner, 1, create("f", None)) {
            Ok(MetaReply::Entry(attr)) => attr.inode,
            other => panic!("a creation was answered by {other:?}"),
        };
        assert_eq!(rig.write(owner, 1, WriteOp::Defer(inode)), Err(MetaError::Respill), "it is in its znode");
        let Ok(MetaReply::View(view)) = rig.write(owner, 1, WriteOp::Hold(inode)) else { panic!("a view") };
        let truncate_seq = view.truncate_seq();
        let commit =
            WriteOp::CommitWrite { inode, truncate_seq, end: 99, allocated: 0, kill_privileges: false };
        rig.write(owner, 1, commit).expect("it has the hold");
        rig.write(owner, 1, WriteOp::Defer(inode)).expect("it has the hold");
        Scene { rig, owner, other, inode }
    }

    fn getattr(&mut self, asker: Owner) -> Result<Attr, MetaError> {
        let inode = self.inode;
        match self.rig.answer(asker.connection, MetaRequest::Read(ReadOp::Getattr(inode)))? {
            MetaReply::Attr(attr) => Ok(attr),
            other => panic!("a getattr was answered by {other:?}"),
        }
    }

    fn settle(&mut self, changed: bool, done: bool) {
        let op = WriteOp::Settle { inode: self.inode, changed, done };
        self.rig.write(self.owner, 1, op).expect("it is never refused");
    }

    /// How often the owner was asked since the last time.
    fn questions(&mut self) -> usize {
        let wanted = (self.owner.connection, Push::Settle(self.inode));
        std::mem::take(&mut self.rig.pushed).iter().filter(|pushed| **pushed == wanted).count()
    }
}

#[test]
fn who_looks_has_the_owner_settle_first() {
    let mut scene = Scene::new();
    let (owner, other) = (scene.owner, scene.other);
    let before = scene.getattr(owner).expect("its own mount settles by itself");
    assert_eq!(scene.getattr(other), Err(MetaError::Busy));
    assert_eq!(scene.rig.answer(other.connection, lookup("f")), Err(MetaError::Busy));
    assert_eq!(scene.questions(), 2);
    scene.settle(true, true);
    let after = scene.getattr(other).expect("nothing is deferred any more");
    assert!(after.mtime > before.mtime && after.ctime == after.mtime);
    assert!(scene.rig.answer(other.connection, lookup("f")).is_ok());
    assert_eq!(scene.questions(), 0);
}

#[test]
fn what_was_not_changed_keeps_its_times() {
    let mut scene = Scene::new();
    let owner = scene.owner;
    let before = scene.getattr(owner);
    scene.settle(false, true);
    scene.settle(true, false);
    assert_eq!(scene.getattr(owner), before, "the right was given back before");
    let release = WriteOp::ReleaseHold { inode: scene.inode, dirty: false };
    scene.rig.write(owner, 1, release).expect("it has the hold");
    assert_eq!(scene.getattr(owner), before);
}

#[test]
fn a_new_leader_knows_who_defers() {
    let mut scene = Scene::new();
    scene.rig.lead();
    scene.owner = scene.rig.attach(scene.owner, 1, &[]);
    scene.other = scene.rig.attach(scene.other, 2, &[]);
    let other = scene.other;
    assert_eq!(scene.getattr(other), Err(MetaError::Busy));
    assert_eq!(scene.questions(), 1);
    scene.settle(true, true);
    assert!(scene.getattr(other).is_ok());
}

/// It may have overwritten something and cannot be asked.
#[test]
fn the_end_of_the_owner_sets_the_times() {
    let mut scene = Scene::new();
    let (owner, other) = (scene.owner, scene.other);
    let before = scene.getattr(owner).expect("its own");
    scene.rig.pass(u64::from(TIMEOUT_MS), &[other]);
    assert_eq!(scene.getattr(other), Err(MetaError::Busy), "its session may live");
    scene.rig.pass(2 * u64::from(TIMEOUT_MS), &[other]);
    assert!(scene.getattr(other).expect("it is gone").mtime > before.mtime);
}

/// Or what was overwritten before would get a later time than what another set explicitly.
#[test]
fn nobody_sets_times_over_deferred_ones() {
    let mut scene = Scene::new();
    let time = Timestamp { seconds: 5, nanoseconds: 0 };
    let change = SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() };
    let op = WriteOp::Setattr { inode: scene.inode, change };
    assert_eq!(scene.rig.write(scene.other, 1, op.clone()), Err(MetaError::Busy));
    assert_eq!(scene.questions(), 1);
    scene.settle(true, true);
    scene.rig.write(scene.other, 1, op).expect("nothing is deferred any more");
    scene.settle(true, false);
    let other = scene.other;
    assert_eq!(scene.getattr(other).expect("nothing is deferred").mtime, time);
}

/// Who overwrites needs no hold, so it takes it from nobody.
#[test]
fn the_right_is_not_taken_from_another_holder() {
    let mut scene = Scene::new();
    assert_eq!(scene.rig.write(scene.other, 1, WriteOp::Defer(scene.inode)), Err(MetaError::Busy));
    assert_eq!(scene.rig.pushed, []);
    assert_eq!(scene.rig.write(scene.other, 1, WriteOp::Hold(scene.inode)), Err(MetaError::Busy));
    assert_eq!(scene.rig.pushed, [(scene.owner.connection, Push::RecallHold(scene.inode))]);
}
