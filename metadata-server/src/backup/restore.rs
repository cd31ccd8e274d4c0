//! Directories of metadata servers, made from a backup.
//!
//! ```text
//! rows of the backup ──► state file, at revision raise(r) and zxid (raise(epoch), 1)
//!   transaction 1        generation; numbers raised; data servers down; members of groups uncertain
//!   one per session      ends as by expiry: fenced; its locks, holds, pins and replies go
//!   one per 256 files    files in chunks are cut at their size
//! state file ──► copied for every server; record with bound voters, empty log behind the state
//! ```
//!
//! Everything is made in `DIR/restoring` of each directory and then renamed into place, the record last. While that
//! name exists no server starts on the directory.

use super::BackupError;
use super::format::{BackupReader, Summary, verify};
use crate::disk_layer::{Checkpoint, DiskLayer, RowSink};
use crate::quorum::storage::{self, RESTORING};
use crate::quorum::{CheckpointJob, LogOptions, SnapshotSink, StorageOptions};
use crate::state::key;
use crate::state::layers::{StoreError, View};
use crate::state::machine::Machine;
use crate::state::prep::{Prep, PrepError};
use crate::state::record::{Progress, encode};
use bytes::{BufMut, Bytes, BytesMut};
use protocol::identity::ClusterId;
use protocol::map::{Generation, RESTORE_RAISES};
use protocol::{DataServerId, InodeId, MetadataServerId, SessionId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use zab::{DataUuid, Membership, PeerId, Record, SnapshotRef, Zxid};

/// Files cut by one transaction.
const FILES_AT_ONCE: usize = 256;
/// Changes are written to the state file when they reach this many bytes.
const CHECKPOINT_BYTES: usize = 8 << 20;
/// Directories that a membership remembers as removed.
const REMOVED_MAX: usize = 64;
/// 2026-01-01 in seconds since 1970, from where on numbers are handed out to restores by the clock.
const CLOCK_FROM: u64 = 1_767_225_600;

/// One server's directory.
#[derive(Clone, Debug)]
pub struct Home {
    /// Where.
    pub dir: PathBuf,
    /// Where the server listens.
    pub address: SocketAddr,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The backup.
    pub file: PathBuf,
    /// The cluster that the certificates are of.
    pub cluster: ClusterId,
    /// The voters of the restored cluster.
    pub homes: BTreeMap<MetadataServerId, Home>,
    /// Data servers that are gone for good: no group waits for them.
    pub lost: BTreeSet<DataServerId>,
    /// Set aside what is in the directories.
    pub replace: bool,
    /// The time.
    pub now: Timestamp,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The backup.
    pub backup: Summary,
    /// The new life.
    pub generation: Generation,
    /// Where its state ends.
    pub revision: u64,
    /// Sessions that ended.
    pub sessions: u64,
    /// Files in chunks that were cut at their size.
    pub files: u64,
    /// Where what was in the directories is now.
    pub set_aside: Vec<PathBuf>,
}

/// A number larger than any that came from `number` in an earlier life: by 2⁴⁰ at least, and beyond 2²⁸ per second
/// since 2026, so that also the same backup, restored a second time, leads to others.
pub fn raise(number: u64, now: Timestamp) -> u64 {
    let seconds = u64::try_from(now.seconds).unwrap_or(0).saturating_sub(CLOCK_FROM).min(1 << 31);
    number.saturating_add(RESTORE_RAISES).max(seconds << 28)
}

impl Restore {
    /// Makes the directories.
    ///
    /// # Errors
    /// The backup is none, damaged, of another cluster or a newer version; a directory is in use; the disk. Nothing in
    /// the directories has changed then, unless it says that what was made could not be put into its place.
    pub fn run(&self) -> Result<Restored, BackupError> {
        let backup = verify(&self.file)?;
        if backup.head.cluster != self.cluster.0 {
            let found = ClusterId(backup.head.cluster).to_string();
            return Err(BackupError::ForeignCluster { found, expected: self.cluster.to_string() });
        }
        let locks = self.lock_homes()?;
        let prepared = self.prepare(&backup);
        if prepared.is_err() {
            for home in self.homes.values() {
                // What is left of it only keeps the servers from starting, which a second attempt ends.
                let _ = fs::remove_dir_all(home.dir.join(RESTORING));
            }
        }
        let Built { generation, revision, sessions, files, .. } = prepared?;
        let mut set_aside = Vec::new();
        for home in self.homes.values() {
            set_aside.extend(commit(&home.dir)?);
        }
        drop(locks);
        Ok(Restored { backup, generation, revision, sessions, files, set_aside })
    }

    /// Makes everything beside what is there.
    fn prepare(&self, backup: &Summary) -> Result<Built, BackupError> {
        let mut uuids = BTreeMap::new();
        for id in self.homes.keys() {
            let uuid = storage::random_bytes().map_err(|e| make(&self.file, &e))?;
            uuids.insert(PeerId(id.0), DataUuid(u128::from_le_bytes(uuid)));
        }
        let state = storage::random_bytes().map_err(|e| make(&self.file, &e))?;
        let state = u64::from_le_bytes(state).max(1);
        let mut made: Option<(PathBuf, Built)> = None;
        for (id, home) in &self.homes {
            let dir = home.dir.join(RESTORING);
            fresh_dir(&dir)?;
            let path = storage::state_path(&dir, state);
            let built = match &made {
                None => build(&self.file, &path, &self.lost, self.now)?,
                Some((from, built)) => {
                    fs::copy(from, &path).map_err(BackupError::io("write", &path))?;
                    let copy = File::open(&path).map_err(BackupError::io("open", &path))?;
                    copy.sync_all().map_err(BackupError::io("sync", &path))?;
                    built.clone()
                }
            };
            self.make_record(PeerId(id.0), &dir, &uuids, backup, &built, state)?;
            made.get_or_insert((path, built));
        }
        made.map(|(_, built)| built)
            .ok_or_else(|| make(&self.file, &"there is no metadata server to restore to"))
    }

    /// Nobody uses the directories, nor will before this ends.
    fn lock_homes(&self) -> Result<Vec<File>, BackupError> {
        let mut locks = Vec::new();
        for Home { dir, .. } in self.homes.values() {
            fs::create_dir_all(dir).map_err(BackupError::io("create", dir))?;
            locks.push(storage::take_lock(dir).map_err(|error| make(dir, &error))?);
            let in_use = storage::is_in_use(dir).map_err(BackupError::io("list", dir))?;
            if in_use && !self.replace {
                return Err(BackupError::NotEmpty { path: dir.clone() });
            }
        }
        Ok(locks)
    }

    fn make_record(
        &self,
        id: PeerId,
        dir: &Path,
        uuids: &BTreeMap<PeerId, DataUuid>,
        backup: &Summary,
        built: &Built,
        state: u64,
    ) -> Result<(), BackupError> {
        let mut membership = Membership::bound(uuids.iter().map(|(id, uuid)| (*id, *uuid)));
        // Larger than that of any membership before.
        membership.version = built.zxid.epoch;
        membership.addresses =
            self.homes.iter().map(|(id, home)| (PeerId(id.0), home.address.to_string())).collect();
        let old = backup.head.directories.iter().rev().take(REMOVED_MAX);
        membership.removed = old.rev().map(|uuid| DataUuid(*uuid)).collect();
        let record = Record {
            accepted_epoch: built.zxid.epoch,
            current_epoch: built.zxid.epoch,
            snapshot: Some(SnapshotRef { id: state, zxid: built.zxid }),
            log_start: built.zxid,
            log_generation: 1,
            ..Record::fresh(uuids[&id], membership)
        };
        let options = StorageOptions { cluster: self.cluster.0, server: id, log: LogOptions::default() };
        storage::create_from_snapshot(dir, &options, record).map_err(|error| make(dir, &error))
    }
}

fn make(path: &Path, why: &dyn std::fmt::Display) -> BackupError {
    BackupError::Make { path: path.to_owned(), why: why.to_string() }
}

/// A state file that was made.
#[derive(Clone, Debug)]
struct Built {
    zxid: Zxid,
    revision: u64,
    generation: Generation,
    sessions: u64,
    files: u64,
}

/// Makes the state file at `path`, durable.
fn build(
    file: &Path,
    path: &Path,
    lost: &BTreeSet<DataServerId>,
    now: Timestamp,
) -> Result<Built, BackupError> {
    let failed = |error: &dyn std::fmt::Display| make(path, error);
    let mut reader = BackupReader::open(file)?;
    let head = reader.head().clone();
    let zxid = Zxid { epoch: raise(head.zxid.0, now), counter: 1 };
    let mut sink = RowSink::create(path).map_err(|e| failed(&e))?;
    while let Some(block) = reader.next_block()? {
        sink.write(block).map_err(|e| failed(&e))?;
    }
    let progress = Progress {
        zab_epoch: zxid.epoch,
        counter: zxid.counter,
        revision: raise(head.revision.0, now),
        time: now,
        digest: 0,
    };
    sink.write(row(&key::system("progress"), &encode(&progress))).map_err(|e| failed(&e))?;
    Box::new(sink).finish(zxid).map_err(|e| failed(&e))?;
    let disk = DiskLayer::open(path)?;
    let machine = Machine::open(disk.refreshed()?)?;
    if !machine.is_formed() {
        return Err(failed(&"the backup holds no cluster: it has no pool"));
    }
    let mut builder = Builder { machine, disk, zxid, now };
    let generation =
        builder.transact(|prep| prep.begin_generation(head.generation + 1, lost, |n| raise(n, now)))?;
    let sessions = builder.end_sessions()?;
    let files = builder.cut_files()?;
    builder.checkpoint()?;
    let revision = builder.machine.progress().revision;
    Ok(Built { zxid: builder.zxid, revision, generation, sessions, files })
}

fn row(key: &[u8], value: &[u8]) -> Bytes {
    let mut row = BytesMut::new();
    row.put_u32_le(key.len() as u32);
    row.put_u32_le(value.len() as u32);
    row.put_slice(key);
    row.put_slice(value);
    row.freeze()
}

/// Adds transactions to the state as a leader would.
struct Builder {
    machine: Machine<DiskLayer>,
    disk: DiskLayer,
    zxid: Zxid,
    now: Timestamp,
}

impl Builder {
    fn transact<T>(
        &mut self,
        decide: impl FnOnce(&mut Prep<'_>) -> Result<T, PrepError>,
    ) -> Result<T, BackupError> {
        let refused = |(error, _): (PrepError, _)| StoreError(error.to_string());
        let (txn, value) = self.machine.prepare(self.now, decide).map_err(refused)?;
        self.zxid.counter += 1;
        let applied = self.machine.apply(self.zxid, &txn.encode());
        applied.map_err(|error| StoreError(error.to_string()))?;
        if self.machine.checkpoint_bytes() > CHECKPOINT_BYTES {
            self.checkpoint()?;
        }
        Ok(value)
    }

    fn checkpoint(&mut self) -> Result<(), BackupError> {
        let (writes, _) = self.machine.freeze();
        let job = Checkpoint { database: self.disk.database(), writes, zxid: self.zxid };
        Box::new(job).run().map_err(|error| StoreError(error.to_string()))?;
        self.machine.thaw(self.disk.refreshed()?);
        Ok(())
    }

    /// The numbers in a table's keys, from `from` on, at most `limit`.
    fn numbers(&self, table: u8, from: u64, limit: usize) -> Result<Vec<u64>, StoreError> {
        let mut start = vec![table];
        start.extend_from_slice(&from.to_be_bytes());
        let rows = self.machine.committed().scan(&start, &[table + 1], limit)?;
        Ok(rows.iter().filter_map(|(row, _)| key::number_at(row, 1)).collect())
    }

    /// Every session ends as if it had been silent. What it owned goes, however much that is.
    fn end_sessions(&mut self) -> Result<u64, BackupError> {
        let mut ended = 0;
        while let Some(session) = self.numbers(key::SESSION, 0, 1)?.first().copied() {
            self.transact(|prep| prep.end_session(SessionId(session), true))?;
            ended += 1;
        }
        while let Some(session) = self.numbers(key::ENDING, 0, 1)?.first().copied() {
            self.transact(|prep| prep.go_on_ending(SessionId(session)))?;
        }
        Ok(ended)
    }

    fn cut_files(&mut self) -> Result<u64, BackupError> {
        let (mut from, mut files) = (0, 0);
        loop {
            let inodes = self.numbers(key::INODE, from, FILES_AT_ONCE)?;
            let Some(last) = inodes.last() else { return Ok(files) };
            from = last + 1;
            let chunked: Vec<u64> = inodes.into_iter().filter(|id| self.is_chunked(*id)).collect();
            if chunked.is_empty() {
                continue;
            }
            files += chunked.len() as u64;
            self.transact(|prep| chunked.iter().try_for_each(|id| prep.cut_at_size(InodeId(*id))))?;
        }
    }

    fn is_chunked(&self, id: u64) -> bool {
        let row = self.machine.committed().get(&key::inode(InodeId(id))).ok().flatten();
        let inode = row.and_then(|row| postcard::from_bytes::<crate::state::record::Inode>(&row).ok());
        // What does not decode is met, and said, by whoever prepares the transaction.
        inode.is_none_or(|inode| inode.chunked)
    }
}

fn fresh_dir(dir: &Path) -> Result<(), BackupError> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(BackupError::io("remove", dir))?;
    }
    fs::create_dir(dir).map_err(BackupError::io("create", dir))
}

/// Puts what was made into its place. Says where what was there is now.
fn commit(home: &Path) -> Result<Option<PathBuf>, BackupError> {
    let restoring = home.join(RESTORING);
    sync_dir(&restoring)?;
    let mut aside = None;
    for name in own_names(home)? {
        let to = match &aside {
            Some(to) => to,
            None => aside.insert(set_aside_dir(home)?),
        };
        rename(&home.join(&name), &to.join(&name))?;
    }
    if let Some(aside) = &aside {
        sync_dir(aside)?;
    }
    let mut made = own_names(&restoring)?;
    // The record makes the rest count.
    made.sort_by_key(|name| name == "record");
    for name in made {
        rename(&restoring.join(&name), &home.join(&name))?;
    }
    sync_dir(home)?;
    fs::remove_dir_all(&restoring).map_err(BackupError::io("remove", &restoring))?;
    sync_dir(home)?;
    Ok(aside)
}

fn own_names(dir: &Path) -> Result<Vec<String>, BackupError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(BackupError::io("list", dir))? {
        let entry = entry.map_err(BackupError::io("list", dir))?;
        names.extend(entry.file_name().into_string().ok().filter(|name| storage::is_own(name)));
    }
    Ok(names)
}

fn set_aside_dir(home: &Path) -> Result<PathBuf, BackupError> {
    let mut number = 1;
    loop {
        let dir = home.join(format!("before-restore-{number}"));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(BackupError::io("create", &dir)(error)),
        }
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::rename(from, to).map_err(BackupError::io("rename", from))
}

fn sync_dir(dir: &Path) -> Result<(), BackupError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(BackupError::io("sync", dir))
}
