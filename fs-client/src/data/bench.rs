//! `zabfs bench data`: the data path without FUSE.
//!
//! Works in one file without a name (as O_TMPFILE makes it), which ends with its handle or its session, so nothing
//! is left behind even if this process is killed. The file gets its size first, so everything written lies below it
//! and is removed with it.

use super::{Basis, ChunkedFile, DataClient, DataFailure, Piece};
use crate::map_holder::MapHolder;
use crate::meta::{MetaClient, MetaConfig, MetaFailure};
use crate::mount::bind;
use crate::mount_options::{SESSION_TIMEOUT_DEFAULT, START_PATIENCE};
use crate::os;
use bytes::Bytes;
use protocol::identity::Identity;
use protocol::meta::{ClientInfo, MetaReply, NewNode, ReadOp, WriteOp};
use protocol::transport::TransportError;
use protocol::{FileKind, FileView, InodeId, Layout};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Bytes of a large operation.
const LARGE: u32 = 1 << 20;
/// Bytes of a small one.
const SMALL: u32 = 4 << 10;
/// Operations under way in the deep rows.
const DEPTH: u32 = 64;
/// The one handle of the session.
const HANDLE: u64 = 1;
/// How long the farewell may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Size of the file in MiB, at least 1.
    pub size_mib: u32,
    /// Seconds for each row of small operations.
    pub seconds: u32,
    /// Large operations under way at once, at least 1.
    pub pieces: u32,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was done.
    pub name: String,
    /// Operations under way at once.
    pub depth: u32,
    /// Operations done.
    pub operations: u64,
    /// Time that they took together; writing in sequence includes a last sync.
    pub seconds: f64,
    /// Their quotient.
    pub ops_per_second: f64,
    /// In 10⁶ bytes.
    pub mb_per_second: f64,
    /// Half of the operations took at most this long, in microseconds.
    pub p50_us: u64,
    /// All but one in a hundred took at most this long.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The network.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No server, or none that takes this client.
    #[error("cannot reach the cluster: {0}")]
    Cluster(String),
    /// The metadata cluster refused.
    #[error("the metadata cluster refused to {step}: {failure}")]
    Meta {
        /// What was asked.
        step: &'static str,
        /// Its answer.
        failure: MetaFailure,
    },
    /// The data servers refused.
    #[error("an operation of {row} failed: {failure}")]
    Data {
        /// The row.
        row: &'static str,
        /// Why.
        failure: DataFailure,
    },
}

/// Measures the cluster with these metadata servers. Must be called within a `LocalSet` on a `current_thread` runtime.
///
/// # Errors
/// The cluster cannot be reached, or an operation failed for good.
pub async fn run(metadata: Vec<SocketAddr>, identity: Identity, plan: Plan) -> Result<Vec<Row>, BenchError> {
    let endpoint = bind(&metadata, identity)?;
    let map = Rc::new(MapHolder::default());
    let info =
        ClientInfo { host: os::host_name(), pid: std::process::id(), mountpoint: "(bench)".to_owned() };
    let config = MetaConfig { addresses: metadata, session_timeout: SESSION_TIMEOUT_DEFAULT, info };
    let meta = MetaClient::start(endpoint.clone(), config, map.clone());
    meta.ready(START_PATIENCE).await.map_err(BenchError::Cluster)?;
    let data = DataClient::new(endpoint.clone(), meta.clone(), map);
    let rows = match prepare(&meta, plan).await {
        Ok(view) => {
            let rows = measure(&meta, &data, &view, plan).await;
            meta.close_file(view.attr.inode, HANDLE, true).await;
            rows
        }
        Err((step, failure)) => Err(BenchError::Meta { step, failure }),
    };
    // Closes the file too, if it was made and could not be used.
    meta.close(CLOSE_PATIENCE).await;
    endpoint.close("the measurement is done");
    rows
}

/// Makes the file, of its full size and with all of it a hole.
async fn prepare(meta: &Rc<MetaClient>, plan: Plan) -> Result<FileView, (&'static str, MetaFailure)> {
    let (uid, gid) = os::own_ids();
    let node = NewNode { kind: FileKind::File, mode: 0o600, uid, gid, rdev: 0, target: vec![] };
    let op = WriteOp::Tmpfile { parent: InodeId::ROOT, node, handle: HANDLE };
    let made = meta.write_opening(meta.generation(), HANDLE, op).await;
    let inode = made.map_err(|failure| ("make a file", failure))?.attr.inode;
    let wrong = |failure| ("give the file its size", failure);
    let size = u64::from(plan.size_mib) << 20;
    let truncate_seq = match meta.write(WriteOp::Hold(inode)).await.map_err(wrong)? {
        MetaReply::View(view) => view.truncate_seq(),
        _ => return Err(wrong(MetaFailure::Unexpected("a hold"))),
    };
    let grown = WriteOp::CommitWrite { inode, truncate_seq, end: size, allocated: 0, kill_privileges: false };
    meta.write(grown).await.map_err(wrong)?;
    match meta.read(ReadOp::View { inode, known: 0 }).await.map_err(wrong)? {
        MetaReply::View(view) if view.layout == Layout::Chunks && view.attr.size == size => Ok(view),
        _ => Err(wrong(MetaFailure::Unexpected("a resize"))),
    }
}

/// What the rows need.
struct Bench {
    data: Rc<DataClient>,
    file: ChunkedFile,
    basis: Basis,
    plan: Plan,
    /// Contents of every write: nothing on the way compresses or deduplicates.
    bytes: Bytes,
    random: Cell<u64>,
    latencies: RefCell<Vec<Duration>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    SyncedWrite,
}

async fn measure(
    meta: &Rc<MetaClient>,
    data: &Rc<DataClient>,
    view: &FileView,
    plan: Plan,
) -> Result<Vec<Row>, BenchError> {
    let pool = data.pool(view.pool).await;
    let bench = Rc::new(Bench {
        data: data.clone(),
        file: ChunkedFile { pool: view.pool, inode: view.attr.inode, chunk_size: pool.chunk_size.max(1) },
        basis: Basis { generation: meta.generation(), truncations: view.truncations.clone() },
        plan,
        bytes: Bytes::from(vec![0x5a; LARGE as usize]),
        random: Cell::new(0x9e37_79b9_7f4a_7c15),
        latencies: RefCell::default(),
    });
    let rows = [
        bench.sequence("seq_write", Kind::Write).await?,
        bench.sequence("seq_read", Kind::Read).await?,
        bench.random("rand_read", 1, Kind::Read).await?,
        bench.random("rand_read", DEPTH, Kind::Read).await?,
        bench.random("rand_write", 1, Kind::Write).await?,
        bench.random("rand_write", DEPTH, Kind::Write).await?,
        bench.random("fsync_write", 1, Kind::SyncedWrite).await?,
    ];
    Ok(rows.to_vec())
}

impl Bench {
    /// The whole file in large pieces.
    async fn sequence(self: &Rc<Self>, name: &'static str, kind: Kind) -> Result<Row, BenchError> {
        let failed = |failure| BenchError::Data { row: name, failure };
        let started = Instant::now();
        let mut running = JoinSet::new();
        for piece in 0..u64::from(self.plan.size_mib) {
            if running.len() >= self.plan.pieces as usize {
                finish_one(&mut running).await.map_err(failed)?;
            }
            let at = piece * u64::from(LARGE);
            running.spawn_local(self.clone().timed(kind, at, LARGE));
        }
        while !running.is_empty() {
            finish_one(&mut running).await.map_err(failed)?;
        }
        if kind == Kind::Write {
            self.data.sync_all(self.basis.generation).await.map_err(failed)?;
        }
        Ok(self.row(name, self.plan.pieces, LARGE, started))
    }

    /// Small pieces at random places, for the time of the plan.
    async fn random(self: &Rc<Self>, name: &'static str, depth: u32, kind: Kind) -> Result<Row, BenchError> {
        let failed = |failure| BenchError::Data { row: name, failure };
        let started = Instant::now();
        let until = started + Duration::from_secs(self.plan.seconds.into());
        let mut running = JoinSet::new();
        for _ in 0..depth {
            let bench = self.clone();
            running.spawn_local(async move {
                while Instant::now() < until {
                    let at = bench.place();
                    bench.clone().timed(kind, at, SMALL).await?;
                }
                Ok(())
            });
        }
        while !running.is_empty() {
            finish_one(&mut running).await.map_err(failed)?;
        }
        Ok(self.row(name, depth, SMALL, started))
    }

    /// One operation, and the time it took.
    async fn timed(self: Rc<Self>, kind: Kind, at: u64, length: u32) -> Result<(), DataFailure> {
        let started = Instant::now();
        let pieces = self
            .file
            .pieces(at, length.into(), length)
            .map_err(|error| DataFailure::Rejected(error.to_string()))?;
        for piece in pieces {
            self.operate(kind, piece).await?;
        }
        self.latencies.borrow_mut().push(started.elapsed());
        Ok(())
    }

    async fn operate(&self, kind: Kind, piece: Piece) -> Result<(), DataFailure> {
        if kind == Kind::Read {
            return self.data.read(&self.basis, piece).await.map(drop);
        }
        let bytes = self.bytes.slice(..piece.length as usize);
        self.data.write(&self.basis, piece, bytes).await?;
        if kind == Kind::SyncedWrite {
            self.data.sync_all(self.basis.generation).await?;
        }
        Ok(())
    }

    /// A random place for a small operation (xorshift: any will do).
    fn place(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        let places = (u64::from(self.plan.size_mib) << 20) / u64::from(SMALL);
        x % places * u64::from(SMALL)
    }

    fn row(&self, name: &str, depth: u32, bytes: u32, started: Instant) -> Row {
        let seconds = started.elapsed().as_secs_f64();
        let mut latencies = std::mem::take(&mut *self.latencies.borrow_mut());
        latencies.sort_unstable();
        let operations = latencies.len() as u64;
        let ops_per_second = operations as f64 / seconds;
        Row {
            name: name.to_owned(),
            depth,
            operations,
            seconds,
            ops_per_second,
            mb_per_second: ops_per_second * f64::from(bytes) / 1e6,
            p50_us: quantile(&latencies, 0.5),
            p99_us: quantile(&latencies, 0.99),
            max_us: quantile(&latencies, 1.0),
        }
    }
}

async fn finish_one(running: &mut JoinSet<Result<(), DataFailure>>) -> Result<(), DataFailure> {
    match running.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(DataFailure::Rejected(error.to_string())),
        None => Ok(()),
    }
}

/// The latency that this share of a sorted list does not exceed, in microseconds; 0 of an empty list.
pub(crate) fn quantile(sorted: &[Duration], share: f64) -> u64 {
    let rank = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(rank - 1).map_or(0, |latency| latency.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_rank() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(
            (quantile(&sorted, 0.5), quantile(&sorted, 0.99), quantile(&sorted, 1.0)),
            (100, 198, 200)
        );
        assert_eq!(quantile(&[], 0.99), 0);
        assert_eq!(quantile(&sorted[..1], 0.5), 1);
    }
}
