//! The record and the directory: crashes, rot, mix-ups.

use std::path::Path;
use std::sync::Arc;

use zab::{DataUuid, Entry, Membership, PeerId, Record, Zxid};

use super::crash_disk::{CrashDisk, Dice};
use crate::quorum::error::StorageError;
use crate::quorum::files::Directory;
use crate::quorum::slots::SlotFile;
use crate::quorum::storage::{Storage, StorageOptions, state_path};
use crate::quorum::stream::{DiskOperation, DiskStream, Group, OpenedStream};
use crate::quorum::{LogDamaged, LogOptions};

const SLOT_BYTES: usize = 2048;

fn contents(number: u64) -> Vec<u8> {
    vec![number as u8; 700 + number as usize]
}

#[test]
fn a_crash_leaves_the_old_or_the_new_contents() {
    for seed in 0..500 {
        let mut dice = Dice::new(seed);
        let mut disk = CrashDisk::default();
        let slots = SlotFile::create(&disk, "record", SLOT_BYTES, Some(&contents(0)));
        drop(slots.expect("the disk works"));
        let mut durable = 0;
        for _ in 0..6 {
            let mut slots = SlotFile::open(&disk, "record", SLOT_BYTES).expect("the disk works");
            disk.fail_after(dice.below(20));
            let mut attempted = durable;
            loop {
                attempted += 1;
                if slots.write(&contents(attempted)).is_err() {
                    break;
                }
                durable = attempted;
            }
            disk = disk.crash(&mut dice);
            let slots = SlotFile::open(&disk, "record", SLOT_BYTES).expect("the disk works");
            let found = slots.newest().expect("there is always an intact slot");
            assert!(found == contents(durable) || found == contents(attempted), "seed {seed}");
            durable = if found == contents(attempted) { attempted } else { durable };
        }
    }
}

#[test]
fn a_rotten_copy_never_brings_back_an_older_record() {
    for byte in (0..SLOT_BYTES * 4).step_by(97) {
        let disk = CrashDisk::default();
        let mut slots =
            SlotFile::create(&disk, "record", SLOT_BYTES, Some(&contents(1))).expect("the disk works");
        slots.write(&contents(2)).expect("the disk works");
        disk.damage("record", byte, |bytes| bytes[0] ^= 0xff);
        let slots = SlotFile::open(&disk, "record", SLOT_BYTES).expect("the disk works");
        assert_eq!(slots.newest(), Some(contents(2).as_slice()), "byte {byte}");
    }
}

#[test]
fn contents_that_fit_no_slot_are_refused() {
    let disk = CrashDisk::default();
    let mut slots = SlotFile::create(&disk, "record", SLOT_BYTES, None).expect("the disk works");
    assert!(slots.newest().is_none());
    let refused = slots.write(&vec![0; SLOT_BYTES]);
    assert!(matches!(refused, Err(StorageError::RecordTooLong { .. })));
}

fn options(server: u32) -> StorageOptions {
    StorageOptions { cluster: [7; 16], server: PeerId(server), log: LogOptions { segment_bytes: 16 << 10 } }
}

fn open(path: &Path, options: &StorageOptions) -> Result<Storage, StorageError> {
    Storage::open_or_create(path, options, || Membership::unbound([PeerId(1), PeerId(2)]))
}

#[test]
fn a_new_directory_promises_nothing_and_keeps_its_identity() {
    let directory = tempfile::tempdir().expect("temporary directories work");
    let storage = open(directory.path(), &options(1)).expect("an empty directory");
    let record = storage.record().clone();
    assert!(record.is_fresh());
    assert_eq!(storage.state_path(), state_path(directory.path(), 0));
    drop(storage);
    let storage = open(directory.path(), &options(1)).expect("its own directory");
    assert_eq!(*storage.record(), Record { ..record });
    assert_eq!(storage.damage(), None::<&LogDamaged>);
}

#[test]
fn a_directory_in_use_or_of_somebody_else_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directories work");
    let storage = open(directory.path(), &options(1)).expect("an empty directory");
    assert!(matches!(open(directory.path(), &options(1)), Err(StorageError::InUse { .. })));
    drop(storage);
    assert!(matches!(open(directory.path(), &options(2)), Err(StorageError::ForeignDirectory { .. })));
    let other_cluster = StorageOptions { cluster: [8; 16], ..options(1) };
    let refused = open(directory.path(), &other_cluster).err().expect("another cluster's");
    assert!(refused.to_string().contains("07070707070707070707070707070707"), "{refused}");
}

#[test]
fn a_directory_that_lost_its_record_is_not_taken_for_a_new_one() {
    let directory = tempfile::tempdir().expect("temporary directories work");
    drop(open(directory.path(), &options(1)).expect("an empty directory"));
    std::fs::write(state_path(directory.path(), 0), b"state").expect("the disk works");
    std::fs::remove_file(directory.path().join("record")).expect("it is there");
    assert!(matches!(open(directory.path(), &options(1)), Err(StorageError::RecordDamaged { .. })));
}

#[test]
fn a_directory_survives_a_crash_at_any_moment_of_its_creation() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let path = tempfile::tempdir().expect("temporary directories work");
        let open = |disk: &CrashDisk| {
            Storage::open_or_create_in(path.path(), Arc::new(disk.clone()), &options(1), Membership::default)
        };
        let mut disk = CrashDisk::default();
        let mut identity = None;
        for _ in 0..5 {
            disk.fail_after(dice.below(25));
            if let Ok(storage) = open(&disk) {
                let found = storage.record().data_uuid;
                assert_eq!(*identity.get_or_insert(found), found, "seed {seed}");
            }
            disk = disk.crash(&mut dice);
        }
        let storage = open(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(identity.is_none_or(|identity| identity == storage.record().data_uuid));
        assert_eq!(storage.damage(), None, "seed {seed}");
    }
}

fn open_stream(disk: &CrashDisk) -> OpenedStream {
    let directory: Arc<dyn Directory> = Arc::new(disk.clone());
    let fresh = || Record::fresh(DataUuid(1), Membership::unbound([PeerId(1)]));
    DiskStream::open_or_create(&directory, Path::new("simulated"), &options(1), fresh)
        .expect("the disk works")
}

/// A switch is one write of the record: until it is durable the old log counts, and is there.
#[test]
fn a_switch_to_another_log_survives_a_crash_at_any_moment() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let disk = CrashDisk::default();
        let mut stream = open_stream(&disk).stream;
        let mut group = Group::default();
        let entries = vec![Entry::txn(Zxid::new(1, 1), vec![1; 10])];
        let append = DiskOperation::Append { entries: entries.clone(), token: 1 };
        stream.stage(append, &mut group).and_then(|()| stream.commit(&group)).expect("the disk works");
        disk.fail_after(dice.below(20));
        let record = Record { log_generation: 1, log_start: Zxid::new(2, 5), ..stream.record().clone() };
        let switch = DiskOperation::SaveRecord { record: Box::new(record), token: 2 };
        let is_done = stream.stage(switch, &mut group).is_ok();
        let found = open_stream(&disk.crash(&mut dice));
        assert!(found.damage.is_none(), "seed {seed}: {:?}", found.damage);
        match found.stream.record().log_generation {
            0 => assert!(!is_done && found.entries == entries, "seed {seed}"),
            _ => assert!(found.entries.is_empty(), "seed {seed}"),
        }
    }
}
