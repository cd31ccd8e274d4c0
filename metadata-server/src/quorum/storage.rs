//! A metadata server's directory: the record, the log, and which state file is current.
//!
//! ```text
//! DIR/lock                    held while a process uses the directory
//! DIR/record                  zab's record and whose directory this is; see `slots`
//! DIR/mark, log-*, spare      the log
//! DIR/state-ID.redb           the state; the record's snapshot says which ID is current, 0 if it has none
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zab::{DataUuid, Entry, Membership, PeerId, Record, SnapshotRef, Zxid};

use super::error::{LogDamaged, StorageError};
use super::files::{Directory, OsDirectory};
use super::log_store::{LogOptions, LogStore, OpenedLog};
use super::slots::SlotFile;

const RECORD: &str = "record";
/// In a directory while a backup is restored into it.
pub(crate) const RESTORING: &str = "restoring";
/// Written; format 1 is read too.
const RECORD_FORMAT: u32 = 2;
/// A slot of the record: room for the largest membership with the longest addresses.
const RECORD_SLOT_BYTES: usize = 16 << 10;
const STATE_PREFIX: &str = "state-";
const STATE_SUFFIX: &str = ".redb";

/// Whose directory it is, and how its log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageOptions {
    /// The cluster that the server's certificate names.
    pub cluster: [u8; 16],
    /// The server's number in its certificate.
    pub server: PeerId,
    pub log: LogOptions,
}

/// What the record file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredRecord {
    format: u32,
    cluster: [u8; 16],
    server: PeerId,
    record: Record,
}

/// What format 1 held instead: memberships without addresses and removed directories.
#[derive(Deserialize)]
struct StoredRecord1 {
    _format: u32,
    cluster: [u8; 16],
    server: PeerId,
    record: Record1,
}

#[derive(Deserialize)]
struct Record1 {
    data_uuid: DataUuid,
    accepted_epoch: u64,
    accepted_leader: Option<PeerId>,
    current_epoch: u64,
    membership: Membership1,
    snapshot: Option<SnapshotRef>,
    log_start: Zxid,
    log_generation: u64,
    needs_sync: bool,
}

#[derive(Deserialize)]
struct Membership1 {
    version: u64,
    voters: BTreeMap<PeerId, Option<DataUuid>>,
    observers: BTreeSet<PeerId>,
}

impl From<StoredRecord1> for StoredRecord {
    fn from(old: StoredRecord1) -> StoredRecord {
        let Record1 { data_uuid, accepted_epoch, accepted_leader, current_epoch, .. } = old.record;
        let Record1 { snapshot, log_start, log_generation, needs_sync, membership, .. } = old.record;
        let Membership1 { version, voters, observers } = membership;
        let membership = Membership { version, voters, observers, ..Membership::default() };
        let record = Record {
            data_uuid,
            accepted_epoch,
            accepted_leader,
            current_epoch,
            membership,
            snapshot,
            log_start,
            log_generation,
            needs_sync,
        };
        StoredRecord { format: RECORD_FORMAT, cluster: old.cluster, server: old.server, record }
    }
}

/// The open record file.
pub(super) struct RecordFile {
    slots: SlotFile,
    stored: StoredRecord,
}

impl RecordFile {
    /// Replaces the record durably.
    pub(super) fn save(&mut self, record: Record) -> Result<(), StorageError> {
        self.stored.record = record;
        self.slots.write(&encode(&self.stored))
    }

    /// As last written.
    pub(super) fn record(&self) -> &Record {
        &self.stored.record
    }
}

fn encode(stored: &StoredRecord) -> Vec<u8> {
    postcard::to_stdvec(stored).expect("a record is made of numbers and maps, which always encode")
}

/// An opened directory, to be handed to [`Quorum::new`](super::Quorum::new).
pub struct Storage {
    pub(super) path: PathBuf,
    pub(super) directory: Arc<dyn Directory>,
    pub(super) record_file: RecordFile,
    pub(super) log: LogStore,
    pub(super) entries: Vec<Entry>,
    pub(super) lock: File,
    pub(super) log_options: LogOptions,
    damage: Option<LogDamaged>,
}

impl Storage {
    /// Opens the directory `path`, and makes it if it has no record: as one that has promised nothing, with an
    /// identity of its own, that knows `membership`. Such a directory votes only where the cluster is formed with
    /// it; everywhere else it learns.
    ///
    /// # Errors
    /// The disk fails, the directory is another server's, in use, or without an intact record. A damaged log is no
    /// error: what is before the damage is kept, and the record says that the server needs synchronization.
    pub fn open_or_create(
        path: &Path,
        options: &StorageOptions,
        membership: impl FnOnce() -> Membership,
    ) -> Result<Storage, StorageError> {
        fs::create_dir_all(path).map_err(StorageError::io("create", &path.to_string_lossy()))?;
        Storage::open_or_create_in(path, Arc::new(OsDirectory::new(path)), options, membership)
    }

    /// As [`open_or_create`](Self::open_or_create), through other file operations.
    ///
    /// # Errors
    /// As there.
    pub fn open_or_create_in(
        path: &Path,
        directory: Arc<dyn Directory>,
        options: &StorageOptions,
        membership: impl FnOnce() -> Membership,
    ) -> Result<Storage, StorageError> {
        let lock = take_lock(path)?;
        if path.join(RESTORING).exists() {
            return Err(StorageError::Restoring { path: path.to_owned() });
        }
        let fresh = || {
            if has_states(&*directory)? {
                // A server that forgot what it promised must not be mistaken for a new one.
                return Err(no_record(path));
            }
            let uuid = DataUuid(u128::from_le_bytes(random_bytes()?));
            Ok(Record::fresh(uuid, membership()))
        };
        let FoundStream { record_file, log, entries, damage } =
            open_stream(&directory, path, options, fresh)?;
        let path = path.to_owned();
        let log_options = options.log;
        let storage = Storage { path, directory, record_file, log, entries, lock, log_options, damage };
        let current = current_state_id(storage.record());
        remove_states(&storage.path, |id| id == current);
        Ok(storage)
    }

    /// The record as it was found.
    pub fn record(&self) -> &Record {
        self.record_file.record()
    }

    /// The file with the current state. Absent at the first start: then the state is empty, at zxid zero.
    pub fn state_path(&self) -> PathBuf {
        state_path(&self.path, current_state_id(self.record()))
    }

    /// What is wrong with the log, if anything.
    pub fn damage(&self) -> Option<&LogDamaged> {
        self.damage.as_ref()
    }
}

/// Makes record and log of a directory that begins with a snapshot, which is there already: its name is
/// [`state_path`]'s for the id in the record.
///
/// # Errors
/// The disk.
pub(crate) fn create_from_snapshot(
    path: &Path,
    options: &StorageOptions,
    record: Record,
) -> Result<(), StorageError> {
    let directory: Arc<dyn Directory> = Arc::new(OsDirectory::new(path));
    create(&directory, options, &[], record)
}

/// Whether the directory has a record, a log or a state.
pub(crate) fn is_in_use(path: &Path) -> std::io::Result<bool> {
    let names = match fs::read_dir(path) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in names {
        if entry?.file_name().to_str().is_some_and(is_own) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file of this name is part of what a metadata server keeps.
pub(crate) fn is_own(name: &str) -> bool {
    let others = ["mark", "spare", "spare.new", "segment.new", "record.new", "mark.new"];
    name == RECORD || name.starts_with("log-") || state_id(name).is_some() || others.contains(&name)
}

pub(crate) fn take_lock(path: &Path) -> Result<File, StorageError> {
    let name = path.join("lock");
    let failed = |source| StorageError::Io { action: "lock", file: name.display().to_string(), source };
    let lock = File::options().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StorageError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => {
            Err(StorageError::Io { action: "lock", file: name.display().to_string(), source })
        }
    }
}

/// The record and the log of a directory, opened.
pub(super) struct FoundStream {
    pub(super) record_file: RecordFile,
    pub(super) log: LogStore,
    pub(super) entries: Vec<Entry>,
    pub(super) damage: Option<LogDamaged>,
}

/// Opens the record and the log, and makes them if there is no record.
pub(super) fn open_stream(
    directory: &Arc<dyn Directory>,
    path: &Path,
    options: &StorageOptions,
    fresh: impl FnOnce() -> Result<Record, StorageError>,
) -> Result<FoundStream, StorageError> {
    let names = directory.list().map_err(StorageError::io("list", "the data directory"))?;
    if !names.iter().any(|name| name == RECORD) {
        create(directory, options, &names, fresh()?)?;
    }
    open(path, directory.clone(), options)
}

/// Makes a directory that has promised nothing. The record comes last: without it there is nothing that counts, and
/// with it there is a log, so that a log which is missing later counts as damage.
fn create(
    directory: &Arc<dyn Directory>,
    options: &StorageOptions,
    found: &[String],
    record: Record,
) -> Result<(), StorageError> {
    for name in found.iter().filter(|name| name.starts_with("log-") || *name == "mark") {
        directory.remove(name).map_err(StorageError::io("remove", name))?;
    }
    LogStore::create(directory.clone(), record.log_generation, record.log_start, options.log)?;
    let stored =
        StoredRecord { format: RECORD_FORMAT, cluster: options.cluster, server: options.server, record };
    SlotFile::create(&**directory, RECORD, RECORD_SLOT_BYTES, Some(&encode(&stored)))?;
    Ok(())
}

fn open(
    path: &Path,
    directory: Arc<dyn Directory>,
    options: &StorageOptions,
) -> Result<FoundStream, StorageError> {
    let slots = SlotFile::open(&*directory, RECORD, RECORD_SLOT_BYTES)?;
    let stored = decode(slots.newest().ok_or_else(|| no_record(path))?, path)?;
    check_owner(&stored, path, options)?;
    let mut record = stored.record.clone();
    let mut record_file = RecordFile { slots, stored };
    let mut opened = OpenedLog::read(directory, record.log_generation, record.log_start, options.log)?;
    let recovery = opened.recovery();
    if let Some(damage) = &recovery.damage {
        tracing::error!("{damage}");
        record.needs_sync = true;
    }
    // Written in any case: what was read may be in the page cache only, and a rotten copy is replaced. And before
    // the log is cut, or a crash in between would make the damage look like a torn tail.
    record_file.save(record)?;
    if recovery.torn && recovery.damage.is_none() {
        tracing::info!(
            "A crash tore the end of the log; nothing of it had been acknowledged, and it was cut."
        );
    }
    let log = opened.resume()?;
    Ok(FoundStream { record_file, log, entries: recovery.entries, damage: recovery.damage })
}

fn decode(bytes: &[u8], path: &Path) -> Result<StoredRecord, StorageError> {
    let (found, _): (u32, _) = postcard::take_from_bytes(bytes).map_err(|_| no_record(path))?;
    match found {
        RECORD_FORMAT => postcard::from_bytes(bytes).map_err(|_| no_record(path)),
        1 => {
            postcard::from_bytes::<StoredRecord1>(bytes).map(StoredRecord::from).map_err(|_| no_record(path))
        }
        _ => {
            let path = path.join(RECORD);
            Err(StorageError::RecordFormat { path, found, supported: RECORD_FORMAT })
        }
    }
}

fn check_owner(stored: &StoredRecord, path: &Path, options: &StorageOptions) -> Result<(), StorageError> {
    if (stored.cluster, stored.server) == (options.cluster, options.server) {
        return Ok(());
    }
    let name = |cluster: [u8; 16], server: PeerId| {
        format!("{:032x} as server {server}", u128::from_be_bytes(cluster))
    };
    Err(StorageError::ForeignDirectory {
        path: path.to_owned(),
        found: name(stored.cluster, stored.server),
        expected: name(options.cluster, options.server),
    })
}

fn no_record(path: &Path) -> StorageError {
    StorageError::RecordDamaged { path: path.join(RECORD), directory: path.to_owned() }
}

/// The id of the state file that a record makes current.
pub(super) fn current_state_id(record: &Record) -> u64 {
    record.snapshot.map_or(0, |snapshot| snapshot.id)
}

/// The path of a state file.
pub(crate) fn state_path(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("{STATE_PREFIX}{id:016x}{STATE_SUFFIX}"))
}

fn state_id(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(STATE_PREFIX)?.strip_suffix(STATE_SUFFIX)?, 16).ok()
}

fn has_states(directory: &dyn Directory) -> Result<bool, StorageError> {
    let names = directory.list().map_err(StorageError::io("list", "the data directory"))?;
    Ok(names.iter().any(|name| state_id(name).is_some()))
}

/// Removes state files that nobody needs. A failure costs space only; the next call tries again.
pub(super) fn remove_states(directory: &Path, is_needed: impl Fn(u64) -> bool) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let is_garbage = entry.file_name().to_str().and_then(state_id).is_some_and(|id| !is_needed(id));
        if is_garbage && let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!("Cannot remove the superseded state {}: {error}.", entry.path().display());
        }
    }
}

/// Random bytes of the operating system.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], StorageError> {
    let mut bytes = [0; N];
    let source = "/dev/urandom";
    let mut file = File::open(source).map_err(StorageError::io("open", source))?;
    file.read_exact(&mut bytes).map_err(StorageError::io("read", source))?;
    Ok(bytes)
}
