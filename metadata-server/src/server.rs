//! Wires a metadata server together.
//!
//! One `current_thread` runtime runs everything here; the quorum's disk thread and checkpoint threads are the
//! only others. Tasks and what they may change:
//!
//! | task | changes |
//! |---|---|
//! | quorum driver | the core: applied transactions, the role |
//! | one per channel of a connection | the core: requests |
//! | the core's clock | the core: expiry, placement, purging |
//! | [`trims`](crate::trims) | asks data servers; tells the core how it went |

use crate::config::MetadataServerConfig;
use crate::core::{Core, CoreConfig, Trim};
use crate::disk_layer::DiskLayer;
use crate::node::{Node, NodeMachine};
use crate::quorum::{Driver, LogOptions, Quorum, QuorumConfig, Storage, StorageOptions};
use crate::trims;
use bytes::Bytes;
use protocol::identity::{Identity, Role, Roles};
use protocol::meta::{MetaRequest, Push};
use protocol::transport::rpc::{Gate, ServeLimits, serve_calls};
use protocol::transport::{Connection, Endpoint, TransportConfig};
use protocol::{MetadataServerId, channel_kind};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};

/// Pushes that wait for a slow client at most; then it is disconnected.
const PUSHES_MAX: usize = 4096;

/// Why a metadata server ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Impossible settings.
    #[error("{0}")]
    Config(String),
    /// Certificate or key.
    #[error("cannot use the certificate in {dir}: {why}")]
    Identity {
        /// Directory.
        dir: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The network.
    #[error(transparent)]
    Transport(#[from] protocol::transport::TransportError),
    /// The disk or the log.
    #[error("{0}")]
    Storage(String),
}

/// A server that accepts, ready to run.
pub struct MetadataServer {
    quorum: Quorum,
    endpoint: Endpoint,
    driver: Driver,
    node: Rc<RefCell<Node>>,
    trims: mpsc::Receiver<Trim>,
}

/// Runs a metadata server until `shutdown` is rung. `ready` rings with the bound address when it accepts. Must be
/// called within a `LocalSet` on a `current_thread` runtime.
///
/// # Errors
/// It cannot start, or its disk or log failed.
pub async fn run(
    config: MetadataServerConfig,
    ready: oneshot::Sender<SocketAddr>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let MetadataServer { quorum, endpoint, driver, node, trims } = MetadataServer::start(config)?;
    let stopped = node.borrow().stopped.clone();
    let tasks = [
        spawn_local(accept(node.clone(), quorum.clone(), endpoint.clone())),
        spawn_local(keep_time(node.clone())),
        spawn_local(trims::run(node.clone(), endpoint.clone(), trims)),
    ];
    // Nobody may wait for the address.
    let _ = ready.send(endpoint.local_addr());
    tokio::pin!(shutdown);
    let driver_task = driver.run(NodeMachine(node.clone()));
    tokio::pin!(driver_task);
    let result = tokio::select! {
        () = &mut shutdown => {
            quorum.stop();
            // A last checkpoint and a word to the others; they manage without if it takes long.
            let _ = tokio::time::timeout(SHUTDOWN_WAIT, &mut driver_task).await;
            Ok(())
        }
        ended = &mut driver_task => ended.map_err(|e| ServerError::Storage(e.to_string())),
        () = stopped.notified() => {
            Err(ServerError::Storage(node.borrow().fatal.clone().unwrap_or_default()))
        }
    };
    for task in tasks {
        task.abort();
    }
    endpoint.close("this metadata server ends");
    // Peers that are told at once need not wait for a timeout.
    let _ = tokio::time::timeout(SHUTDOWN_WAIT, endpoint.wait_idle()).await;
    result
}

/// How long a clean stop may take per step.
const SHUTDOWN_WAIT: std::time::Duration = std::time::Duration::from_millis(500);
/// How many requests of one connection are in service at once; beyond, its stream is not read.
const REQUESTS_MAX: usize = 4096;
/// How many requests of all connections are in service at once; beyond, their streams are not read, and take turns. Well
/// below what the quorum takes before it refuses proposals, so that nobody is refused and tries again: under overload
/// that would be most of the work. Enough to keep the disk busy while the next batch gathers.
const ALL_REQUESTS_MAX: usize = 2048;

impl MetadataServer {
    fn start(config: MetadataServerConfig) -> Result<Self, ServerError> {
        config.validate().map_err(ServerError::Config)?;
        let unusable = |why: String| ServerError::Identity { dir: config.identity.clone(), why };
        let identity = Identity::load(&config.identity).map_err(|e| unusable(e.to_string()))?;
        let me = identity.me();
        if me.role != Role::Metadata || me.id != config.id.0 {
            return Err(unusable(format!("it is for {me}, and this is metadata server {}", config.id)));
        }
        let cluster = me.cluster;
        let address = config.address().expect("validated: the own id is among the voters");
        let transport = TransportConfig { accept_roles: Roles::ALL, ..TransportConfig::default() };
        let endpoint = Endpoint::bind(address, Arc::new(identity), transport)?;
        let storage = Storage::open_or_create(
            &config.dir,
            &StorageOptions {
                cluster: cluster.0,
                server: zab::PeerId(config.id.0),
                log: LogOptions::default(),
            },
            || first_membership(&config),
        )
        .map_err(|e| ServerError::Storage(e.to_string()))?;
        if let Some(damage) = storage.damage() {
            tracing::error!("{damage}");
        }
        let storage_error = |error: &dyn std::fmt::Display| ServerError::Storage(error.to_string());
        let disk = DiskLayer::open(&storage.state_path()).map_err(|e| storage_error(&e))?;
        let core = CoreConfig {
            id: config.id,
            cluster,
            voters: config.voters.clone(),
            pool_size: config.pool_size,
            down_out_ms: config.down_out_ms,
        };
        let view = disk.refreshed().map_err(|e| storage_error(&e))?;
        let core = Core::new(core, view).map_err(|e| storage_error(&e))?;
        let peers = config.voters.iter().map(|(id, address)| (zab::PeerId(id.0), address.to_string()));
        let peers = peers.collect();
        let mut settings = QuorumConfig::new(zab::PeerId(config.id.0), peers);
        settings.zab.lease_reads = config.leader_lease;
        let (quorum, driver) = Quorum::new(settings, storage, core.applied_zxid(), endpoint.clone())
            .map_err(|e| storage_error(&e))?;
        let (trim, trims) = mpsc::channel(trims::WAITING_MAX);
        let node = Node::new(core, disk, quorum.clone(), trim);
        Ok(Self { quorum, endpoint, driver, node: Rc::new(RefCell::new(node)), trims })
    }
}

/// Tells the core that its time has come.
async fn keep_time(node: Rc<RefCell<Node>>) {
    let sooner = node.borrow().sooner.clone();
    loop {
        let at = node.borrow_mut().next_tick();
        let sleep = async {
            match at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => node.borrow_mut().tick(),
            () = sooner.notified() => {}
        }
    }
}

async fn accept(node: Rc<RefCell<Node>>, quorum: Quorum, endpoint: Endpoint) {
    let mut next_id = 0;
    let gate = Gate::new(ALL_REQUESTS_MAX);
    while let Some(connection) = endpoint.accept().await {
        next_id += 1;
        spawn_local(serve(node.clone(), quorum.clone(), connection, next_id, gate.clone()));
    }
}

/// Serves one connection until it ends.
async fn serve(node: Rc<RefCell<Node>>, quorum: Quorum, connection: Connection, id: u64, gate: Gate) {
    let (pushes, waiting) = mpsc::channel(PUSHES_MAX);
    node.borrow_mut().connected(id, connection.clone(), pushes);
    let pusher = spawn_local(push(connection.clone(), waiting));
    let mut channels = Vec::new();
    while let Ok((kind, channel)) = connection.accept_channel().await {
        channels.retain(|task: &JoinHandle<()>| !task.is_finished());
        match (kind, connection.peer().role) {
            (channel_kind::META, _) => {
                let node = node.clone();
                let gate = Some(gate.clone());
                let limits = ServeLimits { requests_max: REQUESTS_MAX, gate, ..ServeLimits::default() };
                let handler = move |request: MetaRequest, _payload, responder| {
                    node.borrow_mut().request(id, request, responder);
                };
                channels.push(spawn_local(async move {
                    if let Err(error) = serve_calls(channel, limits, handler).await {
                        tracing::debug!("a channel of calls ended: {error}");
                    }
                }));
            }
            (channel_kind::ZAB, Role::Metadata) => quorum.accept_channel(channel),
            (kind, role) => {
                tracing::warn!(
                    "refused {} at {}: a certificate of role {role} opens no channels of kind {kind} here",
                    connection.peer(),
                    connection.remote_address()
                );
                connection.close("this kind of channel is not for this certificate's role");
            }
        }
    }
    for task in channels {
        task.abort();
    }
    pusher.abort();
    node.borrow_mut().disconnected(id);
}

/// Sends what the leader has to say, over a channel opened at the first word.
async fn push(connection: Connection, mut waiting: mpsc::Receiver<Push>) {
    let Some(mut next) = waiting.recv().await else { return };
    let Ok(channel) = connection.open_channel(channel_kind::PUSH).await else { return };
    let (mut sender, _receiver) = channel.split();
    loop {
        if sender.send(&next, Bytes::new()).await.is_err() {
            return;
        }
        match waiting.recv().await {
            Some(push) => next = push,
            None => return,
        }
    }
}

/// Ids and addresses of metadata servers, as a cluster file lists them.
pub type Voters = std::collections::BTreeMap<MetadataServerId, SocketAddr>;

/// What a new directory knows of its cluster: what the cluster file says.
fn first_membership(config: &MetadataServerConfig) -> zab::Membership {
    let peer = |id: &MetadataServerId| zab::PeerId(id.0);
    let mut membership = zab::Membership::unbound(config.voters.keys().map(peer));
    membership.addresses =
        config.voters.iter().map(|(id, address)| (peer(id), address.to_string())).collect();
    membership
}
