//! Identifiers. Each is a newtype so that the compiler tells an inode from a session.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Number of an inode (= znode). 1 is the root; never reused. Values from [`InodeId::LOCAL_BASE`] up
    /// never exist in the cluster: mounts use them for `.zabfs`.
    InodeId(u64)
}
id! {
    /// A client's session with the metadata cluster. Never reused, not even after a restored backup.
    SessionId(u64)
}
id! {
    /// Count of applied transactions: dense, never repeated. What users see as version or fencing token.
    Revision(u64)
}
id! {
    /// Version of the cluster map. Not to be confused with Zab's epoch.
    MapEpoch(u64)
}
id! {
    /// A metadata server (a Zab peer).
    MetadataServerId(u32)
}
id! {
    /// A data server; also its CRUSH device id.
    DataServerId(u32)
}
id! {
    /// A pool of placement groups.
    PoolId(u32)
}
id! {
    /// Identity of one data server's store directory; a wiped directory gets a new one.
    StoreUuid(u128)
}

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
    /// First number that the cluster never hands out.
    pub const LOCAL_BASE: u64 = 1 << 62;
}

/// A placement group: pool and number below the pool's `pg_num`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PgId {
    /// The pool.
    pub pool: PoolId,
    /// Number below the pool's `pg_num`.
    pub seed: u32,
}

impl PgId {
    /// Both parts in one ordered number: `pool << 32 | seed`.
    pub const fn to_u64(self) -> u64 {
        (self.pool.0 as u64) << 32 | self.seed as u64
    }

    /// The inverse of [`Self::to_u64`].
    pub const fn from_u64(raw: u64) -> Self {
        Self { pool: PoolId((raw >> 32) as u32), seed: raw as u32 }
    }
}

impl fmt::Display for PgId {
    /// As Ceph writes it: pool in decimal, seed in hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool.0, self.seed)
    }
}

/// One chunk of one file: the unit of placement. A missing object is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// The pool that the file was created in.
    pub pool: PoolId,
    /// The file.
    pub inode: InodeId,
    /// Index of the chunk: file offset / chunk size.
    pub chunk: u32,
}

impl ObjectId {
    /// The placement group of this object in a pool of `pg_num` groups.
    pub fn pg(self, pg_num: u32) -> PgId {
        PgId { pool: self.pool, seed: crush::pg_of(self.hash(), pg_num) }
    }

    /// The hash of its name.
    pub fn hash(self) -> u32 {
        crush::object_hash(format!("{:x}.{:08x}", self.inode.0, self.chunk).as_bytes())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:x}.{:08x}", self.pool.0, self.inode.0, self.chunk)
    }
}

/// Identity of one request for exactly-once execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Whose request.
    pub session: SessionId,
    /// Rises by one per request of the session; a retry carries the same number.
    pub sequence: u64,
    /// Every request below this number is finished for the client: what it left behind may be forgotten,
    /// and a request below it is refused.
    pub low_water: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_group_survives_its_packed_form() {
        let pg = PgId { pool: PoolId(7), seed: 0x1f };
        assert_eq!(PgId::from_u64(pg.to_u64()), pg);
        assert_eq!(pg.to_string(), "7.1f");
    }
}
