//! Files that are made with their first contents.

use super::invariants::check;
use super::world::World;
use protocol::meta::{MetaError, MetaReply, NewNode, WriteOp};
use protocol::{EntryName, Errno, FileKind, InodeId, Layout};

fn create(name: &str, kind: FileKind, contents: &[u8]) -> WriteOp {
    let node = NewNode { kind, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: contents.to_vec() };
    WriteOp::Create { parent: InodeId::ROOT, name: EntryName::new(name).expect("legal"), node, handle: None }
}

#[test]
fn a_file_begins_with_its_contents_and_nothing_else_does() {
    let mut world = World::new();
    let session = world.open_session();
    let made = world.unmodelled(session, create("f", FileKind::File, b"hello"));
    let Ok(MetaReply::Entry(attr)) = made else { panic!("no file: {made:?}") };
    assert_eq!((attr.size, attr.blocks), (5, 1));
    world.settle();
    assert_eq!(world.view(attr.inode).layout, Layout::Inline(b"hello".to_vec()));
    let overwrite = WriteOp::WriteInline {
        inode: attr.inode,
        offset: Some(5),
        data: b"!".to_vec(),
        kill_privileges: false,
    };
    world.unmodelled(session, overwrite).expect("it is an ordinary file");
    world.settle();
    assert_eq!(world.view(attr.inode).layout, Layout::Inline(b"hello!".to_vec()));

    let large = vec![7; 1 << 20];
    let refusals = [
        (FileKind::File, large.as_slice(), Errno::EFBIG),
        (FileKind::Directory, b"x", Errno::EINVAL),
        (FileKind::Fifo, b"x", Errno::EINVAL),
        (FileKind::Symlink, b"", Errno::EINVAL),
        (FileKind::Symlink, large.as_slice(), Errno::ENAMETOOLONG),
    ];
    for (kind, contents, errno) in refusals {
        let refused = world.unmodelled(session, create("g", kind, contents));
        assert_eq!(refused, Err(MetaError::Errno(errno)), "{kind:?}");
    }
    check(&world.leader.machine.committed());
}
