use super::*;
use crate::fuse::reply::{Directory, DirectoryEntry, Entry};
use protocol::{Attr, FileKind, InodeId, Timestamp};

fn entry(node: u64) -> Entry {
    let attr = Attr {
        inode: InodeId(node),
        kind: FileKind::File,
        mode: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Timestamp::default(),
    };
    Entry { node, generation: 0, attr, entry_valid: Duration::ZERO, attr_valid: Duration::ZERO }
}

#[test]
fn what_a_lost_reply_gave_is_taken_back() {
    let opened = Opened { handle: 8, flags: 0 };
    assert_eq!(Undo::of(&Reply::Done), Undo::default());
    assert_eq!(Undo::of(&Reply::Entry(entry(0))), Undo::default());
    assert_eq!(Undo::of(&Reply::Entry(entry(7))).lookups, [7]);
    assert_eq!(Undo::of(&Reply::Opened(opened)).opened, Some(opened));
    let created = Undo::of(&Reply::Created(entry(7), opened));
    assert_eq!(created, Undo { lookups: vec![7], opened: Some(opened), node: Some(7) });
    let mut listing = Directory::new(4096);
    let named = DirectoryEntry { inode: 7, offset: 1, kind: FileKind::File, name: b"x" };
    assert!(listing.push_plus(&named, Some(&entry(7))));
    assert_eq!(Undo::of(&Reply::Directory(listing)).lookups, [7]);
}

#[test]
fn a_panic_becomes_eio() {
    let mut guarded = Guarded(Box::pin(async { panic!("on purpose") }));
    let polled = Pin::new(&mut guarded).poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(polled, Poll::Ready(Reply::Error(Errno::EIO)));
}

#[test]
fn only_callers_that_end_are_let_go() {
    let signalled = Some(Duration::ZERO);
    assert_eq!(course(Verdict::Alive, signalled), Course::Keep);
    assert_eq!(course(Verdict::Fatal, signalled), Course::LetGo);
    assert_eq!(course(Verdict::Fatal, None), Course::LetGo);
    assert_eq!(course(Verdict::Gone, signalled), Course::LetGo);
    assert_eq!(course(Verdict::Gone, None), Course::AskProcess);
    assert_eq!(course(Verdict::Alive, None), Course::AskExit);
    // One that cannot be seen: after a while, and never without an INTERRUPT.
    assert_eq!(course(Verdict::Unknown, signalled), Course::Keep);
    assert_eq!(course(Verdict::Unknown, Some(UNSEEN_GRACE)), Course::LetGo);
    assert_eq!(course(Verdict::Unknown, None), Course::Keep);
}
