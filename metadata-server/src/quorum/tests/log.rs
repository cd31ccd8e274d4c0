//! The log under crashes and damage.

use std::sync::Arc;

use bytes::Bytes;
use zab::{Entry, Zxid};

use super::crash_disk::{CrashDisk, Dice};
use crate::quorum::error::StorageError;
use crate::quorum::files::Directory;
use crate::quorum::log_store::{LogOptions, LogStore, OpenedLog, make_spare, segment_name};

const OPTIONS: LogOptions = LogOptions { segment_bytes: 8 << 10 };

fn directory(disk: &CrashDisk) -> Arc<dyn Directory> {
    Arc::new(disk.clone())
}

fn entry(epoch: u64, counter: u64, len: usize) -> Entry {
    let txn = Bytes::from(vec![(epoch * 31 + counter) as u8 | 1; len]);
    Entry::txn(Zxid::new(epoch, counter), txn)
}

fn open(disk: &CrashDisk, start: Zxid) -> (LogStore, Vec<Entry>) {
    let mut opened = OpenedLog::read(directory(disk), 0, start, OPTIONS).expect("the disk works");
    let recovery = opened.recovery();
    assert_eq!(recovery.damage, None);
    (opened.resume().expect("the disk works"), recovery.entries)
}

/// A log and what must be in it.
struct World {
    disk: CrashDisk,
    log: Option<LogStore>,
    start: Zxid,
    /// What was reported durable.
    durable: Vec<Entry>,
    /// That and what is staged or was being committed.
    staged: Vec<Entry>,
    epoch: u64,
}

impl World {
    fn new() -> World {
        let disk = CrashDisk::default();
        let log = LogStore::create(directory(&disk), 0, Zxid::ZERO, OPTIONS).expect("the disk works");
        World { disk, log: Some(log), start: Zxid::ZERO, durable: Vec::new(), staged: Vec::new(), epoch: 1 }
    }

    fn last(&self) -> Zxid {
        self.staged.last().map_or(self.start, |entry| entry.zxid)
    }

    fn next_entry(&mut self, dice: &mut Dice) -> Entry {
        let last = self.last();
        let len = if dice.percent(5) { 9_000 } else { dice.below(1500) as usize };
        if last.epoch == self.epoch {
            entry(self.epoch, last.counter + 1, len)
        } else {
            entry(self.epoch, 1, len)
        }
    }

    fn step(&mut self, dice: &mut Dice) -> Result<(), StorageError> {
        match dice.below(20) {
            0..=7 => {
                let entries: Vec<Entry> = (0..=dice.below(4))
                    .map(|_| {
                        let entry = self.next_entry(dice);
                        self.staged.push(entry.clone());
                        entry
                    })
                    .collect();
                self.log.as_mut().expect("open").append(&entries)
            }
            8..=13 => self.commit(),
            14 => self.truncate(dice),
            15..=16 => self.purge(dice),
            17 => {
                self.commit()?;
                self.log.as_mut().expect("open").write_mark()
            }
            18 => make_spare(&self.disk, OPTIONS.segment_bytes).map_err(StorageError::io("make", "a spare")),
            _ => self.reopen(),
        }
    }

    fn commit(&mut self) -> Result<(), StorageError> {
        self.log.as_mut().expect("open").commit()?;
        self.durable = self.staged.clone();
        Ok(())
    }

    fn truncate(&mut self, dice: &mut Dice) -> Result<(), StorageError> {
        let kept = dice.below(self.staged.len() as u64 + 1) as usize;
        // In the model a commit separates the cut, so that at most one step is undecided at a crash.
        self.commit()?;
        self.staged.truncate(kept);
        self.epoch += 1;
        let after = self.last();
        let log = self.log.as_mut().expect("open");
        log.truncate(after)
    }

    fn purge(&mut self, dice: &mut Dice) -> Result<(), StorageError> {
        self.commit()?;
        let count = dice.below(self.durable.len() as u64 + 1) as usize;
        if count == 0 {
            return Ok(());
        }
        self.start = self.durable[count - 1].zxid;
        self.durable.drain(..count);
        self.staged = self.durable.clone();
        self.log.as_mut().expect("open").purge(self.start)
    }

    fn reopen(&mut self) -> Result<(), StorageError> {
        self.log = None;
        let mut opened = OpenedLog::read(directory(&self.disk), 0, self.start, OPTIONS)?;
        let recovery = opened.recovery();
        assert_eq!(recovery.damage, None, "a crash is no damage");
        let is_old = recovery.entries == self.durable;
        let is_new = recovery.entries == self.staged;
        assert!(is_old || is_new, "found {} entries", recovery.entries.len());
        self.durable = recovery.entries.clone();
        self.staged = recovery.entries;
        self.log = Some(opened.resume()?);
        Ok(())
    }
}

#[test]
fn whatever_a_crash_leaves_is_what_was_durable_or_the_whole_group_after_it() {
    for seed in 0..400 {
        let mut dice = Dice::new(seed);
        let mut world = World::new();
        for _ in 0..6 {
            world.disk.fail_after(dice.below(120));
            while world.step(&mut dice).is_ok() {}
            world.log = None;
            world.disk = world.disk.crash(&mut dice);
            // A crash may hit the repair of the one before it.
            while dice.percent(30) {
                world.disk.fail_after(dice.below(8));
                let _ = world.reopen();
                world.log = None;
                world.disk = world.disk.crash(&mut dice);
            }
            world.reopen().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
}

/// A log of `batches` committed batches in several segments.
fn filled(batches: u64) -> (CrashDisk, Vec<Entry>) {
    let disk = CrashDisk::default();
    let mut log = LogStore::create(directory(&disk), 0, Zxid::ZERO, OPTIONS).expect("the disk works");
    let entries: Vec<Entry> = (1..=batches).map(|counter| entry(1, counter, 700)).collect();
    for entry in &entries {
        log.append(std::slice::from_ref(entry)).expect("it follows");
        log.commit().expect("the disk works");
    }
    (disk, entries)
}

fn read_damaged(disk: &CrashDisk, start: Zxid) -> OpenedLog {
    OpenedLog::read(directory(disk), 0, start, OPTIONS).expect("damage is no error")
}

#[test]
fn damage_before_the_known_end_is_told_from_a_torn_tail() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let (disk, entries) = filled(30);
        let segment = segment_name(0, dice.below(2));
        let offset = dice.below(6_000) as usize;
        disk.damage(&segment, offset, |bytes| bytes[0] ^= 0x40);
        let mut opened = read_damaged(&disk, Zxid::ZERO);
        let recovery = opened.recovery();
        let damage = recovery.damage.unwrap_or_else(|| panic!("seed {seed}: {segment} at {offset}"));
        assert_eq!(recovery.entries, entries[..damage.kept], "what is before the damage is kept");
        assert!(damage.kept < entries.len());
        // After the damage was noted in the record, the log goes on behind what is intact.
        let mut log = opened.resume().expect("the disk works");
        assert_eq!(log.durable_last(), entries[..damage.kept].last().map_or(Zxid::ZERO, |entry| entry.zxid));
        log.append(&[entry(2, 1, 10)]).expect("it follows");
        log.commit().expect("the disk works");
        let (_, found) = open(&disk, Zxid::ZERO);
        assert_eq!(found.len(), damage.kept + 1);
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let (disk, entries) = filled(30);
    disk.remove(&segment_name(0, 1)).expect("it is there");
    let recovery = read_damaged(&disk, Zxid::ZERO).recovery();
    assert!(recovery.damage.is_some());
    assert!(entries.starts_with(&recovery.entries));
}

#[test]
fn a_missing_log_is_damage_and_an_empty_one_takes_its_place() {
    let (disk, _) = filled(30);
    for name in disk.list().expect("the disk works").iter().filter(|name| name.starts_with("log-")) {
        disk.remove(name).expect("it is there");
    }
    let start = Zxid::new(1, 7);
    let mut opened = read_damaged(&disk, start);
    assert!(opened.recovery().damage.is_some());
    let mut log = opened.resume().expect("the disk works");
    log.append(&[entry(1, 8, 5)]).expect("it follows");
    log.commit().expect("the disk works");
    assert_eq!(open(&disk, start).1, [entry(1, 8, 5)]);
}

#[test]
fn a_damaged_last_batch_is_found_by_the_mark() {
    let (disk, entries) = filled(3);
    let (mut log, _) = open(&disk, Zxid::ZERO);
    log.write_mark().expect("the disk works");
    disk.damage(&segment_name(0, 0), 2_000, |bytes| bytes[0] ^= 1);
    let recovery = read_damaged(&disk, Zxid::ZERO).recovery();
    assert_eq!(recovery.entries, entries[..2]);
    assert!(recovery.damage.is_some());
}

#[test]
fn a_log_that_was_damaged_and_repaired_is_not_damaged_again() {
    let (disk, _) = filled(30);
    disk.damage(&segment_name(0, 0), 3_000, |bytes| bytes[0] ^= 1);
    let mut opened = read_damaged(&disk, Zxid::ZERO);
    let kept = opened.recovery().entries;
    drop(opened.resume().expect("the disk works"));
    assert_eq!(open(&disk, Zxid::ZERO).1, kept);
}

#[test]
fn purging_removes_whole_segments_and_nothing_that_is_needed() {
    let (disk, entries) = filled(30);
    let (mut log, _) = open(&disk, Zxid::ZERO);
    let before = log.segment_count();
    let start = Zxid::new(1, 25);
    log.purge(start).expect("the disk works");
    assert!(log.segment_count() < before);
    assert_eq!(open(&disk, start).1, entries[25..]);
}

#[test]
fn the_record_decides_which_generation_counts() {
    let (disk, entries) = filled(5);
    let (mut log, _) = open(&disk, Zxid::ZERO);
    let snapshot = Zxid::new(9, 100);
    log.start_generation(1, snapshot).expect("the disk works");
    // A crash here: the record still names generation 0.
    let before_record = disk.crash(&mut Dice::new(1));
    assert_eq!(open(&before_record, Zxid::ZERO).1, entries);
    // The record was written.
    log.remove_other_generations().expect("the disk works");
    log.append(&[entry(9, 101, 3)]).expect("it follows");
    log.commit().expect("the disk works");
    let mut opened = OpenedLog::read(directory(&disk), 1, snapshot, OPTIONS).expect("the disk works");
    let recovery = opened.recovery();
    assert_eq!((recovery.damage, recovery.entries), (None, vec![entry(9, 101, 3)]));
}

#[test]
fn after_a_failed_write_nothing_is_accepted() {
    let (disk, _) = filled(2);
    let (mut log, _) = open(&disk, Zxid::ZERO);
    disk.fail_after(1);
    log.append(&[entry(1, 3, 1)]).expect("it follows");
    assert!(matches!(log.commit(), Err(StorageError::Io { .. })), "the sync fails");
    assert!(matches!(log.commit(), Err(StorageError::Poisoned)));
    assert!(matches!(log.append(&[entry(1, 4, 1)]), Err(StorageError::Poisoned)));
}

#[test]
fn holes_and_cuts_ahead_are_refused() {
    let (disk, _) = filled(2);
    let (mut log, _) = open(&disk, Zxid::ZERO);
    assert!(matches!(log.append(&[entry(1, 4, 1)]), Err(StorageError::NotContiguous { .. })));
    let (mut log, _) = open(&disk, Zxid::ZERO);
    assert!(matches!(log.truncate(Zxid::new(1, 3)), Err(StorageError::TruncateAhead { .. })));
}
