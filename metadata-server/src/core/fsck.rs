//! Questions and repairs of `zabfs fsck`.

use super::Turn;
use super::flow::{Flow, Next, Step};
use crate::state::examine::{Found, examine, find};
use crate::state::key;
use crate::state::layers::{Disk, StoreError, View};
use crate::state::prep::mend::{Mended, fsck_file};
use crate::state::read::read;
use crate::state::record::Inode;
use protocol::meta::{FSCK_NAMES_MAX, FsckAnswer, FsckRequest, MetaError, MetaReply, ReadOp, Space};
use protocol::{EntryName, InodeId, SessionId};

impl<D: Disk, T> Turn<'_, D, T> {
    /// A question, once it arrived at the leader.
    pub(super) fn fsck(&mut self, request: FsckRequest) -> Flow {
        match request {
            FsckRequest::Look { names, .. } if names.len() > FSCK_NAMES_MAX => {
                Err(MetaError::Refused(format!("a check names at most {FSCK_NAMES_MAX} entries")))
            }
            FsckRequest::Look { inode, names, repair: false } => self.confirm(Step::Look(inode, names)),
            FsckRequest::Look { inode, names, repair: true } => {
                let names_again = names.clone();
                let mended = move |mended: Mended| {
                    for problem in mended.found.difference(&mended.left) {
                        tracing::warn!("inode {inode} was repaired: {problem}");
                    }
                    Step::Mended(inode, names_again, Box::new(mended))
                };
                self.change(move |prep| prep.mend(inode, &names), mended)
            }
            FsckRequest::Objects { inode, file, mend } => {
                tracing::warn!("objects of inode {inode} are repaired: {mend:?}");
                self.change(move |prep| prep.mend_objects(inode, file, &mend), super::dispatch::done)
            }
            FsckRequest::Counts { revision, inodes, pools, next_inode } => {
                tracing::warn!("counts are repaired: inodes by {inodes}, of pools by {pools:?}");
                self.change(
                    move |prep| prep.mend_counts(revision, inodes, &pools, next_inode),
                    super::dispatch::done,
                )
            }
        }
    }

    /// What is said of an inode now.
    pub(super) fn look(&mut self, inode: InodeId, names: &[(InodeId, EntryName)]) -> Flow {
        let answer = self.looked(inode, names);
        let answer = self.core.stored(answer)?;
        Ok(Next::Reply(MetaReply::Fsck(Box::new(answer))))
    }

    /// What was wrong, now that it is mended.
    pub(super) fn mended(&mut self, inode: InodeId, names: &[(InodeId, EntryName)], mended: Mended) -> Flow {
        let answer = self.looked(inode, names);
        let mut answer = self.core.stored(answer)?;
        answer.found = mended.found.into_iter().collect();
        answer.left = mended.left.into_iter().collect();
        answer.also = mended.also.into_iter().collect();
        Ok(Next::Reply(MetaReply::Fsck(Box::new(answer))))
    }

    fn looked(&self, id: InodeId, names: &[(InodeId, EntryName)]) -> Result<FsckAnswer, StoreError> {
        let machine = &self.core.machine;
        let state = machine.committed();
        let found = examine(&state, id, names)?;
        let inode = find::<Inode>(&state, &key::inode(id))?;
        let exists = !matches!(inode, Found::Absent);
        let inode = inode.value();
        let in_use = !machine.open.holders(id).is_empty()
            || state.get(&key::purge(id))?.is_some()
            || state.get(&key::hold(id))?.is_some();
        // A path that cannot be told is no reason to stop: names may be what is wrong.
        let path = match read(&state, SessionId::default(), &ReadOp::Path(id), Space::default()) {
            Ok(MetaReply::Bytes(path)) => Some(path),
            _ => None,
        };
        Ok(FsckAnswer {
            path,
            file: inode.as_ref().and_then(fsck_file),
            exists,
            in_use,
            found: found.into_iter().collect(),
            left: Vec::new(),
            also: Vec::new(),
        })
    }
}
