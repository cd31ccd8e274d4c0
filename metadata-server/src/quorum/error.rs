//! Errors of the quorum's storage.

use std::io;
use std::path::PathBuf;

use zab::Zxid;

/// Why a file, the log or the record cannot be used. Every one of them ends the server's role: after a failed
/// write or fsync nobody knows what the disk holds, so nothing is continued from memory.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot {action} {file}: {source}")]
    Io { action: &'static str, file: String, source: io::Error },
    #[error("an earlier write to this log failed; restart the server, which reads back what the disk holds")]
    Poisoned,
    #[error("the log ends at {last} and cannot be continued with {zxid}; this is a bug")]
    NotContiguous { last: Zxid, zxid: Zxid },
    #[error("the log ends at {last} and cannot be cut after {after}; this is a bug")]
    TruncateAhead { last: Zxid, after: Zxid },
    #[error("a group of {bytes} bytes is too long for a log segment, which holds at most 4 GiB")]
    BatchTooLong { bytes: usize },
    #[error("the record takes {bytes} bytes and its slot holds {max}; the membership is too large")]
    RecordTooLong { bytes: usize, max: usize },
    #[error(
        "no copy of the record in {path} is intact, so this server does not know what it promised. Remove the \
         directory {directory} and let the server join again with an empty one."
    )]
    RecordDamaged { path: PathBuf, directory: PathBuf },
    #[error(
        "the record in {path} has format {found} and this version of zabfs reads up to {supported}; upgrade it"
    )]
    RecordFormat { path: PathBuf, found: u32, supported: u32 },
    #[error(
        "the log segment {file} has format {found} and this version of zabfs reads up to {supported}; upgrade it"
    )]
    LogFormat { file: String, found: u32, supported: u32 },
    #[error("the directory {path} belongs to cluster {found} and this server to {expected}; check --dir")]
    ForeignDirectory { path: PathBuf, found: String, expected: String },
    #[error(
        "restoring a backup into {path} was not finished; run 'zabfs metadata restore' again, with --replace"
    )]
    Restoring { path: PathBuf },
    #[error("the directory {path} is in use by another process; stop that one first")]
    InUse { path: PathBuf },
    #[error("the state cannot be stored or loaded: {0}")]
    State(#[source] super::StateError),
    #[error("the disk is {bytes} bytes behind, more than it may ever be; it counts as failed")]
    TooFarBehind { bytes: u64 },
    #[error("the disk thread ended unexpectedly")]
    ThreadGone,
}

impl StorageError {
    pub(super) fn io<'a>(action: &'static str, file: &'a str) -> impl FnOnce(io::Error) -> StorageError + 'a {
        move |source| StorageError::Io { action, file: file.to_owned(), source }
    }
}

/// A log with a hole: bytes that were durable are not what was written, as opposed to a tail that a crash tore.
/// The server keeps what is before the damage, neither votes nor acknowledges, and lets a leader fill the rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log is damaged in {file} at byte {offset}: {why}. {kept} entries before it, up to {last}, are kept; this \
     server takes part again once a leader has brought it up to date"
)]
pub struct LogDamaged {
    pub file: String,
    pub offset: u64,
    pub why: &'static str,
    pub kept: usize,
    pub last: Zxid,
}
