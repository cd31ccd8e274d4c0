//! The bound on what an inode remembers of its truncations.

use super::invariants::check;
use super::model::Said;
use super::world::World;
use metadata_server::state::key;
use metadata_server::state::layers::View;
use metadata_server::state::prep::{Prep, load};
use metadata_server::state::record::Purge;
use protocol::attr::TRUNCATIONS_MAX;
use protocol::meta::{MetaError, MetaReply, NewNode, SetAttr, WriteOp};
use protocol::{EntryName, FileKind, InodeId, SessionId};

const LARGE: u64 = 1 << 30;

struct File {
    world: World,
    session: SessionId,
    id: InodeId,
}

impl File {
    /// A file in chunks, held.
    fn new() -> Self {
        let mut world = World::new();
        let session = world.open_session();
        let node = NewNode { kind: FileKind::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: vec![] };
        let name = EntryName::new("f").expect("legal");
        let made = world.write(session, WriteOp::Create { parent: InodeId::ROOT, name, node, handle: None });
        let Ok(MetaReply::Entry(attr)) = made else { panic!("no file: {made:?}") };
        let mut file = Self { world, session, id: attr.inode };
        let Ok(MetaReply::View(view)) = file.hold() else { panic!("nobody else holds it") };
        let commit = WriteOp::CommitWrite {
            inode: file.id,
            truncate_seq: view.truncate_seq(),
            end: LARGE,
            allocated: 0,
            kill_privileges: false,
        };
        file.execute(commit).expect("it is held");
        file
    }

    fn execute(&mut self, op: WriteOp) -> Result<MetaReply, MetaError> {
        let answer = self.world.unmodelled(self.session, op);
        self.world.settle();
        check(&self.world.leader.machine.committed());
        answer
    }

    fn hold(&mut self) -> Result<MetaReply, MetaError> {
        self.execute(WriteOp::Hold(self.id))
    }

    fn resize(&mut self, size: u64) -> Result<MetaReply, MetaError> {
        let change = SetAttr { size: Some(size), ..SetAttr::default() };
        self.execute(WriteOp::Setattr { inode: self.id, change })
    }

    /// Cuts to each size in turn, and makes it large again.
    fn cut_to(&mut self, sizes: impl IntoIterator<Item = u64>) {
        for size in sizes {
            self.resize(size).expect("there is room");
            self.resize(LARGE).expect("growing needs no room");
        }
    }

    fn remembered(&self) -> Vec<u64> {
        let inode = self.world.record(self.id).expect("it exists");
        inode.truncations.iter().map(|truncation| truncation.size).collect()
    }

    fn sweep(&mut self) {
        let row = load::<Purge>(&self.world.leader.machine.committed(), &key::purge(self.id));
        let (purge, id) = (row.expect("memory reads").expect("a sweep is due"), self.id);
        let decide = |prep: &mut Prep<'_>| prep.finish_purge(id, &purge);
        self.world.propose(None, None, decide, |_, _| Ok(Said::Done)).0.expect("it never refuses");
        self.world.settle();
    }
}

#[test]
fn a_truncation_too_many_waits_for_the_sweep() {
    let mut file = File::new();
    // The first is that of the hold on a file that was not in chunks yet.
    file.cut_to((1..TRUNCATIONS_MAX as u64).map(|n| n * 1000));
    assert_eq!(file.remembered().len(), TRUNCATIONS_MAX);
    assert_eq!(file.resize(500_000), Err(MetaError::Busy));
    assert_eq!(file.resize(2000).map(drop), Ok(()), "a shorter one takes the place of longer ones");
    assert_eq!(file.remembered(), [0, 1000, 2000]);
    file.sweep();
    assert_eq!(file.remembered(), [2000]);
}

#[test]
fn a_holder_that_dies_adds_at_most_one_more() {
    let mut file = File::new();
    file.cut_to((1..TRUNCATIONS_MAX as u64).map(|n| n * 1000));
    let dirty = WriteOp::ReleaseHold { inode: file.id, dirty: true };
    file.execute(dirty.clone()).expect("it is held");
    assert_eq!(file.remembered().len(), TRUNCATIONS_MAX + 1);
    assert_eq!(file.hold(), Err(MetaError::Busy), "nobody extends it before the sweep");
    assert_eq!(file.execute(dirty), Ok(MetaReply::Done), "giving back is idempotent");
    assert_eq!(file.remembered().len(), TRUNCATIONS_MAX + 1);
    file.sweep();
    assert!(file.hold().is_ok());
    assert_eq!(file.remembered(), [LARGE]);
    let left = file.world.leader.machine.committed().get(&key::purge(file.id)).expect("memory reads");
    assert_eq!(left, None);
}
