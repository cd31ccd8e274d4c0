//! Operations on a file's bytes and size.
//!
//! The *hold* is the exclusive right of one session to change a file's size and layout. It is also the
//! replicated mark without which no bytes past the committed size may reach a data server: if the holder dies,
//! the file is truncated at its committed size, so that what it wrote beyond never shows.

use super::node::kill_privileges;
use super::{Prep, Result, load};
use crate::state::key;
use crate::state::layers::{StoreError, View};
use crate::state::record::{Inode, Purge, encode};
use protocol::attr::TRUNCATIONS_MAX;
use protocol::map::{CHUNK_SIZE_DEFAULT, INLINE_LIMIT_DEFAULT, Pool};
use protocol::meta::{MetaError, MetaReply, Push};
use protocol::{Errno, FileKind, FileView, InodeId, Layout, SessionId, Truncation};
use zab::mutant;

/// Largest file in bytes: what 32 bits of chunk index hold with a margin.
pub(crate) const FILE_SIZE_MAX: u64 = 1 << 53;

impl Prep<'_> {
    /// Where the file's bytes are.
    pub(super) fn view(&self, inode: &Inode) -> Result<FileView> {
        Ok(view(&self.draft, inode)?)
    }

    pub(super) fn write_inline(
        &mut self,
        session: SessionId,
        id: InodeId,
        offset: Option<u64>,
        data: &[u8],
        kill: bool,
    ) -> Result<MetaReply> {
        let mut inode = self.file(id)?;
        let offset = offset.unwrap_or(inode.attr.size);
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        let mut bytes = self.draft.get(&key::inline(id))?.unwrap_or_default().to_vec();
        // What was there before the limit was lowered may be overwritten where it is.
        let limit = u64::from(self.inline_limit(&inode)?).max(bytes.len() as u64);
        if inode.chunked || end > limit {
            return Err(MetaError::Respill.into());
        }
        self.check_hold(session, id)?;
        self.spoil_spill(&mut inode)?;
        let (start, stop) = (offset as usize, end as usize);
        if bytes.len() < stop {
            bytes.resize(stop, 0);
        }
        bytes[start..stop].copy_from_slice(data);
        inode.set_allocated(bytes.len() as u64);
        self.draft.put(key::inline(id), bytes.into());
        inode.attr.size = inode.attr.size.max(end);
        inode.data_revision = self.revision;
        self.written(&mut inode, kill);
        Ok(MetaReply::Written { attr: inode.attr, offset, data_revision: inode.data_revision })
    }

    pub(super) fn hold(&mut self, session: SessionId, id: InodeId) -> Result<MetaReply> {
        let mut inode = self.file(id)?;
        self.check_hold(session, id)?;
        if inode.truncations.len() > TRUNCATIONS_MAX {
            // One entry too many was left by a holder that died: until the sweep took some, no other may follow.
            return Err(MetaError::Busy.into());
        }
        self.draft.put(key::hold(id), encode(&session));
        self.draft.put(key::owned_hold(session, id), bytes::Bytes::new());
        if !inode.chunked {
            // What an earlier, abandoned spill left in objects must not show in the next one.
            inode.truncations = vec![Truncation { seq: self.revision, size: 0 }];
            inode.data_revision = self.revision;
            self.put_inode(&inode);
        }
        Ok(MetaReply::View(self.view(&inode)?))
    }

    pub(super) fn release_hold(&mut self, session: SessionId, id: InodeId) -> Result<MetaReply> {
        if self.load::<SessionId>(&key::hold(id))? == Some(session) {
            self.draft.delete(key::hold(id));
            self.draft.delete(key::owned_hold(session, id));
            if let Some(mut inode) = self.find_inode(id)?.filter(|inode| inode.deferred_by == Some(session)) {
                self.end_deferral(session, &mut inode);
                self.put_inode(&inode);
            }
        }
        Ok(MetaReply::Done)
    }

    /// A holder is gone, or gives up an extension that failed half-way: what lies past the committed size is
    /// cut before anybody can see it.
    pub(super) fn abandon_hold(&mut self, session: SessionId, id: InodeId) -> Result<()> {
        if self.load::<SessionId>(&key::hold(id))? != Some(session) {
            return Ok(());
        }
        self.release_hold(session, id)?;
        let Some(mut inode) = self.find_inode(id)? else { return Ok(()) };
        inode.strays = true;
        if inode.chunked && !mutant!("mark-not-cut-at-expiry") {
            self.cut_objects(&mut inode);
        }
        self.put_inode(&inode);
        Ok(())
    }

    pub(super) fn commit_write(
        &mut self,
        session: SessionId,
        id: InodeId,
        truncate_seq: u64,
        end: u64,
        allocated: i64,
        kill: bool,
    ) -> Result<MetaReply> {
        let mut inode = self.file(id)?;
        if end > FILE_SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        let held = self.load::<SessionId>(&key::hold(id))? == Some(session);
        let needs_hold = end > inode.attr.size || !inode.chunked;
        if inode.truncate_seq() != truncate_seq || (needs_hold && !held) {
            return Err(MetaError::Respill.into());
        }
        if !inode.chunked {
            self.draft.delete(key::inline(id));
            inode.chunked = true;
            inode.set_allocated(0);
        }
        if needs_hold {
            inode.attr.size = inode.attr.size.max(end);
            inode.data_revision = self.revision;
        }
        self.cover_size(&mut inode)?;
        inode.set_allocated(inode.allocated.saturating_add_signed(allocated));
        self.written(&mut inode, kill);
        Ok(MetaReply::Written { attr: inode.attr, offset: end, data_revision: inode.data_revision })
    }

    /// Sets the size (truncate(2), O_TRUNC).
    pub(super) fn resize(&mut self, session: SessionId, inode: &mut Inode, size: u64) -> Result<()> {
        match inode.attr.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        if size > FILE_SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        let id = inode.attr.inode;
        self.check_hold(session, id)?;
        if inode.chunked {
            let shorter = size < inode.attr.size;
            if !inode.truncate(self.revision, size) {
                // The list is full: the sweep, which every entry scheduled, shortens it in a moment.
                return Err(MetaError::Busy.into());
            }
            if size == 0 {
                inode.chunked = false;
                inode.set_allocated(0);
            }
            if shorter {
                self.schedule_sweep(inode);
            }
            self.cover_size(inode)?;
        } else {
            self.spoil_spill(inode)?;
            self.cut_inline(inode, size)?;
        }
        inode.attr.size = size;
        inode.data_revision = self.revision;
        inode.attr.mtime = self.time;
        inode.modified = self.revision;
        inode.data_version += 1;
        Ok(())
    }

    /// The sweep of an inode's objects is through: its older truncations can be forgotten. The newest stays,
    /// and the groups refuse whatever is based on less.
    pub fn finish_purge(&mut self, id: InodeId, done: &Purge) -> Result<()> {
        let Some(current) = self.load::<Purge>(&key::purge(id))? else { return Ok(()) };
        if current != *done {
            return Ok(());
        }
        self.draft.delete(key::purge(id));
        if let (false, Some(mut inode)) = (done.deleted, self.find_inode(id)?) {
            let newest = done.truncations.last().map_or(0, |t| t.seq);
            inode.truncations.retain(|t| t.seq >= newest);
            self.put_inode(&inode);
        }
        Ok(())
    }

    fn cut_inline(&mut self, inode: &mut Inode, size: u64) -> Result<()> {
        let key = key::inline(inode.attr.inode);
        if let Some(bytes) = self.draft.get(&key)? {
            let kept = bytes.slice(..bytes.len().min(usize::try_from(size).unwrap_or(usize::MAX)));
            inode.set_allocated(kept.len() as u64);
            self.draft.put(key, kept);
        }
        Ok(())
    }

    /// The holder of an inline file may be about to spill it: its spill, which does not contain the change that is
    /// made now, is refused from here on, and what it left in objects is cut to nothing before use.
    fn spoil_spill(&self, inode: &mut Inode) -> Result<()> {
        if self.draft.get(&key::hold(inode.attr.inode))?.is_some() {
            inode.truncations = vec![Truncation { seq: self.revision, size: 0 }];
            inode.strays = true;
        }
        Ok(())
    }

    /// Objects of any chunk below the size may exist: an overwrite needs neither the hold nor a commit before it.
    fn cover_size(&self, inode: &mut Inode) -> Result<()> {
        if inode.chunked {
            let chunk_size = u64::from(self.pool(inode)?.map_or(CHUNK_SIZE_DEFAULT, |p| p.chunk_size));
            let chunks = u32::try_from(inode.attr.size.div_ceil(chunk_size)).unwrap_or(u32::MAX);
            inode.chunks_high = inode.chunks_high.max(chunks);
        }
        Ok(())
    }

    pub(super) fn schedule_sweep(&mut self, inode: &Inode) {
        let purge = Purge {
            pool: inode.pool,
            chunks_high: inode.chunks_high,
            strays: inode.strays,
            truncations: inode.truncations.clone(),
            deleted: false,
        };
        self.draft.put(key::purge(inode.attr.inode), encode(&purge));
    }

    /// Only one session at a time may change size and layout; others ask it to let go and try again.
    fn check_hold(&mut self, session: SessionId, inode: InodeId) -> Result<()> {
        match self.load::<SessionId>(&key::hold(inode))? {
            Some(holder) if holder != session => {
                self.pushes.push((holder, Push::RecallHold(inode)));
                Err(MetaError::Busy.into())
            }
            _ => Ok(()),
        }
    }

    fn written(&mut self, inode: &mut Inode, kill: bool) {
        if kill {
            kill_privileges(inode);
        }
        self.touch(inode);
        self.put_inode(inode);
    }

    pub(super) fn file(&self, inode: InodeId) -> Result<Inode> {
        let inode = self.inode(inode)?;
        match inode.attr.kind {
            FileKind::File => Ok(inode),
            FileKind::Directory => Err(Errno::EISDIR.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn pool(&self, inode: &Inode) -> Result<Option<Pool>> {
        self.load(&key::map_pool(inode.pool))
    }

    pub(super) fn inline_limit(&self, inode: &Inode) -> Result<u32> {
        Ok(self.pool(inode)?.map_or(INLINE_LIMIT_DEFAULT, |p| p.inline_limit))
    }
}

/// Where the file's bytes are.
pub(crate) fn view(state: &dyn View, inode: &Inode) -> std::result::Result<FileView, StoreError> {
    let layout = match inode.chunked {
        true => Layout::Chunks,
        false => Layout::Inline(state.get(&key::inline(inode.attr.inode))?.unwrap_or_default().to_vec()),
    };
    Ok(FileView {
        attr: inode.attr,
        data_revision: inode.data_revision,
        pool: inode.pool,
        layout,
        truncations: inode.truncations.clone(),
    })
}

/// The inode's file view from any state.
pub(crate) fn view_of(state: &dyn View, id: InodeId) -> std::result::Result<Option<FileView>, StoreError> {
    match load::<Inode>(state, &key::inode(id))? {
        Some(inode) => view(state, &inode).map(Some),
        None => Ok(None),
    }
}
