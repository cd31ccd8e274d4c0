//! Drives [`zab::Peer`]: stores its log and record, carries its messages, feeds the state machine.
//!
//! | module | what |
//! |---|---|
//! | [`state_machine`] | what the replicated state machine must offer |
//! | `handle` | [`Quorum`]: what the rest of the server uses |
//! | `driver` | [`Driver`]: the loop of events and outputs |
//! | `transport`, `snapshot` | links among metadata servers; a snapshot on its way |
//! | `disk`, [`stream`] | the thread that writes, with group commit; what it does |
//! | `storage` | [`Storage`]: a server's directory, opened |
//! | [`log_store`], `log_scan`, `segment` | the transaction log, reading it back, its format |
//! | `slots` | small files replaced atomically: the record, the mark |
//! | [`files`] | the file operations that they need |
//!
//! ```text
//! let storage = Storage::open_or_create(dir, &options, membership)?;
//! let state = State::open(storage.state_path())?;                     // absent at the first start
//! let (quorum, driver) = Quorum::new(config, storage, state.applied(), endpoint)?;
//! // hand `quorum` to whoever proposes; hand it every channel of kind ZAB that is accepted
//! driver.run(state).await?;
//! ```

mod disk;
mod driver;
pub mod error;
pub mod files;
mod handle;
mod log_scan;
pub mod log_store;
mod segment;
mod slots;
mod snapshot;
pub mod state_machine;
mod storage;
pub mod stream;
mod transport;

pub use driver::Driver;
pub use error::{LogDamaged, StorageError};
pub use handle::{PeerStatus, Quorum, QuorumConfig, QuorumError, QuorumStatus, TXN_BYTES_MAX};
pub use log_store::LogOptions;
pub use state_machine::{
    CheckpointJob, SNAPSHOT_CHUNK_BYTES_MAX, SnapshotSink, SnapshotSource, StateError, StateMachine,
};
pub use storage::{Storage, StorageOptions};

#[cfg(test)]
mod tests;
