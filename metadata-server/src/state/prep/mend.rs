//! Repairs of `zabfs fsck`: each inode is looked at again and mended in one transaction.

use super::{DEFAULT_POOL, Prep, PrepError, Result};
use crate::state::examine::{Found, examine, find};
use crate::state::key;
use crate::state::layers::View;
use crate::state::record::{Counters, Dentry, Inode, Purge, encode};
use protocol::meta::{FSCK_ROWS_MAX, FsckFile, FsckMend, FsckProblem, MetaError};
use protocol::{Attr, EntryName, FileKind, InodeId, PoolId, Revision, SessionId, Truncation};
use std::collections::BTreeSet;

/// Directory below the root that gets what nothing names.
pub(crate) const LOST_AND_FOUND: &[u8] = b"lost+found";
/// What one repair shows may need another.
const ROUNDS_MAX: usize = 4;

/// What became of an inode that was looked at.
#[derive(Debug, Default)]
pub struct Mended {
    /// What was wrong.
    pub found: BTreeSet<FsckProblem>,
    /// What still is.
    pub left: BTreeSet<FsckProblem>,
    /// Other inodes that were concerned.
    pub also: BTreeSet<InodeId>,
}

impl Prep<'_> {
    /// Mends what is wrong with `id`.
    pub fn mend(&mut self, id: InodeId, names: &[(InodeId, EntryName)]) -> Result<Mended> {
        let mut mended = Mended::default();
        for _ in 0..ROUNDS_MAX {
            mended.left = examine(&self.draft, id, names)?;
            let new: Vec<FsckProblem> = mended.left.difference(&mended.found).cloned().collect();
            mended.found.extend(new.iter().cloned());
            // What cannot be read is not touched.
            if mended.left.iter().any(|problem| matches!(problem, FsckProblem::Undecodable { .. })) {
                break;
            }
            let before = mended.left.clone();
            for problem in &before {
                self.mend_one(id, problem, &mut mended.also)?;
            }
            mended.left = examine(&self.draft, id, names)?;
            if mended.left.is_empty() || mended.left == before {
                break;
            }
        }
        mended.also.remove(&id);
        Ok(mended)
    }

    fn mend_one(&mut self, id: InodeId, problem: &FsckProblem, also: &mut BTreeSet<InodeId>) -> Result<()> {
        match problem {
            FsckProblem::EntryWithoutInode { parent, name }
            | FsckProblem::EntryWithoutDirectory { parent, name }
            | FsckProblem::SecondName { parent, name } => {
                also.extend(self.strike_entry(*parent, name)?);
                also.insert(*parent);
            }
            FsckProblem::EntryKind { parent, name } => {
                if let (Some(entry), Some(inode)) = (self.entry(*parent, name)?, self.known(id)?) {
                    let entry = Dentry { kind: inode.attr.kind, ..entry };
                    self.draft.put(key::dentry(*parent, name), encode(&entry));
                    also.insert(*parent);
                }
            }
            FsckProblem::EntryWithoutPlace { parent, name } => self.place_entry(*parent, name)?,
            FsckProblem::PlaceWithoutEntry { parent, cookie } => {
                self.draft.delete(key::order(*parent, *cookie));
            }
            FsckProblem::EntryWithoutLink { parent, name } => {
                self.draft.put(key::link(id, *parent, name), bytes::Bytes::new());
            }
            FsckProblem::LinkWithoutEntry { parent, name } => {
                self.draft.delete(key::link(id, *parent, name));
            }
            FsckProblem::LinkCount { counted, .. } => {
                self.with_inode(id, |inode| inode.attr.nlink = *counted)?;
            }
            FsckProblem::EntryCount { counted, .. } => {
                self.with_inode(id, |inode| inode.attr.size = *counted)?;
            }
            FsckProblem::Parent { counted, .. } => self.with_inode(id, |inode| inode.parent = *counted)?,
            FsckProblem::Unreferenced => self.reconnect(id, also)?,
            FsckProblem::Unreachable => {
                let prefix = key::prefix1(key::LINK, id.0);
                for (link, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), FSCK_ROWS_MAX)? {
                    if let Some((parent, name)) = key::parse_link(&link) {
                        self.strike_entry(parent, &name)?;
                        also.insert(parent);
                    }
                }
                self.reconnect(id, also)?;
            }
            FsckProblem::NotDeleted => {
                if let Some(inode) = self.known(id)? {
                    self.destroy(inode)?;
                }
            }
            FsckProblem::StrayPin { session } => {
                self.draft.delete(key::pin(id, *session));
                self.draft.delete(key::owned_pin(*session, id));
            }
            FsckProblem::StrayHold { session } => self.strike_hold(id, *session)?,
            FsckProblem::RowsWithoutInode { .. } => self.strike_leftovers(id)?,
            FsckProblem::SweepMissing => {
                if let Some(inode) = self.known(id)? {
                    self.schedule_sweep(&inode);
                }
            }
            FsckProblem::ChunkBound { counted, .. } => {
                self.with_inode(id, |inode| inode.chunks_high = *counted)?;
            }
            FsckProblem::InlineLength { .. } => self.cut_inline_rows(id)?,
            FsckProblem::PurgeOfLiving => self.draft.delete(key::purge(id)),
            _ => {}
        }
        Ok(())
    }

    /// Like [`Self::find_inode`], but a row that does not decode is none.
    fn known(&self, id: InodeId) -> Result<Option<Inode>> {
        Ok(find::<Inode>(&self.draft, &key::inode(id))?.value())
    }

    fn entry(&self, parent: InodeId, name: &EntryName) -> Result<Option<Dentry>> {
        Ok(find::<Dentry>(&self.draft, &key::dentry(parent, name))?.value())
    }

    fn with_inode(&mut self, id: InodeId, change: impl FnOnce(&mut Inode)) -> Result<()> {
        if let Some(mut inode) = self.known(id)? {
            change(&mut inode);
            inode.attr.ctime = self.time;
            self.put_inode(&inode);
        }
        Ok(())
    }

    /// Removes an entry with its place and link. Says what it named.
    fn strike_entry(&mut self, parent: InodeId, name: &EntryName) -> Result<Option<InodeId>> {
        let Some(entry) = self.entry(parent, name)? else { return Ok(None) };
        self.draft.delete(key::dentry(parent, name));
        let place = key::order(parent, entry.cookie);
        if self.draft.get(&place)?.is_some_and(|place| place[..] == *name.as_bytes()) {
            self.draft.delete(place);
        }
        self.draft.delete(key::link(entry.inode, parent, name));
        Ok(Some(entry.inode))
    }

    fn place_entry(&mut self, parent: InodeId, name: &EntryName) -> Result<()> {
        let Some(mut entry) = self.entry(parent, name)? else { return Ok(()) };
        let place = self.draft.get(&key::order(parent, entry.cookie))?;
        if place.is_some_and(|place| place[..] == *name.as_bytes()) {
            return Ok(());
        }
        // Positions are handed out a few per transaction; what is too much for this one waits for the next.
        if self.cookies >= 7 {
            return Ok(());
        }
        entry.cookie = self.next_cookie();
        self.draft.put(key::dentry(parent, name), encode(&entry));
        self.draft.put(key::order(parent, entry.cookie), name.as_bytes().to_vec().into());
        Ok(())
    }

    /// Names it in `/lost+found`, by its number.
    fn reconnect(&mut self, id: InodeId, also: &mut BTreeSet<InodeId>) -> Result<()> {
        let name = EntryName::new(format!("#{}", id.0)).map_err(|_| PrepError::from(protocol::Errno::EIO))?;
        let Some(mut directory) = self.lost_and_found(also)? else { return Ok(()) };
        let (Some(mut inode), None) = (self.known(id)?, self.entry(directory.attr.inode, &name)?) else {
            return Ok(());
        };
        if self.cookies >= 7 {
            return Ok(());
        }
        inode.linkable = false;
        inode.attr.ctime = self.time;
        if inode.is_directory() {
            inode.parent = directory.attr.inode;
            directory.attr.nlink += 1;
            // Counted when it is looked at again.
            inode.attr.nlink = 2;
        } else {
            inode.attr.nlink = 1;
        }
        let cookie = self.next_cookie();
        self.add_entry(&mut directory, &name, &inode, cookie);
        self.put_inode(&directory);
        self.put_inode(&inode);
        also.insert(directory.attr.inode);
        Ok(())
    }

    /// `/lost+found`, made if it is not there; `None` if that cannot be: something else has the name.
    fn lost_and_found(&mut self, also: &mut BTreeSet<InodeId>) -> Result<Option<Inode>> {
        let Ok(name) = EntryName::new(LOST_AND_FOUND) else { return Ok(None) };
        if let Some(entry) = self.entry(InodeId::ROOT, &name)? {
            return Ok(self.known(entry.inode)?.filter(Inode::is_directory));
        }
        let Some(mut root) = self.known(InodeId::ROOT)?.filter(Inode::is_directory) else { return Ok(None) };
        let mut counters: Counters = self.counters()?;
        let number = InodeId(counters.next_inode);
        (counters.next_inode, counters.inodes) = (counters.next_inode + 1, counters.inodes + 1);
        self.put_counters(&counters);
        let attr = Attr {
            inode: number,
            kind: FileKind::Directory,
            mode: 0o700,
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
        let mut made = self.inode_record(attr, InodeId::ROOT);
        made.pool = root.pool;
        self.count_in_pool(&made, true)?;
        let cookie = self.next_cookie();
        root.attr.nlink += 1;
        self.add_entry(&mut root, &name, &made, cookie);
        self.put_inode(&root);
        self.put_inode(&made);
        also.insert(InodeId::ROOT);
        Ok(Some(made))
    }

    fn strike_hold(&mut self, id: InodeId, session: SessionId) -> Result<()> {
        self.draft.delete(key::hold(id));
        self.draft.delete(key::owned_hold(session, id));
        let Some(mut inode) = self.known(id)? else { return Ok(()) };
        inode.strays = true;
        if inode.chunked {
            self.cut_objects(&mut inode);
        }
        self.put_inode(&inode);
        Ok(())
    }

    fn strike_leftovers(&mut self, id: InodeId) -> Result<()> {
        if self.draft.get(&key::inode(id))?.is_some() {
            return Ok(());
        }
        for table in [key::XATTR, key::INLINE, key::HOLD, key::PIN] {
            let prefix = key::prefix1(table, id.0);
            for (row, value) in self.draft.scan(&prefix, &key::prefix_end(&prefix), FSCK_ROWS_MAX)? {
                if table == key::PIN {
                    let session = SessionId(key::number_at(&row, 9).unwrap_or_default());
                    self.draft.delete(key::owned_pin(session, id));
                } else if table == key::HOLD
                    && let Ok(session) = postcard::from_bytes::<SessionId>(&value)
                {
                    self.draft.delete(key::owned_hold(session, id));
                }
                self.draft.delete(row);
            }
        }
        Ok(())
    }

    fn cut_inline_rows(&mut self, id: InodeId) -> Result<()> {
        let Some(inode) = self.known(id)? else { return Ok(()) };
        let key = key::inline(id);
        if inode.chunked {
            self.draft.delete(key);
        } else if let Some(bytes) = self.draft.get(&key)? {
            let kept = bytes.len().min(usize::try_from(inode.attr.size).unwrap_or(usize::MAX));
            self.draft.put(key, bytes.slice(..kept));
        }
        Ok(())
    }

    /// Mends what objects say otherwise than the namespace, if the file is as it was when they were compared.
    pub fn mend_objects(&mut self, id: InodeId, seen: Option<FsckFile>, mend: &FsckMend) -> Result<()> {
        let busy = || PrepError::Refused(MetaError::Busy);
        let inode = match find::<Inode>(&self.draft, &key::inode(id))? {
            Found::Absent => None,
            Found::Value(inode) => Some(inode),
            Found::Broken => return Err(busy()),
        };
        let now = inode.as_ref().and_then(fsck_file);
        if now != seen
            || self.draft.get(&key::purge(id))?.is_some()
            || self.draft.get(&key::hold(id))?.is_some()
        {
            return Err(busy());
        }
        match (inode, mend) {
            (None, FsckMend::Purge(pool)) => {
                let purge = Purge {
                    pool: *pool,
                    chunks_high: 0,
                    strays: true,
                    truncations: vec![Truncation { seq: self.revision, size: 0 }],
                    deleted: true,
                };
                self.draft.put(key::purge(id), encode(&purge));
            }
            (Some(mut inode), FsckMend::Cut) if inode.chunked => {
                self.cut_objects(&mut inode);
                self.put_inode(&inode);
            }
            (Some(mut inode), FsckMend::Cut) => {
                inode.strays = true;
                inode.truncations = vec![Truncation { seq: self.revision, size: 0 }];
                inode.data_revision = self.revision;
                self.schedule_sweep(&inode);
                self.put_inode(&inode);
            }
            (Some(mut inode), FsckMend::Allocated(bytes)) if inode.chunked => {
                if !self.open.holders(id).is_empty() {
                    return Err(busy());
                }
                inode.set_allocated(*bytes);
                self.put_inode(&inode);
            }
            _ => return Err(busy()),
        }
        Ok(())
    }

    /// Corrects counts that were found wrong at `seen`, once: whoever counted before that repair counts again.
    pub fn mend_counts(
        &mut self,
        seen: Revision,
        inodes: i64,
        pools: &[(PoolId, i64)],
        next_inode: u64,
    ) -> Result<()> {
        let repaired: Revision = self.load(&key::system("counts_repaired"))?.unwrap_or_default();
        if repaired > seen || seen.0 >= self.revision {
            return Err(MetaError::Busy.into());
        }
        self.draft.put(key::system("counts_repaired"), encode(&Revision(self.revision)));
        let mut counters = self.counters()?;
        counters.inodes = counters.inodes.saturating_add_signed(inodes);
        counters.next_inode = counters.next_inode.max(next_inode);
        self.put_counters(&counters);
        for (pool, delta) in pools.iter().filter(|(pool, _)| *pool != DEFAULT_POOL) {
            let row = key::pool_inodes(*pool);
            let count: u64 = self.load(&row)?.unwrap_or(0);
            self.draft.put(row, encode(&count.saturating_add_signed(*delta)));
        }
        Ok(())
    }
}

/// The file as its objects concern it; `None` for what has none.
pub fn fsck_file(inode: &Inode) -> Option<FsckFile> {
    (inode.attr.kind == FileKind::File).then(|| FsckFile {
        pool: inode.pool,
        chunked: inode.chunked,
        size: inode.attr.size,
        allocated: inode.allocated,
        exact: inode.truncations.iter().all(|truncation| truncation.size == 0),
        data_version: inode.data_version,
        data_revision: inode.data_revision,
    })
}
