//! Random operations against a model in memory, with checkpoints, kills and reopens in between.

use proptest::prelude::*;

use super::*;

const GROUPS: [u64; 2] = [7, 8];

#[derive(Clone, Debug)]
enum Step {
    Submit(Vec<Op>),
    Write,
    Sync,
    /// Begins a checkpoint (finishing one that is half done).
    Freeze,
    /// Finishes a checkpoint that is half done, or does a whole one.
    Checkpoint,
    /// Ends the process after writing what is queued, and opens again.
    Kill,
    Close,
}

fn any_key() -> impl Strategy<Value = ObjectKey> {
    (0..2usize, 1..3u64, 0..2u32).prop_map(|(pg, inode, chunk)| key(GROUPS[pg], inode, chunk))
}

fn any_meta_key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0..3u8, 1..4)
}

pub(super) fn any_op() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![0..40_000u64, (0..9u64).prop_map(|b| b * 4096)];
    let len =
        prop_oneof![4 => 0..6_000usize, 2 => 6_000..60_000usize, 1 => (1..12usize).prop_map(|b| b * 4096)];
    prop_oneof![
        8 => (any_key(), offset.clone(), len, any::<u64>(), 0..9u64).prop_map(|(key, offset, len, seed, seq)| {
            let data = Bytes::from(pattern(len, seed));
            Op::Write { key, offset, crc: crc32c::crc32c(&data), data, truncate_seq: seq, version: seed }
        }),
        2 => (any_key(), 0..90_000u64, 0..9u64, any::<u64>())
            .prop_map(|(key, size, truncate_seq, version)| Op::Truncate { key, size, truncate_seq, version }),
        2 => (any_key(), offset, 0..40_000u64, any::<u64>())
            .prop_map(|(key, offset, len, version)| Op::Zero { key, offset, len, version }),
        1 => any_key().prop_map(|key| Op::Delete { key }),
        1 => any_key().prop_map(|k| Op::DeleteRange { pg: k.pg, inode: k.inode, from_chunk: k.chunk }),
        2 => (any_key(), 0..2usize).prop_map(|(key, pg)| Op::Move { key, pg: GROUPS[pg] }),
        1 => (0..2usize).prop_map(|pg| Op::DeletePg { pg: GROUPS[pg] }),
        3 => (any_meta_key(), 0..300usize, any::<u64>())
            .prop_map(|(key, len, seed)| Op::PutMeta { key, value: Bytes::from(pattern(len, seed)) }),
        1 => any_meta_key().prop_map(|key| Op::DeleteMeta { key }),
        1 => (any_meta_key(), any_meta_key()).prop_map(|(from, to)| Op::DeleteMetaRange { from, to }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => proptest::collection::vec(any_op(), 1..4).prop_map(Step::Submit),
        2 => Just(Step::Write),
        1 => Just(Step::Sync),
        2 => Just(Step::Freeze),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
    ]
}

fn run(steps: &[Step]) {
    let mut disk = SimDisk::new(1);
    let mut store = open(&disk, small_config()).unwrap();
    let mut model = Model::default();
    let mut frozen = None;
    for step in steps {
        match step {
            Step::Submit(ops) => {
                submit_beside(&store, ops.clone(), &mut frozen).unwrap();
                model.apply(ops);
            }
            Step::Write => {
                store.step_write();
            }
            Step::Sync => store.step_sync().unwrap(),
            Step::Freeze => {
                frozen.take().map_or(Ok(()), |half| store.core.thaw(half)).unwrap();
                frozen = store.core.freeze().unwrap();
            }
            Step::Checkpoint => checkpoint_beside(&store, &mut frozen).unwrap(),
            Step::Kill => {
                store.step_write();
                frozen = None;
                drop(store);
                disk = disk.process_killed();
                store = open(&disk, small_config()).unwrap();
                assert!(!store.was_clean());
            }
            Step::Close => {
                let incarnation = store.incarnation();
                frozen.take().map_or(Ok(()), |half| store.core.thaw(half)).unwrap();
                store.close().unwrap();
                disk = disk.process_killed();
                store = open(&disk, small_config()).unwrap();
                assert!(store.was_clean());
                assert_eq!(store.incarnation(), incarnation + 1);
            }
        }
        assert_eq!(contents(&store, &GROUPS).unwrap(), model);
    }
    frozen.take().map_or(Ok(()), |half| store.core.thaw(half)).unwrap();
    check_space(&store, &GROUPS);
    assert_eq!(contents(&store, &GROUPS).unwrap(), model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_its_model(steps in proptest::collection::vec(any_step(), 1..40)) {
        run(&steps);
    }
}

#[test]
fn a_refused_transaction_leaves_no_trace() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    submit(&store, vec![write(key(7, 1, 0), 0, b"old", 1)]).unwrap();
    let before = contents(&store, &GROUPS).unwrap();
    let used = store.space().used;
    let mut bad = write(key(7, 1, 0), 3, b"xyz", 2);
    if let Op::Write { crc, .. } = &mut bad {
        *crc ^= 1;
    }
    let ops = vec![write(key(7, 2, 0), 0, &pattern(50_000, 1), 2), Op::DeletePg { pg: 7 }, bad];
    assert!(matches!(submit(&store, ops), Err(StoreError::BadChecksum { .. })));
    assert_eq!(contents(&store, &GROUPS).unwrap(), before);
    assert_eq!(store.space().used, used);
    let beyond = write(key(7, 1, 0), OBJECT_BYTES_MAX, b"x", 2);
    assert!(matches!(submit(&store, vec![beyond]), Err(StoreError::Invalid(_))));
}

#[test]
fn new_bytes_are_reported_for_du() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let k = key(7, 1, 0);
    assert_eq!(submit(&store, vec![write(k, 100, b"abc", 1)]).unwrap().allocated_delta, 4096);
    assert_eq!(submit(&store, vec![write(k, 0, b"abc", 1)]).unwrap().allocated_delta, 0);
    assert_eq!(submit(&store, vec![write(k, 0, &pattern(40_960, 1), 1)]).unwrap().allocated_delta, 9 * 4096);
    let cut = Op::Truncate { key: k, size: 1, truncate_seq: 1, version: 2 };
    assert_eq!(submit(&store, vec![cut]).unwrap().allocated_delta, -9 * 4096);
    assert_eq!(store.info(k).unwrap().unwrap().allocated_bytes, 4096);
}

#[test]
fn equal_contents_have_equal_digests_however_they_came_about() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let data = pattern(30_000, 3);
    let (one, other) = (key(7, 1, 0), key(8, 1, 0));
    submit(&store, vec![write(one, 0, &data, 1)]).unwrap();
    for (index, piece) in data.chunks(1000).enumerate() {
        submit(&store, vec![write(other, index as u64 * 1000, piece, 1)]).unwrap();
    }
    let digest = |k| store.verify(k).unwrap().unwrap().content;
    assert_eq!(digest(one), digest(other));
    submit(&store, vec![write(other, 5, b"!", 2)]).unwrap();
    assert_ne!(digest(one), digest(other));
}

/// A log record put and trimmed between two checkpoints, thousands of times: memory must not grow.
#[test]
fn a_rolling_log_costs_no_memory() {
    let disk = SimDisk::new(1);
    let store = open(&disk, StoreConfig { journal_segment_bytes: 8 << 20, ..small_config() }).unwrap();
    let log_key = |n: u64| [b"log".as_slice(), &n.to_be_bytes()].concat();
    for n in 1..3000_u64 {
        let put = Op::PutMeta { key: log_key(n), value: Bytes::from(vec![1; 1000]) };
        let trim = Op::DeleteMetaRange { from: log_key(0), to: log_key(n.saturating_sub(20)) };
        submit(&store, vec![put, trim]).unwrap();
    }
    assert_eq!(store.list_meta(b"log", None, 100).unwrap().len(), 21);
}

/// Another thread overwrites a block in place, and a checkpoint carries it there, between the moment a reader learns
/// the checksum and the moment it reads the block.
#[test]
fn a_read_overtaken_by_a_checkpoint_looks_again() {
    let disk = SimDisk::new(1);
    let store = Arc::new(open(&disk, small_config()).unwrap());
    let k = key(7, 1, 0);
    submit(&store, vec![write(k, 0, &pattern(8192, 1), 1)]).unwrap();
    store.checkpoint().unwrap();
    let overtaking = Arc::clone(&store);
    disk.before_next_read(Box::new(move || {
        submit(&overtaking, vec![write(k, 0, &pattern(8192, 2), 2)]).unwrap();
        overtaking.checkpoint().unwrap();
    }));
    let piece = store.read(k, 0, 8192).unwrap().unwrap();
    assert_eq!((piece.data, piece.info.version), (Bytes::from(pattern(8192, 2)), 2));
}

#[test]
fn the_newest_of_two_layers_wins() {
    let disk = SimDisk::new(1);
    let store = open(&disk, small_config()).unwrap();
    let (k, record) = (key(7, 1, 0), b"record".to_vec());
    let put = |text: &'static str| Op::PutMeta { key: record.clone(), value: Bytes::from(text) };
    submit(&store, vec![write(k, 0, &pattern(8192, 1), 1), put("old")]).unwrap();
    let frozen = store.core.freeze().unwrap().unwrap();
    assert_eq!(store.get_meta(&record).unwrap().unwrap(), "old");
    submit(&store, vec![write(k, 0, &pattern(4096, 2), 2), put("new")]).unwrap();
    let newest = [pattern(4096, 2), pattern(8192, 1)[4096..].to_vec()].concat();
    assert_eq!(store.read(k, 0, 8192).unwrap().unwrap().data, newest);
    assert_eq!(store.get_meta(&record).unwrap().unwrap(), "new");
    store.core.thaw(frozen).unwrap();
    assert_eq!(store.read(k, 0, 8192).unwrap().unwrap().data, newest);
}
