//! Every kind of damage, done to the rows of a small tree: the comparison suspects the inode, the leader's look names
//! the problem, a repair mends it, and then nothing is wrong any more.

use super::check::cycles;
use super::objects::compare;
use super::*;
use crate::state::examine::examine;
use crate::state::key::{self, Key};
use crate::state::layers::{StoreError, View};
use crate::state::open::OpenTable;
use crate::state::prep::Prep;
use crate::state::record::{Counters, Dentry, Inode, Purge, encode};
use bytes::Bytes;
use protocol::data::ListedObject;
use protocol::map::Pool;
use protocol::meta::{FsckFile, FsckMend, FsckProblem};
use protocol::{
    Attr, EntryName, FileKind, InodeId, ObjectId, PgId, PoolId, Revision, SessionId, Timestamp, Truncation,
};
use std::collections::{BTreeMap, BTreeSet};

const ROOT: InodeId = InodeId::ROOT;
const DIR: InodeId = InodeId(2);
const FILE: InodeId = InodeId(3);
const BIG: InodeId = InodeId(4);
const SUB: InodeId = InodeId(5);
const NOBODY: InodeId = InodeId(9);
const CHUNK: u64 = 4 << 20;

fn name(text: &str) -> EntryName {
    EntryName::new(text).expect("legal")
}

fn pool() -> Pool {
    Pool {
        name: "data".into(),
        size: 3,
        min_size: 2,
        pg_num: 8,
        rule: 0,
        chunk_size: CHUNK as u32,
        inline_limit: 16_384,
    }
}

/// Rows in memory.
#[derive(Clone, Default)]
struct Rows(BTreeMap<Key, Bytes>);

impl View for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        let range = self.0.range(from.to_vec()..to.to_vec());
        Ok(range.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

impl Rows {
    fn inode(&self, id: InodeId) -> Inode {
        postcard::from_bytes(&self.0[&key::inode(id)]).expect("decodes")
    }

    fn put(&mut self, inode: &Inode) {
        self.0.insert(key::inode(inode.attr.inode), encode(inode));
    }

    fn change(&mut self, id: InodeId, change: impl FnOnce(&mut Inode)) {
        let mut inode = self.inode(id);
        change(&mut inode);
        self.put(&inode);
    }

    fn make(&mut self, id: InodeId, kind: FileKind, parent: InodeId) {
        let zero = Timestamp::default();
        let attr = Attr {
            inode: id,
            kind,
            mode: 0o755,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
        };
        self.put(&Inode {
            attr,
            parent,
            allocated: 0,
            chunked: false,
            pool: PoolId(1),
            chunks_high: 0,
            strays: false,
            linkable: false,
            truncations: vec![],
            data_revision: 0,
            created: 0,
            modified: 0,
            children: 0,
            data_version: 0,
            children_version: 0,
            acl_version: 0,
            ephemeral_owner: None,
            deferred_by: None,
        });
    }

    fn entry(&mut self, parent: InodeId, text: &str, id: InodeId, kind: FileKind, cookie: u64) {
        let entry = Dentry { inode: id, kind, cookie };
        self.0.insert(key::dentry(parent, &name(text)), encode(&entry));
        self.0.insert(key::order(parent, cookie), text.as_bytes().to_vec().into());
        self.0.insert(key::link(id, parent, &name(text)), Bytes::new());
        self.change(parent, |directory| {
            directory.attr.size += 1;
            directory.attr.nlink += u32::from(kind == FileKind::Directory);
        });
    }

    /// `/dir/file`, `/dir/big` with three chunks, `/dir/sub/`, and a session.
    fn tree() -> Self {
        let mut rows = Rows::default();
        rows.make(ROOT, FileKind::Directory, ROOT);
        rows.make(DIR, FileKind::Directory, ROOT);
        rows.make(SUB, FileKind::Directory, DIR);
        rows.make(FILE, FileKind::File, DIR);
        rows.make(BIG, FileKind::File, DIR);
        rows.entry(ROOT, "dir", DIR, FileKind::Directory, 9);
        rows.entry(DIR, "file", FILE, FileKind::File, 17);
        rows.entry(DIR, "big", BIG, FileKind::File, 25);
        rows.entry(DIR, "sub", SUB, FileKind::Directory, 33);
        rows.change(FILE, |file| file.attr.size = 5);
        rows.0.insert(key::inline(FILE), Bytes::from_static(b"hello"));
        rows.change(BIG, |big| {
            (big.chunked, big.chunks_high, big.attr.size) = (true, 3, 2 * CHUNK + 100);
            big.set_allocated(2 * CHUNK + 4096);
            big.truncations = vec![Truncation { seq: 3, size: 0 }];
        });
        rows.0.insert(key::map_pool(PoolId(1)), encode(&pool()));
        let counters = Counters { next_inode: 20, inodes: 5, next_session: 2 };
        rows.0.insert(key::system("counters"), encode(&counters));
        rows.0.insert(key::session(SessionId(1)), Bytes::from_static(b"somebody's"));
        rows
    }

    fn check(&self, part: Part, objects: &[(PgId, ListedObject)]) -> Check {
        let mut checker = Checker::new(part);
        for (row, value) in self.0.iter().filter(|(row, _)| Checker::needs_row(row)) {
            let kept = if Checker::needs_value(row) { &value[..] } else { &[] };
            checker.row(row, kept, value.len());
        }
        objects.iter().for_each(|(pg, object)| checker.object(*pg, object));
        checker.finish()
    }

    /// What is suspected, in any number of parts.
    fn suspects(&self, objects: &[(PgId, ListedObject)]) -> Vec<Suspect> {
        let whole = self.check(Part::ALL, objects);
        let mut parts: Vec<Suspect> = Vec::new();
        let mut directories = Vec::new();
        for number in 0..3 {
            let check = self.check(Part { number, of: 3 }, objects);
            parts.extend(check.suspects);
            directories.extend(check.directories);
        }
        parts.sort_by_key(|suspect| suspect.inode);
        assert_eq!(whole.suspects, parts, "parts see what the whole sees");
        for inode in cycles(directories) {
            parts.push(Suspect { inode, why: [Suspicion::Unreachable].into(), pools: BTreeSet::new() });
        }
        parts
    }

    fn names_of(&self, id: InodeId) -> Vec<(InodeId, EntryName)> {
        let entries = self.scan(&[key::DENTRY], &[key::DENTRY + 1], usize::MAX).expect("rows");
        let named = entries
            .iter()
            .filter(|(_, value)| postcard::from_bytes::<Dentry>(value).is_ok_and(|entry| entry.inode == id));
        named
            .map(|(row, _)| {
                (
                    InodeId(key::number_at(row, 1).expect("a parent")),
                    name(std::str::from_utf8(&row[9..]).expect("text")),
                )
            })
            .collect()
    }

    fn prep<T>(&mut self, decide: impl FnOnce(&mut Prep<'_>) -> T) -> T {
        let base = self.clone();
        let open = OpenTable::default();
        let mut prep = Prep::new(&base, &open, 50, Timestamp::default());
        let said = decide(&mut prep);
        let txn = prep.finish().expect("a transaction");
        for (row, value) in txn.writes {
            match value {
                Some(value) => self.0.insert(row, value),
                None => self.0.remove(&row),
            };
        }
        said
    }

    /// Looks at suspects and mends them, as the command does. Returns what was found.
    fn repair(&mut self) -> BTreeSet<(InodeId, FsckProblem)> {
        let mut found = BTreeSet::new();
        let mut queue: Vec<InodeId> =
            self.suspects(&objects()).into_iter().map(|suspect| suspect.inode).collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = queue.pop() {
            let names = self.names_of(id);
            let mended = self.prep(|prep| prep.mend(id, &names).expect("no errors"));
            assert!(mended.left.is_empty(), "left of {id}: {:?}", mended.left);
            found.extend(mended.found.into_iter().map(|problem| (id, problem)));
            queue.extend(mended.also.into_iter().filter(|id| seen.insert(*id)));
        }
        found
    }
}

fn object(id: InodeId, chunk: u32, size: u64) -> (PgId, ListedObject) {
    let pg = ObjectId { pool: PoolId(1), inode: id, chunk }.pg(8);
    (pg, ListedObject { inode: id, chunk, size, allocated: size.next_multiple_of(4096), truncate_seq: 3 })
}

/// Those of the tree.
fn objects() -> Vec<(PgId, ListedObject)> {
    vec![object(BIG, 0, CHUNK), object(BIG, 1, CHUNK), object(BIG, 2, 100)]
}

/// Damages a tree: `id` is suspected, `problem` is named, and after the repair everything is as it should be.
fn found_and_repaired(
    damage: impl FnOnce(&mut Rows),
    id: InodeId,
    why: Suspicion,
    problem: FsckProblem,
) -> Rows {
    let mut rows = Rows::tree();
    damage(&mut rows);
    let suspects = rows.suspects(&objects());
    let suspect = suspects.iter().find(|suspect| suspect.inode == id);
    assert!(suspect.is_some_and(|s| s.why.contains(&why)), "{id} for {why:?}: {suspects:?}");
    let said = examine(&rows, id, &rows.names_of(id)).expect("no errors");
    assert!(said.contains(&problem), "{problem:?}: {said:?}");
    let found = rows.repair();
    assert!(found.contains(&(id, problem)), "{found:?}");
    let left = rows.suspects(&objects());
    assert!(left.is_empty(), "after the repair: {left:?}");
    rows
}

#[test]
fn a_whole_tree_is_clean() {
    let rows = Rows::tree();
    assert_eq!(rows.suspects(&objects()), []);
    for id in [ROOT, DIR, FILE, BIG, SUB] {
        assert_eq!(examine(&rows, id, &[]).expect("no errors"), BTreeSet::new(), "{id}");
    }
    let check = rows.check(Part::ALL, &objects());
    assert_eq!((check.counts.inodes, check.counts.directories, check.counts.objects), (5, 3, 3));
    assert_eq!(check.system.compare(&check.counts), []);
}

#[test]
fn an_entry_that_names_nothing_goes() {
    let damage = |rows: &mut Rows| {
        rows.0.remove(&key::inode(FILE));
        rows.0.remove(&key::inline(FILE));
    };
    let problem = FsckProblem::EntryWithoutInode { parent: DIR, name: name("file") };
    let rows = found_and_repaired(damage, FILE, Suspicion::NoInode, problem);
    assert_eq!(rows.inode(DIR).attr.size, 2);
}

#[test]
fn rows_of_an_inode_that_does_not_exist_go() {
    let damage = |rows: &mut Rows| {
        rows.0.insert(key::xattr(NOBODY, b"user.a"), Bytes::from_static(b"x"));
    };
    let problem = FsckProblem::RowsWithoutInode { what: "xattrs".into(), rows: 1 };
    found_and_repaired(damage, NOBODY, Suspicion::NoInode, problem);
}

#[test]
fn a_file_that_nothing_names_comes_to_lost_and_found() {
    let damage = |rows: &mut Rows| {
        rows.0.remove(&key::dentry(DIR, &name("file")));
        rows.0.remove(&key::order(DIR, 17));
        rows.0.remove(&key::link(FILE, DIR, &name("file")));
        rows.change(DIR, |dir| dir.attr.size = 2);
    };
    let rows = found_and_repaired(damage, FILE, Suspicion::Nameless, FsckProblem::Unreferenced);
    let lost = InodeId(20);
    assert_eq!((rows.inode(lost).attr.mode, rows.inode(lost).attr.size), (0o700, 1));
    assert!(rows.0.contains_key(&key::dentry(ROOT, &name("lost+found"))));
    assert!(rows.0.contains_key(&key::dentry(lost, &name("#3"))));
    assert_eq!(rows.0[&key::inline(FILE)], Bytes::from_static(b"hello"));
}

#[test]
fn a_directory_that_nothing_names_comes_to_lost_and_found_with_everything_below() {
    let damage = |rows: &mut Rows| {
        rows.0.remove(&key::dentry(ROOT, &name("dir")));
        rows.0.remove(&key::order(ROOT, 9));
        rows.0.remove(&key::link(DIR, ROOT, &name("dir")));
        rows.change(ROOT, |root| (root.attr.size, root.attr.nlink) = (0, 2));
    };
    let rows = found_and_repaired(damage, DIR, Suspicion::Nameless, FsckProblem::Unreferenced);
    assert_eq!((rows.inode(DIR).attr.nlink, rows.inode(DIR).parent), (3, InodeId(20)));
}

#[test]
fn directories_that_are_below_each_other_come_to_lost_and_found() {
    let damage = |rows: &mut Rows| {
        rows.0.remove(&key::dentry(ROOT, &name("dir")));
        rows.0.remove(&key::order(ROOT, 9));
        rows.0.remove(&key::link(DIR, ROOT, &name("dir")));
        rows.change(ROOT, |root| (root.attr.size, root.attr.nlink) = (0, 2));
        rows.entry(SUB, "dir", DIR, FileKind::Directory, 41);
        rows.change(DIR, |dir| dir.parent = SUB);
    };
    found_and_repaired(damage, DIR, Suspicion::Unreachable, FsckProblem::Unreachable);
}

#[test]
fn what_was_deleted_and_is_open_nowhere_goes() {
    let damage = |rows: &mut Rows| {
        rows.make(NOBODY, FileKind::File, DIR);
        rows.change(NOBODY, |file| file.attr.nlink = 0);
        rows.0.insert(
            key::system("counters"),
            encode(&Counters { next_inode: 20, inodes: 6, next_session: 2 }),
        );
    };
    let rows = found_and_repaired(damage, NOBODY, Suspicion::Nameless, FsckProblem::NotDeleted);
    assert!(!rows.0.contains_key(&key::inode(NOBODY)));
}

#[test]
fn counts_of_links_and_entries_are_made_right() {
    let links = |found, counted| FsckProblem::LinkCount { found, counted };
    found_and_repaired(
        |rows| rows.change(FILE, |f| f.attr.nlink = 7),
        FILE,
        Suspicion::LinkCount,
        links(7, 1),
    );
    found_and_repaired(|rows| rows.change(DIR, |d| d.attr.nlink = 2), DIR, Suspicion::LinkCount, links(2, 3));
    let entries = FsckProblem::EntryCount { found: 30, counted: 3 };
    found_and_repaired(|rows| rows.change(DIR, |d| d.attr.size = 30), DIR, Suspicion::EntryCount, entries);
}

#[test]
fn a_wrong_parent_is_made_right() {
    let problem = FsckProblem::Parent { found: ROOT, counted: DIR };
    let rows =
        found_and_repaired(|rows| rows.change(SUB, |sub| sub.parent = ROOT), SUB, Suspicion::Parent, problem);
    assert_eq!(rows.inode(SUB).parent, DIR);
}

#[test]
fn a_directory_keeps_one_name() {
    let damage = |rows: &mut Rows| rows.entry(ROOT, "again", SUB, FileKind::Directory, 49);
    let problem = FsckProblem::SecondName { parent: ROOT, name: name("again") };
    found_and_repaired(damage, SUB, Suspicion::SecondName, problem);
}

#[test]
fn entries_places_and_links_are_made_to_say_the_same() {
    let at = |text| (DIR, name(text));
    let (parent, file) = at("file");
    let damage = |rows: &mut Rows| {
        rows.0.remove(&key::link(FILE, DIR, &name("file")));
    };
    let problem = FsckProblem::EntryWithoutLink { parent, name: file.clone() };
    found_and_repaired(damage, FILE, Suspicion::Links, problem);
    let damage = |rows: &mut Rows| {
        rows.0.insert(key::link(FILE, DIR, &name("gone")), Bytes::new());
    };
    let problem = FsckProblem::LinkWithoutEntry { parent, name: name("gone") };
    found_and_repaired(damage, FILE, Suspicion::Links, problem);
    let damage = |rows: &mut Rows| {
        rows.0.remove(&key::order(DIR, 17));
    };
    let problem = FsckProblem::EntryWithoutPlace { parent, name: file.clone() };
    found_and_repaired(damage, DIR, Suspicion::Order, problem);
    let damage = |rows: &mut Rows| {
        rows.0.insert(key::order(DIR, 65), Bytes::from_static(b"ghost"));
    };
    let problem = FsckProblem::PlaceWithoutEntry { parent, cookie: 65 };
    found_and_repaired(damage, DIR, Suspicion::Order, problem);
    let damage = |rows: &mut Rows| {
        let entry = Dentry { inode: FILE, kind: FileKind::Fifo, cookie: 17 };
        rows.0.insert(key::dentry(DIR, &name("file")), encode(&entry));
    };
    found_and_repaired(damage, FILE, Suspicion::Kind, FsckProblem::EntryKind { parent, name: file });
}

#[test]
fn entries_below_a_file_go_and_what_they_named_is_kept() {
    let damage = |rows: &mut Rows| {
        rows.make(NOBODY, FileKind::File, FILE);
        let entry = Dentry { inode: NOBODY, kind: FileKind::File, cookie: 57 };
        rows.0.insert(key::dentry(FILE, &name("below")), encode(&entry));
        rows.0.insert(key::order(FILE, 57), Bytes::from_static(b"below"));
        rows.0.insert(key::link(NOBODY, FILE, &name("below")), Bytes::new());
    };
    let problem = FsckProblem::EntryWithoutDirectory { parent: FILE, name: name("below") };
    let rows = found_and_repaired(damage, FILE, Suspicion::NoDirectory, problem);
    assert!(rows.0.contains_key(&key::dentry(InodeId(20), &name("#9"))), "it is in lost+found");
}

#[test]
fn pins_and_holds_of_sessions_that_do_not_exist_go() {
    let nobody = SessionId(77);
    let damage = |rows: &mut Rows| {
        rows.0.insert(key::hold(BIG), encode(&nobody));
        rows.0.insert(key::owned_hold(nobody, BIG), Bytes::new());
    };
    found_and_repaired(damage, BIG, Suspicion::Owner, FsckProblem::StrayHold { session: nobody });
    let damage = |rows: &mut Rows| {
        rows.0.insert(key::pin(FILE, nobody), Bytes::new());
    };
    found_and_repaired(damage, FILE, Suspicion::Owner, FsckProblem::StrayPin { session: nobody });
    let mut rows = Rows::tree();
    rows.make(NOBODY, FileKind::File, DIR);
    rows.change(NOBODY, |file| file.attr.nlink = 0);
    rows.0.insert(key::pin(NOBODY, SessionId(1)), Bytes::new());
    rows.0.insert(key::owned_pin(SessionId(1), NOBODY), Bytes::new());
    assert_eq!(rows.suspects(&objects()), [], "a deleted file that somebody has open is as it should be");
}

#[test]
fn a_files_layout_is_made_right() {
    let swept = vec![Truncation { seq: 3, size: 0 }, Truncation { seq: 8, size: 3 * CHUNK }];
    let damage = |rows: &mut Rows| rows.change(BIG, |big| big.truncations = swept);
    let mut rows = Rows::tree();
    damage(&mut rows);
    assert_eq!(rows.suspects(&objects())[0].why, [Suspicion::Truncations].into());
    assert!(rows.repair().contains(&(BIG, FsckProblem::SweepMissing)));
    assert!(rows.0.contains_key(&key::purge(BIG)) && rows.suspects(&objects()).is_empty());
    let bound = FsckProblem::ChunkBound { found: 1, counted: 3 };
    found_and_repaired(|rows| rows.change(BIG, |big| big.chunks_high = 1), BIG, Suspicion::ChunkBound, bound);
    let inline = FsckProblem::InlineLength { found: 5, size: 2 };
    found_and_repaired(|rows| rows.change(FILE, |file| file.attr.size = 2), FILE, Suspicion::Inline, inline);
    let damage = |rows: &mut Rows| {
        let purge = Purge {
            pool: PoolId(1),
            chunks_high: 3,
            strays: false,
            truncations: vec![Truncation { seq: 9, size: 0 }],
            deleted: true,
        };
        rows.0.insert(key::purge(BIG), encode(&purge));
    };
    found_and_repaired(damage, BIG, Suspicion::Purge, FsckProblem::PurgeOfLiving);
}

#[test]
fn what_cannot_be_read_is_told_and_not_touched() {
    let mut rows = Rows::tree();
    rows.0.insert(key::inode(FILE), Bytes::from_static(&[0xff; 3]));
    assert!(rows.suspects(&objects()).iter().any(|s| s.why.contains(&Suspicion::Undecodable)));
    let before = rows.0.clone();
    let mended = rows.prep(|prep| prep.mend(FILE, &[]).expect("no errors"));
    assert_eq!(mended.left, [FsckProblem::Undecodable { what: "inode".into() }].into());
    assert_eq!(rows.0, before);
    let mut rows = Rows::tree();
    rows.change(BIG, |big| big.pool = PoolId(7));
    assert!(rows.suspects(&[]).iter().any(|s| s.why.contains(&Suspicion::Pool)));
    assert!(examine(&rows, BIG, &[]).expect("no errors").contains(&FsckProblem::NoPool { pool: PoolId(7) }));
    let mut rows = Rows::tree();
    rows.0.remove(&key::inode(ROOT));
    assert!(rows.suspects(&[]).iter().any(|s| s.inode == ROOT && s.why.contains(&Suspicion::NoInode)));
    assert!(examine(&rows, ROOT, &[]).expect("no errors").contains(&FsckProblem::NoRoot));
}

#[test]
fn counts_are_corrected_once() {
    let mut rows = Rows::tree();
    rows.0.insert(key::system("counters"), encode(&Counters { next_inode: 4, inodes: 8, next_session: 2 }));
    rows.0.insert(key::pool_inodes(PoolId(2)), encode(&3u64));
    let check = rows.check(Part::ALL, &[]);
    let wrong = check.system.compare(&check.counts);
    assert_eq!(
        wrong,
        [
            FsckProblem::InodeCount { found: 8, counted: 5 },
            FsckProblem::NextInode { found: 4, highest: 5 },
            FsckProblem::PoolCount { pool: PoolId(2), found: 3, counted: 0 },
        ]
    );
    let mend = |prep: &mut Prep<'_>| prep.mend_counts(Revision(49), -3, &[(PoolId(2), -3)], 6);
    rows.prep(mend).expect("corrected");
    let check = rows.check(Part::ALL, &[]);
    assert_eq!(check.system.compare(&check.counts), []);
    assert!(rows.prep(mend).is_err(), "whoever counted before counts again");
}

fn file_of(rows: &Rows) -> FsckFile {
    crate::state::prep::mend::fsck_file(&rows.inode(BIG)).expect("a file")
}

#[test]
fn objects_that_do_not_fit_are_suspected_and_named() {
    let rows = Rows::tree();
    let pools = BTreeMap::from([(PoolId(1), pool())]);
    let why = |objects: &[(PgId, ListedObject)]| {
        let suspects = rows.suspects(objects);
        suspects.into_iter().map(|s| (s.inode, s.why)).collect::<Vec<_>>()
    };
    let named =
        |id, file: Option<&FsckFile>, objects: &[(PgId, ListedObject)]| compare(id, file, objects, &pools);
    let big = file_of(&rows);
    assert_eq!(named(BIG, Some(&big), &objects()), []);

    let orphan = object(NOBODY, 4, 5000);
    assert_eq!(why(&[objects(), vec![orphan]].concat()), [(NOBODY, [Suspicion::Orphans].into())]);
    let problem = FsckProblem::OrphanObjects { pool: PoolId(1), objects: 1, bytes: 8192 };
    assert_eq!(named(NOBODY, None, &[orphan]), [(problem, Some(FsckMend::Purge(PoolId(1))))]);
    let later = object(InodeId(20), 0, 5000);
    assert_eq!(why(&[objects(), vec![later]].concat()), [], "made after the rows were taken");

    let beyond = [objects(), vec![object(BIG, 3, 10)]].concat();
    assert!(why(&beyond)[0].1.contains(&Suspicion::Objects));
    let problem = FsckProblem::BeyondSize { objects: 1, size: 2 * CHUNK + 100 };
    assert_eq!(named(BIG, Some(&big), &beyond), [(problem, Some(FsckMend::Cut))]);

    let missing = &objects()[1..];
    assert_eq!(why(missing), [(BIG, [Suspicion::Allocated].into())]);
    let (recorded, found) = (2 * CHUNK + 4096, CHUNK + 4096);
    let mend = Some(FsckMend::Allocated(found));
    let problem = FsckProblem::Missing { recorded, found };
    assert_eq!(named(BIG, Some(&big), missing), [(problem, mend.clone())]);
    let cut = FsckFile { exact: false, ..big };
    let note = FsckProblem::Allocated { recorded, found };
    assert_eq!(named(BIG, Some(&cut), missing), [(note, mend)], "a truncated file may have had holes");

    let mut misplaced = objects();
    misplaced[1].0.seed = (misplaced[1].0.seed + 1) % 8;
    assert!(why(&misplaced)[0].1.contains(&Suspicion::Objects));
    assert!(named(BIG, Some(&big), &misplaced).contains(&(FsckProblem::Misplaced { objects: 1 }, None)));

    let left = [objects(), vec![object(FILE, 0, 10)]].concat();
    assert_eq!(why(&left), [(FILE, [Suspicion::Objects].into())]);
    let small = FsckFile { chunked: false, size: 5, allocated: 5, ..big };
    let problem = FsckProblem::Leftover { objects: 1, bytes: 4096 };
    assert_eq!(named(FILE, Some(&small), &left[3..]), [(problem, Some(FsckMend::Cut))]);
}

#[test]
fn what_is_in_flight_is_not_suspected() {
    let mut rows = Rows::tree();
    rows.0.insert(key::hold(BIG), encode(&SessionId(1)));
    rows.0.insert(key::owned_hold(SessionId(1), BIG), Bytes::new());
    let grown = [objects(), vec![object(BIG, 3, CHUNK), object(BIG, 4, 10)]].concat();
    assert_eq!(rows.suspects(&grown), [], "somebody extends it");
    let mut rows = Rows::tree();
    rows.change(BIG, |big| big.attr.size = CHUNK);
    rows.prep(|prep| prep.mend_objects(BIG, Some(file_of(&Rows::tree())), &FsckMend::Cut))
        .expect_err("changed");
    let seen = file_of(&rows);
    rows.prep(|prep| prep.mend_objects(BIG, Some(seen), &FsckMend::Cut)).expect("queued");
    assert_eq!(rows.suspects(&objects()), [], "its objects are being cut");
    rows.prep(|prep| prep.mend_objects(BIG, Some(seen), &FsckMend::Allocated(7))).expect_err("not now");
}

#[test]
fn orphans_are_queued_for_deletion() {
    let mut rows = Rows::tree();
    rows.prep(|prep| prep.mend_objects(NOBODY, None, &FsckMend::Purge(PoolId(1)))).expect("queued");
    let purge: Purge = postcard::from_bytes(&rows.0[&key::purge(NOBODY)]).expect("decodes");
    assert!(purge.deleted && purge.strays && purge.truncations == [Truncation { seq: 50, size: 0 }]);
    assert_eq!(rows.suspects(&[objects(), vec![object(NOBODY, 4, 5000)]].concat()), []);
    rows.prep(|prep| prep.mend_objects(FILE, None, &FsckMend::Purge(PoolId(1)))).expect_err("it exists");
}

#[test]
fn a_pass_takes_no_more_memory_than_is_said() {
    // A node of the map holds up to eleven facts and is at least half full but for the root.
    let worst = (size_of::<facts::Facts>() + 8) as u64 * 11 / 5;
    assert!(worst <= BYTES_PER_INODE, "{worst} bytes");
}
