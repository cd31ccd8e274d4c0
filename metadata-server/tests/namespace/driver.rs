//! Random steps: bytes become operations that mostly hit what exists.

use super::invariants::{check, compare};
use super::model::{Context, Model, Said};
use super::objects::Objects;
use super::runs::Runs;
use super::world::{Answer, World};
use metadata_server::state::key;
use metadata_server::state::layers::View;
use metadata_server::state::prep::Prep;
use metadata_server::state::record::Purge;
use protocol::meta::{MetaError, MetaReply, NewNode, RenameMode, SetAttr, SetTime, WriteOp, XattrMode};
use protocol::{EntryName, FileKind, FileView, InodeId, Layout, SessionId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

const KINDS: [FileKind; 8] = [
    FileKind::File,
    FileKind::Directory,
    FileKind::File,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDevice,
];
const OFFSETS: [u64; 8] = [0, 1, 100, 8 << 10, 16 << 10, (4 << 20) - 10, 4 << 20, 9 << 20];
const LENGTHS: [u64; 6] = [1, 10, 100, 5000, 1 << 20, 5 << 20];
const SIZES: [u64; 10] = [0, 0, 1, 50, 10_000, 1 << 20, (4 << 20) + 7, 6 << 20, 10 << 20, 1 << 33];

/// One step: which, and what with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) what: u8,
    pub(crate) with: [u8; 6],
}

/// Steps that change bytes and sizes, and what gets in between.
pub(crate) const DATA_STEPS: [u8; 27] = [
    0, 6, 18, 19, 19, 20, 20, 22, 24, 24, 25, 26, 27, 28, 28, 29, 30, 32, 33, 33, 34, 35, 36, 37, 38, 39, 40,
];

/// Plays a list of steps and compares after each.
pub(crate) fn play(steps: &[Step]) {
    let mut player = Player::new();
    for step in steps {
        player.step(*step);
        player.compare();
    }
    player.finish();
}

struct Player {
    world: World,
    objects: Objects,
    /// Every session that ever was.
    sessions: Vec<SessionId>,
    /// A view of each file as a slow writer still has it.
    old_views: BTreeMap<InodeId, FileView>,
    /// Held files of which bytes past the size reached objects and were not committed.
    dirty: BTreeSet<(SessionId, InodeId)>,
    /// Sweeps whose end was not proposed so far.
    swept: Vec<(InodeId, Purge)>,
}

fn pick<T: Copy>(from: &[T], by: u8) -> T {
    from[usize::from(by) % from.len()]
}

fn name(by: u8) -> EntryName {
    let names = ["a", "b", "c", "d", "a", "b", "c", "d", "e", "f", ".zabfs"];
    EntryName::new(pick(&names, by)).expect("legal")
}

impl Player {
    fn new() -> Self {
        let mut world = World::new();
        let pool = world.leader.machine.map().pools.values().next().cloned().expect("the first pool");
        let sessions = vec![world.open_session(), world.open_session()];
        let objects = Objects::new(&pool);
        Self { world, objects, sessions, old_views: BTreeMap::new(), dirty: BTreeSet::new(), swept: vec![] }
    }

    fn compare(&self) {
        let (leader, follower) = (&self.world.leader, &self.world.follower);
        check(&leader.machine.proposed());
        compare(&leader.machine.proposed(), &self.world.model);
        check(&follower.machine.committed());
        compare(&follower.machine.committed(), &self.world.committed);
        assert_eq!(leader.rows(), follower.rows());
        assert_eq!(leader.machine.map(), follower.machine.map());
        if self.world.is_settled() {
            for (id, node) in self.world.model.nodes.iter().filter(|(_, node)| node.chunked) {
                assert_eq!(self.objects.read(&self.world.view(*id)), node.content, "bytes of {id}");
            }
        }
    }

    /// Any inode, rarely one that does not exist.
    fn any(&self, by: u8) -> InodeId {
        let mut all: Vec<_> = self.world.model.nodes.keys().copied().collect();
        all.push(InodeId(99_999));
        pick(&all, by)
    }

    fn of_kind(&self, kind: FileKind, by: u8) -> InodeId {
        let is_of = |(_, node): &(&InodeId, &super::model::Node)| node.kind == kind;
        let all: Vec<_> = self.world.model.nodes.iter().filter(is_of).map(|(id, _)| *id).collect();
        if all.is_empty() || by > 245 { self.any(by) } else { pick(&all, by) }
    }

    fn directory(&self, by: u8) -> InodeId {
        self.of_kind(FileKind::Directory, by)
    }

    fn file(&self, by: u8) -> InodeId {
        self.of_kind(FileKind::File, by)
    }

    /// A session, mostly a living one, attached.
    fn session(&mut self, by: u8) -> SessionId {
        let living: Vec<_> = self.world.model.sessions.iter().copied().collect();
        let session = match living.is_empty() || by > 250 {
            true => pick(&self.sessions, by),
            false => pick(&living, by),
        };
        self.world.attach(session);
        session
    }

    fn write(&mut self, session: SessionId, op: WriteOp) -> Answer {
        self.world.write(session, op)
    }

    fn step(&mut self, step: Step) {
        let [a, b, c, d, e, f] = step.with;
        let session = self.session(f);
        match step.what % 42 {
            0..=5 => self.create(session, step.with),
            6 => drop(self.tmpfile(session, a)),
            7..=8 => {
                let op = WriteOp::Link { inode: self.any(a), parent: self.directory(b), name: name(c) };
                drop(self.write(session, op));
            }
            9..=11 => {
                let (parent, name) = self.place(a, b, c);
                drop(self.write(session, WriteOp::Unlink { parent, name }));
            }
            12 => {
                let (parent, name) = self.place(a, b, c);
                drop(self.write(session, WriteOp::Rmdir { parent, name }));
            }
            13..=17 => {
                let (parent, name) = self.place(a, b, e);
                let (new_parent, new_name) = self.place(c, d, e >> 1);
                let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = pick(&modes, e >> 3);
                drop(self.write(session, WriteOp::Rename { parent, name, new_parent, new_name, mode }));
            }
            18 => self.setattr(session, step.with),
            19..=20 => {
                let inode = self.file(a);
                self.clean(session, inode);
                let change = SetAttr { size: Some(pick(&SIZES, b)), ..SetAttr::default() };
                drop(self.write(session, WriteOp::Setattr { inode, change }));
            }
            21 => self.xattr(session, step.with),
            22..=23 => self.write_inline(session, step.with),
            24..=26 => drop(self.extend(session, step.with)),
            27 => self.overwrite(session, step.with),
            28 => self.write_late(a, b, c),
            29 => {
                let inode = self.file(a);
                let dirty = self.dirty.remove(&(session, inode)) || b > 200;
                drop(self.write(session, WriteOp::ReleaseHold { inode, dirty }));
            }
            30 => {
                let inode = self.any(a);
                self.world.open(session, inode);
            }
            31 => {
                let handles: Vec<_> = self.world.open.keys().copied().collect();
                if !handles.is_empty() {
                    let (session, handle) = pick(&handles, a);
                    self.world.attach(session);
                    self.world.close(session, handle);
                }
            }
            32 => match a % 3 {
                0 => self.world.end_session(session, b % 2 == 0),
                _ => {
                    let session = self.world.open_session();
                    self.sessions.push(session);
                }
            },
            33..=34 => self.sweep(a),
            35..=36 => (0..=a % 4).for_each(|_| self.world.commit()),
            37 => self.world.change_leader(usize::from(a % 5), b % 2 == 0, c % 2 == 0),
            38 => match a % 2 {
                0 => self.world.leader.checkpoint(),
                _ => self.world.follower.checkpoint(),
            },
            39 => {
                let op = WriteOp::Defer(self.file(a));
                drop(self.write(session, op));
            }
            40 => {
                let op = WriteOp::Settle { inode: self.file(a), changed: b % 2 == 0, done: c % 2 == 0 };
                drop(self.write(session, op));
            }
            _ => self.world.restart_follower(),
        }
        let alive = |(session, inode): &(SessionId, InodeId)| {
            self.world.committed.holds.get(inode) == Some(session)
                || self.world.model.holds.contains_key(inode)
        };
        self.dirty.retain(alive);
    }

    /// A directory and a name, mostly of an entry that exists.
    fn place(&self, a: u8, b: u8, how: u8) -> (InodeId, EntryName) {
        let entries = self.world.model.nodes.iter().flat_map(|(parent, node)| {
            node.entries.keys().map(|name| (*parent, name.clone())).collect::<Vec<_>>()
        });
        let entries: Vec<_> = entries.collect();
        match entries.is_empty() || how % 4 == 3 {
            true => (self.directory(a), name(b)),
            false => entries[usize::from(a) % entries.len()].clone(),
        }
    }

    fn create(&mut self, session: SessionId, [a, b, c, d, e, _]: [u8; 6]) {
        let kind = pick(&KINDS, c);
        let handle = (kind == FileKind::File && d % 2 == 0).then(|| self.world.new_handle());
        let op = WriteOp::Create { parent: self.directory(a), name: name(b), node: node(kind, e), handle };
        drop(self.write(session, op));
    }

    fn tmpfile(&mut self, session: SessionId, a: u8) -> Answer {
        let handle = self.world.new_handle();
        let op = WriteOp::Tmpfile { parent: self.directory(a), node: node(FileKind::File, a), handle };
        self.write(session, op)
    }

    fn setattr(&mut self, session: SessionId, [a, b, c, d, e, _]: [u8; 6]) {
        let time = Timestamp { seconds: i64::from(d) - 100, nanoseconds: u32::from(e) };
        let change = SetAttr {
            mode: (b % 2 == 0).then_some(u32::from(c) * 16),
            uid: (b % 3 == 0).then_some(u32::from(c)),
            gid: (b % 5 == 0).then_some(u32::from(d)),
            mtime: [None, Some(SetTime::Now), Some(SetTime::At(time))][usize::from(b % 3)],
            kill_privileges: b % 7 == 0,
            ..SetAttr::default()
        };
        drop(self.write(session, WriteOp::Setattr { inode: self.any(a), change }));
    }

    fn xattr(&mut self, session: SessionId, [a, b, c, d, _, _]: [u8; 6]) {
        let (inode, name) = (self.any(a), format!("user.{}", b % 3).into_bytes());
        let op = match c % 4 {
            0 => WriteOp::Removexattr { inode, name },
            how => {
                let modes = [XattrMode::Either, XattrMode::Create, XattrMode::Replace];
                WriteOp::Setxattr { inode, name, value: vec![d; usize::from(d)], mode: pick(&modes, how) }
            }
        };
        drop(self.write(session, op));
    }

    fn write_inline(&mut self, session: SessionId, [a, b, c, d, _, _]: [u8; 6]) {
        let inode = self.file(a);
        self.clean(session, inode);
        let op = WriteOp::WriteInline {
            inode,
            offset: (d % 4 != 0).then_some(pick(&OFFSETS, b)),
            data: vec![d | 1; pick(&LENGTHS[..4], c) as usize],
            kill_privileges: d % 8 == 1,
        };
        drop(self.write(session, op));
    }

    /// A client whose extension failed says so before it does anything else with the file.
    fn clean(&mut self, session: SessionId, inode: InodeId) {
        if self.dirty.remove(&(session, inode)) {
            drop(self.write(session, WriteOp::ReleaseHold { inode, dirty: true }));
        }
    }

    /// Writes chunks under the hold; every fourth time the writer fails before the commit.
    fn extend(&mut self, session: SessionId, [a, b, c, d, e, _]: [u8; 6]) -> Option<()> {
        let inode = self.file(a);
        self.clean(session, inode);
        self.write(session, WriteOp::Hold(inode)).ok()?;
        self.world.settle();
        let view = self.world.view(inode);
        self.old_views.entry(inode).or_insert_with(|| view.clone());
        let (start, byte) = (pick(&OFFSETS, b), d | 1);
        let end = start + pick(&LENGTHS, c);
        let mut bytes = Runs::default();
        if let Layout::Inline(inline) = &view.layout {
            let written = self.objects.write(&view, (0, inline.len() as u64), &Runs::of(inline));
            written.1.expect("nobody is ahead of the holder");
        }
        bytes.write(start, end, byte);
        self.objects.write(&view, (start, end), &bytes).1.expect("nobody is ahead of the holder");
        if view.layout == Layout::Chunks {
            // What lies below the size is there at once.
            self.put(inode, start, end.min(view.attr.size), byte);
        }
        let is_spill = view.layout != Layout::Chunks;
        if e % 4 == 1 && is_spill {
            // Another thread of the mount changes the inline bytes that the spill has already copied.
            let op =
                WriteOp::WriteInline { inode, offset: Some(0), data: vec![byte], kill_privileges: false };
            self.write(session, op).ok()?;
            let refused = self.commit_write(session, &view, end, false);
            assert_eq!(refused, Err(MetaError::Respill), "the spill misses a write");
        }
        if e % 4 <= 1 {
            self.dirty.insert((session, inode));
            return None;
        }
        if is_spill {
            for model in [&mut self.world.model, &mut self.world.committed] {
                model.nodes.get_mut(&inode)?.chunked = true;
            }
        }
        self.put(inode, start, end, byte);
        self.commit_write(session, &view, end, d % 8 == 1).expect("the holder is never refused");
        self.world.settle();
        Some(())
    }

    /// Bytes are in objects, whatever becomes of proposals.
    fn put(&mut self, inode: InodeId, start: u64, end: u64, byte: u8) {
        for model in [&mut self.world.model, &mut self.world.committed] {
            if let Some(node) = model.nodes.get_mut(&inode) {
                node.content.write(start, end, byte);
            }
        }
    }

    fn commit_write(&mut self, session: SessionId, view: &FileView, end: u64, kill: bool) -> Answer {
        let inode = view.attr.inode;
        let op = WriteOp::CommitWrite {
            inode,
            truncate_seq: view.truncate_seq(),
            end,
            allocated: 4096,
            kill_privileges: kill,
        };
        let decide = |prep: &mut Prep<'_>| prep.execute(session, &op);
        let current = self.world.record(inode).map(|inode| inode.truncations.last().map_or(0, |t| t.seq));
        let is_current = current == Some(view.truncate_seq());
        let follow = |model: &mut Model, with: &Context| {
            if !is_current {
                return Err(MetaError::Respill);
            }
            model.written(inode, end, kill, with);
            Ok(Said::Written(inode, end))
        };
        let (result, expected) = self.world.propose(None, None, decide, follow);
        assert_eq!(result.is_ok(), expected.is_ok(), "{result:?} where {expected:?} was expected");
        if let Ok(MetaReply::Written { attr, .. }) = &result {
            assert_eq!(attr.size, self.world.model.size(inode));
        }
        result
    }

    /// Writes below the size without the hold.
    fn overwrite(&mut self, session: SessionId, [a, b, c, d, _, _]: [u8; 6]) {
        self.world.settle();
        let inode = self.file(a);
        let Some(node) = self.world.model.nodes.get(&inode).filter(|node| node.chunked) else { return };
        let (start, size) = (pick(&OFFSETS, b), node.size);
        let end = (start + pick(&LENGTHS, c)).min(size);
        if start >= end || !self.world.model.sessions.contains(&session) {
            return;
        }
        let view = self.world.view(inode);
        let mut bytes = Runs::default();
        bytes.write(start, end, d | 1);
        self.objects.write(&view, (start, end), &bytes).1.expect("the view is current");
        self.put(inode, start, end, d | 1);
        self.commit_write(session, &view, end, false).expect("the view is current");
        self.world.settle();
        self.old_views.insert(inode, view);
    }

    /// A write that was on its way while the file changed arrives at last: what was cut since stays cut.
    fn write_late(&mut self, a: u8, b: u8, c: u8) {
        self.world.settle();
        let views: Vec<_> = self.old_views.values().cloned().collect();
        if views.is_empty() {
            return;
        }
        let view = views[usize::from(a) % views.len()].clone();
        let (start, byte) = (pick(&OFFSETS, b), c | 1);
        let end = (start + pick(&LENGTHS, c)).min(view.attr.size);
        if view.layout != Layout::Chunks || start >= end {
            return;
        }
        let mut bytes = Runs::default();
        bytes.write(start, end, byte);
        let (taken, _) = self.objects.write(&view, (start, end), &bytes);
        let inode = view.attr.inode;
        let Some(node) = self.world.model.nodes.get(&inode) else { return };
        let since = node.cuts.iter().filter(|(revision, _)| *revision > view.truncate_seq());
        let limit = since.map(|(_, size)| *size).min().unwrap_or(u64::MAX);
        for (from, to) in taken {
            self.put(inode, from, to.min(limit), byte);
        }
    }

    /// Sweeps the objects of one item of the purge queue; the end of a sweep is proposed now or much later.
    fn sweep(&mut self, by: u8) {
        self.world.settle();
        let rows = self.world.leader.machine.committed().scan(&[key::PURGE], &[key::PURGE + 1], 64);
        let rows = rows.expect("memory reads");
        if !rows.is_empty() {
            let (key, value) = &rows[usize::from(by / 2) % rows.len()];
            let inode = InodeId(key::number_at(key, 1).expect("a purge key"));
            let purge: Purge = postcard::from_bytes(value).expect("a purge");
            self.objects.sweep(inode, &purge);
            self.swept.push((inode, purge));
        }
        if by.is_multiple_of(2) {
            for (inode, purge) in std::mem::take(&mut self.swept) {
                let decide = |prep: &mut Prep<'_>| prep.finish_purge(inode, &purge);
                let (result, _) = self.world.propose(None, None, decide, |_, _| Ok(Said::Done));
                assert_eq!(result, Ok(()));
            }
        }
    }

    /// Everybody leaves: nothing but names keeps anything, and no object outlives its inode.
    fn finish(&mut self) {
        self.world.settle();
        for session in self.world.model.sessions.clone() {
            self.world.end_session(session, true);
        }
        self.world.settle();
        self.compare();
        assert!(self.world.model.pins.is_empty() && self.world.model.holds.is_empty());
        for _ in 0..128 {
            self.sweep(0);
        }
        self.world.settle();
        let queue = self.world.leader.machine.committed().scan(&[key::PURGE], &[key::PURGE + 1], 1);
        assert_eq!(queue.expect("memory reads"), [], "the purge queue drains");
        self.compare();
        let gone: Vec<_> = self.objects.inodes().into_iter().filter(|id| !self.exists(*id)).collect();
        assert!(gone.is_empty(), "objects of {gone:?} outlive their inodes");
        self.world.restart_follower();
    }

    fn exists(&self, id: InodeId) -> bool {
        self.world.model.nodes.contains_key(&id)
    }
}

fn node(kind: FileKind, by: u8) -> NewNode {
    let mode = pick(&[0o644, 0o755, 0o2775, 0o6755, 0o1777], by);
    let target = if kind == FileKind::Symlink { vec![b'x'; usize::from(by) + 1] } else { vec![] };
    NewNode { kind, mode, uid: u32::from(by), gid: u32::from(by / 2), rdev: u32::from(by), target }
}
