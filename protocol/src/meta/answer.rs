//! What reads at a revision are answered with.

use super::{DirEntry, LockEntry, MetaReply};
use crate::attr::{Attr, FileView};
use crate::errno::Errno;
use crate::name::bytes_form;
use serde::{Deserialize, Serialize};

/// What [`MetaReply::ReadAt`] says beside the revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and boxing the common answers would cost more")]
pub enum ReadAnswer {
    /// Entry or attributes.
    Attr(Attr),
    /// Where the bytes are.
    View(FileView),
    /// The view at hand is current.
    Unchanged,
    /// Raw bytes.
    Bytes(#[serde(with = "bytes_form")] Vec<u8>),
    /// Names.
    Names(Vec<Vec<u8>>),
    /// Directory entries; `end` when nothing follows.
    Entries {
        /// Entries in order.
        entries: Vec<DirEntry>,
        /// Nothing follows.
        end: bool,
    },
    /// The lock that is in the way, if any.
    Conflict(Option<LockEntry>),
    /// Holders and queue.
    LockState {
        /// Holders.
        holders: Vec<LockEntry>,
        /// Waiters, first in line first.
        waiters: Vec<LockEntry>,
    },
    /// What a system call would return.
    Errno(Errno),
}

impl ReadAnswer {
    /// The answer to a read as [`MetaReply::ReadAt`] carries it; `None` if it is not of that kind.
    pub fn of(reply: MetaReply) -> Option<Self> {
        Some(match reply {
            MetaReply::Entry(attr) | MetaReply::Attr(attr) => Self::Attr(attr),
            MetaReply::View(view) => Self::View(view),
            MetaReply::Unchanged => Self::Unchanged,
            MetaReply::Bytes(bytes) => Self::Bytes(bytes),
            MetaReply::Names(names) => Self::Names(names),
            MetaReply::Entries { entries, end } => Self::Entries { entries, end },
            MetaReply::Conflict(entry) => Self::Conflict(entry),
            MetaReply::LockState { holders, waiters } => Self::LockState { holders, waiters },
            _ => return None,
        })
    }
}
