//! What `zabfs fsck` asks the leader, and what can be wrong.

use crate::id::{InodeId, PoolId, Revision, SessionId};
use crate::name::EntryName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Names of an inode that a check passes on at most, beside those that the inode's links say.
pub const FSCK_NAMES_MAX: usize = 64;
/// Directory entries, links or pins of one inode that the leader looks at while it serves.
pub const FSCK_ROWS_MAX: usize = 65_536;

/// A question of `zabfs fsck`. Administrators only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsckRequest {
    /// Looks at everything that is said of one inode, as it is now; with `repair` one transaction mends what can be
    /// mended.
    Look {
        /// The inode, which need not exist.
        inode: InodeId,
        /// Names that it is said to have beside those in its links, at most [`FSCK_NAMES_MAX`].
        names: Vec<(InodeId, EntryName)>,
        /// Mend it.
        repair: bool,
    },
    /// Mends what was found by comparing objects with the namespace. Refused as `Busy` if the file is not as it was
    /// when they were compared, or in use.
    Objects {
        /// Whose objects.
        inode: InodeId,
        /// As it was then; `None` for no such inode.
        file: Option<FsckFile>,
        /// What to do.
        mend: FsckMend,
    },
    /// Corrects counts that were wrong at a revision. Refused as `Busy` if they were corrected since.
    Counts {
        /// At which they were compared.
        revision: Revision,
        /// To be added to the number of inodes.
        inodes: i64,
        /// To be added to the number of inodes of these pools.
        pools: Vec<(PoolId, i64)>,
        /// The next inode's number is at least this.
        next_inode: u64,
    },
}

/// What is to become of objects that do not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsckMend {
    /// The inode does not exist: all its objects in this pool go.
    Purge(PoolId),
    /// What lies beyond the file's size goes.
    Cut,
    /// The file occupies so many bytes.
    Allocated(u64),
}

/// A file as far as its objects are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckFile {
    /// The pool of its chunks.
    pub pool: PoolId,
    /// Its bytes are in chunks.
    pub chunked: bool,
    /// Bytes.
    pub size: u64,
    /// Bytes that it is said to occupy.
    pub allocated: u64,
    /// No truncation but to nothing was ever cut from its chunks, so that `allocated` is exact.
    pub exact: bool,
    /// Number of changes of its data.
    pub data_version: u64,
    /// Revision of the last change of size or layout.
    pub data_revision: u64,
}

/// What the leader found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckAnswer {
    /// Path by its oldest link, if it has one that leads to the root.
    pub path: Option<Vec<u8>>,
    /// The inode, if it exists and may have objects.
    pub file: Option<FsckFile>,
    /// Whether there is an inode at all.
    pub exists: bool,
    /// Somebody has it open or holds its size, or its objects are being cut: they may be anything now.
    pub in_use: bool,
    /// What is wrong.
    pub found: Vec<FsckProblem>,
    /// What is still wrong after the repair, if there was one.
    pub left: Vec<FsckProblem>,
    /// Inodes that the repair concerned besides: look at them next.
    pub also: Vec<InodeId>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the sentences of Display say what each is")]
pub enum FsckProblem {
    EntryWithoutInode { parent: InodeId, name: EntryName },
    EntryWithoutDirectory { parent: InodeId, name: EntryName },
    EntryKind { parent: InodeId, name: EntryName },
    EntryWithoutPlace { parent: InodeId, name: EntryName },
    PlaceWithoutEntry { parent: InodeId, cookie: u64 },
    EntryWithoutLink { parent: InodeId, name: EntryName },
    LinkWithoutEntry { parent: InodeId, name: EntryName },
    SecondName { parent: InodeId, name: EntryName },
    LinkCount { found: u32, counted: u32 },
    EntryCount { found: u64, counted: u64 },
    Parent { found: InodeId, counted: InodeId },
    Unreferenced,
    NotDeleted,
    Unreachable,
    NoRoot,
    StrayPin { session: SessionId },
    StrayHold { session: SessionId },
    RowsWithoutInode { what: String, rows: u32 },
    TruncationOrder,
    SweepMissing,
    ChunkBound { found: u32, counted: u32 },
    NoPool { pool: PoolId },
    InlineLength { found: u64, size: u64 },
    PurgeOfLiving,
    Undecodable { what: String },
    TooLarge { what: String },
    OrphanObjects { pool: PoolId, objects: u64, bytes: u64 },
    OtherPool { pool: PoolId, objects: u64, bytes: u64 },
    BeyondSize { objects: u64, size: u64 },
    Misplaced { objects: u64 },
    Missing { recorded: u64, found: u64 },
    Leftover { objects: u64, bytes: u64 },
    Allocated { recorded: u64, found: u64 },
    InodeCount { found: u64, counted: u64 },
    PoolCount { pool: PoolId, found: u64, counted: u64 },
    NextInode { found: u64, highest: u64 },
}

impl FsckProblem {
    /// What a mount or a machine that died in the middle of something leaves behind: space that is not accounted for
    /// exactly, or not used by anything. No file is wrong, and no check fails for it.
    pub fn is_note(&self) -> bool {
        matches!(self, Self::Leftover { .. } | Self::Allocated { .. })
    }
}

impl fmt::Display for FsckProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EntryWithoutInode { parent, name } => {
                write!(f, "entry '{name}' of directory {parent} names it, and it does not exist")
            }
            Self::EntryWithoutDirectory { parent, name } => {
                write!(f, "entry '{name}' is in {parent}, which is no directory")
            }
            Self::EntryKind { parent, name } => {
                write!(f, "entry '{name}' of directory {parent} says another kind than the inode")
            }
            Self::EntryWithoutPlace { parent, name } => {
                write!(f, "entry '{name}' of directory {parent} has no place in the directory's order")
            }
            Self::PlaceWithoutEntry { parent, cookie } => {
                write!(f, "place {cookie} in the order of directory {parent} has no entry")
            }
            Self::EntryWithoutLink { parent, name } => {
                write!(f, "entry '{name}' of directory {parent} has no link back")
            }
            Self::LinkWithoutEntry { parent, name } => {
                write!(f, "its link to '{name}' in directory {parent} has no entry there")
            }
            Self::SecondName { parent, name } => {
                write!(f, "a directory with a second name, '{name}' in directory {parent}")
            }
            Self::LinkCount { found, counted } => write!(f, "link count is {found}, should be {counted}"),
            Self::EntryCount { found, counted } => {
                write!(f, "directory size is {found} entries, should be {counted}")
            }
            Self::Parent { found, counted } => write!(f, "'..' is {found}, should be {counted}"),
            Self::Unreferenced => write!(f, "unreferenced: no directory names it and nobody has it open"),
            Self::NotDeleted => write!(f, "deleted, open nowhere, and still there"),
            Self::Unreachable => write!(f, "a directory that cannot be reached from the root"),
            Self::NoRoot => write!(f, "the root directory is missing or no directory"),
            Self::StrayPin { session } => write!(f, "kept by session {session}, which does not exist"),
            Self::StrayHold { session } => {
                write!(f, "its size is held by session {session}, which does not exist")
            }
            Self::RowsWithoutInode { what, rows } => {
                write!(f, "{rows} records of kind '{what}' and no inode")
            }
            Self::TruncationOrder => write!(f, "its truncations are not in order"),
            Self::SweepMissing => write!(f, "its truncations are not in the queue of what is to be cut"),
            Self::ChunkBound { found, counted } => {
                write!(f, "it may have {found} chunks, should be at least {counted}")
            }
            Self::NoPool { pool } => write!(f, "it is in pool {pool}, which does not exist"),
            Self::InlineLength { found, size } => {
                write!(f, "it has {found} bytes in the namespace and a size of {size}")
            }
            Self::PurgeOfLiving => write!(f, "its objects are to be deleted, although it exists"),
            Self::Undecodable { what } => write!(f, "its record of kind '{what}' does not decode"),
            Self::TooLarge { what } => {
                write!(
                    f,
                    "it has more than {FSCK_ROWS_MAX} {what}, which are not counted while the cluster serves"
                )
            }
            Self::OrphanObjects { pool, objects, bytes } => {
                write!(f, "{objects} objects ({bytes} bytes) in pool {pool} of an inode that does not exist")
            }
            Self::OtherPool { pool, objects, bytes } => {
                write!(f, "{objects} objects ({bytes} bytes) in pool {pool}, which is not the inode's")
            }
            Self::BeyondSize { objects, size } => write!(f, "{objects} objects reach beyond its size {size}"),
            Self::Misplaced { objects } => {
                write!(f, "{objects} objects are in placement groups where nobody looks for them")
            }
            Self::Missing { recorded, found } => {
                write!(f, "objects are missing: {recorded} bytes were written, {found} are there")
            }
            Self::Leftover { objects, bytes } => {
                write!(f, "{objects} objects ({bytes} bytes) that a write left which was given up")
            }
            Self::Allocated { recorded, found } => {
                write!(f, "occupies {found} bytes, and 'du' says {recorded}")
            }
            Self::InodeCount { found, counted } => write!(f, "inode count is {found}, should be {counted}"),
            Self::PoolCount { pool, found, counted } => {
                write!(f, "inode count of pool {pool} is {found}, should be {counted}")
            }
            Self::NextInode { found, highest } => {
                write!(f, "the next inode would be {found}, and there is one of number {highest}")
            }
        }
    }
}
