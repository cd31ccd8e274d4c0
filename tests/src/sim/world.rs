//! The event loop: everything that happens, in an order that depends on the seed only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;

use metadata_server::core::{Trim, TrimFailed};
use metadata_server::state::layers::Writes;
use protocol::MetadataServerId;
use protocol::identity::{ClusterId, Fingerprint, Limits, PeerIdentity, Role as CertificateRole};
use protocol::meta::{MetaRequest, MetaResponse, Push};
use zab::{DataUuid, Membership, PeerId, Record, Zxid};

use super::Counts;
use super::actor::{Actor, Client, Stage, Wish};
use super::admin::address;
use super::data_server::DataServer;
use super::faults::Shape;
use super::network::{Network, Packet};
use super::oracle::Oracle;
use super::reader::Reader;
use super::server::{Image, Server, Token};
use super::trace::Trace;
use crate::simulation::history::Txn;
use crate::simulation::invariants::Checker;
use crate::simulation::rng::Rng;

/// The first number of data servers among the actors.
pub(crate) const DATA_SERVERS: u32 = 1000;
/// The client that only reads, in a third of the worlds.
const READER: u32 = 900;

/// Something that happens to a server, to an actor, or to the world.
pub(crate) enum Happening {
    Packet(Packet),
    Synced {
        server: PeerId,
        incarnation: u64,
        count: usize,
    },
    Tick {
        server: PeerId,
        incarnation: u64,
    },
    SnapshotArrives {
        from: PeerId,
        incarnation: u64,
        to: PeerId,
        session: u64,
        id: u64,
        image: Image,
    },
    CheckpointDue {
        server: PeerId,
        incarnation: u64,
    },
    CheckpointEnds {
        server: PeerId,
        incarnation: u64,
        generation: u64,
        writes: Arc<Writes>,
        zxid: Zxid,
    },
    Trimmed {
        server: PeerId,
        incarnation: u64,
        number: u64,
        is_done: bool,
    },
    PeerLost {
        server: PeerId,
        incarnation: u64,
        peer: PeerId,
    },
    Request {
        connection: u64,
        call: u64,
        request: MetaRequest,
    },
    Response {
        connection: u64,
        call: u64,
        response: Box<MetaResponse>,
    },
    Pushed {
        connection: u64,
        push: Push,
    },
    /// The server, or the actor, learns that a connection is gone.
    Lost {
        connection: u64,
        at_server: bool,
    },
    Actor {
        actor: u32,
    },
    Restart {
        server: PeerId,
    },
    Resume {
        server: PeerId,
        incarnation: u64,
        is_suspend: bool,
        since: u64,
    },
    Unstall {
        server: PeerId,
    },
    Repaired {
        server: PeerId,
    },
    Reconnect,
    Fault,
    DisksStall {
        until: u64,
    },
    Administer,
    EndOfLeader {
        server: PeerId,
        incarnation: u64,
    },
}

struct Scheduled {
    at: u64,
    order: u64,
    happening: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.order == other.order
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// See the module.
pub(crate) struct World {
    /// Milliseconds since it began.
    pub(crate) time: u64,
    pub(crate) rng: Rng,
    pub(crate) shape: Shape,
    pub(crate) servers: BTreeMap<PeerId, Server>,
    pub(crate) actors: BTreeMap<u32, Actor>,
    /// The connection that an actor uses, and when it is to be called next.
    pub(crate) links: BTreeMap<u32, u64>,
    wakes: BTreeMap<u32, u64>,
    pub(crate) network: Network,
    pub(crate) checker: Checker,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    pub(crate) counts: Counts,
    pub(crate) digest: u64,
    /// Faults happen.
    pub(crate) is_chaos: bool,
    /// Clients want something.
    pub(crate) is_busy_time: bool,
    /// Who led which epoch, over the whole life of the world.
    pub(crate) leaders: BTreeMap<u64, (PeerId, u64)>,
    /// Everything that anybody delivered since the base, in order.
    pub(crate) committed: Vec<Txn>,
    /// The histories that the checker looks at begin here.
    pub(crate) base: Zxid,
    pub(crate) snapshots: u64,
    /// Administrators so far: each asks once.
    pub(crate) administrators: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
}

impl World {
    /// A world in which nothing runs yet.
    pub(crate) fn new(seed: u64, shape: Shape, trace: Trace) -> World {
        let mut rng = Rng::new(seed);
        let servers = make_servers(&shape, &mut rng);
        let mut actors = BTreeMap::new();
        for id in 1..=shape.clients {
            let rate = rng.between(990, 1010);
            let timeout_ms = rng.pick(&[4_000, 10_000]);
            // Some give a server up at once, others wait for it for long.
            let patience_ms = rng.pick(&[500, 2_500, 8_000, 20_000]);
            let client = Client::new(id, rate, timeout_ms, patience_ms, shape.think_ms);
            actors.insert(id, Actor::Client(Box::new(client)));
        }
        for id in 1..=shape.data_servers {
            let rate = rng.between(990, 1010);
            actors.insert(DATA_SERVERS + id, Actor::Data(Box::new(DataServer::new(id, rate))));
        }
        if seed.is_multiple_of(3) {
            actors.insert(READER, Actor::Reader(Box::new(Reader::new())));
        }
        let mut world = World {
            time: 0,
            network: Network::new(shape.weather),
            rng,
            servers,
            wakes: BTreeMap::new(),
            links: BTreeMap::new(),
            shape,
            checker: Checker::new(),
            oracle: Oracle::default(),
            trace,
            counts: Counts::default(),
            digest: 0xcbf2_9ce4_8422_2325,
            is_chaos: false,
            is_busy_time: true,
            leaders: BTreeMap::new(),
            committed: Vec::new(),
            base: Zxid::ZERO,
            snapshots: 0,
            administrators: 0,
            queue: BinaryHeap::new(),
            order: 0,
            actors,
        };
        for server in world.ids() {
            world.schedule(0, Happening::Restart { server });
        }
        for actor in world.actors.keys().copied().collect::<Vec<_>>() {
            world.schedule(1, Happening::Actor { actor });
        }
        world
    }

    pub(crate) fn ids(&self) -> Vec<PeerId> {
        self.servers.values().filter(|server| !server.is_gone).map(|server| server.id).collect()
    }

    pub(crate) fn server(&mut self, id: PeerId) -> &mut Server {
        self.servers.get_mut(&id).expect("a server of this world")
    }

    pub(crate) fn leader(&self) -> Option<PeerId> {
        self.servers.values().filter(|server| server.is_leading() && !server.is_paused).map(|s| s.id).max()
    }

    pub(crate) fn log(&mut self, line: impl FnOnce() -> String) {
        let time = self.time;
        self.trace.line(time, line);
    }

    pub(crate) fn mix(&mut self, value: u64) {
        self.digest = (self.digest ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    pub(crate) fn schedule(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.time), order: self.order, happening }));
    }

    pub(crate) fn schedule_in(&mut self, ms: u64, happening: Happening) {
        self.schedule(self.time + ms, happening);
    }

    /// Lets everything happen that is due until `until`.
    pub(crate) fn run_until(&mut self, until: u64) -> Result<(), String> {
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= until) {
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.time = next.at;
            self.counts.steps += 1;
            self.happen(next.happening)?;
        }
        self.time = until;
        Ok(())
    }

    /// Whose process has to run for it.
    fn needs(&self, happening: &Happening) -> Option<PeerId> {
        match happening {
            Happening::Packet(packet) => Some(packet.to),
            Happening::Synced { server, .. }
            | Happening::Tick { server, .. }
            | Happening::CheckpointDue { server, .. }
            | Happening::CheckpointEnds { server, .. }
            | Happening::Trimmed { server, .. }
            | Happening::PeerLost { server, .. }
            | Happening::SnapshotArrives { from: server, .. } => Some(*server),
            Happening::Request { connection, .. } | Happening::Lost { connection, at_server: true } => {
                self.network.connections.get(connection).map(|link| link.server)
            }
            _ => None,
        }
    }

    pub(crate) fn happen(&mut self, happening: Happening) -> Result<(), String> {
        if let Some(id) = self.needs(&happening)
            && self.server(id).is_paused
        {
            self.server(id).inbox.push_back(happening);
            return Ok(());
        }
        match happening {
            Happening::Packet(packet) => self.receive(packet),
            Happening::Synced { server, incarnation, count } => self.synced(server, incarnation, count),
            Happening::Tick { server, incarnation } => self.tick(server, incarnation),
            Happening::SnapshotArrives { from, incarnation, to, session, id, image } => {
                self.snapshot_arrives(from, incarnation, to, session, id, image)
            }
            Happening::CheckpointDue { server, incarnation } => self.start_checkpoint(server, incarnation),
            Happening::CheckpointEnds { server, incarnation, generation, writes, zxid } => {
                self.end_checkpoint(server, incarnation, generation, &writes, zxid)
            }
            Happening::Trimmed { server, incarnation, number, is_done } => {
                self.trimmed(server, incarnation, number, is_done)
            }
            Happening::PeerLost { server, incarnation, peer } => self.peer_lost(server, incarnation, peer),
            Happening::Request { connection, call, request } => self.request(connection, call, request),
            Happening::Response { connection, call, response } => {
                self.mix(call);
                self.log(|| format!("answer over {connection} to call {call}: {response:?}"));
                self.act(connection, |actor, stage| actor.answered(call, *response, stage))
            }
            Happening::Pushed { connection, push } => {
                self.act(connection, |actor, stage| actor.pushed(&push, stage))
            }
            Happening::Lost { connection, at_server: true } => self.connection_ended(connection),
            Happening::Lost { connection, at_server: false } => self.act(connection, |actor, stage| {
                actor.lost(stage);
                Ok(())
            }),
            Happening::Actor { actor } => self.wake(actor),
            Happening::Restart { server } => self.boot(server),
            Happening::Resume { server, incarnation, is_suspend, since } => {
                self.resume(server, incarnation, is_suspend, since)
            }
            Happening::Unstall { server } => {
                self.start_sync(server);
                Ok(())
            }
            Happening::Repaired { server } => {
                self.repaired(server);
                Ok(())
            }
            Happening::Reconnect => {
                self.network.heal();
                Ok(())
            }
            Happening::Fault => self.fault(),
            Happening::DisksStall { until } => {
                self.all_disks_stall(until);
                Ok(())
            }
            Happening::Administer => self.administer(),
            Happening::EndOfLeader { server, incarnation } => {
                self.end_of_leader(server, incarnation);
                Ok(())
            }
        }
    }

    // ---- actors -------------------------------------------------------------------------------------------------

    fn wake(&mut self, actor: u32) -> Result<(), String> {
        if self.wakes.get(&actor).is_some_and(|at| *at > self.time) {
            return Ok(());
        }
        self.with_actor(actor, Actor::tick)
    }

    /// Something comes to an actor over a connection, if it still uses that.
    fn act(
        &mut self,
        connection: u64,
        act: impl FnOnce(&mut Actor, &mut Stage<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(link) = self.network.connections.get(&connection) else { return Ok(()) };
        let actor = link.actor;
        if self.links.get(&actor) != Some(&connection) {
            return Ok(());
        }
        self.with_actor(actor, act)
    }

    fn with_actor(
        &mut self,
        id: u32,
        act: impl FnOnce(&mut Actor, &mut Stage<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let servers = self.ids();
        let Some(actor) = self.actors.get_mut(&id) else { return Ok(()) };
        let mut stage = Stage {
            time: self.time,
            rng: &mut self.rng,
            oracle: &mut self.oracle,
            servers: &servers,
            is_busy_time: self.is_busy_time,
            wishes: Vec::new(),
        };
        act(actor, &mut stage)?;
        let wishes = stage.wishes;
        let wakes_at = actor.wakes_at().max(self.time + 1);
        for wish in wishes {
            self.carry_out_wish(id, wish);
        }
        if wakes_at < u64::MAX {
            self.wakes.insert(id, wakes_at);
            self.schedule(wakes_at, Happening::Actor { actor: id });
        }
        Ok(())
    }

    fn carry_out_wish(&mut self, actor: u32, wish: Wish) {
        match wish {
            Wish::Connect(server) => {
                let connection = self.network.connect(actor, server);
                self.links.insert(actor, connection);
                self.log(|| format!("actor {actor} connects to {server}"));
            }
            Wish::Send(call, request) => {
                let Some(connection) = self.links.get(&actor).copied() else { return };
                match self.network.arrival(connection, 0, self.time, &mut self.rng) {
                    Some(at) => self.schedule(at, Happening::Request { connection, call, request }),
                    None => self.break_connection(connection),
                }
            }
            Wish::Disconnect => {
                if let Some(connection) = self.links.remove(&actor) {
                    // What it sent is on its way; the server learns of it after that.
                    let at = self.network.arrival(connection, 0, self.time, &mut self.rng);
                    let at = at.unwrap_or(self.time + 1_000);
                    self.schedule(at, Happening::Lost { connection, at_server: true });
                }
            }
        }
    }

    /// Nothing passes any more; both sides learn of it at some time.
    pub(crate) fn break_connection(&mut self, connection: u64) {
        let Some(link) = self.network.connections.get_mut(&connection) else { return };
        link.is_lost = true;
        for at_server in [true, false] {
            let after = self.rng.between(1, 2_000);
            self.schedule_in(after, Happening::Lost { connection, at_server });
        }
    }

    /// A server's message to an actor.
    pub(crate) fn send_to_actor(&mut self, connection: u64, message: Happening) {
        match self.network.arrival(connection, 1, self.time, &mut self.rng) {
            Some(at) => self.schedule(at, message),
            None => {
                if self.network.connections.get(&connection).is_some_and(|link| !link.is_lost) {
                    self.break_connection(connection);
                }
            }
        }
    }

    fn request(&mut self, connection: u64, call: u64, request: MetaRequest) -> Result<(), String> {
        let Some(link) = self.network.connections.get(&connection) else { return Ok(()) };
        let (actor, server, known) = (link.actor, link.server, link.incarnation);
        if !self.network.reaches(actor, server) {
            self.break_connection(connection);
            return Ok(());
        }
        let incarnation = self.server(server).incarnation;
        let is_there = self.server(server).running.is_some();
        if !is_there || known.is_some_and(|known| known != incarnation) {
            self.break_connection(connection);
            return Ok(());
        }
        if let Some(link) = self.network.connections.get_mut(&connection) {
            link.incarnation = Some(incarnation);
        }
        if !matches!(request, MetaRequest::Heartbeat { .. } | MetaRequest::DataHeartbeat(_)) {
            self.log(|| format!("actor {actor} over {connection} asks {server}, call {call}: {request:?}"));
        }
        let identity = identity(actor);
        let token: Token = (connection, call);
        self.step(server, |running, moment| {
            let (core, mut quorum) = running.split(moment.tick);
            if known.is_none() {
                let address = SocketAddr::from(([127, 0, 0, 1], 40_000));
                core.handle_connected(connection, Arc::new(identity), address);
            }
            core.handle_request(connection, token, request, &mut quorum, moment.now);
        })
    }

    fn connection_ended(&mut self, connection: u64) -> Result<(), String> {
        let Some(link) = self.network.connections.remove(&connection) else { return Ok(()) };
        if link.incarnation == Some(self.server(link.server).incarnation) {
            self.step(link.server, |running, _| running.core.handle_disconnected(connection))?;
        }
        if self.links.get(&link.actor) == Some(&connection) {
            self.links.remove(&link.actor);
            self.with_actor(link.actor, |actor, stage| {
                actor.lost(stage);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn trimmed(
        &mut self,
        server: PeerId,
        incarnation: u64,
        number: u64,
        is_done: bool,
    ) -> Result<(), String> {
        if self.server(server).incarnation != incarnation {
            return Ok(());
        }
        let why = "it was tried".to_owned();
        let result = if is_done { Ok(()) } else { Err(TrimFailed { silent: None, why }) };
        self.step(server, |running, moment| {
            let (core, mut quorum) = running.split(moment.tick);
            core.handle_trimmed(number, result, &mut quorum, moment.now);
        })
    }

    pub(crate) fn trim(&mut self, server: PeerId, trim: &Trim) {
        let (incarnation, number) = (self.server(server).incarnation, trim.number);
        let (after, is_done) = (self.rng.between(1, 500), self.rng.chance(800));
        self.counts.trims += 1;
        self.schedule_in(after, Happening::Trimmed { server, incarnation, number, is_done });
    }
}

/// What an actor's certificate says.
pub(crate) fn identity(actor: u32) -> PeerIdentity {
    let (role, id, name) = if actor >= DATA_SERVERS {
        (CertificateRole::Data, actor - DATA_SERVERS, "data")
    } else {
        (CertificateRole::Client, actor, "client")
    };
    PeerIdentity {
        cluster: ClusterId([7; 16]),
        role,
        name: format!("{name}-{id}"),
        id,
        limits: Limits::NONE,
        fingerprint: Fingerprint([0; 32]),
    }
}

fn make_servers(shape: &Shape, rng: &mut Rng) -> BTreeMap<PeerId, Server> {
    let voters: Vec<PeerId> = (1..=shape.voters).map(PeerId).collect();
    let observers: Vec<PeerId> = (0..shape.observers).map(|index| PeerId(9 - index)).collect();
    let uuid = |id: PeerId| DataUuid(u128::from(id.0) << 64);
    let mut membership = if shape.is_unbound {
        Membership::unbound(voters.iter().copied())
    } else {
        Membership::bound(voters.iter().map(|id| (*id, uuid(*id))))
    };
    membership.observers = observers.iter().copied().collect();
    let everybody: Vec<PeerId> = voters.iter().chain(&observers).copied().collect();
    let addresses: BTreeMap<_, _> =
        everybody.iter().map(|id| (MetadataServerId(id.0), address(*id))).collect();
    let make = |id: &PeerId| {
        let fresh = Record::fresh(uuid(*id), membership.clone());
        (*id, Server::new(*id, shape, fresh, addresses.clone(), rng))
    };
    everybody.iter().map(make).collect()
}
