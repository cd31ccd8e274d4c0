//! Why a metadata request did not do what it should.

use protocol::Errno;

/// What is left after everything that can be retried was retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaFailure {
    /// What a system call would return.
    #[error("{0}")]
    Errno(Errno),
    /// The file was truncated or moved to chunks: fetch its view and write again.
    #[error("the file's layout or truncations changed meanwhile")]
    Respill,
    /// The session that this belongs to has expired; it was not and will not be sent again.
    #[error("the session has expired")]
    SessionLost,
    /// The certificate does not allow it, or it is not possible: the sentence says which.
    #[error("refused: {0}")]
    Refused(String),
    /// The server answered with something that is no answer to the question.
    #[error(
        "the metadata server gave an answer of the wrong kind to {0}; compare the versions of both sides"
    )]
    Unexpected(&'static str),
}

impl From<Errno> for MetaFailure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<MetaFailure> for Errno {
    fn from(failure: MetaFailure) -> Self {
        match failure {
            MetaFailure::Errno(errno) => errno,
            MetaFailure::Refused(_) => Errno::EACCES,
            MetaFailure::Respill | MetaFailure::SessionLost => Errno::EIO,
            MetaFailure::Unexpected(_) => {
                tracing::error!("{failure}");
                Errno::EIO
            }
        }
    }
}
