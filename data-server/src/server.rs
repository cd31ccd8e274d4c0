//! Wires a data server together.

use crate::config::DataServerConfig;
use crate::driver::Driver;
use crate::driver::peers::{self, Peers};
use crate::driver::session::{self, Session};
use crate::pg::{Me, Settings};
use crate::store::{Op, Store, StoreConfig, StoreError, Transaction};
use protocol::data::DataRequest;
use protocol::identity::{Identity, Role, Roles};
use protocol::transport::rpc::{ServeLimits, serve_rpc};
use protocol::transport::{Connection, Endpoint, TransportConfig};
use protocol::{DataServerId, StoreUuid, channel_kind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};

/// Record with the identity of the kernel under which this store was last registered.
const BOOT_ID_KEY: &[u8] = b"boot-id";
/// Record of a start after an unclean stop that the metadata cluster was not told of yet.
const LOST_KEY: &[u8] = b"lost";
/// How long a server that cannot go on tries to tell the metadata cluster.
const LEAVE_WAIT: Duration = Duration::from_secs(2);
/// How long a clean stop waits for connections to be told.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(300);

/// Why a data server ended or did not start.
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
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store failed while the server ran.
    #[error("{0}")]
    Failed(String),
}

/// Runs a data server until `shutdown` ends. `ready` rings with the bound address when it is registered. Must be
/// called within a `LocalSet` on a `current_thread` runtime.
///
/// # Errors
/// It cannot start, or its store failed.
pub async fn run(
    config: DataServerConfig,
    ready: oneshot::Sender<SocketAddr>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    config.validate().map_err(ServerError::Config)?;
    let identity = identity(&config)?;
    let endpoint = bind(&config, identity)?;
    let address = endpoint.local_addr();
    let store_config = StoreConfig { capacity_bytes: config.capacity_bytes, ..StoreConfig::default() }
        .with_memory(config.store_memory_bytes);
    let store = Arc::new(Store::open(&config.dir, store_config)?);
    let boot_id = boot_id(&config)?;
    let clean = nothing_lost(&store, &boot_id)?;
    let me = Me {
        server: config.id,
        store: StoreUuid(u128::from_be_bytes(store.uuid())),
        incarnation: store.incarnation(),
    };
    let settings = Settings { grace_ms: u64::from(config.session_timeout_ms) + 1_000, ..Settings::default() };
    let (driver, proposals) = Driver::load(me, settings, store.clone(), Peers::new(endpoint.clone()))?;
    driver.scrub_every.set(config.scrub_every);
    let session = Session { config, clean, endpoint: endpoint.clone(), address };
    let registrar = driver.clone();
    let registered = move || {
        spawn_local(async move {
            if let Err(error) = note_registration(&registrar.store, &boot_id).await {
                registrar.fail(&error.to_string());
            }
        });
        // Nobody may wait for the address.
        let _ = ready.send(address);
    };
    let tasks = [
        spawn_local(accept(driver.clone(), endpoint.clone())),
        spawn_local(driver.clone().follow_store()),
        spawn_local(driver.clone().tick()),
    ];
    let mut session = spawn_local(session::keep(driver.clone(), session, proposals, registered));
    let result = tokio::select! {
        () = shutdown => Ok(()),
        () = driver.stopped.notified() => {
            // Whoever is told at once need not wait for a timeout; nor does this server for ever.
            let _ = tokio::time::timeout(LEAVE_WAIT, &mut session).await;
            Err(ServerError::Failed(driver.fatal.borrow().clone().unwrap_or_default()))
        }
    };
    tasks.iter().chain([&session]).for_each(JoinHandle::abort);
    endpoint.close("this data server ends");
    // Peers that are told at once need not wait for a timeout.
    let _ = tokio::time::timeout(SHUTDOWN_WAIT, endpoint.wait_idle()).await;
    match &result {
        Ok(()) => store.close()?,
        Err(_) => store.abandon(),
    }
    result
}

fn identity(config: &DataServerConfig) -> Result<Identity, ServerError> {
    let unusable = |why: String| ServerError::Identity { dir: config.identity.clone(), why };
    let identity = Identity::load(&config.identity).map_err(|e| unusable(e.to_string()))?;
    let me = identity.me();
    if me.role != Role::Data || me.id != config.id.0 {
        return Err(unusable(format!("it is for {me}, and this is data server {}", config.id)));
    }
    Ok(identity)
}

fn bind(config: &DataServerConfig, identity: Identity) -> Result<Endpoint, ServerError> {
    let transport = TransportConfig { accept_roles: Roles::ALL, ..TransportConfig::default() };
    Ok(Endpoint::bind(config.listen, Arc::new(identity), transport)?)
}

fn boot_id(config: &DataServerConfig) -> Result<Vec<u8>, ServerError> {
    std::fs::read(&config.boot_id).map_err(|error| {
        ServerError::Config(format!("cannot read the boot id from {}: {error}", config.boot_id.display()))
    })
}

/// Whether everything that was written before the last registered start's end is still there: the stop was clean,
/// or only this process died and the kernel that had the data lives on. A loss is remembered until the metadata
/// cluster knows of it, however often this server starts and stops before.
fn nothing_lost(store: &Store, boot_id: &[u8]) -> Result<bool, StoreError> {
    if store.get_meta(LOST_KEY)?.is_some() {
        return Ok(false);
    }
    let same_kernel = store.get_meta(BOOT_ID_KEY)?.is_some_and(|old| old == boot_id);
    // The first start has nothing to lose.
    let nothing_lost = store.was_clean() || same_kernel || store.incarnation() <= 1;
    if !nothing_lost {
        // If a crash keeps this from the disk, the next start finds the same reasons anew.
        let record = Op::PutMeta { key: LOST_KEY.to_vec(), value: b"1".as_slice().into() };
        store.submit(&Transaction { ops: vec![record], use_reserve: true })?;
    }
    Ok(nothing_lost)
}

/// The metadata cluster knows what this start found: the next one begins from here.
async fn note_registration(store: &Store, boot_id: &[u8]) -> Result<(), StoreError> {
    let known = Op::DeleteMeta { key: LOST_KEY.to_vec() };
    let kernel = Op::PutMeta { key: BOOT_ID_KEY.to_vec(), value: boot_id.to_vec().into() };
    let transaction = Transaction { ops: vec![known, kernel], use_reserve: true };
    loop {
        match store.submit(&transaction) {
            Err(StoreError::Busy) => store.room().await?,
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

async fn accept(driver: Rc<Driver>, endpoint: Endpoint) {
    while let Some(connection) = endpoint.accept().await {
        spawn_local(serve(driver.clone(), connection));
    }
}

/// Serves one connection until it ends.
async fn serve(driver: Rc<Driver>, connection: Connection) {
    let peer = connection.peer().clone();
    let mut channels = Vec::new();
    while let Ok((kind, channel)) = connection.accept_channel().await {
        channels.retain(|task: &JoinHandle<()>| !task.is_finished());
        match (kind, peer.role) {
            (channel_kind::DATA, Role::Client | Role::Admin | Role::Metadata) => {
                let driver = driver.clone();
                let handler = move |peer: Arc<_>, request: DataRequest, payload| {
                    let driver = driver.clone();
                    async move { driver.answer(&peer, request, payload).await }
                };
                channels.push(spawn_local(async move {
                    if let Err(error) = serve_rpc(channel, ServeLimits::default(), handler).await {
                        tracing::debug!("a channel of calls ended: {error}");
                    }
                }));
            }
            (channel_kind::PEER, Role::Data) => {
                let from = DataServerId(peer.id);
                channels.push(spawn_local(peers::receive(driver.clone(), from, channel.split().1)));
            }
            (kind, role) => {
                tracing::warn!(
                    "refused {peer} at {}: a certificate of role {role} opens no channels of kind {kind} here",
                    connection.remote_address()
                );
                connection.close("this kind of channel is not for this certificate's role");
            }
        }
    }
    for task in channels {
        task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{OsDisk, Threads};
    use std::path::Path;

    fn open(dir: &Path) -> Store {
        let disk = Arc::new(OsDisk::open(dir).expect("the directory exists"));
        Store::open_on(disk, StoreConfig::default(), Threads::None).expect("opens")
    }

    async fn register(store: &Store, boot_id: &[u8]) {
        note_registration(store, boot_id).await.expect("submits");
        while store.step_write() {}
    }

    #[tokio::test]
    async fn a_dead_process_lost_nothing_and_a_dead_kernel_may_have() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path());
        assert!(nothing_lost(&store, b"first").expect("reads"), "an empty store has nothing to lose");
        register(&store, b"first").await;
        drop(store);
        assert!(nothing_lost(&open(dir.path()), b"first").expect("reads"));
        assert!(!nothing_lost(&open(dir.path()), b"second").expect("reads"));
    }

    #[tokio::test]
    async fn a_loss_is_remembered_until_the_metadata_cluster_knows() {
        let dir = tempfile::tempdir().expect("a directory");
        register(&open(dir.path()), b"first").await;
        for stops_cleanly in [false, true, false] {
            let store = open(dir.path());
            assert!(!nothing_lost(&store, b"second").expect("reads"));
            while store.step_write() {}
            if stops_cleanly {
                store.close().expect("closes");
            }
        }
        let store = open(dir.path());
        assert!(!nothing_lost(&store, b"second").expect("reads"));
        register(&store, b"second").await;
        drop(store);
        assert!(nothing_lost(&open(dir.path()), b"second").expect("reads"));
    }
}
