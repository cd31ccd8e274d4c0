//! Bit rot, full disks, failing disks, foreign directories.

use std::io;

use super::*;

const K: ObjectKey = ObjectKey { pg: 7, inode: 1, chunk: 0 };

/// An object of ten blocks, checkpointed; returns the disk and where its bytes lie in the first extent file.
fn stored(data: &[u8]) -> (SimDisk, usize) {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    submit(&store, vec![write(K, 0, data, 1), write(key(7, 2, 0), 0, b"neighbour", 1)]).unwrap();
    store.close().unwrap();
    let at = disk.live("extents.00000").windows(data.len()).step_by(4096).position(|w| w == data).unwrap();
    (disk.process_killed(), at * 4096)
}

#[test]
fn a_flipped_byte_spoils_its_block_and_nothing_else() {
    let data = pattern(40_960, 1);
    let (disk, at) = stored(&data);
    disk.flip("extents.00000", at + 3 * 4096 + 17, 0x10);
    let store = open(&disk, small_config()).unwrap();
    let corrupt = StoreError::Corrupt { key: K, block: 3 };
    assert_eq!(store.read(K, 0, 40_960), Err(corrupt.clone()));
    assert_eq!(store.verify(K), Err(corrupt.clone()));
    for block in (0..10).filter(|block| *block != 3) {
        let piece = store.read(K, block * 4096, 4096).unwrap().unwrap();
        assert_eq!(piece.data, data[block as usize * 4096..][..4096]);
    }
    assert_eq!(&store.read(key(7, 2, 0), 0, 100).unwrap().unwrap().data[..], b"neighbour");

    // Changing a part of the block would give its rot a valid checksum; replacing it repairs it.
    assert_eq!(submit(&store, vec![write(K, 3 * 4096 + 1, b"x", 2)]), Err(corrupt));
    submit(&store, vec![write(K, 3 * 4096, &pattern(4096, 9), 2)]).unwrap();
    assert_eq!(store.read(K, 3 * 4096, 4096).unwrap().unwrap().data, pattern(4096, 9));
    store.checkpoint().unwrap();
    assert!(store.verify(K).unwrap().is_some());
}

#[test]
fn every_flipped_byte_of_a_journal_is_noticed() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    for version in 1..4 {
        submit(&store, vec![write(K, version * 100, &pattern(200, version), version)]).unwrap();
        store.step_write();
        store.step_sync().unwrap();
    }
    // The last frame knows that the two before it are durable.
    let image = disk.process_killed();
    let journal = image.live("journal");
    let start = journal.iter().position(|b| *b != 0).unwrap();
    let end = journal.iter().rposition(|b| *b != 0).unwrap();
    for at in (start..=end).step_by(5) {
        let image = disk.process_killed();
        image.flip("journal", at, 0x20);
        match open(&image, small_config()) {
            Err(StoreError::Damaged(_)) => {}
            Err(other) => panic!("byte {at}: {other}"),
            Ok(store) => {
                let found = store.info(K).unwrap().map_or(0, |info| info.version);
                assert!(found >= 2, "byte {at}: transaction {} was durable and is gone", found + 1);
            }
        }
    }
}

#[test]
fn a_full_file_system_refuses_writes_and_nothing_else() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let contents = pattern(500_000, 1);
    submit(&store, vec![write(key(7, 1, 0), 0, &contents, 1)]).unwrap();
    disk.set_out_of_space(true);
    let mut inode = 1;
    let full = loop {
        inode += 1;
        match submit(&store, vec![write(key(7, inode, 0), 0, &pattern(500_000, inode), 1)]) {
            Ok(_) => {
                store.step_write();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    store.step_write();
    drop(store);

    // It opens again as it is, and goes on when there is space.
    let disk = disk.process_killed();
    disk.set_out_of_space(true);
    let store = open(&disk, small_config()).unwrap();
    assert_eq!(store.read(key(7, 1, 0), 0, 500_000).unwrap().unwrap().data, contents);
    let again = write(key(7, inode, 0), 0, &pattern(500_000, inode), 1);
    assert!(matches!(submit(&store, vec![again.clone()]), Err(StoreError::Full { .. })));
    disk.set_out_of_space(false);
    submit(&store, vec![again]).unwrap();
}

#[test]
fn a_full_store_says_so_and_takes_writes_again_after_deletions() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let mut inode = 0;
    let full = loop {
        inode += 1;
        match submit(&store, vec![write(key(7, inode, 0), 0, &pattern(500_000, inode), 1)]) {
            Ok(_) => {
                store.step_write();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    let space = store.space();
    assert!(space.used <= space.full_at && space.used > space.full_at - 600_000);
    assert!(store.info(key(7, inode, 0)).unwrap().is_none());

    // Acknowledged work may use the reserve, but never exceeds the capacity.
    let reserve = |inode| Transaction {
        ops: vec![write(key(7, inode, 1), 0, &pattern(300_000, inode), 1)],
        use_reserve: true,
    };
    store.submit(&reserve(1)).unwrap();
    let refused = (2..9).find_map(|inode| store.submit(&reserve(inode)).err()).unwrap();
    assert!(matches!(refused, StoreError::Full { .. }));
    assert!(store.space().used <= store.space().capacity);

    submit(&store, vec![Op::DeletePg { pg: 7 }]).unwrap();
    submit(&store, vec![write(K, 0, &pattern(1_000_000, 5), 2)]).unwrap();
    check_space(&store, &[7]);
}

#[test]
fn overwrite_churn_stays_within_a_fifth_of_overhead() {
    let disk = SimDisk::new(1);
    let config = StoreConfig { capacity_bytes: Some(64 << 20), ..small_config() };
    let store = open(&disk, config).unwrap();
    let objects = 20;
    for inode in 0..objects {
        submit(&store, vec![write(key(7, inode, 0), 0, &pattern(1 << 20, inode), 1)]).unwrap();
        store.step_write();
    }
    store.checkpoint().unwrap();
    for round in 0..400_u64 {
        let k = key(7, round * 7 % objects, 0);
        let offset = (round * 37 % 240) * 4096;
        submit(&store, vec![write(k, offset, &pattern(65_536, round), 2)]).unwrap();
        store.step_write();
        if store.space().releasing > 2 << 20 {
            store.checkpoint().unwrap();
        }
    }
    let space = store.space();
    assert!(space.preallocated <= (objects << 20) * 12 / 10 + (1 << 20), "{space:?}");
    check_space(&store, &[7]);
}

#[test]
fn a_failing_disk_fails_the_store_and_loses_nothing_durable() {
    let calls = {
        let disk = SimDisk::new(1);
        let store = open(&disk, small_config()).unwrap();
        churn(&store);
        disk.calls()
    };
    for call in 0..calls {
        let disk = SimDisk::new(1);
        disk.fail_once(call, io::ErrorKind::StorageFull);
        let Ok(store) = open(&disk, small_config()) else { continue };
        let durable = churn(&store);
        let image = disk.process_killed();
        drop(store);
        let store = open(&image, small_config()).unwrap_or_else(|e| panic!("call {call}: {e}"));
        let found = store.info(K).unwrap().map_or(0, |info| info.version);
        assert!(found >= durable, "call {call}: {durable} was durable, {found} is there");
        if found > 0 {
            assert!(store.verify(K).unwrap().is_some());
        }
    }
}

/// Writes, syncs and checkpoints; returns the last version known to be durable.
fn churn(store: &Store) -> u64 {
    let mut durable = 0;
    for version in 1..25 {
        let len = if version % 3 == 0 { 300_000 } else { 3000 };
        // Another file is needed on the way: running out of space there refuses only the transaction.
        match submit(store, vec![write(K, version * 1000, &pattern(len, version), version)]) {
            Ok(_) | Err(StoreError::Full { .. }) => {}
            Err(_) => return durable,
        }
        store.step_write();
        if version % 4 == 0 && store.step_sync().is_ok() {
            durable = store.info(K).map_or(durable, |info| info.map_or(0, |i| i.version));
        }
        if version % 10 == 0 && store.checkpoint().is_err() {
            return durable;
        }
    }
    durable
}

#[test]
fn a_failed_write_is_reported_to_everyone_who_waits() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let submitted = submit(&store, vec![write(K, 0, b"abc", 1)]).unwrap();
    disk.fail_from(0, io::ErrorKind::Other);
    store.step_write();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(matches!(runtime.block_on(store.written(submitted.ticket)), Err(StoreError::Failed(_))));
    assert!(matches!(runtime.block_on(store.durable(submitted.ticket)), Err(StoreError::Failed(_))));
    assert!(matches!(submit(&store, vec![]), Err(StoreError::Failed(_))));
    assert!(matches!(store.read(K, 0, 3), Err(StoreError::Failed(_))));
}

#[test]
fn foreign_and_incomplete_directories_are_refused() {
    let disk = SimDisk::new(1);
    open(&disk, small_config()).unwrap().close().unwrap();
    assert!(matches!(open(&disk, small_config()), Err(StoreError::Refused(_))), "the directory is locked");

    let image = disk.process_killed();
    image.flip("superblock", 20, 1);
    image.flip("superblock", 4096 + 20, 1);
    assert!(matches!(open(&image, small_config()), Err(StoreError::Refused(_))));
}

/// Objects of the lying disk's store, as they are said to be.
fn write_and_trust(store: &Store) -> BTreeMap<ObjectKey, Vec<u8>> {
    let mut said: BTreeMap<ObjectKey, Vec<u8>> = BTreeMap::new();
    for version in 1..=24_u64 {
        let k = key(7, version % 4, 0);
        // Large ones go to fresh blocks, small ones into the journal and with the checkpoint to their blocks.
        let len = if version % 3 == 0 { 20_000 } else { 3000 };
        let (offset, data) = (version * 1500 % 12_000, pattern(len, version));
        match submit(store, vec![write(k, offset, &data, version)]) {
            Ok(_) => {
                let object = said.entry(k).or_default();
                object.resize(object.len().max(offset as usize + len), 0);
                object[offset as usize..offset as usize + len].copy_from_slice(&data);
            }
            // Part of a block that is wrong already.
            Err(StoreError::Corrupt { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        store.step_write();
        if version % 5 == 0 {
            store.checkpoint().unwrap();
        }
    }
    store.step_sync().unwrap();
    store.checkpoint().unwrap();
    said
}

/// A disk that says "written" and did not, or wrote elsewhere: nobody is given wrong bytes.
#[test]
fn a_lost_or_misdirected_write_is_never_read() {
    let mut noticed = 0;
    for nth in 0..24 {
        for by in [None, Some(4096), Some(3 * 4096), Some(7 * 4096)] {
            let disk = SimDisk::new(1);
            let store = open(&disk, small_config()).unwrap();
            disk.lie("extents", nth, by);
            let said = write_and_trust(&store);
            let reopened = open(&disk.process_killed(), small_config()).unwrap();
            for ((k, said), store) in said.iter().flat_map(|o| [(o, &store), (o, &reopened)]) {
                match store.read(*k, 0, said.len()) {
                    Ok(piece) => {
                        assert_eq!(piece.unwrap().data, said, "write {nth} of {k} went {by:?} astray")
                    }
                    Err(StoreError::Corrupt { .. }) => noticed += 1,
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
    assert!(noticed > 50, "{noticed}");
}
