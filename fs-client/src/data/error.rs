//! Why a data operation did not do what it should.

use protocol::Errno;

/// What is left after everything that can be retried was retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataFailure {
    /// The file was truncated since its view was fetched: fetch it again.
    #[error("the file was truncated meanwhile")]
    Stale,
    /// The session that this belongs to has expired or was fenced.
    #[error("the session has expired")]
    SessionLost,
    /// The data servers are full; nothing was written.
    #[error("the data servers are full")]
    Full,
    /// No replica has valid bytes.
    #[error("no replica has valid bytes: {0}")]
    Corrupt(String),
    /// The certificate does not allow it.
    #[error("the certificate does not allow this operation: {0}")]
    Refused(String),
    /// Several groups were to be asked for at once, and do not have one primary any more.
    #[error("the groups do not have a common primary any more")]
    Scattered,
    /// The data server found no sense in the request.
    #[error("the data server rejected a request: {0}")]
    Rejected(String),
}

impl From<DataFailure> for Errno {
    fn from(failure: DataFailure) -> Self {
        match failure {
            DataFailure::Full => Errno::ENOSPC,
            DataFailure::Refused(_) => Errno::EACCES,
            DataFailure::Stale | DataFailure::SessionLost | DataFailure::Scattered => Errno::EIO,
            DataFailure::Corrupt(_) | DataFailure::Rejected(_) => {
                tracing::error!("a program gets EIO: {failure}");
                Errno::EIO
            }
        }
    }
}
