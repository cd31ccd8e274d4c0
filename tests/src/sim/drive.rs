//! What a server's driver does: carries out the outputs of peer and core, keeps the storage stream moving, makes
//! checkpoints, carries snapshots. The counterpart of `metadata-server/src/quorum/driver.rs` and `node.rs`.

use std::sync::Arc;

use bytes::Bytes;
use metadata_server::core::Output as CoreOutput;
use metadata_server::quorum::stream::DiskOperation;
use metadata_server::state::key;
use metadata_server::state::layers::Writes;
use metadata_server::state::txn::Txn as StateTxn;
use protocol::SessionId;
use zab::{Output, PeerId, Role, SnapshotDescriptor, Zxid};

use super::admin::ADMINISTRATORS;
use super::network::Packet;
use super::server::{BootError, Image, Moment, Running, Token};
use super::world::{Happening, World};
use crate::simulation::describe::describe;
use crate::simulation::history::{Event, Txn};

/// What a transaction is reckoned to take beside its bytes.
const TXN_BYTES: u64 = 64;

/// A transaction as the invariants know it.
fn value_of(zxid: Zxid, txn: &Bytes) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ zxid.counter;
    for byte in txn.iter() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

impl World {
    // ---- life ---------------------------------------------------------------------------------------------------

    pub(crate) fn boot(&mut self, id: PeerId) -> Result<(), String> {
        if self.server(id).running.is_some() || self.server(id).is_gone {
            return Ok(());
        }
        let (time, seed) = (self.time, self.rng.next());
        if self.is_chaos && self.rng.chance(50) {
            // The power may fail again while the log is read and cut.
            let operations = self.rng.below(12);
            self.server(id).disk.fail_power_after(operations);
        }
        match self.server(id).boot(time, seed) {
            Ok(()) => {}
            Err(BootError::Storage(error)) if self.is_chaos => {
                self.log(|| format!("{id} does not start: {error}"));
                if !self.server(id).disk.has_power() {
                    self.lose_power(id);
                }
                let after = self.rng.between(1, 2_000);
                self.schedule_in(after, Happening::Restart { server: id });
                return Ok(());
            }
            Err(BootError::Storage(error)) => return Err(format!("{id} does not start: {error}")),
            Err(BootError::Broken(what)) => return Err(format!("{id} does not start: {what}")),
        }
        let Some(running) = &self.server(id).running else { return Ok(()) };
        let (progress, record) = (running.core.machine().progress(), running.peer.record().clone());
        self.server(id).is_damaged = record.needs_sync;
        let applied = Zxid::new(progress.zab_epoch, progress.counter);
        self.log(|| {
            format!("{id} starts from {applied}{}", if record.needs_sync { ", damaged" } else { "" })
        });
        self.mix(applied.counter << 8 | u64::from(id.0));
        self.counts.boots += 1;
        self.restored(id, applied)?;
        self.oracle.state(id, progress.revision, progress.digest)?;
        self.step(id, |_, _| ())
    }

    /// A server continues from a state that ends at `applied`.
    fn restored(&mut self, id: PeerId, applied: Zxid) -> Result<(), String> {
        let base = self.base;
        let history = self.committed.iter().copied().filter(|txn| txn.zxid > base && txn.zxid <= applied);
        let history = history.collect();
        self.checker.restored(id, history)
    }

    /// The process is gone; what it wrote is in the page cache.
    pub(crate) fn kill(&mut self, id: PeerId) {
        let incarnation = self.server(id).incarnation;
        let server = self.server(id);
        if let Some(running) = server.running.take() {
            server.left = running.memberships();
        }
        server.is_paused = false;
        server.inbox.clear();
        for other in self.ids() {
            self.network.reset(id, other);
            self.network.reset(other, id);
            if other != id && self.rng.chance(500) {
                let (incarnation, after) = (self.server(other).incarnation, self.rng.between(1, 300));
                self.schedule_in(after, Happening::PeerLost { server: other, incarnation, peer: id });
            }
        }
        let mine = |link: &super::network::Connection| link.server == id && !link.is_lost;
        let lost: Vec<u64> =
            self.network.connections.iter().filter(|(_, link)| mine(link)).map(|(c, _)| *c).collect();
        for connection in lost {
            self.break_connection(connection);
        }
        self.log(|| format!("{id} ends (incarnation {incarnation})"));
    }

    /// The power is gone: what was not synced may be too.
    pub(crate) fn lose_power(&mut self, id: PeerId) {
        if self.server(id).running.is_some() {
            let pending = self.server(id).running.as_ref().map_or(0, |running| running.pending.len());
            if pending > 0 && self.rng.chance(700) {
                // It fails while the next group is written, at any of its operations.
                let operations = self.rng.below(8);
                let count = self.rng.between(1, pending as u64) as usize;
                self.server(id).disk.fail_power_after(operations);
                if let Some(running) = &mut self.server(id).running {
                    // Whatever it says, nobody hears it.
                    let _ = running.sync(count);
                }
            }
            self.kill(id);
        }
        let World { servers, rng, .. } = self;
        servers.get_mut(&id).expect("a server of this world").disk.power_cycle(rng);
        self.log(|| format!("{id} lost its power"));
    }

    pub(crate) fn resume(
        &mut self,
        id: PeerId,
        incarnation: u64,
        is_suspend: bool,
        since: u64,
    ) -> Result<(), String> {
        let time = self.time;
        let server = self.server(id);
        if server.incarnation != incarnation || !server.is_paused {
            return Ok(());
        }
        server.is_paused = false;
        if is_suspend {
            server.clocks.suspended += time - since;
        }
        self.log(|| format!("{id} resumes"));
        if self.rng.chance(500) {
            // A client's request may be the first thing that it sees after its sleep.
            let inbox = std::mem::take(&mut self.server(id).inbox);
            let is_request = |happening: &Happening| matches!(happening, Happening::Request { .. });
            let (requests, others): (Vec<_>, Vec<_>) = inbox.into_iter().partition(is_request);
            self.server(id).inbox = requests.into_iter().chain(others).collect();
        }
        while let Some(happening) = self.server(id).inbox.pop_front() {
            self.happen(happening)?;
            if self.server(id).is_paused {
                return Ok(());
            }
        }
        self.step(id, |running, moment| running.peer.handle_tick(moment.tick))
    }

    // ---- steps --------------------------------------------------------------------------------------------------

    /// Calls into a running server, does what it asks for and checks it.
    pub(crate) fn step(&mut self, id: PeerId, call: impl FnOnce(&mut Running, Moment)) -> Result<(), String> {
        let time = self.time;
        let server = self.server(id);
        let moment = server.moment(time);
        let Some(mut running) = server.running.take() else { return Ok(()) };
        call(&mut running, moment);
        let result = self.settle(id, &mut running, moment);
        let failure = running.failure.take();
        self.server(id).running = Some(running);
        result?;
        if let Some(why) = failure {
            self.log(|| format!("{id}'s storage failed: {why}"));
            self.kill(id);
            let after = self.rng.between(100, 3_000);
            self.schedule_in(after, Happening::Restart { server: id });
            return Ok(());
        }
        self.schedule_tick(id);
        self.start_sync(id);
        self.checkpoint_if_due(id);
        Ok(())
    }

    fn settle(&mut self, id: PeerId, running: &mut Running, moment: Moment) -> Result<(), String> {
        self.note_proposals(id, running)?;
        loop {
            if let Some(output) = running.peer.poll_output() {
                self.carry_out(id, running, moment, output)?;
                self.note_proposals(id, running)?;
            } else if let Some(output) = running.core.poll_output() {
                self.carry_out_core(id, output)?;
            } else {
                break;
            }
        }
        let peer = &running.peer;
        peer.validate().map_err(|rule| format!("{peer}: it does not hold that {rule}"))?;
        if peer.counters().refused_truncations > 0 {
            return Err(format!("{peer}: a leader asked it to forget committed transactions"));
        }
        Ok(())
    }

    fn note_proposals(&mut self, id: PeerId, running: &mut Running) -> Result<(), String> {
        for (zxid, txn) in std::mem::take(&mut running.proposals) {
            let value = value_of(zxid, &txn);
            self.counts.proposals += 1;
            self.log(|| format!("{id} proposes {zxid}"));
            self.checker.observe(&Event::Broadcast { node: id, txn: Txn { zxid, value } })?;
            let time = self.time;
            for session in ended_sessions(&txn)? {
                self.oracle.session_ending(session, time);
            }
        }
        Ok(())
    }

    fn schedule_tick(&mut self, id: PeerId) {
        let time = self.time;
        let server = self.server(id);
        let clocks = server.clocks;
        let incarnation = server.incarnation;
        let Some(running) = &mut server.running else { return };
        let core = running.core.next_deadline().map(|ms| ms + clocks.suspended);
        let deadline = [running.peer.next_deadline(), core].into_iter().flatten().min();
        let Some(at) = deadline.map(|deadline| clocks.when(deadline).max(time + 1)) else { return };
        if running.tick_at.is_none_or(|scheduled| scheduled > at || scheduled <= time) {
            running.tick_at = Some(at);
            self.schedule(at, Happening::Tick { server: id, incarnation });
        }
    }

    pub(crate) fn tick(&mut self, id: PeerId, incarnation: u64) -> Result<(), String> {
        let time = self.time;
        let server = self.server(id);
        if server.incarnation != incarnation {
            return Ok(());
        }
        if let Some(running) = &mut server.running {
            running.tick_at = running.tick_at.filter(|at| *at > time);
        }
        self.step(id, |running, moment| {
            running.peer.handle_tick(moment.tick);
            if running.core.next_deadline().is_some_and(|at| at <= moment.now.ms) {
                let (core, mut quorum) = running.split(moment.tick);
                core.handle_tick(&mut quorum, moment.now);
            }
        })
    }

    pub(crate) fn receive(&mut self, packet: Packet) -> Result<(), String> {
        if !self.network.arrives(&packet) {
            return Ok(());
        }
        let Packet { from, to, message, .. } = packet;
        let kind = message.kind();
        if let Some(running) = &self.server(to).running {
            let phase = running.peer.to_string().split(' ').nth(3).unwrap_or_default().to_owned();
            self.counts.coverage.seen(kind, &phase);
        }
        if !matches!(kind, "Heartbeat" | "Ack") {
            self.log(|| format!("{from} -> {to} {}", describe(&message.body)));
        }
        self.step(to, |running, moment| running.peer.handle_message(from, message, moment.tick))
    }

    pub(crate) fn peer_lost(&mut self, id: PeerId, incarnation: u64, peer: PeerId) -> Result<(), String> {
        if self.server(id).incarnation != incarnation {
            return Ok(());
        }
        self.step(id, |running, moment| running.peer.handle_peer_disconnected(peer, moment.tick))
    }

    // ---- outputs ------------------------------------------------------------------------------------------------

    fn carry_out(
        &mut self,
        id: PeerId,
        running: &mut Running,
        moment: Moment,
        output: Output,
    ) -> Result<(), String> {
        self.mix(self.time << 8 | u64::from(id.0));
        match output {
            Output::Append { entries, token } => {
                running.pending.push_back(DiskOperation::Append { entries, token });
            }
            Output::Truncate { after, token } => {
                running.pending.push_back(DiskOperation::Truncate { after, token });
            }
            Output::SaveRecord { record, token } => {
                running.pending.push_back(DiskOperation::SaveRecord { record: Box::new(record), token });
            }
            Output::ProbeDisk { token } => running.pending.push_back(DiskOperation::Probe { token }),
            Output::InstallSnapshot { snapshot, record, token } => {
                running.installing.push_back((token, snapshot));
                running.pending.push_back(DiskOperation::SaveRecord { record: Box::new(record), token });
            }
            Output::PurgeLog { upto } => running.pending.push_back(DiskOperation::Purge { upto }),
            Output::Send { to, message } => {
                self.mix(message.kind().len() as u64 | u64::from(to.0) << 32);
                for (at, packet) in self.network.send(id, to, message, self.time, &mut self.rng) {
                    self.schedule(at, Happening::Packet(packet));
                }
            }
            Output::Deliver { zxid, txn } => self.deliver(id, running, moment, zxid, &txn)?,
            Output::RoleChanged { role } => self.role_changed(id, running, moment, role)?,
            Output::ReadReady { request, zxid } => {
                if running.core.applied_zxid() < zxid {
                    return Err(format!("{id}: read {request} is ready at {zxid}, which was not applied"));
                }
                let (core, mut quorum) = running.split(moment.tick);
                core.handle_read_ready(request, &mut quorum, moment.now);
            }
            // Everybody can be reached from the beginning.
            Output::MembershipChanged { .. } => {}
            Output::NeedSnapshot { to, session, at_least } => {
                self.send_snapshot(id, running, moment, to, session, at_least);
            }
            Output::StopSnapshot { to, session } => {
                if running.sending.get(&to) == Some(&session) {
                    running.sending.remove(&to);
                }
            }
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        id: PeerId,
        running: &mut Running,
        moment: Moment,
        zxid: Zxid,
        txn: &Bytes,
    ) -> Result<(), String> {
        running.applied_bytes += txn.len() as u64 + TXN_BYTES;
        if zxid > self.base {
            let known = Txn { zxid, value: value_of(zxid, txn) };
            if self.committed.last().is_none_or(|last| last.zxid < zxid) {
                self.committed.push(known);
                self.counts.committed += 1;
                self.mix(known.value);
                let time = self.time;
                for session in ended_sessions(txn)? {
                    self.oracle.session_ended(session, time)?;
                }
            }
            self.checker.delivered(id, known)?;
        }
        let (core, mut quorum) = running.split(moment.tick);
        let before = core.machine().progress();
        core.handle_applied(zxid, txn, &mut quorum, moment.now);
        let progress = running.core.machine().progress();
        if progress.revision > before.revision && progress.time <= before.time {
            return Err(format!("{zxid} is of {:?}, after {:?}", progress.time, before.time));
        }
        self.oracle.state(id, progress.revision, progress.digest)
    }

    fn role_changed(
        &mut self,
        id: PeerId,
        running: &mut Running,
        moment: Moment,
        role: Role,
    ) -> Result<(), String> {
        let summary = running.peer.to_string();
        self.log(|| format!("{summary}: now {role:?}"));
        if matches!(running.role, Role::Leading { .. }) {
            running.core.handle_lost_proposals();
        }
        running.role = role;
        running.core.handle_role_changed(role, moment.now);
        if let Role::Leading { epoch } = role {
            let incarnation = self.server(id).incarnation;
            self.counts.leaders += 1;
            if let Some((other, _)) = self.leaders.insert(epoch, (id, incarnation)) {
                return Err(format!("{other} and then {id} were established in epoch {epoch}"));
            }
            self.checker.observe(&Event::Established { node: id, incarnation, epoch })?;
        }
        Ok(())
    }

    fn carry_out_core(&mut self, id: PeerId, output: CoreOutput<Token>) -> Result<(), String> {
        match output {
            CoreOutput::Reply { token: (connection, _), response } if connection > ADMINISTRATORS => {
                self.administrator_answered(&response);
            }
            CoreOutput::Reply { token: (connection, call), response } => {
                let response = Box::new(response);
                self.send_to_actor(connection, Happening::Response { connection, call, response });
            }
            CoreOutput::Push { client, push } => {
                self.send_to_actor(client, Happening::Pushed { connection: client, push });
            }
            CoreOutput::Close { client, .. } => self.break_connection(client),
            CoreOutput::Trim(trim) => self.trim(id, &trim),
            CoreOutput::Backup { .. } | CoreOutput::BackupNext { .. } => {
                return Err("nobody makes backups here".to_owned());
            }
            CoreOutput::Fatal(why) => return Err(format!("{id} stops: {why}")),
        }
        Ok(())
    }

    // ---- the disk -----------------------------------------------------------------------------------------------

    pub(crate) fn start_sync(&mut self, id: PeerId) {
        let time = self.time;
        let server = &self.servers[&id];
        let Some(running) = &server.running else { return };
        if running.is_syncing || running.pending.is_empty() || server.stalled_until > time {
            return;
        }
        let (incarnation, count) = (server.incarnation, running.pending.len());
        if let Some(running) = &mut self.server(id).running {
            running.is_syncing = true;
        }
        let latency = self.rng.between(0, self.shape.sync_max_ms);
        self.schedule(time + latency, Happening::Synced { server: id, incarnation, count });
    }

    pub(crate) fn synced(&mut self, id: PeerId, incarnation: u64, count: usize) -> Result<(), String> {
        let time = self.time;
        let server = self.server(id);
        if server.incarnation != incarnation || server.running.is_none() {
            return Ok(());
        }
        let is_stalled = server.stalled_until > time;
        if let Some(running) = &mut server.running {
            running.is_syncing = false;
        }
        if is_stalled {
            return Ok(());
        }
        let Some(mut running) = self.server(id).running.take() else { return Ok(()) };
        let synced = running.sync(count);
        let token = match synced {
            Ok(token) => token,
            Err(error) if !self.server(id).disk.has_power() => {
                self.log(|| format!("{id}: {error}"));
                self.server(id).running = Some(running);
                self.lose_power(id);
                let after = self.rng.between(1, 1_000);
                self.schedule_in(after, Happening::Restart { server: id });
                return Ok(());
            }
            Err(error) => {
                running.peer.handle_storage_failed();
                running.failure = Some(error.to_string());
                self.server(id).running = Some(running);
                return self.step(id, |_, _| ());
            }
        };
        let result = self.install_durable(id, &mut running, token);
        self.server(id).running = Some(running);
        result?;
        self.step(id, |running, moment| {
            if token > 0 {
                running.peer.handle_durable(token, moment.tick);
            }
        })
    }

    /// Switches to the snapshots whose record is on the disk.
    fn install_durable(&mut self, id: PeerId, running: &mut Running, token: u64) -> Result<(), String> {
        while let Some((due, snapshot)) = running.installing.front().copied()
            && due <= token
        {
            running.installing.pop_front();
            install(running, snapshot, &mut self.server(id).images);
            self.log(|| format!("{id} installed a snapshot at {}", snapshot.zxid));
            self.counts.installs += 1;
            self.restored(id, snapshot.zxid)?;
            let progress = running.core.machine().progress();
            self.oracle.state(id, progress.revision, progress.digest)?;
        }
        Ok(())
    }

    // ---- checkpoints and snapshots ------------------------------------------------------------------------------

    fn checkpoint_if_due(&mut self, id: PeerId) {
        let (time, bytes) = (self.time, self.shape.checkpoint_bytes);
        let server = self.server(id);
        let incarnation = server.incarnation;
        let Some(running) = &mut server.running else { return };
        let is_due = running.applied_bytes >= bytes
            || running.applied_bytes > 0 && time >= running.checkpoint_at + 5_000;
        if is_due && !running.is_checkpointing {
            running.checkpoint_at = time;
            self.schedule_in(0, Happening::CheckpointDue { server: id, incarnation });
        }
    }

    pub(crate) fn start_checkpoint(&mut self, id: PeerId, incarnation: u64) -> Result<(), String> {
        let server = self.server(id);
        if server.incarnation != incarnation {
            return Ok(());
        }
        let Some(running) = &mut server.running else { return Ok(()) };
        if running.is_checkpointing {
            return Ok(());
        }
        running.applied_bytes = 0;
        let generation = running.generation;
        let Some((writes, zxid)) = running.core.checkpoint() else { return Ok(()) };
        running.is_checkpointing = true;
        let after = self.rng.between(1, 300);
        self.schedule_in(
            after,
            Happening::CheckpointEnds { server: id, incarnation, generation, writes, zxid },
        );
        Ok(())
    }

    pub(crate) fn end_checkpoint(
        &mut self,
        id: PeerId,
        incarnation: u64,
        generation: u64,
        writes: &Arc<Writes>,
        zxid: Zxid,
    ) -> Result<(), String> {
        let server = self.server(id);
        if server.incarnation != incarnation {
            return Ok(());
        }
        let Some(running) = &mut server.running else { return Ok(()) };
        running.is_checkpointing = false;
        if running.generation != generation {
            return Ok(());
        }
        let image = server.images.entry(running.state_id).or_default().with(writes);
        server.images.insert(running.state_id, image.clone());
        self.counts.checkpoints += 1;
        self.step(id, |running, _| {
            running.core.checkpointed(image);
            running.peer.compact(zxid);
        })
    }

    fn send_snapshot(
        &mut self,
        id: PeerId,
        running: &mut Running,
        moment: Moment,
        to: PeerId,
        session: u64,
        at_least: Zxid,
    ) {
        let image = self.server(id).images.get(&running.state_id).cloned().unwrap_or_default();
        let zxid = image.zxid();
        if zxid < at_least || !self.network.is_open(id, to) {
            return running.peer.snapshot_failed(to, session, moment.tick);
        }
        self.snapshots += 1;
        let name = self.snapshots;
        self.log(|| format!("{id} sends {to} a snapshot at {zxid}"));
        running.peer.snapshot_started(to, session, zxid);
        running.sending.insert(to, session);
        let (incarnation, after) = (self.server(id).incarnation, self.rng.between(1, 300));
        let happening = Happening::SnapshotArrives { from: id, incarnation, to, session, id: name, image };
        self.schedule_in(after, happening);
    }

    pub(crate) fn snapshot_arrives(
        &mut self,
        from: PeerId,
        incarnation: u64,
        to: PeerId,
        session: u64,
        id: u64,
        image: Image,
    ) -> Result<(), String> {
        let sender = self.server(from);
        let is_wanted = sender.incarnation == incarnation
            && sender.running.as_mut().is_some_and(|r| r.sending.remove(&to) == Some(session));
        if !is_wanted {
            return Ok(());
        }
        let receiver = self.server(to);
        let takes = receiver.running.as_ref().is_some_and(|r| r.role == Role::Looking);
        if !takes || receiver.is_paused || !self.network.is_open(from, to) {
            return self.step(from, |running, moment| running.peer.snapshot_failed(to, session, moment.tick));
        }
        let snapshot = SnapshotDescriptor { id, zxid: image.zxid(), length: image.0.len() as u64, crc: 0 };
        self.server(to).images.insert(id, image);
        self.step(to, |running, moment| {
            running.receiving = Some(id);
            running.peer.snapshot_received(from, snapshot, moment.tick);
        })?;
        self.step(from, |running, moment| running.peer.snapshot_sent(to, session, snapshot, moment.tick))
    }
}

fn install(
    running: &mut Running,
    snapshot: SnapshotDescriptor,
    images: &mut std::collections::BTreeMap<u64, Image>,
) {
    let Some(image) = images.get(&snapshot.id).cloned() else {
        running.failure = Some(format!("the received state {} is gone", snapshot.id));
        return;
    };
    if let Err(error) = running.core.install(image) {
        running.failure = Some(error.to_string());
    }
    running.generation += 1;
    running.applied_bytes = 0;
    running.state_id = snapshot.id;
    images.retain(|id, _| *id == snapshot.id || running.receiving == Some(*id));
}

/// The sessions that a transaction ends.
fn ended_sessions(txn: &Bytes) -> Result<Vec<SessionId>, String> {
    if txn.is_empty() {
        // A change of the membership.
        return Ok(Vec::new());
    }
    let txn = StateTxn::decode(txn).map_err(|error| format!("a transaction does not decode: {error}"))?;
    let ended = txn.writes.iter().filter(|(k, v)| k.first() == Some(&key::SESSION) && v.is_none());
    let ended: Vec<SessionId> = ended.filter_map(|(k, _)| key::number_at(k, 1)).map(SessionId).collect();
    // Nobody here leaves in peace: what a client sent is fenced, and a data server is down.
    let is_down = txn.writes.keys().any(|k| k.starts_with(&[key::MAP, key::MAP_SERVER]));
    match ended.iter().find(|id| !txn.writes.contains_key(&key::map_blocked(**id)) && !is_down) {
        Some(id) => Err(format!("session {id} ends without a fence")),
        None => Ok(ended),
    }
}
