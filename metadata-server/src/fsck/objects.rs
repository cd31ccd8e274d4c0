//! One file's objects against the file, both as they are now.

use protocol::data::ListedObject;
use protocol::map::Pool;
use protocol::meta::{FsckFile, FsckMend, FsckProblem};
use protocol::{InodeId, ObjectId, PgId, PoolId};
use std::collections::BTreeMap;

/// What is wrong with the objects of `inode`, which were listed while nobody used it, and what mends it. `file` is `None`
/// if there is no such inode.
pub fn compare(
    inode: InodeId,
    file: Option<&FsckFile>,
    objects: &[(PgId, ListedObject)],
    pools: &BTreeMap<PoolId, Pool>,
) -> Vec<(FsckProblem, Option<FsckMend>)> {
    let mut found = Vec::new();
    let mut by_pool: BTreeMap<PoolId, (u64, u64)> = BTreeMap::new();
    let (mut misplaced, mut beyond, mut bytes, mut count) = (0, 0, 0, 0);
    for (pg, object) in objects {
        let pool = by_pool.entry(pg.pool).or_default();
        *pool = (pool.0 + 1, pool.1 + object.allocated);
        let Some(file) = file.filter(|file| file.pool == pg.pool) else { continue };
        let Some(settings) = pools.get(&pg.pool) else { continue };
        let id = ObjectId { pool: pg.pool, inode, chunk: object.chunk };
        if id.pg(settings.pg_num) != *pg {
            misplaced += 1;
            continue;
        }
        (count, bytes) = (count + 1, bytes + object.allocated);
        let end = u64::from(object.chunk) * u64::from(settings.chunk_size) + object.size;
        // An object without bytes shows nothing wherever it is, as long as the file is in chunks.
        beyond += u64::from(end > file.size && object.size > 0);
    }
    for (pool, (objects, bytes)) in by_pool {
        match file {
            None => {
                let problem = FsckProblem::OrphanObjects { pool, objects, bytes };
                found.push((problem, Some(FsckMend::Purge(pool))));
            }
            Some(file) if file.pool != pool => {
                found.push((FsckProblem::OtherPool { pool, objects, bytes }, None));
            }
            Some(_) => {}
        }
    }
    let Some(file) = file else { return found };
    if misplaced > 0 {
        found.push((FsckProblem::Misplaced { objects: misplaced }, None));
    }
    if !file.chunked {
        if count > 0 {
            found.push((FsckProblem::Leftover { objects: count, bytes }, Some(FsckMend::Cut)));
        }
        return found;
    }
    if beyond > 0 {
        found.push((FsckProblem::BeyondSize { objects: beyond, size: file.size }, Some(FsckMend::Cut)));
    } else if bytes != file.allocated {
        let (recorded, mend) = (file.allocated, Some(FsckMend::Allocated(bytes)));
        if file.exact && bytes < recorded {
            found.push((FsckProblem::Missing { recorded, found: bytes }, mend));
        } else {
            found.push((FsckProblem::Allocated { recorded, found: bytes }, mend));
        }
    }
    found
}
