//! The disk thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zab::{Entry, Membership, PeerId, SnapshotRef, Zxid};

use super::crash_disk::CrashDisk;
use crate::quorum::LogOptions;
use crate::quorum::disk::{Disk, DiskOperation};
use crate::quorum::error::StorageError;
use crate::quorum::storage::{Storage, StorageOptions};

fn open(path: &std::path::Path, disk: &CrashDisk) -> Storage {
    let log = LogOptions { segment_bytes: 16 << 10 };
    let options = StorageOptions { cluster: [7; 16], server: PeerId(1), log };
    Storage::open_or_create_in(path, Arc::new(disk.clone()), &options, Membership::default)
        .expect("the disk works")
}

fn start(storage: Storage) -> Disk {
    let Storage { directory, record_file, log, lock, .. } = storage;
    Disk::start(directory, log, record_file, 16 << 10, lock).expect("threads can be made")
}

fn append(counter: u64, token: u64) -> DiskOperation {
    let entry = Entry::txn(Zxid::new(1, counter), Bytes::from(vec![counter as u8; 100]));
    DiskOperation::Append { entries: vec![entry], token }
}

async fn wait_until_durable(disk: &Disk, token: u64) {
    let reached = async {
        while disk.durable() < token {
            disk.changed().await.expect("the disk works");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.expect("the disk thread works");
}

#[tokio::test]
async fn what_is_reported_is_on_disk() {
    let path = tempfile::tempdir().expect("temporary directories work");
    let files = CrashDisk::default();
    let disk = start(open(path.path(), &files));
    for counter in 1..=300 {
        disk.push(append(counter, counter)).expect("the disk works");
    }
    disk.push(DiskOperation::Truncate { after: Zxid::new(1, 290), token: 301 }).expect("the disk works");
    disk.push(DiskOperation::Probe { token: 302 }).expect("the disk works");
    wait_until_durable(&disk, 302).await;
    // Nothing unsynced survives, and nothing reported is lost.
    let mut dice = super::crash_disk::Dice::new(0);
    let after = files.crash(&mut dice);
    drop(disk);
    let storage = open(path.path(), &after);
    assert_eq!(storage.entries.len(), 290);
}

#[tokio::test]
async fn a_record_with_a_new_generation_starts_a_new_log() {
    let path = tempfile::tempdir().expect("temporary directories work");
    let files = CrashDisk::default();
    let storage = open(path.path(), &files);
    let mut record = storage.record().clone();
    let disk = start(storage);
    disk.push(append(1, 1)).expect("the disk works");
    let zxid = Zxid::new(4, 40);
    record.snapshot = Some(SnapshotRef { id: 99, zxid });
    record.log_start = zxid;
    record.log_generation += 1;
    disk.push(DiskOperation::SaveRecord { record: Box::new(record.clone()), token: 2 })
        .expect("the disk works");
    let entry = Entry::txn(Zxid::new(4, 41), Bytes::new());
    disk.push(DiskOperation::Append { entries: vec![entry.clone()], token: 3 }).expect("the disk works");
    wait_until_durable(&disk, 3).await;
    disk.stop();
    let storage = open(path.path(), &files);
    assert_eq!(*storage.record(), record);
    assert_eq!(storage.entries, [entry]);
    assert!(storage.state_path().ends_with("state-0000000000000063.redb"));
}

#[tokio::test]
async fn a_failure_is_reported_and_nothing_after_it_is_written() {
    let path = tempfile::tempdir().expect("temporary directories work");
    let files = CrashDisk::default();
    let disk = start(open(path.path(), &files));
    disk.push(append(1, 1)).expect("the disk works");
    wait_until_durable(&disk, 1).await;
    files.fail_after(1);
    disk.push(append(2, 2)).expect("the thread takes it");
    let failed = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Err(error) = disk.changed().await {
                return error;
            }
        }
    });
    let error = failed.await.expect("the failure is reported");
    assert!(matches!(error, StorageError::Io { action: "sync", .. }), "{error}");
    assert_eq!(disk.durable(), 1);
    assert!(disk.push(append(3, 3)).is_err());
}
