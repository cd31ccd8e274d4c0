//! The world: servers with their stores, links that break, a metadata service, clients. One seed is one run.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use protocol::data::{DataError, DataReply, DataRequest, DataResponse};
use protocol::map::{ClusterMap, PgChange, PgConfig};
use protocol::replication::PeerMessage;
use protocol::{DataServerId, MapEpoch, PgId, PoolId, RequestId, SessionId, StoreUuid};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::clients::{Clients, Outbound};
use super::meta::{Metadata, TIMEOUT_MS};
use super::store::SimStore;
use crate::pg::{Context, GroupView, Me, Output, Replica, RequestToken, Settings, Tick, stored_groups};
use crate::store::Ticket;

pub(super) const PG: PgId = PgId { pool: PoolId(1), seed: 0 };
pub(super) const CHUNK: u32 = 64;
/// Most groups that splits lead to.
const GROUPS_MAX: u32 = 12;
const LEASE_MARGIN_MS: u64 = 200;

pub(super) struct Rng(ChaCha8Rng);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Rng(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound.max(1)
    }

    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// Usually short, at times long.
    fn latency(&mut self) -> u64 {
        if self.chance(20) { self.below(300) } else { 1 + self.below(4) }
    }
}

/// What happens in a run besides the clients' work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// A fault happens on average every so many milliseconds; 0 for none.
    pub(super) every_ms: u64,
    /// Machines may lose power, one at a time.
    pub(super) power_loss: bool,
    /// Stored objects get damaged.
    pub(super) damage: bool,
    /// The pool gets other numbers of replicas.
    pub(super) resize: bool,
    /// The pool begins with a few groups and gets more, groups move, and clients learn of it late.
    pub(super) split: bool,
    /// Disks are slow, fill, fail, and lose or misdirect writes; links are silent in one direction, or damage bytes.
    pub(super) disks: bool,
}

impl Faults {
    /// None.
    pub(super) const NONE: Faults =
        Faults { every_ms: 0, power_loss: false, damage: false, resize: false, split: false, disks: false };
}

struct Node {
    store: SimStore,
    alive: bool,
    replicas: BTreeMap<PgId, Replica>,
    /// What the map last said of each group.
    views: BTreeMap<PgId, GroupView>,
    incarnation: u64,
    clean: bool,
    registered: bool,
    paused_until: u64,
    lease_until: u64,
    /// Leases that wait for a map: sent at, epoch.
    leases: Vec<(u64, u64)>,
    map_epoch: u64,
    tokens: BTreeMap<RequestToken, (usize, u64)>,
    /// What their requests are recognised by.
    requests: BTreeMap<RequestToken, RequestId>,
    /// Syncs in service, with the end of the log when they came.
    syncs: BTreeMap<RequestToken, (PgId, u64)>,
    last_token: u64,
    sync_scheduled: bool,
    /// Ticket up to which a sync was asked for.
    sync_wanted: u64,
    write_scheduled: bool,
    room_scheduled: bool,
    /// The disk takes longer until then.
    slow_until: u64,
    /// The machine is gone for good, with its disk.
    destroyed: bool,
}

impl Default for Node {
    fn default() -> Self {
        Node {
            store: SimStore::default(),
            alive: false,
            replicas: BTreeMap::new(),
            views: BTreeMap::new(),
            incarnation: 0,
            clean: true,
            registered: false,
            paused_until: 0,
            lease_until: 0,
            leases: Vec::new(),
            map_epoch: 0,
            tokens: BTreeMap::new(),
            requests: BTreeMap::new(),
            syncs: BTreeMap::new(),
            last_token: 0,
            sync_scheduled: false,
            sync_wanted: 0,
            write_scheduled: false,
            room_scheduled: false,
            slow_until: 0,
            destroyed: false,
        }
    }
}

#[derive(Debug)]
enum Event {
    Tick(DataServerId),
    Heartbeat(DataServerId),
    HeartbeatArrives {
        server: DataServerId,
        incarnation: u64,
        sent: u64,
    },
    Lease {
        server: DataServerId,
        incarnation: u64,
        sent: u64,
        epoch: u64,
    },
    Register(DataServerId),
    Map {
        server: DataServerId,
        incarnation: u64,
        epoch: u64,
        views: BTreeMap<PgId, GroupView>,
    },
    ClientMap {
        client: usize,
        map: Rc<ClusterMap>,
    },
    Deliver {
        from: DataServerId,
        to: DataServerId,
        pg: PgId,
        link: u64,
        message: PeerMessage,
        payload: Bytes,
    },
    LinkUp {
        a: DataServerId,
        b: DataServerId,
    },
    Written(DataServerId, u64),
    Durable(DataServerId, u64),
    Room(DataServerId, u64),
    Propose {
        from: DataServerId,
        pg: PgId,
        version: u64,
        change: PgChange,
    },
    MetaTick,
    Restart(DataServerId),
    /// An administrator removes a machine that is gone for good.
    Forget(DataServerId),
    Request {
        server: DataServerId,
        pg: PgId,
        client: usize,
        attempt: u64,
        body: DataRequest,
        payload: Bytes,
    },
    Answer {
        client: usize,
        attempt: u64,
        response: DataResponse,
        payload: Bytes,
    },
    ClientStep(usize),
    Fault,
}

mod checks;
mod coverage;
mod faults;
mod known;
mod maps;

pub(super) use coverage::Coverage;

/// Objects of a store.
pub(super) type Objects = BTreeMap<crate::store::ObjectKey, super::store::SimObject>;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    nodes: BTreeMap<DataServerId, Node>,
    pub(super) meta: Metadata,
    pub(super) clients: Clients,
    /// The map that each client knows; without splits the newest.
    client_maps: Vec<Rc<ClusterMap>>,
    /// Number of the connection between two servers, and when it was cut.
    links: BTreeMap<(DataServerId, DataServerId), u64>,
    cut: BTreeSet<(DataServerId, DataServerId)>,
    /// Servers that cannot reach the metadata cluster until then.
    lonely: BTreeMap<DataServerId, u64>,
    arrival: BTreeMap<(DataServerId, DataServerId), u64>,
    faults: Faults,
    /// Bytes of recovery per tick: from a burst down to an object in seconds.
    recovery_credit: i64,
    /// Entries kept of the operation log.
    pub(super) log_max: usize,
    /// The largest end of each group's log that a sync was answered for.
    synced: BTreeMap<PgId, u64>,
    /// The last operation of each group that a client was told of.
    acknowledged: BTreeMap<PgId, u64>,
    /// How many operations clients were told of.
    acknowledgements: u64,
    pub(super) problem: Option<String>,
    pub(super) faults_seen: u64,
    /// Of everything that happened so far: one seed is one digest.
    pub(super) digest: u64,
    /// What came in which phase.
    pub(super) coverage: Coverage,
    /// Directions in which links are silent, and until when.
    silent: BTreeMap<(DataServerId, DataServerId), u64>,
    /// Tell everything (`TRACE=1` in the environment).
    trace: bool,
}

fn settings(log_max: usize) -> Settings {
    Settings {
        retry_ms: 150,
        drop_after_ms: 900,
        grace_ms: TIMEOUT_MS + 200,
        window_ops: 8,
        window_bytes: 256,
        queue_max: 64,
        log_max,
        log_trim: 8,
        fill_piece_bytes: 24,
        fill_window_bytes: 2048,
        lag_bytes: 8192,
    }
}

fn pair(a: DataServerId, b: DataServerId) -> (DataServerId, DataServerId) {
    (a.min(b), a.max(b))
}

impl World {
    pub(super) fn new(seed: u64, servers: u32, clients: usize, faults: Faults) -> Self {
        let mut world = World {
            rng: Rng::new(seed),
            now: 1000,
            events: BTreeMap::new(),
            last_event: 0,
            nodes: BTreeMap::new(),
            meta: Metadata::new(if faults.split { 1 + (seed % 3) as u32 } else { 1 }),
            clients: Clients::new(clients, if faults.split { 4 } else { 2 }),
            client_maps: vec![Rc::default(); clients],
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            lonely: BTreeMap::new(),
            arrival: BTreeMap::new(),
            faults,
            // With a long log members that were away are caught up across splits.
            log_max: if faults.split && seed % 4 < 2 { 400 } else { 24 },
            synced: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            acknowledgements: 0,
            recovery_credit: [100_000, 4096, 900][(seed % 3) as usize],
            problem: None,
            faults_seen: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            coverage: Coverage::default(),
            silent: BTreeMap::new(),
            trace: std::env::var("TRACE").is_ok(),
        };
        for id in 0..servers {
            let id = DataServerId(id);
            world.nodes.insert(id, Node::default());
            world.at(u64::from(id.0), Event::Restart(id));
        }
        world.at(1, Event::MetaTick);
        for client in 0..clients {
            world.at(200 + client as u64, Event::ClientStep(client));
        }
        if faults.every_ms > 0 {
            world.at(1500, Event::Fault);
        }
        world
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((self.now + delay, self.last_event), event);
    }

    /// Runs until the condition holds; false if it does not within `limit_ms`.
    pub(super) fn run_until(&mut self, limit_ms: u64, done: impl Fn(&World) -> bool) -> bool {
        let limit = self.now + limit_ms;
        let mut checked = 0;
        while self.problem.is_none() {
            if self.now >= checked {
                if done(self) {
                    return true;
                }
                checked = self.now + 20;
            }
            let next = self.events.first_entry().filter(|next| next.key().0 <= limit);
            let Some(((time, _), event)) = next.map(|next| next.remove_entry()) else { return false };
            self.now = self.now.max(time);
            self.handle(event);
        }
        false
    }

    pub(super) fn nudge_first_client(&mut self) {
        self.at(1, Event::ClientStep(0));
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) {
        self.faults.every_ms = 0;
        self.lonely.clear();
        self.silent.clear();
        for (a, b) in std::mem::take(&mut self.cut) {
            self.at(1, Event::LinkUp { a, b });
        }
        for node in self.nodes.values_mut() {
            node.paused_until = 0;
            node.slow_until = 0;
            node.store.full = false;
            node.store.lies = None;
            node.store.fails_at = None;
        }
    }

    /// All machines lose power at once.
    pub(super) fn lose_all_power(&mut self) {
        self.forget_unsynced();
        for id in self.ids() {
            self.stop(id, true, Some(50));
        }
    }

    /// All processes are killed at once.
    pub(super) fn kill_all(&mut self) {
        for id in self.ids() {
            self.stop(id, false, Some(50));
        }
    }

    pub(super) fn ids(&self) -> Vec<DataServerId> {
        self.nodes.keys().copied().collect()
    }

    /// Every server runs and has said so.
    pub(super) fn all_are_up(&self) -> bool {
        let known = |(id, node): (&DataServerId, &Node)| {
            let incarnation = self.meta.servers.get(id).filter(|s| s.up).map(|s| s.incarnation);
            node.destroyed || (node.alive && incarnation == Some(node.incarnation))
        };
        self.nodes.iter().all(known)
    }

    pub(super) fn primary_is_quiet(&self) -> bool {
        let is_quiet = |(pg, config): (&PgId, &PgConfig)| {
            let replica = config.primary.and_then(|primary| self.nodes[&primary].replicas.get(pg));
            replica.is_some_and(|r| r.is_active() && !r.wants_credit())
        };
        self.meta.groups.iter().all(is_quiet)
    }

    fn handle(&mut self, event: Event) {
        if let Some(server) = self.receiver(&event) {
            let until = self.nodes[&server].paused_until;
            if until > self.now {
                let delay = until - self.now;
                return self.at(delay, event);
            }
        }
        self.note_event(&event);
        match event {
            Event::Tick(server) => {
                let credit = self.recovery_credit;
                self.with_all(server, |replica, cx| {
                    replica.handle_tick(cx);
                    if replica.wants_credit() {
                        replica.handle_credit(cx, credit);
                    }
                    if replica.is_scrubbing() || replica.is_verifying() {
                        replica.handle_scrub_credit(cx, 20_000);
                    }
                });
                self.at(100, Event::Tick(server));
            }
            Event::Heartbeat(server) => self.heartbeat(server),
            Event::HeartbeatArrives { server, incarnation, sent } => {
                if self.meta.heartbeat(self.now, server, incarnation) {
                    let (delay, epoch) = (self.rng.latency(), self.meta.epoch);
                    self.at(delay, Event::Lease { server, incarnation, sent, epoch });
                } else if self.nodes[&server].incarnation == incarnation {
                    self.at(5, Event::Register(server));
                }
            }
            Event::Lease { server, incarnation, sent, epoch } => {
                let node = self.node(server);
                if node.incarnation == incarnation && node.alive {
                    node.leases.push((sent, epoch));
                    node.settle_leases();
                    if node.map_epoch < epoch {
                        self.send_map(server);
                    }
                    self.with_all(server, |replica, cx| replica.handle_tick(cx));
                }
            }
            Event::Register(server) => self.register(server),
            Event::Map { server, incarnation, epoch, views } => {
                self.take_map(server, incarnation, epoch, views);
            }
            Event::ClientMap { client, map } => self.tell_client(client, map),
            Event::Deliver { from, to, pg, link, message, payload } => {
                if self.links.get(&pair(from, to)).copied().unwrap_or(0) == link {
                    self.ensure(to, pg);
                    self.cover(to, pg, coverage::name_of(&message));
                    self.with(to, pg, |replica, cx| replica.handle_message(cx, from, message, payload));
                }
            }
            Event::LinkUp { a, b } => {
                self.cut.remove(&pair(a, b));
                self.with_all(a, |replica, cx| replica.handle_link(cx, b, true));
                self.with_all(b, |replica, cx| replica.handle_link(cx, a, true));
            }
            Event::Written(server, incarnation) => {
                let node = self.node(server);
                if node.incarnation == incarnation {
                    node.write_scheduled = false;
                    let upto = node.store.submitted();
                    node.store.set_written(upto);
                    self.progress(server);
                }
            }
            Event::Durable(server, incarnation) => {
                let node = self.node(server);
                if node.incarnation == incarnation {
                    node.sync_scheduled = false;
                    let upto = node.store.least_kept(false);
                    node.store.set_durable(upto);
                    // What is not written yet is synced once it is.
                    if upto < node.sync_wanted {
                        node.sync_scheduled = true;
                        self.at(5, Event::Durable(server, incarnation));
                    }
                    self.progress(server);
                }
            }
            Event::Room(server, incarnation) => {
                let node = self.node(server);
                if node.incarnation == incarnation {
                    node.room_scheduled = false;
                    node.store.busy = false;
                    self.with_all(server, |replica, cx| replica.handle_room(cx));
                }
            }
            Event::Propose { from, pg, version, change } => {
                let before = self.meta.epoch;
                let known: Vec<PgId> = self.meta.groups.keys().copied().collect();
                self.meta.propose(from, pg, version, &change);
                if self.meta.epoch != before {
                    self.check_change(pg, &change);
                    let born = self.meta.groups.keys().find(|pg| !known.contains(pg)).copied();
                    born.into_iter().for_each(|child| self.check_split(pg, child));
                }
                self.publish(before);
            }
            Event::MetaTick => {
                let before = self.meta.epoch;
                self.meta.tick(self.now);
                self.publish(before);
                self.at(100, Event::MetaTick);
            }
            Event::Restart(server) => self.start(server),
            Event::Forget(server) => {
                let before = self.meta.epoch;
                self.meta.forget(server);
                self.publish(before);
            }
            Event::Request { server, pg, client, attempt, body, payload } => {
                self.cover(server, pg, coverage::name_of_request(&body));
                let node = self.node(server);
                if !node.alive {
                    return;
                }
                let Some(replica) = node.replicas.get(&pg) else {
                    let response = Err(DataError::NotPrimary { version: 0 });
                    return self.at(1, Event::Answer { client, attempt, response, payload: Bytes::new() });
                };
                node.last_token += 1;
                let token = RequestToken(node.last_token);
                if let DataRequest::Write { request, .. } | DataRequest::Zero { request, .. } = &body {
                    node.requests.insert(token, *request);
                }
                if matches!(body, DataRequest::Sync { .. }) {
                    node.syncs.insert(token, (pg, replica.position().sequence));
                }
                node.tokens.insert(token, (client, attempt));
                self.with(server, pg, |replica, cx| replica.handle_request(cx, token, body, payload));
            }
            Event::Answer { client, attempt, response, payload } => {
                if self.faults.split && matches!(response, Err(DataError::NotPrimary { .. })) {
                    let map = Rc::new(self.meta.map());
                    self.tell_client(client, map);
                }
                match self.clients.answer(client, attempt, self.now, response, &payload) {
                    Ok(delay) => self.at(delay, Event::ClientStep(client)),
                    Err(problem) => self.problem = Some(problem),
                }
            }
            Event::ClientStep(client) => self.client_step(client),
            Event::Fault => self.fault(),
        }
    }

    /// The server whose pause delays the event.
    fn receiver(&self, event: &Event) -> Option<DataServerId> {
        match event {
            Event::Tick(server)
            | Event::Heartbeat(server)
            | Event::Lease { server, .. }
            | Event::Map { server, .. }
            | Event::Deliver { to: server, .. }
            | Event::Written(server, _)
            | Event::Durable(server, _)
            | Event::Room(server, _)
            | Event::Request { server, .. } => Some(*server),
            _ => None,
        }
    }

    fn node(&mut self, server: DataServerId) -> &mut Node {
        self.nodes.get_mut(&server).expect("all servers exist from the beginning")
    }

    /// Lets all replicas of a server do something.
    fn with_all(&mut self, server: DataServerId, mut act: impl FnMut(&mut Replica, &mut Context<'_>)) {
        let pgs: Vec<PgId> = self.nodes[&server].replicas.keys().copied().collect();
        for pg in pgs {
            self.with(server, pg, &mut act);
        }
    }

    /// Lets a replica do something, and does what it wants.
    fn with(&mut self, server: DataServerId, pg: PgId, act: impl FnOnce(&mut Replica, &mut Context<'_>)) {
        let now = self.now;
        let node = self.node(server);
        let Some(mut replica) = node.replicas.remove(&pg) else { return };
        let mut outputs = Vec::new();
        let mut cx = Context {
            now: Tick(now),
            lease_until: Tick(node.lease_until),
            unix_s: now / 1000,
            store: &mut node.store,
        };
        let short = |replica: &Replica| {
            replica.is_active() && replica.certain_members() < replica.group.view.min_size
        };
        let before = short(&replica).then(|| replica.position());
        act(&mut replica, &mut cx);
        if before.is_some_and(|before| short(&replica) && replica.position() > before) {
            let members = replica.certain_members();
            self.problem = Some(format!("server {server} ordered an operation with {members} members"));
        }
        let node = self.node(server);
        while let Some(output) = replica.poll_output() {
            outputs.push(output);
        }
        node.replicas.insert(pg, replica);
        let incarnation = node.incarnation;
        let progress = crate::pg::PgStore::progress(&node.store);
        if node.store.submitted() > progress.written && !node.write_scheduled {
            node.write_scheduled = true;
            let delay = 1 + self.rng.below(3) + self.slowness(server);
            self.at(delay, Event::Written(server, incarnation));
        }
        for output in outputs {
            // It stops at once where its disk failed.
            if self.nodes[&server].alive {
                self.output(server, pg, output);
            }
        }
    }

    /// As the driver does: whoever is spoken to has a replica.
    fn ensure(&mut self, server: DataServerId, pg: PgId) {
        let settings = settings(self.log_max);
        let node = self.node(server);
        if !node.alive || node.replicas.contains_key(&pg) {
            return;
        }
        let me = node.me(server);
        let replica = Replica::load(pg, me, settings, &mut node.store).expect("the store can be read");
        node.replicas.insert(pg, replica);
    }

    /// A split made a group.
    fn begin(&mut self, server: DataServerId, pg: PgId, ticket: Ticket) {
        let settings = settings(self.log_max);
        let node = self.node(server);
        let me = node.me(server);
        let replica = Replica::load_newborn((pg, ticket), me, settings, &mut node.store);
        node.replicas.insert(pg, replica.expect("the store can be read"));
        if let Some(view) = node.views.get(&pg).cloned() {
            self.with(server, pg, |replica, cx| replica.handle_view(cx, view));
        }
    }

    fn progress(&mut self, server: DataServerId) {
        let progress = crate::pg::PgStore::progress(&self.nodes[&server].store);
        self.with_all(server, |replica, cx| {
            replica.handle_progress(cx, progress.written, progress.durable);
        });
    }

    fn output(&mut self, server: DataServerId, pg: PgId, output: Output) {
        if self.trace {
            println!("{} server {server} {pg}: {output:?}", self.now);
        }
        self.note_output(server, pg, &output);
        let incarnation = self.nodes[&server].incarnation;
        match output {
            Output::Send { to, message, payload } => self.send(server, to, pg, message, payload),
            Output::Reply { token, response, payload } => {
                self.check_reply(server, pg, &response);
                if matches!(response, Ok(DataReply::Written { .. })) {
                    self.check_acknowledged(server, pg, token);
                }
                if let Some((pg, head)) = self.node(server).syncs.remove(&token)
                    && response.is_ok()
                {
                    self.check_sync(server, pg, head);
                }
                if let Some((client, attempt)) = self.node(server).tokens.remove(&token)
                    && !self.rng.chance(5)
                {
                    let delay = self.rng.latency();
                    self.at(delay, Event::Answer { client, attempt, response, payload });
                }
            }
            Output::Propose { version, change } => {
                if !self.is_lonely(server) && !self.rng.chance(50) {
                    let delay = self.rng.latency();
                    self.at(delay, Event::Propose { from: server, pg, version, change });
                }
            }
            Output::RequestDurable(ticket) => {
                let delay = 2 + self.rng.below(20) + self.slowness(server);
                let node = self.node(server);
                node.sync_wanted = node.sync_wanted.max(ticket.0);
                if !node.sync_scheduled {
                    node.sync_scheduled = true;
                    self.at(delay, Event::Durable(server, incarnation));
                }
            }
            Output::WaitRoom => {
                let node = self.node(server);
                if !node.room_scheduled {
                    node.room_scheduled = true;
                    self.at(10, Event::Room(server, incarnation));
                }
            }
            Output::FetchMap => self.send_map(server),
            Output::CorruptBlock | Output::Copied { .. } => {}
            Output::Born { pg, ticket } => self.begin(server, pg, ticket),
            Output::Removed => {
                self.node(server).replicas.remove(&pg);
                if !self.faults.split {
                    self.ensure(server, pg);
                }
            }
            // As the driver does: the process ends, and the disk is of no more use.
            Output::Fatal(_) if self.nodes[&server].store.has_failed() => self.destroy(server),
            Output::Fatal(error) => self.problem = Some(format!("server {server} stopped: {error}")),
        }
    }

    fn send(&mut self, from: DataServerId, to: DataServerId, pg: PgId, message: PeerMessage, payload: Bytes) {
        let key = pair(from, to);
        let silent = self.silent.get(&(from, to)).is_some_and(|until| *until > self.now);
        if self.cut.contains(&key) || silent || self.rng.chance(1) {
            return;
        }
        let payload = self.damaged_on_the_way(&message, payload);
        let link = self.links.get(&key).copied().unwrap_or(0);
        // First in, first out.
        let wanted = self.now + self.rng.latency();
        let arrival = self.arrival.entry((from, to)).or_default();
        *arrival = wanted.max(*arrival);
        let delay = *arrival - self.now;
        self.at(delay, Event::Deliver { from, to, pg, link, message, payload });
    }

    pub(super) fn cut_link(&mut self, a: DataServerId, b: DataServerId, for_ms: u64) {
        let key = pair(a, b);
        *self.links.entry(key).or_default() += 1;
        self.cut.insert(key);
        self.with_all(a, |replica, cx| replica.handle_link(cx, b, false));
        self.with_all(b, |replica, cx| replica.handle_link(cx, a, false));
        self.at(for_ms, Event::LinkUp { a, b });
    }

    fn is_lonely(&self, server: DataServerId) -> bool {
        self.lonely.get(&server).is_some_and(|until| *until > self.now)
    }

    fn heartbeat(&mut self, server: DataServerId) {
        self.at(TIMEOUT_MS / 5, Event::Heartbeat(server));
        let node = &self.nodes[&server];
        if !node.alive {
            return;
        }
        let (incarnation, registered, sent) = (node.incarnation, node.registered, self.now);
        if self.is_lonely(server) {
            return;
        }
        let delay = self.rng.latency();
        if registered {
            self.at(delay, Event::HeartbeatArrives { server, incarnation, sent });
        } else {
            self.at(delay, Event::Register(server));
        }
    }

    fn start(&mut self, server: DataServerId) {
        let settings = settings(self.log_max);
        let node = self.node(server);
        if node.alive || node.destroyed {
            return;
        }
        node.incarnation += 1;
        node.alive = true;
        node.views.clear();
        let me = node.me(server);
        let mut held = stored_groups(&mut node.store).expect("the store can be read");
        held.extend((!held.contains(&PG)).then_some(PG));
        for pg in held {
            match Replica::load(pg, me, settings, &mut node.store) {
                Ok(replica) => drop(node.replicas.insert(pg, replica)),
                Err(error) => return self.problem = Some(format!("server {server} cannot start: {error}")),
            }
        }
        node.registered = false;
        node.map_epoch = 0;
        node.lease_until = 0;
        node.leases.clear();
        node.paused_until = 0;
        let first = node.incarnation == 1;
        self.at(1, Event::Register(server));
        if first {
            self.at(3, Event::Heartbeat(server));
            self.at(7, Event::Tick(server));
        }
        for other in self.ids().into_iter().filter(|other| *other != server) {
            self.at(2, Event::LinkUp { a: server, b: other });
        }
    }

    fn register(&mut self, server: DataServerId) {
        let now = self.now;
        if self.is_lonely(server) || self.nodes[&server].paused_until > now {
            return;
        }
        let node = self.nodes.get_mut(&server).expect("all servers exist from the beginning");
        if !node.alive {
            return;
        }
        if self.meta.servers.get(&server).is_some_and(|s| s.up && s.incarnation == node.incarnation) {
            return;
        }
        let (store, incarnation) = (StoreUuid(u128::from(server.0)), node.incarnation);
        let positions = node.replicas.iter().map(|(pg, replica)| (*pg, replica.position())).collect();
        let clean = node.clean;
        node.registered = true;
        node.clean = true;
        let before = self.meta.epoch;
        self.meta.register(now, server, (store, incarnation), clean, positions);
        let epoch = self.meta.epoch;
        self.publish(before);
        self.at(2, Event::Lease { server, incarnation, sent: now, epoch });
    }

    fn client_step(&mut self, client: usize) {
        let maps = (self.client_maps[client].clone(), self.meta.map());
        let outbound = self.clients.step(client, self.now, &mut self.rng, (&maps.0, &maps.1));
        match outbound {
            Outbound::Send { attempt, pg, primary, body, payload } => {
                let guess = self.rng.chance(100);
                let ids = self.ids();
                let any = ids[self.rng.below(ids.len() as u64) as usize];
                let server = if guess { any } else { primary.unwrap_or(any) };
                if !self.rng.chance(5) {
                    let delay = self.rng.latency();
                    self.at(delay, Event::Request { server, pg, client, attempt, body, payload });
                }
                self.at(400, Event::ClientStep(client));
            }
            Outbound::NoRoute => self.at(400, Event::ClientStep(client)),
            Outbound::Nothing => {}
        }
    }
}

impl Node {
    fn me(&self, server: DataServerId) -> Me {
        Me { server, store: StoreUuid(u128::from(server.0)), incarnation: self.incarnation }
    }

    /// A lease counts once the map is as new as its answer was.
    fn settle_leases(&mut self) {
        let map_epoch = self.map_epoch;
        for (sent, _) in self.leases.extract_if(.., |(_, epoch)| *epoch <= map_epoch) {
            self.lease_until = self.lease_until.max(sent + TIMEOUT_MS - LEASE_MARGIN_MS);
        }
    }
}
