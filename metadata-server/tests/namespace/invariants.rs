//! What holds of the tables after every transaction, and how they say the same as the model.

use super::model::{Model, Node};
use super::runs::Runs;
use super::world::{Disk, rows};
use metadata_server::fsck::check::cycles;
use metadata_server::fsck::{Checker, Part, Suspicion};
use metadata_server::state::key;
use metadata_server::state::layers::View;
use metadata_server::state::prep::{DEFAULT_POOL, conflict};
use metadata_server::state::record::{Counters, Dentry, Inode, LockTable, Purge, Session};
use protocol::attr::TRUNCATIONS_MAX;
use protocol::map::CHUNK_SIZE_DEFAULT;
use protocol::{EntryName, FileKind, InodeId, PoolId, SessionId};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// The rows, by table.
struct Tables {
    rows: Disk,
    inodes: BTreeMap<InodeId, Inode>,
    sessions: BTreeSet<SessionId>,
    /// (directory, name) → entry
    dentries: BTreeMap<(InodeId, EntryName), Dentry>,
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    postcard::from_bytes(bytes).expect("a row decodes")
}

fn number(key: &[u8], at: usize) -> u64 {
    key::number_at(key, at).expect("a key is long enough")
}

impl Tables {
    fn new(view: &dyn View) -> Self {
        let rows = rows(view);
        let of = |table: u8| rows.range(vec![table]..vec![table + 1]);
        let inodes = of(key::INODE).map(|(k, v)| (InodeId(number(k, 1)), decode(v))).collect();
        let sessions = of(key::SESSION)
            .map(|(k, v)| {
                decode::<Session>(v);
                SessionId(number(k, 1))
            })
            .collect();
        let dentries = of(key::DENTRY)
            .map(|(k, v)| {
                ((InodeId(number(k, 1)), EntryName::new(&k[9..]).expect("a legal name")), decode(v))
            })
            .collect();
        Self { inodes, sessions, dentries, rows }
    }

    fn of(&self, table: u8) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.rows.range(vec![table]..vec![table + 1]).map(|(k, v)| (k.as_slice(), &v[..]))
    }

    fn has(&self, key: &[u8]) -> bool {
        self.rows.contains_key(key)
    }
}

/// Checks everything that must hold of any state.
pub(crate) fn check(view: &dyn View) {
    let tables = Tables::new(view);
    check_names(&tables);
    check_links(&tables);
    check_data(&tables);
    check_pools(&tables);
    check_sessions(&tables);
    check_locks(&tables);
    check_fsck(&tables);
}

/// What a check of the whole filesystem would say: nothing, whatever happens meanwhile. Objects are not in these tests.
fn check_fsck(tables: &Tables) {
    let mut checker = Checker::new(Part::ALL);
    tables.rows.iter().for_each(|(row, value)| checker.row(row, value, value.len()));
    let check = checker.finish();
    for suspect in check.suspects {
        let why: Vec<_> = suspect.why.iter().filter(|why| **why != Suspicion::Allocated).collect();
        assert!(why.is_empty(), "fsck suspects inode {} of {why:?}", suspect.inode);
    }
    assert_eq!(check.system.compare(&check.counts), [], "fsck counts");
    assert_eq!(cycles(check.directories), [], "fsck finds cycles");
}

/// Every pool but the default one knows how many files and directories name it.
fn check_pools(tables: &Tables) {
    let mut counts: BTreeMap<PoolId, u64> = BTreeMap::new();
    for inode in tables.inodes.values() {
        let names_pool = matches!(inode.attr.kind, FileKind::File | FileKind::Directory);
        assert!(
            tables.has(&key::map_pool(inode.pool)),
            "inode {} is in a pool that exists",
            inode.attr.inode
        );
        if names_pool && inode.pool != DEFAULT_POOL {
            *counts.entry(inode.pool).or_default() += 1;
        }
    }
    for (key, _) in tables.of(key::MAP).filter(|(key, _)| key[1] == key::MAP_POOL) {
        let pool = PoolId(number(key, 2) as u32);
        let kept = tables.rows.get(&key::pool_inodes(pool)).map_or(0, |row| decode::<u64>(row));
        assert_eq!(kept, counts.get(&pool).copied().unwrap_or(0), "inodes of pool {pool}");
    }
}

/// Entries, their order and the links back are three views of one thing.
fn check_names(tables: &Tables) {
    for ((parent, name), dentry) in &tables.dentries {
        let directory = tables.inodes.get(parent).expect("a directory with entries exists");
        assert!(directory.is_directory() && directory.attr.nlink > 0, "{parent} has entries");
        let inode = tables.inodes.get(&dentry.inode).expect("an entry names an inode");
        assert_eq!(inode.attr.kind, dentry.kind);
        assert_eq!(tables.rows[&key::order(*parent, dentry.cookie)], name.as_bytes());
        assert!(tables.has(&key::link(dentry.inode, *parent, name)), "{name} has a link back");
        assert!(dentry.cookie < 1 << 63);
    }
    assert_eq!(tables.of(key::ORDER).count(), tables.dentries.len());
    assert_eq!(tables.of(key::LINK).count(), tables.dentries.len());
}

fn check_links(tables: &Tables) {
    let mut names: BTreeMap<InodeId, Vec<InodeId>> = BTreeMap::new();
    let (mut below, mut entries) = (BTreeMap::new(), BTreeMap::new());
    for ((parent, _), dentry) in &tables.dentries {
        names.entry(dentry.inode).or_default().push(*parent);
        *entries.entry(*parent).or_insert(0) += 1;
        *below.entry(*parent).or_insert(0) += u32::from(dentry.kind == FileKind::Directory);
    }
    for (id, inode) in &tables.inodes {
        assert_eq!(inode.attr.inode, *id);
        let parents = names.get(id).map_or(&[][..], Vec::as_slice);
        let count = parents.len() as u32;
        if inode.is_directory() {
            let is_named = *id == InodeId::ROOT || count == 1;
            assert!(count <= 1 && (*id != InodeId::ROOT || count == 0), "directory {id} has {count} names");
            assert_eq!(inode.attr.nlink, if is_named { 2 + below.get(id).unwrap_or(&0) } else { 0 });
            assert_eq!(inode.attr.size, entries.get(id).copied().unwrap_or(0));
            assert!(parents.iter().all(|parent| inode.parent == *parent));
        } else {
            assert_eq!(inode.attr.nlink, count, "links of {id}");
        }
        let prefix = key::prefix1(key::PIN, id.0);
        let pins = tables.rows.range(prefix.clone()..key::prefix_end(&prefix)).count();
        assert!(inode.attr.nlink > 0 || pins > 0, "inode {id} has neither name nor pin");
    }
    for (id, inode) in tables.inodes.iter().filter(|(_, inode)| inode.is_directory()) {
        let (mut at, mut steps) = (*id, 0);
        while at != InodeId::ROOT && tables.inodes[&at].attr.nlink > 0 {
            at = tables.inodes[&at].parent;
            steps += 1;
            assert!(steps <= tables.inodes.len(), "directory {} is below itself", inode.attr.inode);
        }
    }
    let counters: Counters = decode(&tables.rows[&key::system("counters")]);
    assert_eq!(counters.inodes as usize, tables.inodes.len());
    assert!(tables.inodes.keys().all(|id| id.0 < counters.next_inode));
    assert!(tables.sessions.iter().all(|id| id.0 < counters.next_session));
}

fn check_data(tables: &Tables) {
    for (id, inode) in &tables.inodes {
        let list = &inode.truncations;
        let rises = list.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].size < pair[1].size);
        assert!(rises && list.len() <= TRUNCATIONS_MAX + 1, "truncations of {id}: {list:?}");
        if list.len() > 1 {
            let purge: Purge = decode(&tables.rows[&key::purge(*id)]);
            assert_eq!((&purge.truncations, purge.deleted), (list, false), "the sweep shortens a long list");
        }
        let inline = tables.rows.get(&key::inline(*id));
        assert!(inline.is_none_or(|bytes| bytes.len() as u64 <= inode.attr.size && !inode.chunked));
        assert_eq!(inode.attr.blocks, inode.allocated.div_ceil(512));
        if inode.chunked {
            assert!(u64::from(inode.chunks_high) * u64::from(CHUNK_SIZE_DEFAULT) >= inode.attr.size);
        }
    }
    for table in [key::INLINE, key::XATTR] {
        assert!(tables.of(table).all(|(k, _)| tables.inodes.contains_key(&InodeId(number(k, 1)))));
    }
    for (key, value) in tables.of(key::PURGE) {
        let purge: Purge = decode(value);
        assert_eq!(purge.deleted, !tables.inodes.contains_key(&InodeId(number(key, 1))));
    }
}

/// Whatever is somebody's is known to be his, and nobody who is gone has anything.
fn check_sessions(tables: &Tables) {
    let mut owned = BTreeSet::new();
    for (key, value) in tables.of(key::HOLD) {
        let (inode, session) = (InodeId(number(key, 1)), decode(value));
        assert_eq!(tables.inodes[&inode].attr.kind, FileKind::File);
        owned.insert(key::owned_hold(session, inode));
    }
    for (id, inode) in &tables.inodes {
        let holder = tables.rows.get(&key::hold(*id)).map(|row| decode::<SessionId>(row));
        assert!(inode.deferred_by.is_none_or(|owner| holder == Some(owner)), "{id}: only a holder defers");
    }
    for (key, _) in tables.of(key::PIN) {
        let (inode, session) = (InodeId(number(key, 1)), SessionId(number(key, 9)));
        assert!(tables.inodes.contains_key(&inode));
        owned.insert(key::owned_pin(session, inode));
    }
    for (key, value) in tables.of(key::LOCK) {
        let resource = key::parse_lock(&key[1..]).expect("a lock's key says what it locks");
        let table: LockTable = decode(value);
        for entry in table.holders.iter().chain(&table.waiters) {
            owned.insert(key::owned_lock(entry.session, &resource));
        }
    }
    let known: BTreeSet<_> = tables.of(key::OWNED).map(|(k, _)| k.to_vec()).collect();
    assert_eq!(owned, known, "what sessions own");
    for key in owned {
        assert!(
            tables.sessions.contains(&SessionId(number(&key, 1))),
            "a session that is gone owns {key:02x?}"
        );
    }
    for (key, _) in tables.of(key::ENDING) {
        let session = SessionId(number(key, 1));
        let prefix = key::prefix1(key::OWNED, session.0);
        let owns = tables.rows.range(prefix.clone()..key::prefix_end(&prefix)).next().is_some();
        assert!(
            owns && !tables.sessions.contains(&session),
            "session {session} has ended and owns something yet"
        );
    }
    let replies = tables.of(key::REPLY).map(|(k, _)| SessionId(number(k, 1)));
    assert!(replies.into_iter().all(|session| tables.sessions.contains(&session)));
}

fn check_locks(tables: &Tables) {
    for (_, value) in tables.of(key::LOCK) {
        let table: LockTable = decode(value);
        assert!(!table.holders.is_empty(), "nobody waits for what is free");
        for (at, entry) in table.holders.iter().enumerate() {
            let others = LockTable { holders: table.holders[..at].to_vec(), waiters: vec![] };
            assert!(conflict(&others, entry).is_none(), "two hold what one can: {:?}", table.holders);
        }
        let first = &table.waiters.first();
        assert!(
            first.is_none_or(|entry| conflict(&table, entry).is_some()),
            "the first in line waits for nothing"
        );
    }
}

/// Checks that the tables say what the model says.
pub(crate) fn compare(view: &dyn View, model: &Model) {
    let tables = Tables::new(view);
    assert_eq!(tables.sessions, model.sessions);
    let counters: Counters = decode(&tables.rows[&key::system("counters")]);
    assert_eq!((counters.next_inode, counters.next_session), (model.next_inode, model.next_session));
    let known: Vec<_> = tables.inodes.keys().collect();
    assert_eq!(known, model.nodes.keys().collect::<Vec<_>>(), "the inodes that exist");
    for (id, node) in &model.nodes {
        compare_inode(&tables, model, *id, node);
    }
    let pins: BTreeSet<_> =
        tables.of(key::PIN).map(|(k, _)| (InodeId(number(k, 1)), SessionId(number(k, 9)))).collect();
    assert_eq!(pins, model.pins);
    let holds: BTreeMap<_, SessionId> =
        tables.of(key::HOLD).map(|(k, v)| (InodeId(number(k, 1)), decode(v))).collect();
    assert_eq!(holds, model.holds);
    let deferred = tables.inodes.iter().filter_map(|(id, inode)| Some((*id, inode.deferred_by?)));
    assert_eq!(deferred.collect::<BTreeMap<_, _>>(), model.deferred);
}

fn compare_inode(tables: &Tables, model: &Model, id: InodeId, node: &Node) {
    let inode = &tables.inodes[&id];
    let attr = &inode.attr;
    let found = (attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev, inode.chunked);
    assert_eq!(found, (node.kind, node.mode, node.uid, node.gid, node.rdev, node.chunked), "inode {id}");
    assert_eq!((attr.nlink, attr.size), (model.nlink(id), model.size(id)), "links and size of {id}");
    assert_eq!((attr.mtime, attr.ctime), (node.mtime, node.ctime), "times of {id}");
    let entries: BTreeMap<_, _> = tables
        .dentries
        .iter()
        .filter(|((parent, _), _)| *parent == id)
        .map(|((_, name), dentry)| (name.clone(), dentry.inode))
        .collect();
    assert_eq!(entries, node.entries, "entries of {id}");
    let prefix = key::prefix1(key::XATTR, id.0);
    let xattrs: BTreeMap<_, _> = tables
        .rows
        .range(prefix.clone()..key::prefix_end(&prefix))
        .map(|(k, v)| (k[prefix.len()..].to_vec(), v.to_vec()))
        .collect();
    assert_eq!(xattrs, node.xattrs);
    let inline = tables.rows.get(&key::inline(id)).map_or(&[][..], |bytes| &bytes[..]);
    match node.kind {
        FileKind::Symlink => assert_eq!(inline, node.target),
        FileKind::File if !node.chunked => assert_eq!(Runs::of(inline), node.content, "bytes of {id}"),
        _ => assert!(inline.is_empty()),
    }
}
