//! Drives the placement-group replicas: one state, one thread, everything in steps.
//!
//! A step hands one event to one replica and then does what the replica wants done. Tasks:
//!
//! | task | hands in |
//! |---|---|
//! | [`peers`] | messages of other data servers, links that come and go |
//! | [`session`] | the cluster map, the lease |
//! | [`requests`] | requests of clients and of the metadata leader |
//! | [`Driver::follow_store`] | how far the store has written and synced |
//! | [`Driver::tick`] | time, credit for recovery |

mod disk_watch;
pub mod peers;
mod recovery;
pub mod requests;
mod scrub;
pub mod session;

use crate::pg::{
    Context, GroupView, Me, Output, PgStore, Replica, RequestToken, Settings, Tick, stored_groups,
};
use crate::store::{
    Digest, ObjectInfo, ObjectKey, Piece, Progress, Store, StoreError, Submitted, Ticket, Transaction,
};
use bytes::Bytes;
use disk_watch::DiskWatch;
use peers::Peers;
use protocol::data::{DataRequest, DataResponse};
use protocol::map::{ClusterMap, PgChange};
use protocol::meta::{DataServerReport, PgReport};
use protocol::replication::{PeerMessage, Position};
use protocol::{DataServerId, MapEpoch, PgId, SessionId};
pub use scrub::ScrubIntervals;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::spawn_local;

/// How often replicas see time pass.
const TICK: Duration = Duration::from_millis(50);
/// Bytes of writes in service; beyond it clients are told to wait a little.
const WRITES_BYTES_MAX: usize = 128 << 20;
/// Changes of configurations on their way to the metadata leader; a replica asks again later for more.
const PROPOSALS_MAX: usize = 1024;
/// Bytes of recovery per second while clients are quiet …
const RECOVERY_IDLE_BYTES: i64 = 200 << 20;
/// … and while they are not.
const RECOVERY_BUSY_BYTES: i64 = 24 << 20;

/// A disk that was asked for something and completed nothing for so many milliseconds has failed.
const DISK_STALL_MS: u64 = 10_000;

/// A wish to change a group's configuration.
pub struct Proposal {
    /// The group.
    pub pg: PgId,
    /// Version that it is based on.
    pub version: u64,
    /// The change.
    pub change: PgChange,
}

/// See the module.
pub struct Driver {
    /// Who this is.
    pub me: Me,
    settings: Settings,
    /// The store.
    pub store: Arc<Store>,
    groups: RefCell<BTreeMap<PgId, Replica>>,
    /// The map, once one was received.
    pub map: RefCell<Option<ClusterMap>>,
    /// Its epoch, for those who wait for a newer one.
    epoch: watch::Sender<MapEpoch>,
    lease_until: Cell<Tick>,
    waiting: RefCell<BTreeMap<RequestToken, oneshot::Sender<(DataResponse, Bytes)>>>,
    next_token: Cell<u64>,
    /// Groups with transactions that are not durable yet.
    unsettled: RefCell<BTreeMap<PgId, Ticket>>,
    seen: Cell<(u64, u64)>,
    peers: Peers,
    proposals: mpsc::Sender<Proposal>,
    /// Rings when a newer map is needed.
    pub map_needed: Notify,
    corrupt_blocks: Cell<u64>,
    /// Objects and bytes copied to other members since the start.
    copied: Cell<(u64, u64)>,
    foreground: Cell<u64>,
    /// How often groups are scrubbed.
    pub scrub_every: Cell<ScrubIntervals>,
    /// Bytes of writes in service.
    writing_bytes: Cell<usize>,
    /// Why the server must stop, once it must.
    pub fatal: RefCell<Option<String>>,
    /// Rung with `fatal`.
    pub stopped: Notify,
    /// Rung with `fatal`, for the session.
    pub leaving: Notify,
    disk: Cell<DiskWatch>,
}

impl Driver {
    /// Loads every group that the store holds.
    ///
    /// # Errors
    /// The store says no.
    pub fn load(
        me: Me,
        settings: Settings,
        store: Arc<Store>,
        peers: Peers,
    ) -> Result<(Rc<Self>, mpsc::Receiver<Proposal>), StoreError> {
        let mut access = Access::new(&store);
        let mut groups = BTreeMap::new();
        for pg in stored_groups(&mut access)? {
            groups.insert(pg, Replica::load(pg, me, settings, &mut access)?);
        }
        let (proposals, wishes) = mpsc::channel(PROPOSALS_MAX);
        let driver = Self {
            me,
            settings,
            store,
            groups: RefCell::new(groups),
            map: RefCell::default(),
            epoch: watch::Sender::default(),
            lease_until: Cell::default(),
            waiting: RefCell::default(),
            next_token: Cell::new(1),
            unsettled: RefCell::default(),
            seen: Cell::new((0, 0)),
            peers,
            proposals,
            map_needed: Notify::new(),
            corrupt_blocks: Cell::new(0),
            copied: Cell::new((0, 0)),
            foreground: Cell::new(0),
            scrub_every: Cell::default(),
            writing_bytes: Cell::new(0),
            fatal: RefCell::default(),
            stopped: Notify::new(),
            leaving: Notify::new(),
            disk: Cell::default(),
        };
        Ok((Rc::new(driver), wishes))
    }

    /// Where every group stands, for the registration.
    pub fn positions(&self) -> Vec<(PgId, Position)> {
        self.groups.borrow().iter().map(|(pg, replica)| (*pg, replica.position())).collect()
    }

    /// For the heartbeat.
    pub fn report(&self) -> DataServerReport {
        let space = self.store.space();
        let groups: Vec<(PgId, PgReport)> =
            self.groups.borrow().iter().filter_map(|(pg, r)| Some((*pg, r.report()?))).collect();
        DataServerReport {
            capacity: space.capacity,
            used: space.used,
            corrupt_blocks: self.corrupt_blocks.get(),
            groups,
            copied_objects: self.copied.get().0,
            copied_bytes: self.copied.get().1,
        }
    }

    /// The session with the metadata cluster is alive until then.
    pub fn extend_lease(&self, until: Tick) {
        self.lease_until.set(self.lease_until.get().max(until));
    }

    /// The session is gone.
    pub fn end_lease(&self) {
        self.lease_until.set(Tick(0));
    }

    /// Epoch of the map at hand; 0 before there is one.
    pub fn map_epoch(&self) -> MapEpoch {
        self.map.borrow().as_ref().map_or(MapEpoch(0), |map| map.epoch)
    }

    /// A new map: replicas of every group that this server is in, or holds, see it. An older one than that at
    /// hand is ignored: what was learned is never unlearned.
    pub fn adopt_map(self: &Rc<Self>, map: ClusterMap) {
        if map.epoch < self.map_epoch() {
            return;
        }
        let before = self.map.borrow().as_ref().map(|known| known.generation.number);
        if before.is_some_and(|known| known < map.generation.number) {
            tracing::warn!(
                "the metadata was restored from a backup (generation {} now): groups serve again when all their members \
                 are back",
                map.generation.number
            );
        }
        let blocked = Rc::new(map.blocked.clone());
        let member = |pg: &PgId| map.pgs.get(pg).is_some_and(|c| c.member(self.me.server).is_some());
        let mut concerned: BTreeSet<PgId> = map.pgs.keys().filter(|pg| member(pg)).copied().collect();
        concerned.extend(self.groups.borrow().keys());
        let views: Vec<(PgId, GroupView)> =
            concerned.into_iter().filter_map(|pg| Some((pg, view_of(&map, pg, &blocked)?))).collect();
        self.peers.adopt(&map, self.me.server, self);
        let removed = |pg: &PgId| map.removed_pools.contains(&pg.pool);
        let orphans: Vec<PgId> = self.groups.borrow().keys().copied().filter(removed).collect();
        *self.map.borrow_mut() = Some(map);
        for pg in orphans {
            self.step(pg, |replica, cx| replica.handle_pool_removed(cx));
        }
        for (pg, view) in views {
            self.ensure(pg);
            self.step(pg, |replica, cx| replica.handle_view(cx, view));
        }
        self.epoch.send_replace(self.map_epoch());
    }

    /// A split made a group: its replica begins, and sees the map at hand.
    fn begin(self: &Rc<Self>, pg: PgId, ticket: Ticket) {
        let mut access = Access::new(&self.store);
        match Replica::load_newborn((pg, ticket), self.me, self.settings, &mut access) {
            Ok(replica) => drop(self.groups.borrow_mut().insert(pg, replica)),
            Err(error) => return self.fail(&format!("cannot load placement group {pg}: {error}")),
        }
        self.unsettled.borrow_mut().insert(pg, ticket);
        let view = self.map.borrow().as_ref().and_then(|map| view_of(map, pg, &Rc::new(map.blocked.clone())));
        if let Some(view) = view {
            self.step(pg, |replica, cx| replica.handle_view(cx, view));
        }
    }

    fn ensure(self: &Rc<Self>, pg: PgId) {
        if self.groups.borrow().contains_key(&pg) {
            return;
        }
        match Replica::load(pg, self.me, self.settings, &mut Access::new(&self.store)) {
            Ok(replica) => drop(self.groups.borrow_mut().insert(pg, replica)),
            Err(error) => self.fail(&format!("cannot load placement group {pg}: {error}")),
        }
    }

    /// Hands a request to its group; the answer comes through the receiver.
    pub fn submit(
        self: &Rc<Self>,
        pg: PgId,
        body: DataRequest,
        payload: Bytes,
    ) -> oneshot::Receiver<(DataResponse, Bytes)> {
        let token = RequestToken(self.next_token.get());
        self.next_token.set(token.0 + 1);
        let (answer, answered) = oneshot::channel();
        self.waiting.borrow_mut().insert(token, answer);
        self.foreground.set(self.foreground.get() + 1);
        if !self.step(pg, |replica, cx| replica.handle_request(cx, token, body, payload)) {
            // The receiver says "dropped", which its owner turns into "not the primary".
            self.waiting.borrow_mut().remove(&token);
        }
        answered
    }

    /// Hands in a message of another data server.
    pub fn message(self: &Rc<Self>, from: DataServerId, pg: PgId, message: PeerMessage, payload: Bytes) {
        if self.map.borrow().as_ref().is_some_and(|map| map.removed_pools.contains(&pg.pool)) {
            return;
        }
        self.ensure(pg);
        self.step(pg, |replica, cx| replica.handle_message(cx, from, message, payload));
    }

    /// A link came or went.
    pub fn link(self: &Rc<Self>, server: DataServerId, up: bool) {
        for pg in self.group_ids() {
            self.step(pg, |replica, cx| replica.handle_link(cx, server, up));
        }
    }

    fn group_ids(&self) -> Vec<PgId> {
        self.groups.borrow().keys().copied().collect()
    }

    /// One event for one replica, then what it wants done. `false` if there is no such replica.
    fn step(self: &Rc<Self>, pg: PgId, event: impl FnOnce(&mut Replica, &mut Context<'_>)) -> bool {
        if self.fatal.borrow().is_some() {
            return false;
        }
        let mut access = Access::new(&self.store);
        let outputs = {
            let mut groups = self.groups.borrow_mut();
            let Some(replica) = groups.get_mut(&pg) else { return false };
            let mut cx = Context {
                now: now(),
                lease_until: self.lease_until.get(),
                unix_s: unix_s(),
                store: &mut access,
            };
            event(replica, &mut cx);
            // Small transactions are mostly written when they are submitted: no need to wait for a wake-up.
            let Progress { written, durable, .. } = cx.store.progress();
            if (written, durable) != self.seen.get() {
                replica.handle_progress(&mut cx, written, durable);
            }
            let mut outputs = Vec::new();
            while let Some(output) = replica.poll_output() {
                outputs.push(output);
            }
            outputs
        };
        if let Some(ticket) = access.submitted {
            self.unsettled.borrow_mut().insert(pg, ticket);
        }
        for output in outputs {
            if self.fatal.borrow().is_none() {
                self.carry_out(pg, output);
            }
        }
        true
    }

    fn carry_out(self: &Rc<Self>, pg: PgId, output: Output) {
        match output {
            Output::Send { to, message, payload } => self.peers.send(to, pg, message, payload),
            Output::Reply { token, response, payload } => {
                if let Some(answer) = self.waiting.borrow_mut().remove(&token) {
                    // Who asked may be gone.
                    let _ = answer.send((response, payload));
                }
            }
            Output::Propose { version, change } => {
                if self.proposals.try_send(Proposal { pg, version, change }).is_err() {
                    tracing::debug!("group {pg} asks for a change later: too many are under way");
                }
            }
            Output::RequestDurable(ticket) => self.request_durable(pg, ticket),
            Output::WaitRoom => self.wait_for_room(pg),
            Output::FetchMap => self.map_needed.notify_one(),
            Output::CorruptBlock => self.corrupt_blocks.set(self.corrupt_blocks.get() + 1),
            Output::Copied { whole, bytes } => {
                let (objects, before) = self.copied.get();
                self.copied.set((objects + u64::from(whole), before + bytes as u64));
            }
            Output::Born { pg, ticket } => self.begin(pg, ticket),
            Output::Removed => drop(self.groups.borrow_mut().remove(&pg)),
            Output::Fatal(error) => self.fail(&error.to_string()),
        }
    }

    /// Makes a group durable and tells it so, also if all of it was submitted before this start.
    fn request_durable(self: &Rc<Self>, pg: PgId, ticket: Ticket) {
        self.store.request_durable(ticket);
        let Progress { written, durable, .. } = self.store.progress().borrow().clone();
        if durable >= ticket.0 {
            self.step(pg, |replica, cx| replica.handle_progress(cx, written, durable));
        } else {
            let mut unsettled = self.unsettled.borrow_mut();
            let known = unsettled.entry(pg).or_insert(ticket);
            *known = (*known).max(ticket);
        }
    }

    fn wait_for_room(self: &Rc<Self>, pg: PgId) {
        let (driver, room) = (self.clone(), self.store.room());
        spawn_local(async move {
            match room.await {
                Ok(()) => drop(driver.step(pg, |replica, cx| replica.handle_room(cx))),
                Err(error) => driver.fail(&error.to_string()),
            }
        });
    }

    /// Stops the server: its disk is not what it must be. From here on no replica does or says anything, so that
    /// others may take over at once.
    pub fn fail(&self, why: &str) {
        if self.fatal.borrow().is_none() {
            tracing::error!("this data server stops: {why}");
            self.end_lease();
            *self.fatal.borrow_mut() = Some(why.to_owned());
            self.leaving.notify_one();
            self.stopped.notify_waiters();
            self.stopped.notify_one();
        }
    }

    /// Whether the disk still completes what it is asked for.
    fn watch_disk(&self) {
        let Progress { written, durable, .. } = self.store.progress().borrow().clone();
        let mut watch = self.disk.get();
        let stalled_ms = watch.look(now(), self.store.is_owed(), (written, durable));
        self.disk.set(watch);
        if stalled_ms > DISK_STALL_MS {
            self.fail(&format!(
                "the disk has completed no write and no sync for {} s; look after it (its cables, 'dmesg'), then \
                 start the server again",
                stalled_ms / 1000
            ));
        }
    }

    /// Tells replicas how far the store has come, as long as it lives.
    pub async fn follow_store(self: Rc<Self>) {
        let mut progress = self.store.progress();
        loop {
            let Progress { written, durable, failed } = progress.borrow_and_update().clone();
            if let Some(why) = failed {
                return self.fail(&why);
            }
            self.progress(written, durable);
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    fn progress(self: &Rc<Self>, written: u64, durable: u64) {
        if self.seen.replace((written, durable)) == (written, durable) {
            return;
        }
        let concerned: Vec<PgId> = self.unsettled.borrow().keys().copied().collect();
        self.unsettled.borrow_mut().retain(|_, ticket| ticket.0 > durable);
        for pg in concerned {
            self.step(pg, |replica, cx| replica.handle_progress(cx, written, durable));
        }
    }

    /// Lets time pass.
    pub async fn tick(self: Rc<Self>) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            for pg in self.group_ids() {
                self.step(pg, |replica, cx| replica.handle_tick(cx));
            }
            self.share_credit();
            self.watch_disk();
        }
    }
}

/// What a map says about a group, if it knows it.
fn view_of(map: &ClusterMap, pg: PgId, blocked: &Rc<BTreeMap<SessionId, MapEpoch>>) -> Option<GroupView> {
    let pool = map.pools.get(&pg.pool)?;
    Some(GroupView {
        config: map.pgs.get(&pg)?.clone(),
        epoch: map.epoch,
        blocked: blocked.clone(),
        sessions_from: map.generation.sessions_from,
        size: pool.size as usize,
        min_size: pool.min_size as usize,
        chunk_size: pool.chunk_size,
        pg_num: pool.pg_num,
        restored_at: map.generation.revision,
    })
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds of a clock that goes on in suspend.
pub fn now() -> Tick {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code, reason = "no std clock counts suspended time")]
    // SAFETY: `time` is a valid timespec that outlives the call; CLOCK_BOOTTIME exists since Linux 2.6.39.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(failed, 0, "CLOCK_BOOTTIME can be read");
    Tick(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
}

/// The store as a replica sees it during one step.
pub struct Access<'a> {
    store: &'a Store,
    submitted: Option<Ticket>,
}

impl<'a> Access<'a> {
    /// For one step.
    pub fn new(store: &'a Store) -> Self {
        Self { store, submitted: None }
    }
}

impl PgStore for Access<'_> {
    fn submit(&mut self, transaction: Transaction) -> Result<Submitted, StoreError> {
        let submitted = self.store.submit(&transaction)?;
        self.submitted = Some(submitted.ticket);
        Ok(submitted)
    }

    fn read(&mut self, key: ObjectKey, offset: u64, len: usize) -> Result<Option<Piece>, StoreError> {
        self.store.read(key, offset, len)
    }

    fn info(&mut self, key: ObjectKey) -> Result<Option<ObjectInfo>, StoreError> {
        self.store.info(key)
    }

    fn list(
        &mut self,
        pg: u64,
        after: Option<(u64, u32)>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, ObjectInfo)>, StoreError> {
        self.store.list(pg, after, limit)
    }

    fn get_meta(&mut self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get_meta(key)
    }

    fn list_meta(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        self.store.list_meta(prefix, after, limit)
    }

    fn digest(&mut self, key: ObjectKey) -> Result<Option<Digest>, StoreError> {
        self.store.digest(key)
    }

    fn progress(&self) -> Progress {
        self.store.progress().borrow().clone()
    }

    fn is_full(&self) -> bool {
        let space = self.store.space();
        space.used >= space.full_at
    }
}
