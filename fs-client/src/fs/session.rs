//! What becomes of open files when a hold is recalled or the session is lost.

use super::handles::Lost;
use super::write::YIELD;
use super::{FileHandle, ZabFs};
use crate::meta::{MetaEvent, MetaFailure};
use protocol::meta::WriteOp;
use protocol::{Errno, InodeId};
use std::rc::Rc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Files opened anew at once after a session was lost.
const REOPENING_MAX: usize = 64;

impl ZabFs {
    pub(super) fn handle_event(self: &Rc<Self>, event: MetaEvent) {
        match event {
            MetaEvent::RecallHold(inode) => {
                tokio::task::spawn_local(self.clone().give_hold_back(inode));
            }
            MetaEvent::Settle(inode) => self.settle_for_others(inode),
            MetaEvent::SessionLost(_) => self.lose_session(),
            MetaEvent::SessionOpened(generation) => {
                tokio::task::spawn_local(self.clone().reopen(generation));
            }
        }
    }

    /// Finishes what uses the hold, then gives it back.
    async fn give_hold_back(self: Rc<Self>, inode: InodeId) {
        let node = self.nodes.get(inode);
        let _gate = node.gate.write().await;
        self.end_deferral(&node).await;
        node.hold.set(false);
        node.yield_until.set(Some(Instant::now() + YIELD));
        let generation = self.meta.generation();
        // Also if it is not held (any more): the answer to the recall is what the other mount waits for.
        match self.meta.write_in(Some(generation), WriteOp::ReleaseHold { inode, dirty: false }).await {
            Ok(_) | Err(MetaFailure::SessionLost) => {}
            Err(failure) => tracing::warn!(%inode, %failure, "a hold was not given back"),
        }
    }

    fn lose_session(&self) {
        for node in self.nodes.all() {
            node.hold.set(false);
            node.deferral.lose();
            node.forget_view();
            node.posix_owners.borrow_mut().clear();
        }
        self.handles.files().iter().for_each(|file| file.lose_session());
        self.handles.specials().iter().for_each(|special| special.lose_session());
    }

    /// Opens files that are still good in the new session, so that they outlive their last name again.
    async fn reopen(self: Rc<Self>, generation: u64) {
        // The first session finds nothing open.
        let files = self.handles.files();
        let mut reopening = JoinSet::new();
        for file in files {
            while reopening.len() >= REOPENING_MAX {
                reopening.join_next().await;
            }
            if self.meta.generation() != generation {
                return;
            }
            reopening.spawn_local(reopen_file(self.clone(), file));
        }
        while reopening.join_next().await.is_some() {}
    }
}

async fn reopen_file(fs: Rc<ZabFs>, file: Rc<FileHandle>) {
    match fs.meta.open_file(file.node.inode, file.number).await {
        Ok(_) if fs.handles.get(file.number).is_some() => {}
        // Closed meanwhile: that closing went to the lost session.
        Ok(_) => fs.meta.close_file(file.node.inode, file.number, false).await,
        Err(MetaFailure::Errno(Errno::ENOENT | Errno::ESTALE)) => file.lost.set(Lost::File),
        Err(failure) => {
            tracing::warn!(inode = %file.node.inode, %failure, "an open file could not be opened in the new session");
        }
    }
}
