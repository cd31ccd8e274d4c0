//! Pools as administrators see and change them.

use crate::id::PoolId;
use crate::map::FailureDomain;
use serde::{Deserialize, Serialize};

/// Extended attribute that names the pool: of a directory the one that new files below it get, of a file the one
/// that its chunks are in. Not listed, so that tools that copy attributes do not copy it.
pub const POOL_XATTR: &[u8] = b"zabfs.pool";

/// What is to become of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolChange {
    /// A new pool; what is not said gets its default.
    Create {
        /// Its name.
        name: String,
        /// How it shall be.
        settings: PoolSettings,
    },
    /// Other settings; what is not said stays.
    Set {
        /// Which pool.
        name: String,
        /// What changes.
        settings: PoolSettings,
    },
    /// The pool goes, with its placement groups. Refused while a file or directory names it.
    Remove {
        /// Which pool.
        name: String,
    },
}

/// Settings of a pool, each said or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSettings {
    /// Wanted replicas.
    pub size: Option<u32>,
    /// Least in-sync replicas with which a group serves writes.
    pub min_size: Option<u32>,
    /// Number of placement groups.
    pub pg_num: Option<u32>,
    /// What two replicas must not share.
    pub failure_domain: Option<FailureDomain>,
    /// Only devices of this class; `Some(None)` for all devices.
    pub class: Option<Option<String>>,
    /// Bytes per chunk.
    pub chunk_size: Option<u32>,
    /// Largest file in bytes that stays in its znode.
    pub inline_limit: Option<u32>,
}

/// A pool and its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its number, which is never used again.
    pub id: PoolId,
    /// Its name.
    pub name: String,
    /// New files get this pool if no directory says otherwise.
    pub default: bool,
    /// Wanted replicas.
    pub size: u32,
    /// Least in-sync replicas with which a group serves writes.
    pub min_size: u32,
    /// Number of placement groups, those included that do not exist before others are split.
    pub pg_num: u32,
    /// What two replicas must not share.
    pub failure_domain: FailureDomain,
    /// Only devices of this class.
    pub class: Option<String>,
    /// Bytes per chunk.
    pub chunk_size: u32,
    /// Largest file in bytes that stays in its znode.
    pub inline_limit: u32,
    /// Number of placement groups by state.
    pub groups: Vec<(String, u32)>,
    /// Chunk objects, as the groups' primaries last said.
    pub objects: u64,
    /// Their bytes, replicas counted once.
    pub bytes: u64,
    /// Bytes that can still be written to files in it until the first data server is full; `None` while no server that
    /// holds any of it has reported.
    pub available: Option<u64>,
    /// Files and directories that name it; `None` for the default pool, which has all that name no other.
    pub inodes: Option<u64>,
}

impl PoolStatus {
    /// Groups that will exist once others are split.
    pub fn groups_to_come(&self) -> u32 {
        self.pg_num.saturating_sub(self.groups.iter().map(|(_, count)| count).sum())
    }
}
