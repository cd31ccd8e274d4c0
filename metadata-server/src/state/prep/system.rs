//! The first transaction of a new cluster.

use super::pool::PG_NUM_DEFAULT;
use super::{DEFAULT_POOL, Prep, Result};
use crate::state::key;
use crate::state::record::{Counters, FORMAT_VERSION, encode};
use protocol::map::{CHUNK_SIZE_DEFAULT, INLINE_LIMIT_DEFAULT, Pool};
use protocol::{Attr, FileKind, InodeId};

impl Prep<'_> {
    /// Makes the root directory (owned by root, 0755) and the pool `data` with `size` replicas.
    pub fn bootstrap(&mut self, size: u32) -> Result<()> {
        let attr = Attr {
            inode: InodeId::ROOT,
            kind: FileKind::Directory,
            mode: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            btime: self.time,
        };
        let root = self.inode_record(attr, InodeId::ROOT);
        self.put_inode(&root);
        self.put_counters(&Counters::default());
        let pool = Pool {
            name: "data".into(),
            size,
            min_size: size.saturating_sub(1).max(1),
            pg_num: PG_NUM_DEFAULT,
            rule: 0,
            chunk_size: CHUNK_SIZE_DEFAULT,
            inline_limit: INLINE_LIMIT_DEFAULT,
        };
        self.draft.put(key::map_pool(DEFAULT_POOL), encode(&pool));
        self.draft.put(key::system("format_version"), encode(&FORMAT_VERSION));
        Ok(())
    }
}
