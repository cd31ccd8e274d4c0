//! Rows and objects in, suspects out.

use super::facts::{BROKEN, Facts, HELD, LEFTOVER_ROWS, MISPLACED, OTHER_POOL, Suspicion};
use crate::state::key;
use crate::state::prep::DEFAULT_POOL;
use crate::state::record::{Counters, Dentry, Inode, Purge};
use protocol::data::ListedObject;
use protocol::map::Pool;
use protocol::meta::FsckProblem;
use protocol::{EntryName, FileKind, InodeId, ObjectId, PgId, PoolId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// What one inode of a part takes in memory, at most.
pub const BYTES_PER_INODE: u64 = 288;

/// The inodes whose numbers leave `number` when divided by `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which.
    pub number: u64,
    /// How many parts there are.
    pub of: u64,
}

impl Part {
    /// Every inode.
    pub const ALL: Part = Part { number: 0, of: 1 };

    fn has(self, inode: u64) -> bool {
        // Numbers are given out in rising order: neighbours go to different parts.
        inode % self.of.max(1) == self.number
    }
}

/// An inode that is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Which; it need not exist.
    pub inode: InodeId,
    /// Why.
    pub why: BTreeSet<Suspicion>,
    /// Pools in which it has objects, if it does not exist or is in another one.
    pub pools: BTreeSet<PoolId>,
}

/// What is counted over all parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inodes.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Entries of directories.
    pub entries: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes that they occupy, replicas counted once.
    pub object_bytes: u64,
    /// The highest inode number.
    pub highest: u64,
    /// Inodes by the pool that they name, but for the default one.
    pub by_pool: BTreeMap<PoolId, u64>,
}

/// What came of one part.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// What is to be looked at.
    pub suspects: Vec<Suspect>,
    /// Of this part alone.
    pub counts: Counts,
    /// Directories, each with the one that names it.
    pub directories: Vec<(u64, u64)>,
    /// What the system says of itself.
    pub system: System,
}

/// Numbers that the system keeps.
#[derive(Clone, Debug, Default)]
pub struct System {
    counters: Counters,
    pool_inodes: BTreeMap<PoolId, u64>,
}

/// See the module above.
pub struct Checker {
    part: Part,
    facts: BTreeMap<u64, Facts>,
    /// Pins and holds, with their sessions: the sessions' rows come later.
    owners: BTreeSet<(u64, u64)>,
    sessions: BTreeSet<u64>,
    pools: BTreeMap<PoolId, Pool>,
    pools_of: BTreeMap<u64, BTreeSet<PoolId>>,
    system: System,
    counts: Counts,
    directories: Vec<(u64, u64)>,
}

/// A number for a thing that two tables name.
fn hash(a: u64, b: u64, name: &[u8]) -> u64 {
    // FNV-1a with a finish that spreads every bit: sums of it are zero by chance once in 2^64.
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let bytes = a.to_be_bytes().into_iter().chain(b.to_be_bytes()).chain(name.iter().copied());
    for byte in bytes {
        sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    sum = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    sum = (sum ^ (sum >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    sum ^ (sum >> 33)
}

impl Checker {
    /// Begins with one part.
    pub fn new(part: Part) -> Self {
        Self {
            part,
            facts: BTreeMap::new(),
            owners: BTreeSet::new(),
            sessions: BTreeSet::new(),
            pools: BTreeMap::new(),
            pools_of: BTreeMap::new(),
            system: System::default(),
            counts: Counts::default(),
            directories: Vec::new(),
        }
    }

    /// Whether a row's value has to be handed in, rather than its length alone.
    pub fn needs_value(key: &[u8]) -> bool {
        !matches!(key.first(), Some(&key::XATTR | &key::INLINE | &key::PIN | &key::SESSION))
    }

    /// Whether a row matters at all.
    pub fn needs_row(key: &[u8]) -> bool {
        match key.first() {
            Some(&(key::INODE..=key::SESSION | key::PURGE | key::SYSTEM | key::ENDING)) => true,
            Some(&key::MAP) => key.get(1) == Some(&key::MAP_POOL),
            _ => false,
        }
    }

    fn of(&mut self, inode: u64) -> Option<&mut Facts> {
        self.part.has(inode).then(|| self.facts.entry(inode).or_default())
    }

    /// A row of the snapshot; `length` is that of its value, which is empty if [`Self::needs_value`] says so.
    pub fn row(&mut self, row: &[u8], value: &[u8], length: usize) {
        let id = key::number_at(row, 1).unwrap_or_default();
        match row.first() {
            Some(&key::INODE) => self.inode(id, value),
            Some(&key::DENTRY) => self.dentry(id, &row[9.min(row.len())..], value),
            Some(&key::ORDER) => {
                let cookie = key::number_at(row, 9).unwrap_or_default();
                if let Some(facts) = self.of(id) {
                    facts.order = facts.order.wrapping_sub(hash(id, cookie, value));
                }
            }
            Some(&key::LINK) => {
                if let (Some(facts), Some((parent, name))) = (self.of(id), key::parse_link(row)) {
                    facts.links = facts.links.wrapping_sub(hash(id, parent.0, name.as_bytes()));
                }
            }
            Some(&key::XATTR) => self.mark(id, LEFTOVER_ROWS),
            Some(&key::INLINE) => {
                self.mark(id, LEFTOVER_ROWS);
                if let Some(facts) = self.of(id) {
                    facts.inline = u32::try_from(length).unwrap_or(u32::MAX);
                }
            }
            Some(&key::HOLD) => {
                self.mark(id, LEFTOVER_ROWS | HELD);
                if let (true, Ok(session)) = (self.part.has(id), postcard::from_bytes::<SessionId>(value)) {
                    self.owners.insert((id, session.0));
                }
            }
            Some(&key::PIN) => {
                self.mark(id, LEFTOVER_ROWS);
                if let Some(facts) = self.of(id) {
                    facts.pins += 1;
                    self.owners.insert((id, key::number_at(row, 9).unwrap_or_default()));
                }
            }
            Some(&key::SESSION | &key::ENDING) => {
                self.sessions.insert(id);
            }
            Some(&key::PURGE) => {
                if let (Some(facts), Ok(purge)) = (self.of(id), postcard::from_bytes::<Purge>(value)) {
                    facts.purge(&purge);
                }
            }
            Some(&key::SYSTEM) => self.system(&row[1..], value),
            Some(&key::MAP) if row.get(1) == Some(&key::MAP_POOL) => {
                let pool = PoolId(key::number_at(row, 2).unwrap_or_default() as u32);
                if let Ok(said) = postcard::from_bytes::<Pool>(value) {
                    self.pools.insert(pool, said);
                }
            }
            _ => {}
        }
    }

    fn mark(&mut self, id: u64, bits: u16) {
        if let Some(facts) = self.of(id) {
            facts.is |= bits;
        }
    }

    fn inode(&mut self, id: u64, value: &[u8]) {
        if !self.part.has(id) {
            return;
        }
        self.counts.inodes += 1;
        self.counts.highest = self.counts.highest.max(id);
        let decoded = postcard::from_bytes::<Inode>(value).ok().filter(|inode| inode.attr.inode.0 == id);
        let Some(inode) = decoded else { return self.mark(id, BROKEN) };
        if matches!(inode.attr.kind, FileKind::File | FileKind::Directory) && inode.pool != DEFAULT_POOL {
            *self.counts.by_pool.entry(inode.pool).or_default() += 1;
        }
        if let Some(facts) = self.of(id) {
            facts.inode(&inode);
        }
    }

    fn dentry(&mut self, parent: u64, name: &[u8], value: &[u8]) {
        let decoded = postcard::from_bytes::<Dentry>(value).ok().filter(|_| EntryName::new(name).is_ok());
        let Some(entry) = decoded else { return self.mark(parent, BROKEN) };
        if let Some(facts) = self.of(parent) {
            facts.entries += 1;
            facts.directories += u32::from(entry.kind == FileKind::Directory);
            facts.order = facts.order.wrapping_add(hash(parent, entry.cookie, name));
            self.counts.entries += 1;
        }
        let child = entry.inode.0;
        if let Some(facts) = self.of(child) {
            facts.named(parent, entry.kind, hash(child, parent, name));
        }
    }

    fn system(&mut self, name: &[u8], value: &[u8]) {
        if name == b"counters" {
            self.system.counters = postcard::from_bytes(value).unwrap_or_default();
        } else if let Some(pool) = name.strip_prefix(b"pool_inodes_")
            && let Some(pool) = std::str::from_utf8(pool).ok().and_then(|pool| pool.parse().ok())
        {
            self.system.pool_inodes.insert(PoolId(pool), postcard::from_bytes(value).unwrap_or_default());
        }
    }

    /// An object that the primary of its group lists, after all rows.
    pub fn object(&mut self, pg: PgId, listed: &ListedObject) {
        let id = listed.inode.0;
        // Made after the rows were taken: nothing is known of it here.
        if id >= self.system.counters.next_inode {
            return;
        }
        let pool = pg.pool;
        let group = self
            .pools
            .get(&pool)
            .map(|known| ObjectId { pool, inode: listed.inode, chunk: listed.chunk }.pg(known.pg_num));
        let Some(facts) = self.of(id) else { return };
        if facts.has(super::facts::EXISTS) && facts.pool != pool.0 {
            facts.is |= OTHER_POOL;
        } else {
            facts.object(listed.chunk, listed.size, listed.allocated);
        }
        if group.is_some_and(|group| group != pg) {
            facts.is |= MISPLACED;
        }
        let is_elsewhere = !facts.has(super::facts::EXISTS) || facts.has(OTHER_POOL);
        self.counts.objects += 1;
        self.counts.object_bytes += listed.allocated;
        if is_elsewhere {
            self.pools_of.entry(id).or_default().insert(pool);
        }
    }

    /// What is to be looked at.
    pub fn finish(mut self) -> Check {
        let mut suspects = Vec::new();
        if self.part.has(InodeId::ROOT.0) {
            self.facts.entry(InodeId::ROOT.0).or_default();
        }
        let strangers: BTreeSet<u64> = self
            .owners
            .iter()
            .filter(|(_, session)| !self.sessions.contains(session))
            .map(|(inode, _)| *inode)
            .collect();
        for (id, facts) in &self.facts {
            let inode = InodeId(*id);
            let mut why = facts.judge(inode, &self.pools);
            if strangers.contains(id) && facts.has(super::facts::EXISTS) {
                why.insert(Suspicion::Owner);
            }
            if facts.has(super::facts::DIRECTORY) && facts.names > 0 {
                self.directories.push((*id, facts.named_by));
            }
            self.counts.directories += u64::from(facts.has(super::facts::DIRECTORY));
            if !why.is_empty() {
                let pools = self.pools_of.remove(id).unwrap_or_default();
                suspects.push(Suspect { inode, why, pools });
            }
        }
        Check { suspects, counts: self.counts, directories: self.directories, system: self.system }
    }
}

impl System {
    /// What is wrong with the counts of the system, once all parts are counted together.
    pub fn compare(&self, all: &Counts) -> Vec<FsckProblem> {
        let mut found = Vec::new();
        if self.counters.inodes != all.inodes {
            found.push(FsckProblem::InodeCount { found: self.counters.inodes, counted: all.inodes });
        }
        if self.counters.next_inode <= all.highest {
            found.push(FsckProblem::NextInode { found: self.counters.next_inode, highest: all.highest });
        }
        let pools: BTreeSet<PoolId> = self.pool_inodes.keys().chain(all.by_pool.keys()).copied().collect();
        for pool in pools.into_iter().filter(|pool| *pool != DEFAULT_POOL) {
            let found_there = self.pool_inodes.get(&pool).copied().unwrap_or(0);
            let counted = all.by_pool.get(&pool).copied().unwrap_or(0);
            if found_there != counted {
                found.push(FsckProblem::PoolCount { pool, found: found_there, counted });
            }
        }
        found
    }
}

impl Counts {
    /// Adds another part's.
    pub fn add(&mut self, other: &Counts) {
        self.inodes += other.inodes;
        self.directories += other.directories;
        self.entries += other.entries;
        self.objects += other.objects;
        self.object_bytes += other.object_bytes;
        self.highest = self.highest.max(other.highest);
        for (pool, count) in &other.by_pool {
            *self.by_pool.entry(*pool).or_default() += count;
        }
    }
}

/// Of each cycle of directories the one with the lowest number: it cannot be reached from the root.
pub fn cycles(mut directories: Vec<(u64, u64)>) -> Vec<InodeId> {
    directories.sort_unstable();
    let parent = |id: u64| {
        directories.binary_search_by_key(&id, |(child, _)| *child).ok().map(|at| (at, directories[at].1))
    };
    // 0: not walked yet; otherwise the number of the walk that was here first.
    let mut walked = vec![0u32; directories.len()];
    let mut found = Vec::new();
    for (start, (first, _)) in directories.iter().enumerate() {
        let walk = start as u32 + 1;
        let mut id = *first;
        while let Some((at, above)) = parent(id).filter(|_| id != InodeId::ROOT.0) {
            if walked[at] == walk {
                let mut least = id;
                let mut next = above;
                while next != id {
                    least = least.min(next);
                    next = parent(next).map_or(id, |(_, above)| above);
                }
                found.push(InodeId(least));
                break;
            }
            if walked[at] != 0 {
                break;
            }
            walked[at] = walk;
            id = above;
        }
    }
    found
}
