//! A directory that changes while it is listed page by page: what is there all the time comes exactly once.

use super::world::World;
use proptest::prelude::*;
use protocol::meta::{MetaReply, NewNode, ReadOp, RenameMode, WriteOp};
use protocol::{EntryName, FileKind, InodeId, SessionId};
use std::collections::BTreeSet;

const ROOT: InodeId = InodeId::ROOT;

fn name(by: u8) -> EntryName {
    EntryName::new(format!("n{}", by % 12)).expect("legal")
}

fn create(name: EntryName) -> WriteOp {
    let node = NewNode { kind: FileKind::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: vec![] };
    WriteOp::Create { parent: ROOT, name, node, handle: None }
}

fn change(world: &mut World, session: SessionId, [what, a, b]: [u8; 3]) {
    let (one, two) = (name(a), name(b));
    let rename = |mode| WriteOp::Rename {
        parent: ROOT,
        name: one.clone(),
        new_parent: ROOT,
        new_name: two.clone(),
        mode,
    };
    let op = match what % 5 {
        0 => create(one),
        1 => WriteOp::Unlink { parent: ROOT, name: one },
        2 => rename(RenameMode::Exchange),
        _ => rename(RenameMode::Replace),
    };
    // What is refused changes nothing.
    let _ = world.write(session, op);
    world.settle();
}

fn names(world: &World) -> BTreeSet<EntryName> {
    world.committed.nodes[&ROOT].entries.keys().cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_stays_is_listed_exactly_once(
        first in prop::collection::vec(any::<[u8; 3]>(), 0..30),
        meanwhile in prop::collection::vec(prop::collection::vec(any::<[u8; 3]>(), 0..4), 0..12),
        limit in 1u32..5,
    ) {
        let mut world = World::new();
        let session = world.open_session();
        (0..8).for_each(|by| drop(world.write(session, create(name(by)))));
        world.settle();
        first.iter().for_each(|step| change(&mut world, session, *step));
        let (mut always, mut ever) = (names(&world), names(&world));
        let (mut listed, mut cookie, mut ended) = (Vec::new(), 0, false);
        let mut steps = meanwhile.into_iter();
        while !ended {
            let reply = world.read(session, &ReadOp::Readdir { inode: ROOT, cookie, limit });
            let Ok(MetaReply::Entries { entries, end }) = reply else { panic!("no listing: {reply:?}") };
            for entry in entries {
                prop_assert!(entry.cookie > cookie, "cookies rise");
                prop_assert_eq!(world.committed.nodes[&ROOT].entries[&entry.name], entry.attr.inode);
                cookie = entry.cookie;
                listed.push(entry.name);
            }
            ended = end;
            for step in steps.next().unwrap_or_default() {
                change(&mut world, session, step);
                let now = names(&world);
                always.retain(|name| now.contains(name));
                ever.extend(now);
            }
        }
        for name in &always {
            let times = listed.iter().filter(|other| *other == name).count();
            prop_assert_eq!(times, 1, "{} was there all the time, in {:?}", name, listed);
        }
        prop_assert!(listed.iter().all(|name| ever.contains(name)));
    }
}

#[test]
fn pages_end_where_they_should() {
    let mut world = World::new();
    let session = world.open_session();
    world.settle();
    let empty = world.read(session, &ReadOp::Readdir { inode: ROOT, cookie: 0, limit: 10 });
    assert_eq!(empty, Ok(MetaReply::Entries { entries: vec![], end: true }));
    for by in 0..4 {
        world.write(session, create(name(by))).expect("the name is free");
    }
    let before = world.read(session, &ReadOp::Readdir { inode: ROOT, cookie: 0, limit: 10 });
    assert_eq!(before, empty, "proposals are invisible");
    world.settle();
    let all = world.read(session, &ReadOp::Readdir { inode: ROOT, cookie: u64::MAX, limit: 10 });
    assert_eq!(all, empty, "nothing follows the last cookie");
}
