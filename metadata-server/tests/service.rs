//! One metadata server over QUIC on loopback: sessions of clients and data servers as its peers see them.

use bytes::Bytes;
use metadata_server::MetadataServerConfig;
use protocol::identity::{Authority, ClusterId, Identity, Limits, Role};
use protocol::map::{PgChange, PgConfig};
use protocol::meta::{
    ClientInfo, DataServerRegistration, DataServerReport, MetaError, MetaReply, MetaRequest, MetaResponse,
    ReadOp,
};
use protocol::transport::rpc::RpcClient;
use protocol::transport::{Connection, Endpoint, Expect, TransportConfig};
use protocol::{DataServerId, InodeId, MapEpoch, MetadataServerId, SessionId, StoreUuid, channel_kind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

#[path = "service/backup.rs"]
mod backup;

/// Whatever is waited for comes within this time.
const PATIENCE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

struct Cluster {
    dir: tempfile::TempDir,
    authority: Authority,
    address: SocketAddr,
    /// Dropped to stop the server.
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

/// A peer's connection.
struct Caller {
    _endpoint: Endpoint,
    connection: Connection,
    rpc: RpcClient<MetaRequest, MetaResponse>,
}

impl Cluster {
    /// A cluster of one metadata server whose pool has one replica.
    async fn start() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(leader_lease: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create(&dir.path().join("ca"), ClusterId::random().expect("entropy"))
            .expect("creates");
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port");
        let identity = dir.path().join("metadata");
        issue(&authority, Role::Metadata, "metadata-1", 1, &identity);
        std::fs::create_dir(dir.path().join("state")).expect("a directory");
        let (stop, _) = oneshot::channel();
        let running = tokio::task::spawn_local(async {});
        let mut cluster = Self { dir, authority, address: free, stop, running };
        cluster.run("state", leader_lease).await;
        cluster
    }

    /// Starts the server on another directory.
    async fn run(&mut self, state: &str, leader_lease: bool) {
        let config = MetadataServerConfig {
            id: MetadataServerId(1),
            dir: self.dir.path().join(state),
            identity: self.dir.path().join("metadata"),
            voters: [(MetadataServerId(1), self.address)].into(),
            pool_size: 1,
            down_out_ms: 60_000,
            leader_lease,
        };
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        self.running = tokio::task::spawn_local(async move {
            let shutdown = async { drop(stopped.await) };
            metadata_server::server::run(config, ready, shutdown).await.expect("the server runs");
        });
        self.stop = stop;
        is_ready.await.expect("it starts");
    }

    async fn end(&mut self) {
        self.stop = oneshot::channel().0;
        (&mut self.running).await.expect("it ends");
    }

    async fn connect(&self, role: Role, name: &str, id: u32) -> Caller {
        let dir = self.dir.path().join(name);
        issue(&self.authority, role, name, id, &dir);
        let identity = Arc::new(Identity::load(&dir).expect("loads"));
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), identity, TransportConfig::default());
        let endpoint = endpoint.expect("binds");
        let connection =
            endpoint.connect(self.address, Expect::role(Role::Metadata)).await.expect("it answers");
        let rpc = RpcClient::new(&connection, channel_kind::META);
        Caller { _endpoint: endpoint, connection, rpc }
    }
}

fn issue(authority: &Authority, role: Role, name: &str, id: u32, dir: &std::path::Path) {
    authority.issue(role, name, id, &Limits::NONE, DAY).expect("issues").write_to(dir).expect("writes");
}

impl Caller {
    async fn ask(&self, request: MetaRequest) -> MetaResponse {
        self.rpc.call(&request, Bytes::new()).await.expect("the server answers").0
    }

    /// Asks until the election is over.
    async fn ask_leader(&self, request: MetaRequest) -> MetaResponse {
        let begun = Instant::now();
        loop {
            match self.ask(request.clone()).await {
                Err(MetaError::NotLeader { .. }) if begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                answer => return answer,
            }
        }
    }

    async fn open_session(&self, nonce: u128) -> SessionId {
        let request = MetaRequest::OpenSession { nonce, timeout_ms: 10_000, info: ClientInfo::default() };
        match self.ask_leader(request).await {
            Ok(MetaReply::Session { session, .. }) => session,
            other => panic!("no session: {other:?}"),
        }
    }

    async fn register(&self, registration: &DataServerRegistration) -> (SessionId, MapEpoch) {
        match self.ask_leader(MetaRequest::RegisterDataServer(registration.clone())).await {
            Ok(MetaReply::DataSession { session, map_epoch, .. }) => (session, map_epoch),
            other => panic!("not registered: {other:?}"),
        }
    }

    async fn group(&self) -> (protocol::PgId, PgConfig) {
        match self.ask(MetaRequest::SubscribeMap { known: MapEpoch(0) }).await {
            Ok(MetaReply::Map(map)) => {
                map.pgs.into_iter().next().unwrap_or((protocol::PgId::from_u64(0), PgConfig::default()))
            }
            other => panic!("no map: {other:?}"),
        }
    }

    /// The first group once it is as wanted.
    async fn group_when(&self, wanted: impl Fn(&PgConfig) -> bool) -> (protocol::PgId, PgConfig) {
        let begun = Instant::now();
        loop {
            let group = self.group().await;
            if wanted(&group.1) {
                return group;
            }
            assert!(begun.elapsed() < PATIENCE, "still {group:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn start_of(store: u128, incarnation: u64, clean: bool) -> DataServerRegistration {
    DataServerRegistration {
        store: StoreUuid(store),
        incarnation,
        clean,
        address: "127.0.0.1:9".parse().expect("an address"),
        host: "a".into(),
        capacity: 1 << 40,
        timeout_ms: 10_000,
        positions: Vec::new(),
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_session_is_opened_once_and_ends_for_good() {
    run(async {
        let cluster = Cluster::start().await;
        let caller = cluster.connect(Role::Client, "client", 1).await;
        let session = caller.open_session(5).await;
        assert_eq!(caller.open_session(5).await, session, "the same nonce");
        let alive = caller.ask(MetaRequest::Heartbeat { low_water: 0 }).await;
        assert!(matches!(alive, Ok(MetaReply::Session { session: same, .. }) if same == session));
        let root = caller.ask(MetaRequest::Read(ReadOp::Getattr(InodeId::ROOT))).await;
        assert!(matches!(root, Ok(MetaReply::Attr(_))), "{root:?}");

        // The end and a heartbeat behind it, at once: a session that ends is not confirmed.
        let (ended, beat) = tokio::join!(
            caller.ask(MetaRequest::CloseSession),
            caller.ask(MetaRequest::Heartbeat { low_water: 0 })
        );
        assert_eq!(ended, Ok(MetaReply::Done));
        assert_eq!(beat, Err(MetaError::SessionExpired));
        let attach = MetaRequest::Attach { session, nonce: 5, open: Vec::new() };
        assert_eq!(caller.ask(attach).await, Err(MetaError::SessionExpired));
    });
}

#[test]
fn a_newer_connection_speaks_for_the_session_and_no_other_client_does() {
    run(async {
        let cluster = Cluster::start().await;
        let first = cluster.connect(Role::Client, "client", 1).await;
        let session = first.open_session(5).await;
        let attach = MetaRequest::Attach { session, nonce: 5, open: Vec::new() };
        let other = cluster.connect(Role::Client, "other", 2).await;
        assert!(matches!(other.ask(attach.clone()).await, Err(MetaError::Refused(_))));
        let second = cluster.connect(Role::Client, "client", 1).await;
        assert!(matches!(second.ask(attach).await, Ok(MetaReply::Session { .. })));
        tokio::time::timeout(PATIENCE, first.connection.closed()).await.expect("the older one is closed");
    });
}

#[test]
fn a_clients_nonce_opens_no_data_servers_session() {
    run(async {
        let cluster = Cluster::start().await;
        let server = cluster.connect(Role::Data, "data-1", 1).await;
        let (session, epoch) = server.register(&start_of(12, 1, true)).await;
        assert_eq!(server.register(&start_of(12, 1, true)).await.0, session, "the same start again");
        let client = cluster.connect(Role::Client, "client", 1).await;
        // What the map tells everybody.
        assert_ne!(client.open_session(12 ^ 1).await, session);
        let attach = MetaRequest::Attach { session, nonce: 12 ^ 1, open: Vec::new() };
        assert!(matches!(client.ask(attach).await, Err(MetaError::Refused(_))));
        let beat = server.ask(MetaRequest::DataHeartbeat(DataServerReport::default())).await;
        let Ok(MetaReply::DataSession { session: same, map_epoch, .. }) = beat else { panic!("{beat:?}") };
        assert!(same == session && map_epoch >= epoch);
    });
}

#[test]
fn groups_that_nobody_wrote_to_find_a_primary_after_unclean_stops() {
    run(async {
        let cluster = Cluster::start().await;
        let server = cluster.connect(Role::Data, "data-1", 1).await;
        server.register(&start_of(12, 1, true)).await;
        let (pg, config) = server.group_when(|config| config.primary.is_some()).await;
        let (version, change) = (config.version, PgChange::Activate);
        let activated = server.ask(MetaRequest::ProposePg { pg, version, change }).await;
        assert_eq!(activated, Ok(MetaReply::Done));
        server.register(&start_of(12, 2, false)).await;
        let again = |config: &PgConfig| {
            config.in_sync.iter().all(|m| m.incarnation == 2 && !m.uncertain)
                && config.primary == Some(DataServerId(1))
        };
        let (_, config) = server.group_when(again).await;
        assert!(!config.activated, "first it has to take over");
    });
}
