//! Times of overwrites that are committed later.
//!
//! The holder of a file's size may ask for the right to defer: then its overwrites wait for data servers only, and their
//! times come with a later [`settle`](Prep::settle). The right is part of the inode, so a new leader knows it too. While
//! one session has it, nobody else is told the times, and nobody else sets them: the session is asked to settle first.
//! It can answer at once, whatever its own requests wait for. A session that ends settles by that.

use super::{Prep, Result};
use crate::state::key;
use crate::state::record::Inode;
use protocol::meta::{MetaError, MetaReply, Push};
use protocol::{InodeId, SessionId};
use zab::mutant;

impl Prep<'_> {
    pub(super) fn defer(&mut self, session: SessionId, id: InodeId) -> Result<MetaReply> {
        if self.load::<SessionId>(&key::hold(id))?.is_some_and(|holder| holder != session) {
            return Err(MetaError::Busy.into());
        }
        if !self.file(id)?.chunked {
            return Err(MetaError::Respill.into());
        }
        self.hold(session, id)?;
        let mut inode = self.file(id)?;
        inode.deferred_by = Some(session);
        self.put_inode(&inode);
        Ok(MetaReply::View(self.view(&inode)?))
    }

    pub(super) fn settle(
        &mut self,
        session: SessionId,
        id: InodeId,
        changed: bool,
        done: bool,
    ) -> Result<MetaReply> {
        let Some(mut inode) = self.find_inode(id)?.filter(|inode| inode.deferred_by == Some(session)) else {
            return Ok(MetaReply::Done);
        };
        if changed {
            self.touch(&mut inode);
        }
        if done {
            inode.deferred_by = None;
        }
        self.put_inode(&inode);
        Ok(MetaReply::Done)
    }

    /// The hold goes without having been settled: what was overwritten nobody knows, so the times say that something may
    /// have been.
    pub(super) fn end_deferral(&mut self, session: SessionId, inode: &mut Inode) {
        if inode.deferred_by == Some(session) {
            inode.deferred_by = None;
            if !mutant!("expiry-forgets-deferred-times") {
                self.touch(inode);
            }
        }
    }

    /// Before the times are set by another session: what was overwritten earlier must not get a later one.
    pub(super) fn check_deferral(&mut self, session: SessionId, inode: &Inode) -> Result<()> {
        match inode.deferred_by {
            Some(owner) if owner != session && !mutant!("times-are-set-over-deferred-ones") => {
                self.pushes.push((owner, Push::Settle(inode.attr.inode)));
                Err(MetaError::Busy.into())
            }
            _ => Ok(()),
        }
    }

    /// Its bytes changed.
    pub(super) fn touch(&self, inode: &mut Inode) {
        inode.attr.mtime = self.time;
        inode.attr.ctime = self.time;
        inode.modified = self.revision;
        inode.data_version += 1;
    }
}
