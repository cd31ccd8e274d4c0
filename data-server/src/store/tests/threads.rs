//! The store with its own threads on a real directory.

use std::time::Duration;

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

async fn submit_when_room(store: &Store, ops: Vec<Op>) -> Submitted {
    let transaction = Transaction::new(ops);
    loop {
        match store.submit(&transaction) {
            Err(StoreError::Busy) => store.room().await.unwrap(),
            other => return other.unwrap(),
        }
    }
}

#[test]
fn writes_become_durable_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let config = || StoreConfig {
        capacity_bytes: Some(256 << 20),
        extent_file_bytes: 64 << 20,
        ..StoreConfig::default()
    };
    let store = Store::open(dir.path(), config()).unwrap();
    let uuid = store.uuid();
    runtime().block_on(async {
        for inode in 0..200 {
            let len = if inode % 2 == 0 { 300 } else { 200_000 };
            let submitted =
                submit_when_room(&store, vec![write(key(7, inode, 0), 0, &pattern(len, inode), inode)]).await;
            tokio::time::timeout(Duration::from_secs(20), store.written(submitted.ticket))
                .await
                .unwrap()
                .unwrap();
            if inode % 10 == 0 {
                tokio::time::timeout(Duration::from_secs(20), store.durable(submitted.ticket))
                    .await
                    .unwrap()
                    .unwrap();
            }
        }
    });
    // Without `close`: like a kill, after which everything written is still in the page cache.
    drop(store);
    let store = Store::open(dir.path(), config()).unwrap();
    assert!(!store.was_clean());
    assert_eq!((store.uuid(), store.incarnation()), (uuid, 2));
    for inode in 0..200 {
        let len = if inode % 2 == 0 { 300 } else { 200_000 };
        assert_eq!(store.read(key(7, inode, 0), 0, 1 << 20).unwrap().unwrap().data, pattern(len, inode));
    }
    assert!(
        matches!(Store::open(dir.path(), config()), Err(StoreError::Refused(_))),
        "one process at a time"
    );
    store.close().unwrap();
    assert!(matches!(store.submit(&Transaction::new(vec![])), Err(StoreError::Failed(_))), "closed");
    drop(store);
    assert!(Store::open(dir.path(), config()).unwrap().was_clean());
}

/// Readers on other threads while contents are overwritten in place and moved by checkpoints: never a false alarm,
/// never a mixture.
#[test]
fn reads_race_with_overwrites_and_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { journal_segment_bytes: 1 << 20, checkpoint_interval_ms: 5, ..small_config() };
    let store = Store::open(dir.path(), config).unwrap();
    let k = key(7, 1, 0);
    let round = |n: u64| vec![n as u8; if n.is_multiple_of(5) { 65_536 } else { 8192 }];
    let rt = runtime();
    rt.block_on(submit_when_room(&store, vec![write(k, 0, &vec![0; 65_536], 0)]));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            while last < 1500 {
                let piece = store.read(k, 0, 8192).unwrap().unwrap();
                assert!(piece.info.version >= last);
                last = piece.info.version;
                assert!(piece.data.iter().all(|b| *b == last as u8), "version {last}");
            }
        });
        for n in 1..=1500 {
            rt.block_on(submit_when_room(&store, vec![write(k, 0, &round(n), n)]));
        }
        reader.join().unwrap();
    });
    rt.block_on(store.sync()).unwrap();
    let progress = store.progress().borrow().clone();
    assert_eq!((progress.durable, progress.failed), (store.last_ticket().0, None));
}

/// Back-pressure: more than memory and journal hold, submitted as fast as possible.
#[test]
fn a_flood_waits_for_room_and_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { capacity_bytes: Some(64 << 20), ..small_config() };
    let store = Store::open(dir.path(), config).unwrap();
    let rt = runtime();
    rt.block_on(async {
        for n in 0..4000_u64 {
            submit_when_room(&store, vec![write(key(7, n % 100, 0), (n / 100) * 8000, &pattern(8000, n), n)])
                .await;
        }
        store.sync().await.unwrap();
    });
    for inode in 0..100 {
        assert_eq!(store.verify(key(7, inode, 0)).unwrap().unwrap().info.size, 320_000);
    }
    store.close().unwrap();
}
