//! `zabfs bench metadata`: the metadata path without FUSE.
//!
//! Works in one directory of its own, with znodes that hold 100 bytes each. Every session has its own connection, as
//! every mount has. The directory is removed at the end, however the measurement ends.

mod work;

use super::{MetaClient, MetaConfig, MetaFailure};
use crate::map_holder::MapHolder;
use crate::mount::bind;
use crate::mount_options::{SESSION_TIMEOUT_DEFAULT, START_PATIENCE};
use crate::os;
use protocol::identity::Identity;
use protocol::meta::ClientInfo;
use protocol::transport::TransportError;
use serde::Serialize;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use work::{Bench, Kind};

/// Sessions in the rows that have several.
const SESSIONS: u32 = 10;
/// Operations under way per session in the deep rows.
const DEPTH: u32 = 100;
/// Sessions of the overload.
const OVERLOAD_SESSIONS: u32 = 40;
/// Operations that each of them has under way: altogether twenty times what the deepest row has.
const OVERLOAD_DEPTH: u32 = 500;
/// How long the farewell may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Seconds for each row.
    pub seconds: u32,
    /// Znodes that sets and gets touch, at least 1.
    pub znodes: u32,
    /// Sets per second in the paced row.
    pub rate: u32,
    /// Names of the rows to measure; all if empty.
    pub rows: Vec<String>,
    /// Seconds of overload; none if 0.
    pub overload: u32,
    /// Leave the znodes where they are.
    pub keep: bool,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was done.
    pub name: String,
    /// Sessions that did it.
    pub sessions: u32,
    /// Operations under way at once in each session; 0: as many as the rate brings about.
    pub depth: u32,
    /// Operations done.
    pub operations: u64,
    /// Time that they took together.
    pub seconds: f64,
    /// Their quotient.
    pub ops_per_second: f64,
    /// Half of the operations took at most this long, in microseconds. At a fixed rate it counts from when the
    /// operation was due.
    pub p50_us: u64,
    /// All but one in a hundred took at most this long.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
    /// The longest time between two answers.
    pub gap_us: u64,
    /// Sessions that were lost.
    pub lost_sessions: u64,
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
    /// The cluster refused.
    #[error("the metadata cluster refused to {step}: {failure}")]
    Refused {
        /// What was asked.
        step: String,
        /// Its answer.
        failure: MetaFailure,
    },
    /// Ended from outside.
    #[error("ended by a signal; everything that was made has been removed")]
    Interrupted,
}

/// Names of the rows, in the order in which they are measured. `fill` makes the znodes that the others touch.
pub const ROWS: [&str; 6] = ["fill", "create", "set", "get", "mixed", "paced_set"];

/// Measures the cluster with these metadata servers, until `interrupted` resolves. Must be called within a `LocalSet`
/// on a `current_thread` runtime.
///
/// # Errors
/// The cluster cannot be reached, refused an operation for good, or `interrupted` came first.
pub async fn run(
    metadata: Vec<SocketAddr>,
    identity: Identity,
    plan: Plan,
    interrupted: impl Future<Output = ()>,
) -> Result<Vec<Row>, BenchError> {
    let endpoint = bind(&metadata, identity)?;
    let mut sessions: Vec<Rc<MetaClient>> = Vec::new();
    let count = if plan.overload > 0 { OVERLOAD_SESSIONS } else { SESSIONS };
    for _ in 0..count {
        let info =
            ClientInfo { host: os::host_name(), pid: std::process::id(), mountpoint: "(bench)".to_owned() };
        let config =
            MetaConfig { addresses: metadata.clone(), session_timeout: SESSION_TIMEOUT_DEFAULT, info };
        let meta = MetaClient::start(endpoint.clone(), config, Rc::new(MapHolder::default()));
        meta.ready(START_PATIENCE).await.map_err(BenchError::Cluster)?;
        sessions.push(meta);
    }
    let keep = plan.keep;
    let result = match Bench::begin(sessions.clone(), plan.znodes).await {
        Ok(bench) => {
            let measured = tokio::select! {
                rows = measure(&bench, &plan) => rows,
                () = interrupted => Err(BenchError::Interrupted),
            };
            // What the measurement left running must not make anything behind the clean-up's back.
            bench.stop().await;
            let removed = if keep { Ok(()) } else { bench.remove().await };
            measured.and_then(|rows| removed.map(|()| rows))
        }
        Err(error) => Err(error),
    };
    for meta in &sessions {
        meta.close(CLOSE_PATIENCE).await;
    }
    endpoint.close("the measurement is done");
    result
}

async fn measure(bench: &Rc<Bench>, plan: &Plan) -> Result<Vec<Row>, BenchError> {
    let seconds = Duration::from_secs(plan.seconds.into());
    let is_wanted = |name: &str| plan.rows.is_empty() || plan.rows.iter().any(|row| row == name);
    let mut rows = Vec::new();
    let filled = bench.fill().await?;
    if is_wanted("fill") {
        rows.push(filled);
    }
    for (name, kind) in
        [("create", Kind::Create), ("set", Kind::Set), ("get", Kind::Get), ("mixed", Kind::Mixed)]
    {
        for (sessions, depth) in [(1, 1), (1, DEPTH), (SESSIONS, DEPTH)] {
            if is_wanted(name) {
                rows.push(bench.closed_loop(name, kind, sessions, depth, seconds).await?);
            }
        }
    }
    if is_wanted("paced_set") {
        rows.push(bench.paced("paced_set", SESSIONS, plan.rate, seconds).await?);
    }
    if plan.overload > 0 {
        let length = Duration::from_secs(plan.overload.into());
        let row = bench.closed_loop("overload", Kind::Set, OVERLOAD_SESSIONS, OVERLOAD_DEPTH, length).await?;
        rows.push(row);
    }
    Ok(rows)
}
