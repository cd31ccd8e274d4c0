//! Backups of the whole metadata, and clusters made from them.
//!
//! | module | what |
//! |---|---|
//! | `serve` | a server hands the rows of one checkpoint to an administrator, a little at a time |
//! | [`format`] | the file: head, checksummed blocks of rows, trailer |
//! | [`restore`] | directories of metadata servers made from a file |
//!
//! A backup is of exactly one revision: the rows of one immutable view of the state, which is at least as new as
//! everything that was answered before the backup was asked for. `docs/FORMATS.md` draws the file.

pub mod format;
pub mod restore;
mod serve;

pub use serve::{BackupView, Backups};

use crate::state::layers::StoreError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a backup cannot be written, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The disk.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another kind of file.
    #[error("{path} is no backup of zabfs metadata: {why}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        why: &'static str,
    },
    /// A newer version wrote it.
    #[error(
        "the backup {path} has {what} {found} and this version of zabfs reads up to {supported}; upgrade it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Which format.
        what: &'static str,
        /// Its version.
        found: u32,
        /// The newest that is known.
        supported: u32,
    },
    /// It is not what was written.
    #[error("the backup {path} is damaged at byte {offset}: {why}; use another one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// The rows that a server sent make no sense.
    #[error("the rows that arrived make no sense: {0}; nothing was kept")]
    Rows(String),
    /// It belongs to another cluster.
    #[error("the backup is of cluster {found} and these certificates are of cluster {expected}; check both")]
    ForeignCluster {
        /// The backup's.
        found: String,
        /// The certificates'.
        expected: String,
    },
    /// There is a state already.
    #[error(
        "{path} holds the state of a metadata server; --replace sets it aside, which gives up everything since the backup"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// What the state or the log said.
    #[error("cannot make the directory {path}: {why}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The new state.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
