//! The chunk store: objects of one data server on its local disk.
//!
//! # The model
//!
//! * **Extent files** hold contents in blocks of 4 KiB. Nothing is found there without the index.
//! * The **index** (redb) says for each object where its blocks are and what their checksums are. It is committed by
//!   checkpoints only, every few seconds or megabytes.
//! * The **journal** holds every transaction since the last checkpoint. Small contents ride in it; large ones (64 KiB
//!   and more) are written to fresh blocks first and the record switches them in.
//! * **Layers** in memory are the difference between the index and now ([`layer`]).
//!
//! A transaction is *visible* to reads when [`Store::submit`] returns, *written* when journal and extents have it in the
//! page cache (it survives `kill -9`), and *durable* after one group-committed fsync of both.
//!
//! # Invariants
//!
//! 1. What an opened store holds is a prefix of the order of submission that includes everything durable.
//! 2. No bytes leave the store that do not match the checksum made when they came in.
//! 3. Blocks of the extents are overwritten in place only with contents that are durable in the journal, and freed blocks
//!    are used again only after the freeing is durable in the index.
//! 4. A refused transaction changes nothing. A failed write or fsync ends the store until it is opened again.
//!
//! Formats are drawn in `docs/FORMATS.md`.

mod alloc;
mod config;
mod contents;
mod core;
mod disk;
mod extents;
mod handle;
mod index;
mod journal;
mod layer;
mod object;
mod prep;
mod read;
mod record;
mod recover;
mod sim_disk;
mod stage;
mod superblock;
#[cfg(test)]
mod tests;
mod types;

pub use config::StoreConfig;
pub use disk::{Disk, DiskFile, OsDisk};
pub use handle::{Store, Threads};
pub use sim_disk::SimDisk;
pub use types::{
    BLOCK_BYTES, Digest, META_KEY_BYTES_MAX, META_VALUE_BYTES_MAX, OBJECT_BYTES_MAX, ObjectInfo, ObjectKey,
    Op, Piece, Progress, Space, StoreError, Submitted, Ticket, Transaction,
};
