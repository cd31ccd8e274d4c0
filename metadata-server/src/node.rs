//! The core of one server between the quorum, the connections and the disk: moves what goes in and comes out.

use crate::backup::{BackupView, Backups};
use crate::core::{Broadcast, ClientId, Core, Now, Output, Trim, TrimFailed, refusals};
use crate::disk_layer::{Checkpoint, DiskLayer, RowSink};
use crate::quorum::{
    CheckpointJob, PeerStatus, Quorum, SnapshotSink, SnapshotSource, StateError, StateMachine,
};
use bytes::Bytes;
use protocol::meta::{MetaRequest, MetaResponse, Push, Refusals};
use protocol::transport::Connection;
use protocol::transport::rpc::Responder;
use protocol::{Revision, Timestamp};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc};
use zab::{ChangeError, Membership, MembershipChange, ProposeError, ReadError, Role, Zxid};

impl Broadcast for Quorum {
    fn propose(&mut self, txn: Bytes) -> Result<Zxid, ProposeError> {
        Quorum::propose(self, txn)
    }

    fn read_index(&mut self, number: u64) -> Result<(), ReadError> {
        Quorum::read_index(self, number)
    }

    fn lease_valid(&self) -> bool {
        Quorum::lease_valid(self)
    }

    fn peers(&self) -> Vec<PeerStatus> {
        self.status().peers
    }

    fn refusals(&self) -> Refusals {
        let status = self.status();
        refusals(status.counters, status.transport)
    }

    fn membership(&self) -> (Membership, bool) {
        (self.status().membership, self.is_membership_settled())
    }

    fn change_membership(&mut self, change: &MembershipChange) -> Result<Zxid, ChangeError> {
        Quorum::change_membership(self, change)
    }
}

/// The way to one connection.
struct Link {
    connection: Connection,
    /// Bounded: a client that does not read is disconnected and catches up when it comes back.
    pushes: mpsc::Sender<Push>,
}

/// See the module. Lives on the server's one thread.
pub struct Node {
    core: Core<DiskLayer, Responder<MetaResponse>>,
    quorum: Quorum,
    disk: DiskLayer,
    links: BTreeMap<ClientId, Link>,
    trims: mpsc::Sender<Trim>,
    backups: Backups,
    started: Instant,
    /// What [`Node::next_tick`] said last.
    timer: Option<u64>,
    /// Rung when [`Node::next_tick`] may have become earlier.
    pub sooner: Rc<Notify>,
    /// Why this server has to stop, once it does.
    pub fatal: Option<String>,
    /// Rung with `fatal`.
    pub stopped: Rc<Notify>,
}

impl Node {
    /// A server whose state is in `disk`, which `core` reads. Objects to be cut go to `trims`.
    pub fn new(
        core: Core<DiskLayer, Responder<MetaResponse>>,
        disk: DiskLayer,
        quorum: Quorum,
        trims: mpsc::Sender<Trim>,
    ) -> Self {
        Self {
            core,
            quorum,
            disk,
            links: BTreeMap::new(),
            trims,
            backups: Backups::default(),
            started: Instant::now(),
            timer: None,
            sooner: Rc::new(Notify::new()),
            fatal: None,
            stopped: Rc::new(Notify::new()),
        }
    }

    fn now(&self) -> Now {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() };
        Now { ms: self.started.elapsed().as_millis() as u64, wall }
    }

    /// When [`tick`](Self::tick) is due; `None` while there is nothing to wait for.
    pub fn next_tick(&mut self) -> Option<Instant> {
        self.timer = self.core.next_deadline();
        self.timer.map(|ms| self.started + Duration::from_millis(ms))
    }

    /// Time has passed.
    pub fn tick(&mut self) {
        let now = self.now();
        self.core.handle_tick(&mut self.quorum, now);
        self.carry_out();
    }

    /// A verified peer opened a connection; what it is told unasked goes to `pushes`.
    pub fn connected(&mut self, client: ClientId, connection: Connection, pushes: mpsc::Sender<Push>) {
        self.core.handle_connected(client, connection.peer().clone(), connection.remote_address());
        self.links.insert(client, Link { connection, pushes });
    }

    /// A connection ended.
    pub fn disconnected(&mut self, client: ClientId) {
        self.core.handle_disconnected(client);
        self.backups.forget(client);
        self.links.remove(&client);
    }

    /// A client asks.
    pub fn request(&mut self, client: ClientId, request: MetaRequest, responder: Responder<MetaResponse>) {
        let now = self.now();
        self.core.handle_request(client, responder, request, &mut self.quorum, now);
        self.carry_out();
    }

    /// Data servers answered a [`Trim`], or did not.
    pub fn trimmed(&mut self, number: u64, result: Result<(), TrimFailed>) {
        let now = self.now();
        self.core.handle_trimmed(number, result, &mut self.quorum, now);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        let deadline = self.core.next_deadline();
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Reply { token, response } => token.send(&response, Bytes::new()),
                Output::Push { client, push } => self.push(client, push),
                Output::Close { client, why } => {
                    if let Some(link) = self.links.get(&client) {
                        link.connection.close(why);
                    }
                }
                Output::Trim(trim) => self.trim(trim),
                Output::Backup { client, token, at_least } => self.backup(client, token, at_least),
                Output::BackupNext { client, token } => self.backups.next(client, token),
                Output::Fatal(why) => self.fail(why),
            }
        }
        if deadline.is_some_and(|ms| self.timer.is_none_or(|timer| ms < timer)) {
            self.sooner.notify_one();
        }
    }

    fn backup(&mut self, client: ClientId, token: Responder<MetaResponse>, at_least: Revision) {
        self.backups.begin(client, token, at_least);
        self.begin_backups();
    }

    /// Begins the backups that the last checkpoint contains enough for.
    fn begin_backups(&mut self) {
        if !self.backups.is_waiting() {
            return;
        }
        let view = BackupView {
            cluster: self.core.cluster(),
            taken: self.now().wall,
            directories: self.quorum.directories(),
        };
        if let Err(error) = self.backups.checkpointed(&self.disk, &view) {
            self.fail(error.to_string());
        }
    }

    fn push(&self, client: ClientId, push: Push) {
        if let Some(link) = self.links.get(&client)
            && link.pushes.try_send(push).is_err()
        {
            link.connection.close("it did not read what the leader pushed to it");
        }
    }

    fn trim(&mut self, trim: Trim) {
        let number = trim.number;
        if self.trims.try_send(trim).is_err() {
            let why = "answers to what earlier leaderships asked are still awaited".to_owned();
            self.trimmed(number, Err(TrimFailed { silent: None, why }));
        }
    }

    /// Stops the server: the disk or the log is not what it must be.
    fn fail(&mut self, why: String) {
        if self.fatal.is_none() {
            tracing::error!("this metadata server stops: {why}");
            self.fatal = Some(why);
            self.stopped.notify_waiters();
        }
    }
}

/// The node as the quorum driver sees it.
pub struct NodeMachine(pub Rc<RefCell<Node>>);

impl StateMachine for NodeMachine {
    fn applied(&self) -> Zxid {
        self.0.borrow().core.applied_zxid()
    }

    fn apply(&mut self, zxid: Zxid, txn: &Bytes) {
        let node = &mut *self.0.borrow_mut();
        let now = node.now();
        node.core.handle_applied(zxid, txn, &mut node.quorum, now);
        node.carry_out();
    }

    fn lost_proposals(&mut self) {
        let node = &mut *self.0.borrow_mut();
        node.core.handle_lost_proposals();
        node.carry_out();
    }

    fn role_changed(&mut self, role: Role) {
        let node = &mut *self.0.borrow_mut();
        let now = node.now();
        node.core.handle_role_changed(role, now);
        node.carry_out();
    }

    fn read_ready(&mut self, request: u64, _zxid: Zxid) {
        let node = &mut *self.0.borrow_mut();
        let now = node.now();
        node.core.handle_read_ready(request, &mut node.quorum, now);
        node.carry_out();
    }

    fn checkpoint(&mut self) -> Option<Box<dyn CheckpointJob>> {
        let node = &mut *self.0.borrow_mut();
        let (writes, zxid) = node.core.checkpoint()?;
        Some(Box::new(Checkpoint { database: node.disk.database(), writes, zxid }))
    }

    fn checkpointed(&mut self, _zxid: Zxid) {
        let node = &mut *self.0.borrow_mut();
        match node.disk.refreshed() {
            Ok(disk) => {
                let frozen = node.core.checkpointed(disk);
                // Up to millions of rows, which take longer than anybody should have to wait for this thread.
                tokio::task::spawn_blocking(move || drop(frozen));
            }
            Err(error) => return node.fail(error.to_string()),
        }
        node.begin_backups();
    }

    fn snapshot_source(&mut self) -> Result<Box<dyn SnapshotSource>, StateError> {
        Ok(Box::new(self.0.borrow().disk.source()?))
    }

    fn snapshot_sink(&mut self, path: &Path) -> Result<Box<dyn SnapshotSink>, StateError> {
        Ok(Box::new(RowSink::create(path)?))
    }

    fn install(&mut self, path: &Path, zxid: Zxid) -> Result<(), StateError> {
        let node = &mut *self.0.borrow_mut();
        let disk = DiskLayer::open(path)?;
        node.core.install(disk.refreshed()?)?;
        node.disk = disk;
        let applied = node.core.applied_zxid();
        if applied != zxid {
            return Err(format!("the snapshot ends at {applied}, not at {zxid}").into());
        }
        node.begin_backups();
        Ok(())
    }
}
