//! What the replicated state machine offers to the driver, and the driver to it.
//!
//! ```text
//!   state-0.redb (empty)          record: snapshot = None        log: (0,0] →
//!        │ checkpoints write committed transactions into it, together with the applied zxid
//!        ▼
//!   state-0.redb @ (3,17)         log: (3,17] →   (older log may be purged)
//!        │ a snapshot arrives: its rows go into state-9f….redb, which is then synced
//!        ▼
//!   ONE write of the record: snapshot = 9f…@(5,2), new log generation that starts at (5,2)
//!        │ from here on a restart opens state-9f….redb; the old file and the old log are garbage
//!        ▼
//!   install(state-9f….redb)       old files removed (again at the next start, if a crash prevents it here)
//! ```
//!
//! Invariants: a state file never contains an uncommitted transaction; what it contains ends at exactly one zxid,
//! which is stored in it by the same transaction; which file is current is decided by the record alone.

use std::error::Error;
use std::path::Path;

use bytes::Bytes;
use zab::{Role, Zxid};

/// A failure of the state's storage. Ends the server's role: nothing is continued from memory.
pub type StateError = Box<dyn Error + Send + Sync>;

/// The longest chunk of a snapshot stream, in bytes. One transaction, the largest unit there is, fits.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 4 << 20;

/// The replicated state machine.
///
/// Every method is called on the server's runtime thread, from the driver's task, one at a time, and never while
/// the quorum is borrowed: an implementation may call [`Quorum`](super::Quorum) from inside. None may block on
/// the disk, except [`install`](Self::install), which comes while this server serves nobody.
pub trait StateMachine {
    /// The last transaction that the state contains: at start that of the file that was opened, later the one
    /// passed to the last [`apply`](Self::apply) or [`install`](Self::install).
    fn applied(&self) -> Zxid;

    /// Applies a committed transaction. In order, each exactly once per incarnation, the first one directly after
    /// what [`applied`](Self::applied) said at start. Cannot fail. An empty transaction stands for an entry that is
    /// the quorum's own (a change of its membership): the state is the same afterwards, at this position.
    fn apply(&mut self, zxid: Zxid, txn: &Bytes);

    /// This server led and does not any more: what it proposed and has not seen in [`apply`](Self::apply) may
    /// commit later or never. The speculative layer is to be discarded. Comes directly before the
    /// [`role_changed`](Self::role_changed) that ends the leadership.
    fn lost_proposals(&mut self);

    /// The role changed. `Leading` comes after everything in the log was applied. On any change unanswered
    /// `read_index` requests are void and must be asked again.
    fn role_changed(&mut self, role: Role);

    /// Answer to [`Quorum::read_index`](super::Quorum::read_index): `applied() >= zxid` holds now, and a read of
    /// the committed state sees everything that was acknowledged anywhere before the request.
    fn read_ready(&mut self, request: u64, zxid: Zxid);

    /// Freezes the committed state as of [`applied`](Self::applied) and returns the work that makes it durable in
    /// the current file; `None` if nothing changed since the last checkpoint. At most one job exists at a time.
    fn checkpoint(&mut self) -> Option<Box<dyn CheckpointJob>>;

    /// The last job succeeded: what it froze may leave memory. The log up to `zxid` may be purged from now on.
    fn checkpointed(&mut self, zxid: Zxid);

    /// An immutable view of the last durable checkpoint, for a follower. Several may exist at a time, and
    /// checkpoints and an [`install`](Self::install) go on meanwhile (an open file outlives its name).
    ///
    /// # Errors
    /// The storage failed; ends the role.
    fn snapshot_source(&mut self) -> Result<Box<dyn SnapshotSource>, StateError>;

    /// Begins to receive a snapshot into a new file at `path`, of which nothing exists (leftovers were removed).
    /// The running state does not change.
    ///
    /// # Errors
    /// The file cannot be made; this attempt to receive is given up, another follows.
    fn snapshot_sink(&mut self, path: &Path) -> Result<Box<dyn SnapshotSink>, StateError>;

    /// Switches to the finished snapshot at `path`: everything in memory is dropped, the state is what the file
    /// holds. The record that names it is durable already. A checkpoint job still running writes to the old file
    /// and is forgotten ([`checkpointed`](Self::checkpointed) will not be called for it). Afterwards the driver
    /// removes the old file.
    ///
    /// # Errors
    /// The file cannot be opened, or is not at `zxid`; ends the role.
    fn install(&mut self, path: &Path, zxid: Zxid) -> Result<(), StateError>;
}

/// The part of a checkpoint that writes. Runs on another thread and shares no lock with the commit path.
pub trait CheckpointJob: Send {
    /// Writes what was frozen and the zxid in one durable transaction and returns that zxid.
    ///
    /// # Errors
    /// The storage failed; ends the role.
    fn run(self: Box<Self>) -> Result<Zxid, StateError>;
}

/// A snapshot being read. Used on another thread.
pub trait SnapshotSource: Send {
    /// What it contains: every transaction up to this one and none after.
    fn zxid(&self) -> Zxid;

    /// The next chunk, not empty and at most [`SNAPSHOT_CHUNK_BYTES_MAX`] long; `None` at the end. The receiver
    /// gets the same chunks.
    ///
    /// # Errors
    /// The storage failed; the transfer is given up.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError>;
}

/// A snapshot being written. Used on another thread; dropped without [`finish`](Self::finish) if the transfer ends.
pub trait SnapshotSink: Send {
    /// Takes the next chunk. Chunks come from a peer: nothing in them may be trusted to have a form.
    ///
    /// # Errors
    /// The storage failed or the chunk is malformed; the transfer is given up and the file removed.
    fn write(&mut self, chunk: Bytes) -> Result<(), StateError>;

    /// All chunks arrived and their checksum holds: makes the file complete at `zxid`, durable and closed. (The
    /// driver syncs the directory.)
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn finish(self: Box<Self>, zxid: Zxid) -> Result<(), StateError>;
}
