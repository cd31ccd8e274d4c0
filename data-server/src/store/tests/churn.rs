//! Overwriting costs no space: what is freed is used again.

use std::{fs, sync::Arc};

use super::*;
use crate::store::disk::OsDisk;

/// Sizes of the objects of the data set: small, odd, large.
const SIZES: [usize; 4] = [900, 20_000, 150_000, 700_000];
const OBJECTS: u64 = 40;

#[test]
fn a_data_set_that_is_overwritten_ten_times_takes_no_more_space_than_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { capacity_bytes: Some(64 << 20), ..small_config() };
    let fixed = config.journal_segment_bytes * u64::from(config.journal_segments);
    let disk = Arc::new(OsDisk::open(dir.path()).unwrap());
    let store = Store::open_on(disk, config.clone(), Threads::None).unwrap();
    let mut live = 0;
    for round in 0..=10u64 {
        for inode in 0..OBJECTS {
            let size = SIZES[(inode % 4) as usize];
            let contents = pattern(size, round * OBJECTS + inode);
            // In pieces, as clients write, and some of them across the middle of blocks.
            for (number, piece) in contents.chunks(100_000).enumerate() {
                let at = number as u64 * 100_000;
                submit(&store, vec![write(key(7, inode, 0), at, piece, round)]).unwrap();
                store.step_write();
            }
        }
        store.checkpoint().unwrap();
        live = (0..OBJECTS).map(|i| store.info(key(7, i, 0)).unwrap().unwrap().allocated_bytes).sum();
    }
    let used = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len();
    let extents = store.space().preallocated;
    let index = used("index");
    assert_eq!(store.space().used, live, "nothing else is in use");
    // Fixed parts: space is taken in whole files, one of them may be waiting for a checkpoint, and a few pages of the index.
    let bound = live + live / 5 + 2 * config.extent_file_bytes + (1 << 20);
    assert!(
        extents + index <= bound,
        "{extents} of extents and {index} of index for {live} live, bound {bound}"
    );
    assert_eq!(used("journal"), fixed, "the journal is a ring");
    for inode in 0..OBJECTS {
        let size = SIZES[(inode % 4) as usize];
        let found = store.read(key(7, inode, 0), 0, size).unwrap().unwrap().data;
        assert_eq!(found, pattern(size, 10 * OBJECTS + inode), "object {inode}");
    }
}

#[test]
fn the_full_ratio_changes_while_the_store_is_open() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let put = |inode| submit(&store, vec![write(key(7, inode, 0), 0, &pattern(1 << 20, inode), 1)]);
    store.set_full_ratio(0.25);
    let taken = (0..16).take_while(|inode| put(*inode).is_ok()).count();
    assert_eq!(taken, 4, "a quarter of 16 MiB");
    store.set_full_ratio(0.5);
    put(20).unwrap();
    store.set_full_ratio(0.1);
    assert!(matches!(put(21), Err(StoreError::Full { .. })));
    submit(&store, vec![Op::Delete { key: key(7, 20, 0) }]).unwrap();
}
