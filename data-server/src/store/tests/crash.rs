//! Power failures at every moment: what an opened store holds is a prefix of what was submitted, with everything that
//! was durable, and nothing in it is torn.

use std::io;

use super::*;

const GROUPS: [u64; 2] = [7, 8];

/// Deterministic pseudo-random numbers for workloads.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn random_ops(dice: &mut Dice, version: u64) -> Vec<Op> {
    let k = key(GROUPS[dice.roll(2) as usize], 1 + dice.roll(3), dice.roll(2) as u32);
    // A counter in every transaction makes each state of the model distinct.
    let mut ops = vec![Op::PutMeta { key: b"count".to_vec(), value: Bytes::from(version.to_string()) }];
    ops.push(match dice.roll(13) {
        0 => Op::Delete { key: k },
        1 => Op::Truncate { key: k, size: dice.roll(50_000), truncate_seq: version, version },
        2 => Op::Zero { key: k, offset: dice.roll(40_000), len: dice.roll(20_000), version },
        3 => Op::DeleteRange { pg: k.pg, inode: k.inode, from_chunk: k.chunk },
        4 if dice.roll(3) == 0 => Op::DeletePg { pg: k.pg },
        12 => Op::Move { key: k, pg: GROUPS[dice.roll(2) as usize] },
        5..=7 => {
            write(k, dice.roll(8) * 4096, &pattern(16_384 + dice.roll(30_000) as usize, version), version)
        }
        _ => write(k, dice.roll(40_000), &pattern(1 + dice.roll(9_000) as usize, version), version),
    });
    ops
}

/// What a run that may end early leaves behind.
struct Run {
    /// Model after 0, 1, 2, ... transactions.
    history: Vec<Model>,
    durable: usize,
    written: usize,
}

/// Submits, writes, syncs and checkpoints at random until done or the disk fails.
fn work(store: &Store, dice: &mut Dice, mut history: Vec<Model>, steps: u64) -> Run {
    let first = store.last_ticket().0 as usize;
    let offset = first - (history.len() - 1);
    let mut frozen = None;
    for step in 0..steps {
        let ops = random_ops(dice, (history.len() as u64) << 16 | step);
        match submit_beside(store, ops.clone(), &mut frozen) {
            Ok(_) => {
                let mut model = history.last().cloned().unwrap_or_default();
                model.apply(&ops);
                history.push(model);
            }
            // Without power no further extent file can be made, which looks like a full disk.
            Err(StoreError::Failed(_) | StoreError::Full { .. }) => break,
            Err(other) => panic!("{other}"),
        }
        let result = match dice.roll(10) {
            0..=3 => {
                store.step_write();
                Ok(())
            }
            4..=5 => store.step_sync(),
            6 => checkpoint_beside(store, &mut frozen),
            7 if frozen.is_none() => store.core.freeze().map(|half| frozen = half),
            _ => Ok(()),
        };
        if result.is_err() {
            break;
        }
    }
    let progress = store.progress();
    let (durable, written) = (progress.borrow().durable as usize, progress.borrow().written as usize);
    Run { history, durable: durable - offset, written: written - offset }
}

/// Opens what is left and returns how many transactions are in it.
fn recovered(disk: &SimDisk, run: &Run, what: &str) -> (Store, usize) {
    let store = open(disk, small_config()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = contents(&store, &GROUPS).unwrap_or_else(|error| panic!("{what}: {error}"));
    let at = run.history.iter().position(|model| *model == found);
    let at =
        at.unwrap_or_else(|| panic!("{what}: the store holds no prefix of what was submitted: {found:?}"));
    assert!(at >= run.durable, "{what}: {at} transactions survived, {} were durable", run.durable);
    check_space(&store, &GROUPS);
    (store, at)
}

#[test]
fn a_power_failure_at_any_call_leaves_a_prefix() {
    for seed in 1..6_u64 {
        let calls = {
            let disk = SimDisk::new(seed);
            let store = open(&disk, small_config()).unwrap();
            let run = work(&store, &mut Dice(seed), vec![Model::default()], 60);
            assert_eq!(run.history.len(), 61);
            disk.calls()
        };
        for call in (0..calls).step_by(3) {
            let disk = SimDisk::new(seed);
            disk.fail_from(call, io::ErrorKind::Other);
            let what = format!("seed {seed}, power failed at call {call} of {calls}");
            let run = match open(&disk, small_config()) {
                Ok(store) => work(&store, &mut Dice(seed), vec![Model::default()], 60),
                // Failed while it was created.
                Err(_) => Run { history: vec![Model::default()], durable: 0, written: 0 },
            };
            for tear in 0..2 {
                recovered(&disk.power_failure(seed * 1000 + call * 10 + tear), &run, &what);
            }
        }
    }
}

#[test]
fn power_failures_again_and_again() {
    for seed in 1..40_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9));
        let mut disk = SimDisk::new(seed);
        let mut history = vec![Model::default()];
        for round in 0..8 {
            disk.fail_from(disk.calls() + 5 + dice.roll(250), io::ErrorKind::Other);
            let what = format!("seed {seed}, round {round}");
            let run = match open(&disk, small_config()) {
                Ok(store) => work(&store, &mut dice, history.clone(), 50),
                // Failed while it recovered: whatever was there must still be.
                Err(StoreError::Failed(_)) => {
                    Run { durable: history.len() - 1, written: history.len() - 1, history }
                }
                Err(other) => panic!("{what}: {other}"),
            };
            disk = disk.power_failure(seed * 100 + round);
            let (store, at) = recovered(&disk, &run, &what);
            history = run.history;
            history.truncate(at + 1);
            drop(store);
            disk = disk.process_killed();
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    for seed in 1..60_u64 {
        let disk = SimDisk::new(seed);
        let store = open(&disk, small_config()).unwrap();
        let run = work(&store, &mut Dice(seed), vec![Model::default()], 5 + seed);
        drop(store);
        let (_, at) = recovered(&disk.process_killed(), &run, &format!("seed {seed}"));
        assert!(at >= run.written, "seed {seed}: {at} of {} written transactions survived", run.written);
    }
}

/// A large write whose record reached the disk while its contents did not must vanish whole.
#[test]
fn a_record_without_its_contents_is_cut() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let k = key(7, 1, 0);
    submit(&store, vec![write(k, 0, &pattern(65_536, 1), 1)]).unwrap();
    store.step_write();
    store.step_sync().unwrap();
    submit(&store, vec![write(k, 0, &pattern(65_536, 2), 2)]).unwrap();
    submit(&store, vec![write(k, 10, b"later", 3)]).unwrap();
    store.step_write();
    let image = disk.process_killed();
    let physical = image.live("extents.00000");
    let at = physical.windows(4096).step_by(4096).rposition(|w| w == &pattern(65_536, 2)[61_440..]).unwrap();
    image.flip("extents.00000", at * 4096 + 9, 0xff);
    let store = open(&image, small_config()).unwrap();
    assert_eq!(store.read(k, 0, 65_536).unwrap().unwrap().data, pattern(65_536, 1));
}

/// The ring after some laps: nothing that a recovery needs is overwritten before a checkpoint allows it.
#[test]
fn a_full_journal_is_all_there_after_a_kill() {
    let mut disk = SimDisk::new(1);
    let mut store = open(&disk, small_config()).unwrap();
    let mut version = 0;
    for _ in 0..4 {
        let k = key(7, 1, 0);
        let first = version;
        loop {
            version += 1;
            let op = write(k, version % 100 * 4096, &pattern(4096, version), version);
            match store.submit(&Transaction::new(vec![op])) {
                Ok(_) => {}
                Err(StoreError::Busy) => break,
                Err(other) => panic!("{other}"),
            }
        }
        version -= 1;
        assert!(version - first > 100, "{} transactions fit", version - first);
        // A checkpoint begins, which takes the segment kept for it, and does not come to its end.
        store.core.freeze().unwrap();
        // What still fits goes on; nothing that a recovery needs gives way to it.
        loop {
            let op = write(k, version % 100 * 4096, &pattern(4096, version + 1), version + 1);
            match store.submit(&Transaction::new(vec![op])) {
                Ok(_) => version += 1,
                Err(StoreError::Busy) => break,
                Err(other) => panic!("{other}"),
            }
        }
        store.step_write();
        drop(store);
        disk = disk.process_killed();
        store = open(&disk, small_config()).unwrap();
        assert_eq!(store.info(k).unwrap().unwrap().version, version);
        // Start the next lap behind a checkpoint somewhere in the ring.
        version += 1;
        submit(&store, vec![write(k, 0, &pattern(30_000, version), version)]).unwrap();
        store.checkpoint().unwrap();
    }
}

/// While a checkpoint syncs the extents, the sync thread is asked for what was written before: neither may take the
/// other's files for synced.
#[test]
fn a_sync_during_a_checkpoint_waits_for_no_files_of_others() {
    let disk = SimDisk::new(1);
    let store = Arc::new(open(&disk, small_config()).unwrap());
    submit(&store, vec![write(key(7, 1, 0), 0, &pattern(5000, 1), 1)]).unwrap();
    store.step_write();
    store.step_sync().unwrap();
    let frozen = store.core.freeze().unwrap().unwrap();
    let large = pattern(65_536, 2);
    submit(&store, vec![write(key(7, 2, 0), 0, &large, 2)]).unwrap();
    store.step_write();
    let image = Arc::new(std::sync::Mutex::new(None));
    disk.before_next_sync("extents.00000", {
        let (disk, store, image) = (disk.clone(), Arc::clone(&store), Arc::clone(&image));
        Box::new(move || {
            store.step_sync().unwrap();
            let progress = store.progress();
            assert_eq!(progress.borrow().durable, progress.borrow().written);
            *image.lock().unwrap() = Some(disk.clone());
            // The power fails before the checkpoint's own sync comes to its end.
            disk.fail_from(disk.calls(), io::ErrorKind::Other);
        })
    });
    assert!(store.core.thaw(frozen).is_err());
    for seed in 0..8 {
        let image = image.lock().unwrap().clone().expect("the checkpoint syncs the extents");
        let store = open(&image.power_failure(seed), small_config()).unwrap();
        let piece = store.read(key(7, 2, 0), 0, 65_536).unwrap().expect("it was durable");
        assert_eq!(piece.data, large);
    }
}
