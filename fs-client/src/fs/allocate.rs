//! FALLOCATE: sizes without writing, holes, zeros.

use super::node::Node;
use super::write::{Job, Round, pieces_of};
use super::write_plan::Range;
use super::{Answer, ZabFs};
use crate::data::{Basis, DataFailure};
use crate::fuse::Reply;
use bytes::Bytes;
use protocol::meta::{self, MetaReply, WriteOp};
use protocol::{Errno, FileView, Layout};
use std::rc::Rc;
use tokio::task::JoinSet;

/// Truncations met in a row before it fails with EIO.
const ROUNDS_MAX: u32 = 1000;
/// Pieces zeroed at once.
const ZEROING_MAX: usize = 64;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    zero: bool,
    extend: bool,
}

impl Wish {
    fn of(mode: u32) -> Result<Self, Errno> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        match mode as i32 {
            0 => Ok(Self { zero: false, extend: true }),
            KEEP => Ok(Self { zero: false, extend: false }),
            PUNCH | ZERO_KEEP => Ok(Self { zero: true, extend: false }),
            ZERO => Ok(Self { zero: true, extend: true }),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

impl ZabFs {
    pub(super) async fn fallocate(
        self: &Rc<Self>,
        node: u64,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Answer {
        self.check_writable()?;
        let file = self.handles.file(handle)?;
        file.check_change()?;
        let wish = Wish::of(mode)?;
        let end = offset.checked_add(length).filter(|end| *end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        if !wish.zero {
            self.check_space(self.inode(node), length).await?;
        }
        file.dirty.set(true);
        let id = node;
        let node = self.nodes.get(self.inode(id));
        if wish.zero {
            self.zero_range(&node, offset, end).await?;
        }
        if wish.extend && self.fetch_view(&node, 0).await?.attr.size < end {
            self.extend(&node, end).await?;
        }
        Ok(Reply::Done)
    }

    /// Raises the size to `end` at least, and never lowers it.
    async fn extend(self: &Rc<Self>, node: &Node, end: u64) -> Result<(), Errno> {
        let _gate = node.gate.write().await;
        let generation = self.meta.generation();
        // Under the hold nobody raises it further in between.
        let view = self.take_hold(node, generation).await?;
        if view.attr.size >= end {
            return Ok(());
        }
        let change = meta::SetAttr { size: Some(end), ..meta::SetAttr::default() };
        let answer =
            self.meta.write_in(Some(generation), WriteOp::Setattr { inode: node.inode, change }).await;
        node.forget_view();
        answer?;
        Ok(())
    }

    /// Makes the part of the range below the size zero.
    async fn zero_range(self: &Rc<Self>, node: &Node, offset: u64, end: u64) -> Result<(), Errno> {
        let generation = self.meta.generation();
        let mut allocated = 0;
        for _ in 0..ROUNDS_MAX {
            let _gate = node.gate.read().await;
            let view = self.fetch_view(node, 0).await?;
            let end = end.min(view.attr.size);
            if offset >= end {
                return Ok(());
            }
            let mut job = Job {
                range: Range { offset, length: end - offset, append: false },
                data: Bytes::new(),
                kill_privileges: false,
                generation,
                allocated,
                reached_chunks: true,
            };
            let round = match &view.layout {
                Layout::Inline(bytes) => self.zero_inline(node, bytes.len() as u64, job.range).await?,
                Layout::Chunks => {
                    let zeroed = self.zero_chunks(&view, &mut job).await;
                    self.commit(node, &view, end, zeroed, &job).await?
                }
            };
            match round {
                Round::Done => return Ok(()),
                Round::Again => node.forget_view(),
            }
            allocated = job.allocated;
        }
        Err(Errno::EIO)
    }

    async fn zero_inline(self: &Rc<Self>, node: &Node, have: u64, range: Range) -> Result<Round, Errno> {
        // Beyond the bytes at hand it is zero already.
        let end = (range.offset + range.length).min(have);
        if range.offset >= end {
            return Ok(Round::Done);
        }
        let data = vec![0; (end - range.offset) as usize];
        let op = WriteOp::WriteInline {
            inode: node.inode,
            offset: Some(range.offset),
            data,
            kill_privileges: false,
        };
        let answer = self.meta.write_in(Some(self.meta.generation()), op).await;
        node.forget_view();
        match answer {
            Ok(MetaReply::Written { .. }) => Ok(Round::Done),
            Err(crate::meta::MetaFailure::Respill) => Ok(Round::Again),
            Ok(_) => Err(crate::meta::MetaFailure::Unexpected("a write").into()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn zero_chunks(self: &Rc<Self>, view: &FileView, job: &mut Job) -> Result<(), DataFailure> {
        let basis = Basis { generation: job.generation, truncations: view.truncations.clone() };
        let file = self.chunked(view).await;
        let (mut position, end) = (job.range.offset, job.range.offset + job.range.length);
        let mut zeroing = JoinSet::new();
        let mut result = Ok(());
        // A hole can be as long as a file: its pieces are made as they are needed.
        while (position < end && result.is_ok()) || !zeroing.is_empty() {
            while position < end && result.is_ok() && zeroing.len() < ZEROING_MAX {
                let stripe = (end - position).min(u64::from(file.chunk_size));
                for piece in pieces_of(&file, position, stripe)? {
                    let (client, basis) = (self.data.clone(), basis.clone());
                    zeroing.spawn_local(async move { client.zero(&basis, piece).await });
                }
                position += stripe;
            }
            match zeroing.join_next().await {
                Some(Ok(Ok(allocated))) => job.allocated += allocated,
                Some(Ok(Err(failure))) => result = Err(failure),
                Some(Err(error)) => result = Err(DataFailure::Rejected(error.to_string())),
                None => {}
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_that_move_bytes_are_refused() {
        assert_eq!(Wish::of(0), Ok(Wish { zero: false, extend: true }));
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(Wish::of(punch as u32), Ok(Wish { zero: true, extend: false }));
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_PUNCH_HOLE]
        {
            assert_eq!(Wish::of(mode as u32), Err(Errno::EOPNOTSUPP));
        }
    }
}
