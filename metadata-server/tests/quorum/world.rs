//! Three servers in one process, each on a thread and runtime of its own, over QUIC on loopback. Killing one drops
//! its runtime: nothing is said to anybody, the socket is gone.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metadata_server::quorum::files::{Directory, DiskFile, OsDirectory};
use metadata_server::quorum::{
    LogOptions, Quorum, QuorumConfig, QuorumError, QuorumStatus, Storage, StorageOptions,
};
use protocol::channel_kind;
use protocol::identity::{Authority, ClusterId, Identity, Limits, Role};
use protocol::transport::{Endpoint, TransportConfig};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use zab::{Membership, PeerId, Zxid};

use super::key_value::{KeyValue, Put, Shared, Table};

/// Nothing here takes this long; a test that waits longer has failed.
const DEADLINE: Duration = Duration::from_secs(30);
const CLUSTER: ClusterId = ClusterId([5; 16]);

/// Waits for a condition.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct World {
    directory: tempfile::TempDir,
    authority: Authority,
    addresses: BTreeMap<PeerId, SocketAddr>,
    pub(crate) tune: fn(&mut QuorumConfig),
    pub(crate) servers: BTreeMap<PeerId, Server>,
}

impl World {
    /// Servers 1 to 3, started with empty directories.
    pub(crate) fn start(tune: fn(&mut QuorumConfig)) -> World {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), CLUSTER).unwrap();
        let sockets: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = (1..).map(PeerId).zip(sockets.iter().map(|socket| socket.local_addr().unwrap()));
        let addresses = addresses.collect();
        drop(sockets);
        let mut world = World { directory, authority, addresses, tune, servers: BTreeMap::new() };
        for id in 1..=3 {
            world.start_server(PeerId(id));
        }
        world
    }

    pub(crate) fn path(&self, id: PeerId) -> PathBuf {
        self.directory.path().join(format!("server-{id}"))
    }

    pub(crate) fn start_server(&mut self, id: PeerId) {
        let issued = self
            .authority
            .issue(Role::Metadata, &format!("metadata-{id}"), id.0, &Limits::NONE, Duration::from_secs(3600))
            .unwrap();
        let identity = Identity::from_pem(&issued.ca_pem, &issued.certificate_pem, &issued.key_pem).unwrap();
        let peers = self.addresses.iter().map(|(id, address)| (*id, address.to_string())).collect();
        let mut config = QuorumConfig::new(id, peers);
        (self.tune)(&mut config);
        let server = Server::start(config, self.path(id), self.addresses[&id], Arc::new(identity));
        self.servers.insert(id, server);
    }

    /// Ends a server like `kill -9`.
    pub(crate) fn kill(&mut self, id: PeerId) {
        self.servers.remove(&id).expect("it runs").end(Command::Kill).unwrap();
    }

    pub(crate) fn leader(&self) -> PeerId {
        wait_for("a leader", || {
            self.servers.values().find(|server| server.is_leading()).map(|server| server.id)
        })
    }

    /// A running server that does not lead.
    pub(crate) fn follower(&self) -> PeerId {
        let leader = self.leader();
        *self.servers.keys().find(|id| **id != leader).expect("there are others")
    }

    /// Commits `count` rows of `bytes` each, through whoever leads.
    pub(crate) fn commit(&self, prefix: &str, count: usize, bytes: usize) {
        for index in 0..count {
            let put = Put { key: format!("{prefix}-{index:04}"), value: vec![index as u8; bytes] };
            wait_for("a proposal to be taken", || self.servers[&self.leader()].propose(&put).ok());
        }
        let last = format!("{prefix}-{:04}", count - 1);
        wait_for("the last row to be committed", || {
            self.servers.values().any(|server| server.has(&last)).then_some(())
        });
    }

    /// Waits until all running servers are in the same state, and returns it.
    pub(crate) fn agree(&self) -> Table {
        wait_for("agreement", || {
            let tables: Vec<Table> =
                self.servers.values().map(|server| server.view.lock().unwrap().table.clone()).collect();
            let first = tables[0].clone();
            tables.iter().all(|table| *table == first).then_some(first)
        })
    }
}

pub(crate) enum Command {
    Propose(Put, blocking::Sender<Result<Zxid, String>>),
    Read(u64, blocking::Sender<Result<(), String>>),
    Status(blocking::Sender<(QuorumStatus, bool)>),
    Stop,
    Kill,
}

pub(crate) struct Server {
    pub(crate) id: PeerId,
    pub(crate) view: Shared,
    pub(crate) disk: FailingDisk,
    commands: mpsc::UnboundedSender<Command>,
    thread: JoinHandle<Result<(), QuorumError>>,
}

impl Server {
    fn start(config: QuorumConfig, path: PathBuf, address: SocketAddr, identity: Arc<Identity>) -> Server {
        std::fs::create_dir_all(&path).unwrap();
        let (commands, orders) = mpsc::unbounded_channel();
        let view = Shared::default();
        let disk = FailingDisk::new(&path);
        let (id, shared, directory) = (config.zab.id, view.clone(), disk.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = LocalSet::new();
            local.block_on(&runtime, serve(config, path, address, identity, shared, directory, orders))
        });
        Server { id, view, disk, commands, thread }
    }

    pub(crate) fn propose(&self, put: &Put) -> Result<Zxid, String> {
        let (reply, answer) = blocking::channel();
        self.order(Command::Propose(put.clone(), reply));
        answer.recv_timeout(DEADLINE).unwrap_or_else(|error| Err(error.to_string()))
    }

    pub(crate) fn read(&self, request: u64) -> Result<(), String> {
        let (reply, answer) = blocking::channel();
        self.order(Command::Read(request, reply));
        answer.recv_timeout(DEADLINE).unwrap_or_else(|error| Err(error.to_string()))
    }

    /// The status, and whether the lease is valid; `None` if the server has ended.
    pub(crate) fn status(&self) -> Option<(QuorumStatus, bool)> {
        let (reply, answer) = blocking::channel();
        self.order(Command::Status(reply));
        answer.recv_timeout(DEADLINE).ok()
    }

    pub(crate) fn is_leading(&self) -> bool {
        matches!(self.status(), Some((status, _)) if matches!(status.role, zab::Role::Leading { .. }))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.view.lock().unwrap().table.rows.contains_key(key)
    }

    /// Ends the server and returns how its driver ended.
    pub(crate) fn end(self, command: Command) -> Result<(), QuorumError> {
        self.order(command);
        self.thread.join().unwrap()
    }

    fn order(&self, command: Command) {
        // A server that has ended answers nothing, which the caller sees.
        let _ = self.commands.send(command);
    }
}

async fn serve(
    config: QuorumConfig,
    path: PathBuf,
    address: SocketAddr,
    identity: Arc<Identity>,
    view: Shared,
    disk: FailingDisk,
    mut orders: mpsc::UnboundedReceiver<Command>,
) -> Result<(), QuorumError> {
    let options = StorageOptions {
        cluster: CLUSTER.0,
        server: config.zab.id,
        log: LogOptions { segment_bytes: 64 << 10 },
    };
    let voters: Vec<PeerId> = config.peers.keys().copied().collect();
    let storage =
        Storage::open_or_create_in(&path, Arc::new(disk), &options, || Membership::unbound(voters))?;
    let state = KeyValue::open(&storage.state_path(), &view);
    let endpoint = Endpoint::bind(address, identity, TransportConfig::default()).unwrap();
    let applied = view.lock().unwrap().table.applied;
    let (quorum, driver) = Quorum::new(config, storage, applied, endpoint.clone())?;
    spawn_local(accept(endpoint, quorum.clone()));
    let driver = driver.run(state);
    tokio::pin!(driver);
    loop {
        tokio::select! {
            ended = &mut driver => return ended,
            Some(order) = orders.recv() => match order {
                Command::Propose(put, reply) => {
                    let _ = reply.send(quorum.propose(put.encode()).map_err(|error| error.to_string()));
                }
                Command::Read(request, reply) => {
                    let _ = reply.send(quorum.read_index(request).map_err(|error| error.to_string()));
                }
                Command::Status(reply) => drop(reply.send((quorum.status(), quorum.lease_valid()))),
                Command::Stop => quorum.stop(),
                Command::Kill => return Ok(()),
            }
        }
    }
}

async fn accept(endpoint: Endpoint, quorum: Quorum) {
    while let Some(connection) = endpoint.accept().await {
        let quorum = quorum.clone();
        spawn_local(async move {
            while let Ok((kind, channel)) = connection.accept_channel().await {
                assert_eq!(kind, channel_kind::ZAB);
                quorum.accept_channel(channel);
            }
        });
    }
}

/// A directory whose syncs can be made to fail.
#[derive(Clone)]
pub(crate) struct FailingDisk {
    directory: OsDirectory,
    fails: Arc<AtomicBool>,
    stalls: Arc<Mutex<()>>,
}

impl FailingDisk {
    fn new(path: &Path) -> FailingDisk {
        FailingDisk { directory: OsDirectory::new(path), fails: Arc::default(), stalls: Arc::default() }
    }

    /// Every further sync fails.
    pub(crate) fn fail(&self) {
        self.fails.store(true, Ordering::Release);
    }

    /// No sync returns until the guard is dropped.
    pub(crate) fn stall(&self) -> std::sync::MutexGuard<'_, ()> {
        self.stalls.lock().unwrap()
    }

    fn check(&self) -> io::Result<()> {
        drop(self.stalls.lock().unwrap());
        if self.fails.load(Ordering::Acquire) { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }
}

impl Directory for FailingDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.directory.list()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FailingFile { file: self.directory.open(name)?, disk: self.clone() }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FailingFile { file: self.directory.create(name, len)?, disk: self.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.directory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.check()?;
        self.directory.sync()
    }
}

struct FailingFile {
    file: Box<dyn DiskFile>,
    disk: FailingDisk,
}

impl DiskFile for FailingFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.check()?;
        self.file.sync()
    }
}
