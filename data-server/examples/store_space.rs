//! Memory and disk space of a chunk store, measured.
//!
//! `store_space objects DIR COUNT BYTES` makes COUNT objects of BYTES each (0: without contents), opens the store again, and
//! reads some. `store_space churn DIR MIB ROUNDS` overwrites a data set of so many MiB, in pieces of 4 KiB to 1 MiB at random
//! places. Both print peak memory of the process and bytes of the files. DIR must not exist; it is removed at the end.

use bytes::Bytes;
use data_server::store::{ObjectKey, Op, Store, StoreConfig, StoreError, Transaction};
use std::path::Path;
use std::time::Instant;

/// Objects per transaction: as a busy server's clients make them.
const BATCH: u64 = 16;
const CHUNK: u64 = 4 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u64>().ok());
    let (Some(mode), Some(dir)) = (arguments.first(), arguments.get(1)) else {
        return Err("see the source".into());
    };
    let dir = Path::new(dir);
    std::fs::create_dir(dir)?;
    let measured = match (mode.as_str(), number(2), number(3)) {
        ("objects", Some(count), Some(bytes)) => objects(dir, count, bytes as usize),
        ("churn", Some(mib), Some(rounds)) => churn(dir, mib << 20, rounds),
        _ => Err("see the source".into()),
    };
    std::fs::remove_dir_all(dir)?;
    measured
}

/// Submits, waiting for room as often as the store asks for it.
fn submit(runtime: &tokio::runtime::Runtime, store: &Store, ops: Vec<Op>) -> Result<(), StoreError> {
    let transaction = Transaction::new(ops);
    loop {
        match store.submit(&transaction) {
            Ok(_) => return Ok(()),
            Err(StoreError::Busy) => runtime.block_on(store.room())?,
            Err(error) => return Err(error),
        }
    }
}

fn write(key: ObjectKey, offset: u64, data: Bytes) -> Op {
    let crc = crc32c::crc32c(&data);
    Op::Write { key, offset, data, crc, truncate_seq: 0, version: 1 }
}

fn key_of(number: u64) -> ObjectKey {
    // Neighbours in time are not neighbours in the index.
    ObjectKey {
        pg: (1 << 32) | (number % 32),
        inode: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20,
        chunk: 0,
    }
}

fn objects(dir: &Path, count: u64, bytes: usize) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let store = Store::open(dir, StoreConfig::default())?;
    let contents = Bytes::from(vec![7; bytes]);
    let began = Instant::now();
    for from in (0..count).step_by(BATCH as usize) {
        let batch = from..(from + BATCH).min(count);
        submit(&runtime, &store, batch.map(|n| write(key_of(n), 0, contents.clone())).collect())?;
    }
    store.checkpoint()?;
    let seconds = began.elapsed().as_secs_f64();
    println!("{count} objects of {bytes} bytes in {seconds:.0} s, {:.0} per second", count as f64 / seconds);
    report(dir, &store)?;
    store.close()?;
    drop(store);
    let began = Instant::now();
    let store = Store::open(dir, StoreConfig::default())?;
    println!("opened again in {:.2} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    for n in (0..100_000).map(|n| n * 7919 % count) {
        if store.info(key_of(n))?.is_none() {
            return Err(format!("object {n} is missing").into());
        }
    }
    println!("looked up at random: {:.1} µs each", began.elapsed().as_secs_f64() * 10.0);
    report(dir, &store)?;
    Ok(store.close()?)
}

fn churn(dir: &Path, bytes: u64, rounds: u64) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let store = Store::open(dir, StoreConfig::default())?;
    let piece = Bytes::from((0..1u32 << 20).map(|n| (n / 3) as u8).collect::<Vec<u8>>());
    let mut random = 7u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..=rounds {
        let mut written = 0;
        while written < bytes {
            let (at, length) = match round {
                0 => (written, (1 << 20).min(bytes - written)),
                _ => (next(bytes), 4096 << next(9)),
            };
            let length = length.min(CHUNK - at % CHUNK).min(bytes - at);
            let key = ObjectKey { pg: 1 << 32, inode: at / CHUNK, chunk: 0 };
            submit(&runtime, &store, vec![write(key, at % CHUNK, piece.slice(..length as usize))])?;
            written += length;
        }
        store.checkpoint()?;
        let space = store.space();
        let used = space.preallocated + std::fs::metadata(dir.join("index"))?.len();
        println!(
            "round {round}: {} MiB live, {} MiB of extents and index, ratio {:.3}",
            space.used >> 20,
            used >> 20,
            used as f64 / space.used as f64
        );
    }
    report(dir, &store)?;
    Ok(store.close()?)
}

fn report(dir: &Path, store: &Store) -> Result<(), Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let index = std::fs::metadata(dir.join("index"))?.len();
    println!(
        "memory: {}, {}; index {} MiB, extents {} MiB",
        line("VmHWM"),
        line("VmRSS"),
        index >> 20,
        store.space().preallocated >> 20
    );
    Ok(())
}
