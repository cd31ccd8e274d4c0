//! The data servers as the metadata sees them: objects that are cut before use by the truncations that an
//! operation carries, and floors that a sweep leaves behind.

use super::runs::Runs;
use metadata_server::state::record::Purge;
use protocol::map::Pool;
use protocol::{FileView, InodeId, ObjectId, PgId, PoolId, Truncation};
use std::collections::{BTreeMap, BTreeSet};

/// The operation is based on truncations that are older than the object.
#[derive(Debug)]
pub(crate) struct Stale;

#[derive(Clone, Debug, Default)]
struct Object {
    seq: u64,
    bytes: Runs,
}

impl Object {
    /// Offsets are those of the file.
    fn cut(&mut self, truncations: &[Truncation]) {
        let newer = truncations.iter().filter(|t| t.seq > self.seq);
        if let Some(size) = newer.clone().map(|t| t.size).min() {
            self.bytes.cut(size);
        }
        self.seq = newer.map(|t| t.seq).max().unwrap_or(self.seq);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Objects {
    objects: BTreeMap<(InodeId, u32), Object>,
    floors: BTreeMap<(PgId, InodeId), u64>,
    pg_num: u32,
    chunk: u64,
}

impl Objects {
    pub(crate) fn new(pool: &Pool) -> Self {
        let (pg_num, chunk) = (pool.pg_num, u64::from(pool.chunk_size));
        Self { objects: BTreeMap::new(), floors: BTreeMap::new(), pg_num, chunk }
    }

    fn pg(&self, inode: InodeId, chunk: u32) -> PgId {
        ObjectId { pool: PoolId(1), inode, chunk }.pg(self.pg_num)
    }

    /// Writes, and says which ranges were taken before the first refusal.
    pub(crate) fn write(
        &mut self,
        view: &FileView,
        (start, end): (u64, u64),
        bytes: &Runs,
    ) -> (Vec<(u64, u64)>, Result<(), Stale>) {
        let (inode, basis) = (view.attr.inode, view.truncate_seq());
        let mut taken = Vec::new();
        let mut at = start;
        while at < end {
            let chunk = (at / self.chunk) as u32;
            let to = end.min((u64::from(chunk) + 1) * self.chunk);
            let floor = self.floors.get(&(self.pg(inode, chunk), inode)).copied().unwrap_or_default();
            let object = self.objects.get(&(inode, chunk));
            if basis < floor || object.is_some_and(|object| basis < object.seq) {
                return (taken, Err(Stale));
            }
            let object =
                self.objects.entry((inode, chunk)).or_insert(Object { seq: basis, ..Object::default() });
            object.cut(&view.truncations);
            object.bytes.write(at, to, 0);
            object.bytes.overlay(&bytes.slice(at, to));
            taken.push((at, to));
            at = to;
        }
        (taken, Ok(()))
    }

    /// Everything below the view's size.
    pub(crate) fn read(&self, view: &FileView) -> Runs {
        let mut all = Runs::default();
        for (_, object) in self.objects.range((view.attr.inode, 0)..=(view.attr.inode, u32::MAX)) {
            let mut object = object.clone();
            assert!(
                object.seq <= view.truncate_seq(),
                "an object of {} is newer than its inode",
                view.attr.inode
            );
            object.cut(&view.truncations);
            all.overlay(&object.bytes);
        }
        all.cut(view.attr.size);
        all
    }

    /// What the sweep does in the groups that may hold something.
    pub(crate) fn sweep(&mut self, inode: InodeId, purge: &Purge) {
        let floor = purge.truncations.last().map_or(0, |t| t.seq);
        let all = purge.strays || purge.chunks_high >= self.pg_num * 8;
        let groups: BTreeSet<PgId> = match all {
            true => (0..self.pg_num).map(|seed| PgId { pool: purge.pool, seed }).collect(),
            false => (0..purge.chunks_high).map(|chunk| self.pg(inode, chunk)).collect(),
        };
        let (pg_num, pool) = (self.pg_num, purge.pool);
        self.objects.retain(|(of, chunk), object| {
            if *of != inode || !groups.contains(&ObjectId { pool, inode, chunk: *chunk }.pg(pg_num)) {
                return true;
            }
            object.cut(&purge.truncations);
            !object.bytes.is_empty()
        });
        for pg in groups {
            let known = self.floors.entry((pg, inode)).or_default();
            *known = floor.max(*known);
        }
    }

    /// Inodes that have objects with bytes in them.
    pub(crate) fn inodes(&self) -> BTreeSet<InodeId> {
        self.objects.iter().filter(|(_, o)| !o.bytes.is_empty()).map(|((inode, _), _)| *inode).collect()
    }
}
