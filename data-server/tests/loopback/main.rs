//! Data servers with real stores and real QUIC on loopback; only the metadata cluster is a stand-in.
//!
//! Covers what the simulation of the replica cannot: the driver, the links, the session, the store's files.

#![allow(clippy::unwrap_used, reason = "what a test asserts it may unwrap")]

mod stub;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_server::DataServerConfig;
use data_server::driver::ScrubIntervals;
use protocol::data::{DataError, DataReply, DataRequest, DataResponse, ObjectContext};
use protocol::identity::{Authority, ClusterId, Identity, Limits, Role};
use protocol::split::Extent;
use protocol::transport::rpc::RpcClient;
use protocol::transport::{Endpoint, Expect, TransportConfig};
use protocol::{
    DataServerId, InodeId, MapEpoch, ObjectId, PgId, RequestId, SessionId, Truncation, channel_kind,
};
use stub::{CHUNK, PG_NUM, POOL, Stub};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Nothing on loopback takes this long; a test that waits longer has failed.
const DEADLINE: Duration = Duration::from_secs(60);

struct World {
    authority: Authority,
    dir: tempfile::TempDir,
    stub: Stub,
    servers: BTreeMap<DataServerId, Running>,
    client: Client,
}

struct Running {
    stop: Option<oneshot::Sender<Stop>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Stop {
    /// As a signal does.
    Clean,
    /// As a kill does: tasks vanish where they are.
    Dead,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), ClusterId([7; 16])).unwrap();
        let stub = Stub::start(endpoint(&authority, Role::Metadata, 1, &Limits::NONE));
        let client = Client::new(endpoint(&authority, Role::Client, 5, &Limits::NONE));
        World { authority, dir, stub, servers: BTreeMap::new(), client }
    }

    fn store_dir(&self, server: DataServerId) -> PathBuf {
        self.dir.path().join(format!("data-{server}/store"))
    }

    fn start(&mut self, server: DataServerId) {
        let home = self.dir.path().join(format!("data-{server}"));
        std::fs::create_dir_all(home.join("store")).unwrap();
        let identity = home.join("tls");
        if !identity.exists() {
            std::fs::create_dir_all(&identity).unwrap();
            let issued = issue(&self.authority, Role::Data, server.0, &Limits::NONE);
            std::fs::write(identity.join("ca.pem"), issued.ca_pem).unwrap();
            std::fs::write(identity.join("cert.pem"), issued.certificate_pem).unwrap();
            std::fs::write(identity.join("key.pem"), issued.key_pem).unwrap();
        }
        let config = DataServerConfig {
            id: server,
            dir: home.join("store"),
            identity,
            listen: "127.0.0.1:0".parse().unwrap(),
            metadata: vec![self.stub.address],
            host: format!("data-{server}"),
            capacity_bytes: Some(256 << 20),
            session_timeout_ms: 5000,
            boot_id: DataServerConfig::BOOT_ID_DEFAULT.into(),
            store_memory_bytes: DataServerConfig::STORE_MEMORY_BYTES_DEFAULT,
            scrub_every: ScrubIntervals::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || run_server(config, stopped));
        self.servers.insert(server, Running { stop: Some(stop), thread: Some(thread) });
    }

    async fn stop(&mut self, server: DataServerId, how: Stop) {
        let mut running = self.servers.remove(&server).unwrap();
        running.stop.take().unwrap().send(how).unwrap();
        let thread = running.thread.take().unwrap();
        until("a server ends", || thread.is_finished()).await;
        thread.join().unwrap();
    }
}

fn run_server(config: DataServerConfig, stopped: oneshot::Receiver<Stop>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    let (dead, died) = oneshot::channel::<()>();
    let shutdown = async {
        match stopped.await {
            Ok(Stop::Clean) => drop(dead),
            Ok(Stop::Dead) | Err(_) => {
                let _ = dead.send(());
                std::future::pending::<()>().await;
            }
        }
    };
    local.block_on(&runtime, async {
        let (ready, _) = oneshot::channel();
        let killed = async {
            if died.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = data_server::server::run(config, ready, shutdown) => ended.unwrap(),
            () = killed => {}
        }
    });
}

fn issue(authority: &Authority, role: Role, id: u32, limits: &Limits) -> protocol::identity::Issued {
    authority.issue(role, &format!("{role}-{id}"), id, limits, Duration::from_secs(3600)).unwrap()
}

fn endpoint(authority: &Authority, role: Role, id: u32, limits: &Limits) -> Endpoint {
    let issued = issue(authority, role, id, limits);
    let identity = Identity::from_pem(&issued.ca_pem, &issued.certificate_pem, &issued.key_pem).unwrap();
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), Arc::new(identity), TransportConfig::default()).unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client that asks the primary, again and again if it has to.
struct Client {
    endpoint: Endpoint,
    connections: BTreeMap<DataServerId, (std::net::SocketAddr, RpcClient<DataRequest, DataResponse>)>,
    sequence: u64,
}

impl Client {
    fn new(endpoint: Endpoint) -> Self {
        Client { endpoint, connections: BTreeMap::new(), sequence: 0 }
    }

    async fn once(
        &mut self,
        stub: &Stub,
        pg: PgId,
        request: &DataRequest,
        payload: Bytes,
    ) -> Option<(DataResponse, Bytes)> {
        let (server, address) = stub.map().primary_address(pg)?;
        self.ask_server(server, address, request, payload).await
    }

    async fn ask_server(
        &mut self,
        server: DataServerId,
        address: std::net::SocketAddr,
        request: &DataRequest,
        payload: Bytes,
    ) -> Option<(DataResponse, Bytes)> {
        let known = self.connections.get(&server);
        if known.is_none_or(|(at, rpc)| *at != address || rpc.connection().is_closed()) {
            let connection =
                self.endpoint.connect(address, Expect::server(Role::Data, server.0)).await.ok()?;
            let rpc = RpcClient::new(&connection, channel_kind::DATA);
            self.connections.insert(server, (address, rpc));
        }
        let (_, rpc) = &self.connections[&server];
        tokio::time::timeout(Duration::from_secs(3), rpc.call(request, payload)).await.ok()?.ok()
    }

    async fn ask(
        &mut self,
        stub: &Stub,
        pg: PgId,
        request: DataRequest,
        payload: Bytes,
    ) -> (DataResponse, Bytes) {
        let start = Instant::now();
        loop {
            match self.once(stub, pg, &request, payload.clone()).await {
                Some((
                    Err(DataError::NotPrimary { .. } | DataError::Unavailable(_) | DataError::Overloaded),
                    _,
                ))
                | None => {}
                Some(answer) => return answer,
            }
            assert!(start.elapsed() < DEADLINE, "timed out: {request:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn request(&mut self) -> RequestId {
        self.sequence += 1;
        RequestId { session: SessionId(5), sequence: self.sequence, low_water: self.sequence }
    }

    async fn write(&mut self, stub: &Stub, object: ObjectId, offset: u32, bytes: &[u8]) {
        let request = self.request();
        let crc = crc32c::crc32c(bytes);
        let request = DataRequest::Write { request, context: context(object), offset, crc };
        let (answer, _) = self.ask(stub, object.pg(PG_NUM), request, Bytes::copy_from_slice(bytes)).await;
        assert!(matches!(answer, Ok(DataReply::Written { .. })), "{answer:?}");
    }

    async fn read(&mut self, stub: &Stub, object: ObjectId, offset: u32, length: u32) -> Bytes {
        let request = DataRequest::Read { context: context(object), offset, length };
        let (answer, bytes) = self.ask(stub, object.pg(PG_NUM), request, Bytes::new()).await;
        assert_eq!(answer, Ok(DataReply::Data { crc: crc32c::crc32c(&bytes) }));
        bytes
    }
}

fn context(object: ObjectId) -> ObjectContext {
    ObjectContext { object, pg_num: PG_NUM, truncations: Vec::new(), fence: MapEpoch(0) }
}

fn object(inode: u64, chunk: u32) -> ObjectId {
    ObjectId { pool: POOL, inode: InodeId(inode), chunk }
}

/// Bytes that tell where they belong.
fn pattern(object: ObjectId, salt: u8, length: usize) -> Vec<u8> {
    let seed = object.inode.0.wrapping_mul(31).wrapping_add(u64::from(object.chunk)) as u8;
    (0..length).map(|i| (i % 251) as u8 ^ seed ^ salt | 1).collect()
}

/// What every object should hold.
type Contents = BTreeMap<ObjectId, Vec<u8>>;

async fn check_contents(world: &mut World, contents: &Contents) {
    for (object, expected) in contents {
        let mut got = Vec::new();
        while got.len() < expected.len() {
            let length = (expected.len() - got.len()).min(1 << 20) as u32;
            let piece = world.client.read(&world.stub, *object, got.len() as u32, length).await;
            assert_eq!(piece.len(), length as usize, "{object} ends early");
            got.extend_from_slice(&piece);
        }
        assert!(got == *expected, "{object} holds other bytes");
    }
}

async fn fill(world: &mut World, contents: &mut Contents, salt: u8) {
    for inode in 10..22 {
        for (chunk, length) in [(0, 3000), (1, 200_000), (2, 1_300_000)] {
            let object = object(inode, chunk);
            let bytes = pattern(object, salt, length);
            for (index, piece) in bytes.chunks(1 << 20).enumerate() {
                world.client.write(&world.stub, object, (index << 20) as u32, piece).await;
            }
            contents.insert(object, bytes);
        }
    }
}

async fn sync(world: &mut World) {
    for seed in 0..PG_NUM {
        let pg = PgId { pool: POOL, seed };
        let (answer, _) = world
            .client
            .ask(
                &world.stub,
                pg,
                DataRequest::Sync { pgs: vec![Extent { pg, pg_num: PG_NUM }] },
                Bytes::new(),
            )
            .await;
        assert_eq!(answer, Ok(DataReply::Synced));
    }
}

fn with_world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut world = World::new();
        (1..=3).for_each(|id| world.start(DataServerId(id)));
        until("the groups serve", || world.stub.is_whole()).await;
        test(world).await;
    });
}

#[test]
fn servers_die_and_return_and_nothing_is_lost() {
    with_world(|mut world| async move {
        let mut contents = Contents::new();
        fill(&mut world, &mut contents, 0).await;
        sync(&mut world).await;
        check_contents(&mut world, &contents).await;

        // One dies; its session ends; the others go on, and it catches up when it returns.
        let third = DataServerId(3);
        world.stop(third, Stop::Dead).await;
        world.stub.expire(third);
        fill(&mut world, &mut contents, 0x40).await;
        check_contents(&mut world, &contents).await;
        world.start(third);
        until("the third server is in sync again", || world.stub.is_whole()).await;
        assert!(world.stub.was_clean(third), "the kernel lives, so nothing was lost");
        world.stub.lead(third);
        check_contents(&mut world, &contents).await;

        // All die at once.
        for id in 1..=3 {
            world.stop(DataServerId(id), Stop::Dead).await;
        }
        (1..=3).for_each(|id| world.start(DataServerId(id)));
        until("the groups serve again", || world.stub.is_whole()).await;
        check_contents(&mut world, &contents).await;
        sync(&mut world).await;
        for id in 1..=3 {
            world.stop(DataServerId(id), Stop::Clean).await;
        }
    });
}

/// One server is away meanwhile and learns of it at its next start.
#[test]
fn a_removed_pool_leaves_nothing_behind() {
    with_world(|mut world| async move {
        let (ids, third) = ([1, 2, 3].map(DataServerId), DataServerId(3));
        let mut contents = Contents::new();
        fill(&mut world, &mut contents, 0).await;
        world.stop(third, Stop::Dead).await;
        let object = object(10, 0);
        world.stub.remove_pool();
        world.start(third);
        for server in ids {
            let (start, mut refused) = (Instant::now(), None);
            while !matches!(refused, Some(Err(DataError::Malformed(_)))) {
                assert!(start.elapsed() < DEADLINE, "server {server} still answers {refused:?}");
                // As a client that knows nothing of it.
                let address = world.stub.map().data_servers[&server].address;
                let request = DataRequest::Read { context: context(object), offset: 0, length: 8 };
                refused = world.client.ask_server(server, address, &request, Bytes::new()).await.map(|a| a.0);
            }
        }
        world.stub.forget_held();
        for server in ids {
            world.stop(server, Stop::Clean).await;
        }
        ids.into_iter().for_each(|server| world.start(server));
        until("all start again", || ids.iter().all(|server| world.stub.held(*server).is_some())).await;
        assert_eq!(ids.map(|server| world.stub.held(server)), [Some(0); 3], "groups that nobody needs");
        for server in ids {
            world.stop(server, Stop::Clean).await;
        }
    });
}

#[test]
fn flipped_bytes_are_served_from_another_replica_and_repaired() {
    with_world(|mut world| async move {
        let mut contents = Contents::new();
        fill(&mut world, &mut contents, 0).await;
        let victim = DataServerId(2);
        world.stop(victim, Stop::Clean).await;
        let flipped = flip_bytes(&world.store_dir(victim), &contents[&object(12, 2)]);
        assert!(flipped > 0, "the object's bytes are in a file of the store");
        world.start(victim);
        until("the groups serve again", || world.stub.is_whole()).await;
        world.stub.lead(victim);
        until("the damaged server leads", || world.stub.serves()).await;
        check_contents(&mut world, &contents).await;
        until("the damage is counted", || world.stub.corrupt_blocks(victim) > 0).await;
        let counted = world.stub.corrupt_blocks(victim);
        check_contents(&mut world, &contents).await;
        sync(&mut world).await;
        assert_eq!(world.stub.corrupt_blocks(victim), counted, "what was repaired stays so");
        for id in 1..=3 {
            world.stop(DataServerId(id), Stop::Clean).await;
        }
    });
}

/// Flips a byte in every place that holds the beginning of a block of `contents`.
fn flip_bytes(dir: &Path, contents: &[u8]) -> usize {
    use std::os::unix::fs::FileExt;
    let needle = &contents[512 << 10..(512 << 10) + 256];
    let mut flipped = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        for block in 0..length / 4096 {
            let mut head = [0; 256];
            file.read_exact_at(&mut head, block * 4096).unwrap();
            if head == needle {
                file.write_all_at(&[!head[100]], block * 4096 + 100).unwrap();
                flipped += 1;
            }
        }
    }
    flipped
}

#[test]
fn requests_are_judged_by_certificate_truncation_and_number() {
    with_world(|mut world| async move {
        let target = object(30, 0);
        let pg = target.pg(PG_NUM);
        let bytes = pattern(target, 0, 5000);
        let request = world.client.request();
        let write =
            DataRequest::Write { request, context: context(target), offset: 0, crc: crc32c::crc32c(&bytes) };
        let payload = Bytes::from(bytes.clone());
        let (first, _) = world.client.ask(&world.stub, pg, write.clone(), payload.clone()).await;
        let (again, _) = world.client.ask(&world.stub, pg, write.clone(), payload.clone()).await;
        assert_eq!(first, again, "a retry is answered, not executed");

        let (wrong, _) = world.client.ask(&world.stub, pg, write, Bytes::from_static(b"other")).await;
        assert_eq!(wrong, first, "its number counts, not its bytes");
        let request = world.client.request();
        let damaged = DataRequest::Write { request, context: context(target), offset: 0, crc: 1 };
        let (damaged, _) = world.client.ask(&world.stub, pg, damaged, payload.clone()).await;
        assert!(matches!(damaged, Err(DataError::Malformed(_))), "{damaged:?}");

        let truncations = vec![Truncation { seq: 9, size: 100 }];
        let mut cut = context(target);
        cut.truncations.clone_from(&truncations);
        let read = DataRequest::Read { context: cut, offset: 0, length: 5000 };
        let (_, cut_bytes) = world.client.ask(&world.stub, pg, read, Bytes::new()).await;
        assert_eq!(cut_bytes, bytes[..100]);

        let trim = DataRequest::TrimInode {
            pg,
            pg_num: PG_NUM,
            inode: InodeId(30),
            chunk_size: CHUNK,
            truncations,
            floor: 9,
        };
        let (refused, _) = world.client.ask(&world.stub, pg, trim.clone(), Bytes::new()).await;
        assert!(matches!(refused, Err(DataError::Refused(_))), "{refused:?}");
        let mut leader = Client::new(endpoint(&world.authority, Role::Metadata, 1, &Limits::NONE));
        let (trimmed, _) = leader.ask(&world.stub, pg, trim, Bytes::new()).await;
        assert!(matches!(trimmed, Ok(DataReply::Trimmed { .. })), "{trimmed:?}");
        let stale = DataRequest::Read { context: context(target), offset: 0, length: 10 };
        let (stale, _) = world.client.ask(&world.stub, pg, stale, Bytes::new()).await;
        assert_eq!(stale, Err(DataError::StaleTruncation { known: 9 }));

        let limits = Limits { read_only: true, ..Limits::NONE };
        let mut reader = Client::new(endpoint(&world.authority, Role::Client, 6, &limits));
        let request = reader.request();
        let crc = crc32c::crc32c(&payload);
        let write = DataRequest::Write { request, context: context(object(31, 0)), offset: 0, crc };
        let (refused, _) = reader.ask(&world.stub, object(31, 0).pg(PG_NUM), write, payload).await;
        assert!(matches!(refused, Err(DataError::Refused(_))), "{refused:?}");
        for id in 1..=3 {
            world.stop(DataServerId(id), Stop::Clean).await;
        }
    });
}

#[test]
fn many_writers_at_once_share_the_window() {
    with_world(|world| async move {
        let world = Rc::new(tokio::sync::Mutex::new(world));
        let (stub_map, authority_endpoint) = {
            let world = world.lock().await;
            (world.stub.map(), endpoint(&world.authority, Role::Client, 8, &Limits::NONE))
        };
        let mut clients = BTreeMap::new();
        for (id, info) in &stub_map.data_servers {
            let expect = Expect::server(Role::Data, id.0);
            let connection = authority_endpoint.connect(info.address, expect).await.unwrap();
            clients.insert(*id, RpcClient::<DataRequest, DataResponse>::new(&connection, channel_kind::DATA));
        }
        let writes = (0..600_u64).map(|number| {
            let object = object(100 + number % 7, 0);
            let server = stub_map.primary_address(object.pg(PG_NUM)).unwrap().0;
            let rpc = clients[&server].clone();
            tokio::task::spawn_local(async move {
                let bytes = Bytes::from(pattern(object, number as u8, 20_000));
                let request = RequestId { session: SessionId(8), sequence: number, low_water: 0 };
                let crc = crc32c::crc32c(&bytes);
                let offset = number as u32 * 20_000 % (CHUNK - 20_000);
                let write = DataRequest::Write { request, context: context(object), offset, crc };
                loop {
                    let (answer, _) = rpc.call(&write, bytes.clone()).await.unwrap();
                    match answer {
                        Ok(DataReply::Written { .. }) => return,
                        Err(DataError::Overloaded) => tokio::time::sleep(Duration::from_millis(5)).await,
                        other => panic!("{other:?}"),
                    }
                }
            })
        });
        let writes: Vec<_> = writes.collect();
        for write in writes {
            tokio::time::timeout(DEADLINE, write).await.unwrap().unwrap();
        }
        let mut world = world.lock().await;
        for id in 1..=3 {
            world.stop(DataServerId(id), Stop::Clean).await;
        }
    });
}
