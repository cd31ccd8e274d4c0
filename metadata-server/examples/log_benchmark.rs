//! Appends per second of the transaction log, for several numbers of concurrent writers.
//!
//! ```text
//! cargo run --release -p metadata-server --example log_benchmark -- DIR [BYTES [SECONDS]]
//! ```
//! Each writer waits for its append to be durable before the next one, as the leader's clients do; one thread
//! writes, with group commit. DIR should lie on the disk to be measured, and is created and removed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metadata_server::quorum::files::OsDirectory;
use metadata_server::quorum::log_store::{LogStore, make_spare};
use metadata_server::quorum::{LogOptions, StorageError};
use zab::{Entry, Zxid};

const WRITERS: [usize; 3] = [1, 16, 128];

struct Request {
    txn: Bytes,
    done: SyncSender<()>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("usage: log_benchmark DIR [BYTES [SECONDS]]")?);
    let bytes: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    for writers in WRITERS {
        std::fs::create_dir(&directory)?;
        let (appends, commits) = measure(&directory, writers, bytes, Duration::from_secs(seconds))?;
        std::fs::remove_dir_all(&directory)?;
        let per_second = appends / seconds;
        let group = appends as f64 / commits.max(1) as f64;
        println!("{writers:4} writers: {per_second:7} appends/s of {bytes} bytes, {group:.1} per commit");
    }
    Ok(())
}

/// Appends and commits within `duration`.
fn measure(
    path: &std::path::Path,
    writers: usize,
    bytes: usize,
    duration: Duration,
) -> Result<(u64, u64), StorageError> {
    let log = LogStore::create(Arc::new(OsDirectory::new(path)), 0, Zxid::ZERO, LogOptions::default())?;
    let (sender, requests) = channel::<Request>();
    let ends_at = Instant::now() + duration;
    std::thread::scope(|scope| {
        for _ in 0..writers {
            let sender = sender.clone();
            scope.spawn(move || {
                let (done, written) = sync_channel(1);
                let txn = Bytes::from(vec![7; bytes]);
                while Instant::now() < ends_at {
                    let request = Request { txn: txn.clone(), done: done.clone() };
                    if sender.send(request).is_err() || written.recv().is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        write(log, path, &requests)
    })
}

fn write(
    mut log: LogStore,
    path: &std::path::Path,
    requests: &Receiver<Request>,
) -> Result<(u64, u64), StorageError> {
    let (mut appends, mut commits) = (0, 0);
    while let Ok(first) = requests.recv() {
        let group: Vec<Request> = std::iter::once(first).chain(requests.try_iter()).collect();
        for request in &group {
            appends += 1;
            log.append(&[Entry::txn(Zxid::new(1, appends), request.txn.clone())])?;
        }
        log.commit()?;
        commits += 1;
        for request in group {
            // A writer whose time is up does not wait any more.
            let _ = request.done.send(());
        }
        if log.wants_spare() {
            let directory = OsDirectory::new(path);
            std::thread::spawn(move || make_spare(&directory, LogOptions::default().segment_bytes));
        }
    }
    Ok((appends, commits))
}
