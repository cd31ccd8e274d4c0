//! What is remembered of one inode while rows and objects go by.

use crate::state::record::{Inode, Purge};
use protocol::attr::TRUNCATIONS_MAX;
use protocol::map::{CHUNK_SIZE_DEFAULT, Pool};
use protocol::{FileKind, InodeId, PoolId};
use std::collections::{BTreeMap, BTreeSet};

/// Why an inode is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// Rows or names of an inode that does not exist.
    NoInode,
    /// Its record, or one of its entries, does not decode.
    Undecodable,
    /// Entries that name it and its links differ.
    Links,
    /// Its entries and their order differ.
    Order,
    /// Entries below something that is no directory.
    NoDirectory,
    /// An entry says another kind.
    Kind,
    /// Wrong number of links.
    LinkCount,
    /// Wrong number of entries.
    EntryCount,
    /// `..` is not where its name is.
    Parent,
    /// A directory with several names.
    SecondName,
    /// Nothing names it, and nobody keeps it.
    Nameless,
    /// A cycle of directories.
    Unreachable,
    /// A session that does not exist keeps it or holds its size.
    Owner,
    /// Truncations out of order, or not queued.
    Truncations,
    /// More chunks than it may have.
    ChunkBound,
    /// No such pool.
    Pool,
    /// Bytes in the namespace that do not fit.
    Inline,
    /// Its objects are to be deleted, although it exists.
    Purge,
    /// Objects of an inode that does not exist.
    Orphans,
    /// Objects that do not fit its size, group or pool.
    Objects,
    /// Objects occupy something else than it says.
    Allocated,
}

/// A bit of [`Facts::is`].
macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident = $bit:literal),* $(,)?) => {
        $($(#[$doc])* pub(super) const $name: u16 = 1 << $bit;)*
    };
}

bits! {
    EXISTS = 0,
    DIRECTORY = 1,
    FILE = 2,
    CHUNKED = 3,
    LEFTOVER_ROWS = 4,
    BROKEN = 5,
    HELD = 7,
    PURGED = 8,
    PURGED_FOR_GOOD = 9,
    BAD_TRUNCATIONS = 10,
    TWO_TRUNCATIONS = 11,
    MISPLACED = 12,
    OTHER_POOL = 13,
    PARENT_DIFFERS = 14,
    PARENT_SEEN = 15,
}

/// Facts of one inode. All sums wrap.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    pub(super) is: u16,
    pub(super) nlink: u32,
    pub(super) pool: u32,
    pub(super) chunks_high: u32,
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) parent: u64,
    /// A directory that names it.
    pub(super) named_by: u64,
    /// Entries that name it, and how many of them say that it is a directory or a file.
    pub(super) names: u32,
    pub(super) said_directory: u32,
    pub(super) said_kinds: u16,
    pub(super) kind: u8,
    /// Entries less links.
    pub(super) links: u64,
    /// Its own entries less their places.
    pub(super) order: u64,
    pub(super) entries: u32,
    pub(super) directories: u32,
    pub(super) pins: u32,
    pub(super) inline: u32,
    pub(super) objects: u32,
    pub(super) object_bytes: u64,
    /// Highest chunk that there is, and its length.
    pub(super) last_chunk: u32,
    pub(super) last_length: u64,
}

impl Facts {
    pub(super) fn has(&self, bit: u16) -> bool {
        self.is & bit != 0
    }

    pub(super) fn inode(&mut self, inode: &Inode) {
        let attr = &inode.attr;
        self.is |= EXISTS;
        if attr.kind == FileKind::Directory {
            self.is |= DIRECTORY;
        }
        if attr.kind == FileKind::File {
            self.is |= FILE;
        }
        if inode.chunked {
            self.is |= CHUNKED;
        }
        let pairs = inode.truncations.windows(2);
        let rises = pairs.into_iter().all(|pair| pair[0].seq < pair[1].seq && pair[0].size < pair[1].size);
        if !rises || inode.truncations.len() > TRUNCATIONS_MAX + 1 {
            self.is |= BAD_TRUNCATIONS;
        }
        if inode.truncations.len() >= 2 {
            self.is |= TWO_TRUNCATIONS;
        }
        self.kind = attr.kind as u8;
        self.nlink = attr.nlink;
        self.pool = inode.pool.0;
        self.chunks_high = inode.chunks_high;
        self.size = attr.size;
        self.allocated = inode.allocated;
        self.parent = inode.parent.0;
    }

    pub(super) fn purge(&mut self, purge: &Purge) {
        self.is |= if purge.deleted { PURGED_FOR_GOOD } else { PURGED };
    }

    /// An entry of `parent` names it.
    pub(super) fn named(&mut self, parent: u64, kind: FileKind, hash: u64) {
        self.names += 1;
        self.said_directory += u32::from(kind == FileKind::Directory);
        self.said_kinds |= 1 << kind as u8;
        self.links = self.links.wrapping_add(hash);
        if self.named_by != parent && self.has(PARENT_SEEN) {
            self.is |= PARENT_DIFFERS;
        }
        self.is |= PARENT_SEEN;
        self.named_by = parent;
    }

    pub(super) fn object(&mut self, chunk: u32, size: u64, allocated: u64) {
        self.objects += 1;
        self.object_bytes += allocated;
        if self.objects == 1 || chunk >= self.last_chunk {
            (self.last_chunk, self.last_length) = (chunk, size);
        }
    }

    /// Everything that is suspicious about `id`.
    pub(super) fn judge(&self, id: InodeId, pools: &BTreeMap<PoolId, Pool>) -> BTreeSet<Suspicion> {
        let mut found = BTreeSet::new();
        let mut say = |is: bool, what| {
            if is {
                found.insert(what);
            }
        };
        say(self.has(BROKEN), Suspicion::Undecodable);
        say(self.links != 0, Suspicion::Links);
        say(self.order != 0, Suspicion::Order);
        let is_directory = self.has(DIRECTORY);
        say(self.entries > 0 && !is_directory && !self.has(BROKEN), Suspicion::NoDirectory);
        if !self.has(EXISTS) {
            let is_said_of = self.names > 0 || self.has(LEFTOVER_ROWS) || id == InodeId::ROOT;
            say(is_said_of && !self.has(BROKEN), Suspicion::NoInode);
            let excused = self.has(PURGED) || self.has(PURGED_FOR_GOOD);
            say(self.objects > 0 && !excused, Suspicion::Orphans);
            return found;
        }
        say(self.names > 0 && self.said_kinds != 1 << self.kind, Suspicion::Kind);
        say(self.has(PURGED_FOR_GOOD), Suspicion::Purge);
        self.judge_names(id, &mut say);
        if self.has(FILE) {
            self.judge_data(pools, &mut say);
        }
        let in_pool = self.has(FILE) || is_directory;
        say(in_pool && !pools.contains_key(&PoolId(self.pool)), Suspicion::Pool);
        found
    }

    fn judge_names(&self, id: InodeId, say: &mut impl FnMut(bool, Suspicion)) {
        let is_root = id == InodeId::ROOT;
        let is_directory = self.has(DIRECTORY);
        say(is_directory && self.size != u64::from(self.entries), Suspicion::EntryCount);
        if self.names == 0 && !is_root {
            say(self.pins == 0, Suspicion::Nameless);
            say(self.pins > 0 && self.nlink != 0, Suspicion::LinkCount);
            return;
        }
        if !is_directory {
            say(self.nlink != self.names || is_root, Suspicion::LinkCount);
            return;
        }
        say(self.nlink != 2 + self.directories, Suspicion::LinkCount);
        if !is_root {
            say(self.names > 1, Suspicion::SecondName);
            say(self.parent != self.named_by || self.has(PARENT_DIFFERS), Suspicion::Parent);
        }
    }

    fn judge_data(&self, pools: &BTreeMap<PoolId, Pool>, say: &mut impl FnMut(bool, Suspicion)) {
        let is_chunked = self.has(CHUNKED);
        let is_swept = self.has(PURGED);
        say(self.has(BAD_TRUNCATIONS), Suspicion::Truncations);
        say(self.has(TWO_TRUNCATIONS) && !is_swept, Suspicion::Truncations);
        let inline = u64::from(self.inline);
        say(inline > 0 && (is_chunked || inline > self.size), Suspicion::Inline);
        let chunk_size =
            u64::from(pools.get(&PoolId(self.pool)).map_or(CHUNK_SIZE_DEFAULT, |p| p.chunk_size)).max(1);
        let chunks = self.size.div_ceil(chunk_size);
        say(is_chunked && u64::from(self.chunks_high) < chunks, Suspicion::ChunkBound);
        say(self.has(MISPLACED) || self.has(OTHER_POOL), Suspicion::Objects);
        if self.has(HELD) || is_swept {
            return;
        }
        if !is_chunked {
            say(self.objects > 0, Suspicion::Objects);
            return;
        }
        let end = u64::from(self.last_chunk) * chunk_size + self.last_length;
        say(self.objects > 0 && end > self.size, Suspicion::Objects);
        say(self.object_bytes != self.allocated, Suspicion::Allocated);
    }
}
