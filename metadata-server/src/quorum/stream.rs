//! The storage stream, carried out: zab's ordered operations become durable in groups, in their order.
//!
//! The disk thread drives it in a server; the simulation drives it in its one thread, on disks that fail.

use std::path::Path;
use std::sync::Arc;

use zab::{Entry, Record, Zxid, mutant};

use super::error::{LogDamaged, StorageError};
use super::files::Directory;
use super::log_store::LogStore;
use super::storage::{RecordFile, StorageOptions, open_stream};

/// What an operation without entries is reckoned to take.
const OPERATION_BYTES: u64 = 64;

/// One element of the storage stream; see [`zab::Output`], whose elements with a token these are.
#[derive(Debug)]
pub enum DiskOperation {
    Append {
        entries: Vec<Entry>,
        token: u64,
    },
    Truncate {
        after: Zxid,
        token: u64,
    },
    /// Also switches to another log generation, if the record names one.
    SaveRecord {
        record: Box<Record>,
        token: u64,
    },
    Probe {
        token: u64,
    },
    Purge {
        upto: Zxid,
    },
}

impl DiskOperation {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            DiskOperation::Append { entries, .. } => entries.iter().map(Entry::bytes).sum(),
            _ => OPERATION_BYTES,
        }
    }
}

/// Operations that become durable together.
#[derive(Debug, Default)]
pub struct Group {
    token: u64,
    bytes: u64,
    probes: bool,
    purge: Option<Zxid>,
}

impl Group {
    /// The highest token in it; 0 if there is none.
    pub fn token(&self) -> u64 {
        self.token
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The log and the record of one directory. After the first failure nothing may be written to it any more.
pub struct DiskStream {
    log: LogStore,
    record: RecordFile,
}

/// A directory that was opened, and what was found in it.
pub struct OpenedStream {
    pub stream: DiskStream,
    /// The entries after the record's `log_start`; with damage, those before it.
    pub entries: Vec<Entry>,
    /// What is wrong with the log, if anything; the record says so too.
    pub damage: Option<LogDamaged>,
}

impl DiskStream {
    pub(super) fn new(log: LogStore, record: RecordFile) -> DiskStream {
        DiskStream { log, record }
    }

    /// Opens the stream in `directory`, and makes it with the record `fresh` if there is none. The caller holds the
    /// directory's lock. `path` is for people.
    ///
    /// # Errors
    /// The disk fails, the directory is another server's, or no copy of its record is intact.
    pub fn open_or_create(
        directory: &Arc<dyn Directory>,
        path: &Path,
        options: &StorageOptions,
        fresh: impl FnOnce() -> Record,
    ) -> Result<OpenedStream, StorageError> {
        let found = open_stream(directory, path, options, || Ok(fresh()))?;
        let stream = DiskStream::new(found.log, found.record_file);
        Ok(OpenedStream { stream, entries: found.entries, damage: found.damage })
    }

    /// The record as it is on disk.
    pub fn record(&self) -> &Record {
        self.record.record()
    }

    /// The log.
    pub fn log(&mut self) -> &mut LogStore {
        &mut self.log
    }

    /// Takes the next operation into the group. A record becomes durable at once, and what was staged before it.
    ///
    /// # Errors
    /// The disk failed.
    pub fn stage(&mut self, operation: DiskOperation, group: &mut Group) -> Result<(), StorageError> {
        group.bytes += operation.bytes();
        match operation {
            DiskOperation::Append { entries, token } => {
                self.log.append(&entries)?;
                group.token = token;
            }
            DiskOperation::Truncate { after, token } => {
                self.log.truncate(after)?;
                group.token = token;
            }
            DiskOperation::SaveRecord { record, token } => {
                self.save_record(*record)?;
                group.token = token;
            }
            DiskOperation::Probe { token } => {
                group.probes = true;
                group.token = token;
            }
            DiskOperation::Purge { upto } => group.purge = Some(upto),
        }
        Ok(())
    }

    /// Makes everything in the group durable: its token may be reported.
    ///
    /// # Errors
    /// The disk failed.
    pub fn commit(&mut self, group: &Group) -> Result<(), StorageError> {
        let has_synced = self.log.commit()?;
        if group.probes && !has_synced {
            self.log.write_mark()?;
        }
        Ok(())
    }

    /// Removes what the group says is not needed any more.
    ///
    /// # Errors
    /// The disk failed.
    pub fn purge(&mut self, group: &Group) -> Result<(), StorageError> {
        group.purge.map_or(Ok(()), |upto| self.log.purge(upto))
    }

    fn save_record(&mut self, record: Record) -> Result<(), StorageError> {
        self.log.commit()?;
        let switches = record.log_generation != self.log.generation();
        if switches {
            self.log.start_generation(record.log_generation, record.log_start)?;
            if mutant!("old-log-removed-before-the-record") {
                self.log.remove_other_generations()?;
            }
        }
        self.record.save(record)?;
        if switches {
            self.log.remove_other_generations()?;
        }
        Ok(())
    }
}
