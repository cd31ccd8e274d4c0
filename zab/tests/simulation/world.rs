//! The event loop: everything that happens, in an order that depends on the seed only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use zab::{Config, DataUuid, Membership, Output, Peer, PeerId, Record, Role, SnapshotDescriptor, Zxid};

use super::describe::describe;
use super::disk::{Checkpoint, Op};
use super::facts::{Fact, Recorder};
use super::history::{Event, Txn};
use super::invariants::Checker;
use super::membership::{Administration, membership_value};
use super::network::{Network, Packet, Weather};
use super::node::{Clock, Node};
use super::reads::Reads;
use super::rng::Rng;

/// Something that happens to a node, or to the world.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Packet(Packet),
    /// The sync of that many operations, by that incarnation, ends.
    Synced {
        node: PeerId,
        incarnation: u64,
        count: usize,
    },
    Tick {
        node: PeerId,
        incarnation: u64,
    },
    /// A snapshot's last byte leaves, and arrives.
    Snapshot {
        from: PeerId,
        incarnation: u64,
        to: PeerId,
        session: u64,
        id: u64,
        data: Checkpoint,
    },
    Restart {
        node: PeerId,
    },
    Resume {
        node: PeerId,
        incarnation: u64,
    },
    Unstall {
        node: PeerId,
    },
    Reconnect,
    Workload,
    Fault,
    /// An administrator changes the membership.
    Administer,
    Checkpoint {
        node: PeerId,
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

/// What becomes of the lines that tell what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    Off,
    Print,
    Keep,
}

/// What kind of world a seed stands for.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) voters: u32,
    pub(crate) observer: bool,
    /// Directories are bound to ids by the peers themselves.
    pub(crate) unbound: bool,
    /// Members come and go.
    pub(crate) changing: bool,
    pub(crate) config: Config,
    pub(crate) weather: Weather,
    pub(crate) sync_max_ms: u64,
    pub(crate) drift: bool,
    /// Milliseconds of faults.
    pub(crate) chaos_ms: u64,
    pub(crate) fault_every_ms: u64,
    pub(crate) workload_every_ms: u64,
}

pub(crate) struct World {
    pub(crate) time: u64,
    pub(crate) rng: Rng,
    pub(crate) nodes: BTreeMap<PeerId, Node>,
    pub(crate) network: Network,
    pub(crate) shape: Shape,
    pub(crate) checker: Checker,
    pub(crate) reads: Reads,
    pub(crate) administration: Administration,
    pub(crate) proposals: u64,
    pub(crate) established: Vec<(u64, PeerId)>,
    pub(crate) trace: Trace,
    /// What `Trace::Keep` kept.
    pub(crate) lines: Vec<String>,
    pub(crate) digest: u64,
    pub(crate) recorder: Recorder,
    pub(crate) chaos: bool,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    requests: u64,
    snapshots: u64,
}

impl World {
    /// A world in which every node runs.
    pub(crate) fn new(seed: u64, shape: Shape, trace: Trace) -> Result<World, String> {
        let mut world = World::cold(seed, shape, trace);
        for id in world.ids() {
            world.boot(id)?;
        }
        Ok(world)
    }

    /// A world in which no node runs yet.
    pub(crate) fn cold(seed: u64, shape: Shape, trace: Trace) -> World {
        let mut rng = Rng::new(seed);
        let voters: Vec<PeerId> = (1..=shape.voters).map(PeerId).collect();
        let observers: Vec<PeerId> = shape.observer.then_some(PeerId(9)).into_iter().collect();
        let uuid = |id: PeerId| DataUuid(u128::from(id.0) << 64);
        let mut membership = if shape.unbound {
            Membership::unbound(voters.iter().copied())
        } else {
            Membership::bound(voters.iter().map(|id| (*id, uuid(*id))))
        };
        membership.observers = observers.iter().copied().collect();
        let mut nodes = BTreeMap::new();
        for id in voters.into_iter().chain(observers) {
            nodes.insert(id, new_node(id, uuid(id), membership.clone(), &shape, &mut rng));
        }
        World {
            time: 0,
            network: Network::new(shape.weather),
            rng,
            nodes,
            shape,
            checker: Checker::new(),
            reads: Reads::default(),
            administration: Administration::default(),
            proposals: 0,
            established: Vec::new(),
            trace,
            lines: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            recorder: Recorder::default(),
            chaos: false,
            queue: BinaryHeap::new(),
            order: 0,
            requests: 0,
            snapshots: 0,
        }
    }

    pub(crate) fn ids(&self) -> Vec<PeerId> {
        self.nodes.keys().copied().collect()
    }

    pub(crate) fn node(&mut self, id: PeerId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of this world")
    }

    pub(crate) fn leader(&self) -> Option<PeerId> {
        self.nodes.values().filter(|node| node.is_leading() && !node.paused).map(|node| node.id).max()
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
            self.happen(next.happening)?;
        }
        self.time = until;
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        let node = match &happening {
            Happening::Packet(packet) => Some(packet.to),
            Happening::Synced { node, .. }
            | Happening::Tick { node, .. }
            | Happening::Checkpoint { node } => Some(*node),
            Happening::Snapshot { from, .. } => Some(*from),
            _ => None,
        };
        if let Some(node) = node
            && self.node(node).paused
        {
            self.node(node).inbox.push_back(happening);
            return Ok(());
        }
        match happening {
            Happening::Packet(packet) => self.receive(packet),
            Happening::Synced { node, incarnation, count } => self.synced(node, incarnation, count),
            Happening::Tick { node, incarnation } => self.tick(node, incarnation),
            Happening::Snapshot { from, incarnation, to, session, id, data } => {
                self.transfer(from, incarnation, to, session, id, data)
            }
            Happening::Restart { node } => self.boot(node),
            Happening::Resume { node, incarnation } => self.resume(node, incarnation),
            Happening::Unstall { node } => {
                self.start_sync(node);
                Ok(())
            }
            Happening::Reconnect => {
                self.network.heal();
                Ok(())
            }
            Happening::Checkpoint { node } => self.checkpoint(node),
            Happening::Workload => self.workload(),
            Happening::Fault => self.fault(),
            Happening::Administer => self.administer(),
        }
    }

    pub(crate) fn log(&mut self, line: impl FnOnce() -> String) {
        match self.trace {
            Trace::Off => {}
            Trace::Print => println!("{:>6} {}", self.time, line()),
            Trace::Keep => self.lines.push(line()),
        }
    }

    fn mix(&mut self, value: u64) {
        self.digest = (self.digest ^ value).wrapping_mul(0x0000_0100_0000_01b3);
    }

    // ---- nodes --------------------------------------------------------------------------------------------------

    pub(crate) fn boot(&mut self, id: PeerId) -> Result<(), String> {
        if self.node(id).peer.is_some() || self.node(id).gone {
            return Ok(());
        }
        let (time, seed) = (self.time, self.rng.next());
        let checkpoint = self.node(id).boot(time, seed)?;
        let disk = &mut self.nodes.get_mut(&id).expect("a node of this world").disk;
        disk.written = self.recorder.is_on.then(Vec::new);
        self.recorder.note(id, || Fact::Started {
            record: disk.record.clone(),
            history: disk.history(),
            state: checkpoint.state.clone(),
        });
        self.log(|| {
            format!("{id} starts from {} with {} transactions", checkpoint.zxid, checkpoint.state.len())
        });
        self.checker.restored(id, checkpoint.state)?;
        self.step(id, |_, _| ())
    }

    /// Power loss: what was not synced is gone, the process too.
    pub(crate) fn crash(&mut self, id: PeerId) {
        let node = self.nodes.get_mut(&id).expect("a node of this world");
        node.peer = None;
        node.paused = false;
        node.inbox.clear();
        node.disk.crash(&mut self.rng);
        self.note_writes(id);
        self.recorder.note(id, || Fact::Crashed);
        for other in self.ids() {
            self.network.reset(id, other);
        }
        self.log(|| format!("{id} crashes"));
    }

    fn note_writes(&mut self, id: PeerId) {
        let written = self.nodes.get_mut(&id).and_then(|node| node.disk.written.as_mut());
        for write in written.map(std::mem::take).unwrap_or_default() {
            self.recorder.note(id, || Fact::Wrote(write));
        }
    }

    /// A crash that keeps exactly `ops` of the operations that were not synced.
    pub(crate) fn crash_keeping(&mut self, id: PeerId, ops: usize) {
        self.node(id).disk.sync(ops);
        self.node(id).disk.lose_pending();
        self.crash(id);
    }

    fn resume(&mut self, id: PeerId, incarnation: u64) -> Result<(), String> {
        if self.node(id).incarnation != incarnation || !self.node(id).paused {
            return Ok(());
        }
        self.node(id).paused = false;
        self.log(|| format!("{id} resumes"));
        if self.rng.chance(500) {
            // A client's request may be the first thing that it sees after an hour.
            self.read(id)?;
        }
        while let Some(happening) = self.node(id).inbox.pop_front() {
            self.happen(happening)?;
        }
        self.step(id, |peer, now| peer.handle_tick(now))
    }

    /// Calls into a running peer, does what it asks for and checks it.
    pub(crate) fn step(&mut self, id: PeerId, call: impl FnOnce(&mut Peer, u64)) -> Result<(), String> {
        let time = self.time;
        let node = self.node(id);
        let now = node.clock.read(time);
        let Some(mut peer) = node.peer.take() else { return Ok(()) };
        call(&mut peer, now);
        while let Some(output) = peer.poll_output() {
            self.execute(id, &mut peer, output)?;
        }
        self.recorder.look(id, &peer, None);
        peer.validate().map_err(|rule| format!("{peer}: it does not hold that {rule}"))?;
        if peer.counters().refused_truncations > 0 {
            return Err(format!("{peer}: a leader asked it to forget committed transactions"));
        }
        let deadline = peer.next_deadline();
        if peer.log_bytes() > self.shape.config.log_bytes_max / 2 && self.rng.chance(100) {
            self.schedule_in(1, Happening::Checkpoint { node: id });
        }
        if peer.role() != Role::Failed {
            self.node(id).peer = Some(peer);
            if let Some(deadline) = deadline {
                self.schedule_tick(id, deadline);
            }
        }
        self.start_sync(id);
        Ok(())
    }

    fn schedule_tick(&mut self, id: PeerId, deadline: u64) {
        let time = self.time;
        let node = self.node(id);
        let at = node.clock.when(deadline).max(time + 1);
        if node.tick_at.is_none_or(|scheduled| scheduled > at || scheduled <= time) {
            node.tick_at = Some(at);
            let incarnation = node.incarnation;
            self.schedule(at, Happening::Tick { node: id, incarnation });
        }
    }

    fn tick(&mut self, id: PeerId, incarnation: u64) -> Result<(), String> {
        let time = self.time;
        let node = self.node(id);
        if node.incarnation != incarnation {
            return Ok(());
        }
        node.tick_at = node.tick_at.filter(|at| *at > time);
        self.step(id, |peer, now| peer.handle_tick(now))
    }

    fn receive(&mut self, packet: Packet) -> Result<(), String> {
        if !self.network.arrives(&packet) {
            return Ok(());
        }
        let Packet { from, to, message, .. } = packet;
        if !matches!(message.kind(), "Heartbeat" | "Ack") {
            self.log(|| format!("{from} -> {to} {}", describe(&message.body)));
        }
        self.step(to, |peer, now| peer.handle_message(from, message, now))
    }

    // ---- disks --------------------------------------------------------------------------------------------------

    fn start_sync(&mut self, id: PeerId) {
        let time = self.time;
        let latency = self.rng.between(0, self.shape.sync_max_ms);
        let node = self.node(id);
        if node.disk_busy || node.disk.pending() == 0 || node.disk_stalled_until > time || node.peer.is_none()
        {
            return;
        }
        node.disk_busy = true;
        let (incarnation, count) = (node.incarnation, node.disk.pending());
        self.schedule(time + latency, Happening::Synced { node: id, incarnation, count });
    }

    fn synced(&mut self, id: PeerId, incarnation: u64, count: usize) -> Result<(), String> {
        let time = self.time;
        let node = self.node(id);
        if node.incarnation != incarnation || node.peer.is_none() {
            return Ok(());
        }
        node.disk_busy = false;
        if node.disk_stalled_until > time {
            return Ok(());
        }
        let (token, installed) = node.disk.sync(count);
        self.note_writes(id);
        if let Some(checkpoint) = installed {
            self.log(|| format!("{id} installed a snapshot at {}", checkpoint.zxid));
            self.checker.restored(id, checkpoint.state)?;
        }
        match token {
            Some(token) => self.step(id, |peer, now| peer.handle_durable(token, now)),
            None => {
                self.start_sync(id);
                Ok(())
            }
        }
    }

    fn checkpoint(&mut self, id: PeerId) -> Result<(), String> {
        let state = self.checker.histories.of(id).to_vec();
        let Some(peer) = &self.node(id).peer else { return Ok(()) };
        let zxid = peer.delivered();
        self.node(id).disk.save_checkpoint(Checkpoint { zxid, state });
        self.step(id, |peer, _| peer.compact(zxid))
    }

    fn transfer(
        &mut self,
        from: PeerId,
        incarnation: u64,
        to: PeerId,
        session: u64,
        id: u64,
        data: Checkpoint,
    ) -> Result<(), String> {
        if self.node(from).incarnation != incarnation {
            return Ok(());
        }
        let snapshot = SnapshotDescriptor { id, zxid: data.zxid, length: data.state.len() as u64, crc: 0 };
        if !self.network.is_open(from, to) || self.node(to).peer.is_none() || self.node(to).paused {
            return self.step(from, |peer, now| peer.snapshot_failed(to, session, now));
        }
        self.node(to).disk.save_snapshot(id, data);
        self.step(to, |peer, now| peer.snapshot_received(from, snapshot, now))?;
        self.step(from, |peer, now| peer.snapshot_sent(to, session, snapshot, now))
    }

    // ---- the driver ---------------------------------------------------------------------------------------------

    fn execute(&mut self, id: PeerId, peer: &mut Peer, output: Output) -> Result<(), String> {
        self.mix(self.time << 8 | u64::from(id.0));
        self.recorder.look(id, peer, Some(&output));
        match output {
            Output::Append { entries, token } => self.node(id).disk.push(Some(token), Op::Append(entries)),
            Output::Truncate { after, token } => self.node(id).disk.push(Some(token), Op::Truncate(after)),
            Output::SaveRecord { record, token } => self.node(id).disk.push(Some(token), Op::Save(record)),
            Output::ProbeDisk { token } => self.node(id).disk.push(Some(token), Op::Probe),
            Output::InstallSnapshot { snapshot, record, token } => {
                self.node(id).disk.push(Some(token), Op::Install(snapshot, record));
            }
            Output::PurgeLog { upto } => self.node(id).disk.push(None, Op::Purge(upto)),
            Output::Send { to, message } => {
                self.mix(message.kind().len() as u64 | u64::from(to.0) << 32);
                for (at, packet) in self.network.send(id, to, message, self.time, &mut self.rng) {
                    self.schedule(at, Happening::Packet(packet));
                }
            }
            Output::Deliver { zxid, txn } => self.deliver(id, peer, zxid, &txn)?,
            Output::RoleChanged { role } => {
                self.log(|| format!("{peer}: now {role:?}"));
                if let Role::Leading { epoch } = role {
                    let incarnation = self.node(id).incarnation;
                    self.established.push((self.time, id));
                    self.checker.observe(&Event::Established { node: id, incarnation, epoch })?;
                }
            }
            Output::ReadReady { request, zxid } => {
                if peer.delivered() < zxid {
                    return Err(format!(
                        "{peer}: read {request} is ready at {zxid}, which was not delivered"
                    ));
                }
                let incarnation = self.node(id).incarnation;
                let length = self.checker.histories.of(id).len();
                self.reads.index_ready(id, incarnation, request, length)?;
            }
            Output::NeedSnapshot { to, session, at_least } => {
                self.need_snapshot(id, peer, to, session, at_least)?;
            }
            Output::StopSnapshot { .. } => {}
            Output::MembershipChanged { committed, pending } => {
                self.membership_changed(id, &committed, pending.as_ref())?;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, id: PeerId, peer: &Peer, zxid: Zxid, txn: &Bytes) -> Result<(), String> {
        let value = if txn.is_empty() { membership_value(zxid) } else { value_of(txn) };
        self.mix(value);
        self.log(|| format!("{id} delivers {zxid} = {value}"));
        self.recorder.note(id, || Fact::Delivered(Txn { zxid, value }));
        self.checker.delivered(id, Txn { zxid, value })?;
        if peer.role() == (Role::Leading { epoch: zxid.epoch }) {
            self.reads.acknowledged(self.checker.histories.of(id).len());
        }
        Ok(())
    }

    fn need_snapshot(
        &mut self,
        id: PeerId,
        peer: &mut Peer,
        to: PeerId,
        session: u64,
        at_least: Zxid,
    ) -> Result<(), String> {
        let data = Checkpoint { zxid: peer.delivered(), state: self.checker.histories.of(id).to_vec() };
        if data.zxid < at_least {
            return Err(format!("{peer}: asks for a snapshot at {at_least}, which was not delivered"));
        }
        peer.snapshot_started(to, session, data.zxid);
        self.snapshots += 1;
        let (name, incarnation) = (self.snapshots, self.node(id).incarnation);
        let delay = self.rng.between(1, 100);
        self.schedule_in(delay, Happening::Snapshot { from: id, incarnation, to, session, id: name, data });
        Ok(())
    }

    // ---- clients ------------------------------------------------------------------------------------------------

    /// Proposes a fresh value at `id`, if it leads and takes it.
    pub(crate) fn propose(&mut self, id: PeerId) -> Result<Option<u64>, String> {
        let value = self.proposals + 1;
        let padding = self.rng.below(100) as usize;
        let mut bytes = value.to_le_bytes().to_vec();
        bytes.resize(8 + padding, 0);
        let mut outcome = None;
        self.call(id, |peer, now| outcome = peer.propose(Bytes::from(bytes), now).ok());
        if let Some(zxid) = outcome {
            self.proposals = value;
            self.log(|| format!("{id} proposes {zxid} = {value}"));
            self.recorder.note(id, || Fact::Proposed(Txn { zxid, value }));
            self.checker.observe(&Event::Broadcast { node: id, txn: Txn { zxid, value } })?;
        }
        self.step(id, |_, _| ())?;
        Ok(outcome.map(|_| value))
    }

    /// Calls without polling, so that what it causes is seen after the call was noted.
    pub(crate) fn call(&mut self, id: PeerId, call: impl FnOnce(&mut Peer, u64)) {
        let time = self.time;
        let node = self.node(id);
        let now = node.clock.read(time);
        if let Some(peer) = &mut node.peer {
            call(peer, now);
        }
    }

    pub(crate) fn read(&mut self, id: PeerId) -> Result<(), String> {
        let mut lease = false;
        self.call(id, |peer, now| lease = peer.lease_valid(now));
        if lease {
            self.reads.lease_read(id, self.checker.histories.of(id).len())?;
        }
        self.requests += 1;
        let (request, incarnation) = (self.requests, self.node(id).incarnation);
        let mut asked = false;
        self.call(id, |peer, now| asked = peer.read_index(request, now).is_ok());
        if asked {
            self.reads.ask_index(id, incarnation, request);
        }
        self.step(id, |_, _| ())
    }

    fn workload(&mut self) -> Result<(), String> {
        for id in self.ids() {
            if self.node(id).is_leading() && !self.node(id).paused {
                for _ in 0..self.rng.below(4) {
                    self.propose(id)?;
                }
                self.read(id)?;
            }
        }
        if self.chaos {
            let wait = self.rng.between(1, 2 * self.shape.workload_every_ms);
            self.schedule_in(wait, Happening::Workload);
        }
        Ok(())
    }

    pub(crate) fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// A directory that was lost: the id remains, everything else is new. What it is told about the cluster may be
    /// as old as the cluster.
    pub(crate) fn wipe(&mut self, id: PeerId) {
        let uuid = DataUuid(u128::from(self.rng.next()));
        let membership = if self.shape.changing && self.rng.chance(500) {
            self.first_membership()
        } else {
            self.node(id).disk.record.membership.clone()
        };
        self.note_durable_changes();
        self.node(id).disk = super::disk::Disk::new(Record::fresh(uuid, membership));
        self.recorder.note(id, || Fact::Wiped);
        self.log(|| format!("{id} lost its directory"));
    }

    /// What a set-up file says.
    pub(crate) fn first_membership(&self) -> Membership {
        Membership::unbound((1..=self.shape.voters).map(PeerId))
    }

    /// A new machine.
    pub(crate) fn add_node(&mut self, id: PeerId) {
        let uuid = DataUuid(u128::from(self.rng.next()));
        let membership = self.first_membership();
        let node = new_node(id, uuid, membership, &self.shape, &mut self.rng);
        self.nodes.insert(id, node);
    }
}

fn new_node(id: PeerId, uuid: DataUuid, membership: Membership, shape: &Shape, rng: &mut Rng) -> Node {
    let rate = if shape.drift { rng.between(990, 1010) } else { 1000 };
    let clock = Clock { offset: rng.below(1_000_000), rate };
    let config = Config { id, ..shape.config.clone() };
    Node::new(id, config, clock, uuid, membership)
}

pub(crate) fn value_of(txn: &Bytes) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&txn[..8]);
    u64::from_le_bytes(value)
}
