//! Kinds of worlds, what goes wrong in them, and the two halves of a round: chaos under safety checks, then healing
//! and the demand for liveness.

use std::collections::BTreeSet;

use bytes::Bytes;
use metadata_server::state::key::{self, Key};
use metadata_server::state::layers::View;
use metadata_server::state::read::read;
use metadata_server::state::record::Inode;
use protocol::meta::{MetaReply, ReadOp, Space};
use protocol::{EntryName, InodeId, Layout, SessionId};
use zab::{Config, PeerId, Role};

use super::actor::Actor;
use super::linear::RegisterOp;
use super::network::Weather;
use super::program::REGISTERS;
use super::server::Server;
use super::world::{DATA_SERVERS, Happening, World};
use crate::simulation::invariants::Checker;
use crate::simulation::rng::Rng;

/// Simulated time in which a healed cluster must serve everybody and agree.
const HEALING_MS: u64 = 60_000;

/// What kind of world a seed stands for.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) voters: u32,
    pub(crate) observers: u32,
    /// Directories are bound to ids by the peers themselves.
    pub(crate) is_unbound: bool,
    pub(crate) clients: u32,
    pub(crate) data_servers: u32,
    pub(crate) zab: Config,
    pub(crate) weather: Weather,
    pub(crate) sync_max_ms: u64,
    pub(crate) has_drift: bool,
    pub(crate) checkpoint_bytes: u64,
    /// Between two calls of a client's program.
    pub(crate) think_ms: u64,
    pub(crate) chaos_ms: u64,
    pub(crate) fault_every_ms: u64,
    /// Administrators change who the servers are.
    pub(crate) is_changing: bool,
}

/// The world that a seed stands for.
pub(crate) fn shape(seed: u64) -> Shape {
    let mut rng = Rng::new(seed ^ 0x005e_edc0_de00);
    let heartbeat_ms = rng.pick(&[50, 100, 200, 400]);
    let election_timeout_ms = heartbeat_ms * rng.between(5, 10);
    let log_window_bytes = rng.pick(&[0, 5_000, 50_000]);
    let inflight_bytes_max = (1 << 20) + rng.between(1 << 10, 200 << 10);
    let zab = Config {
        heartbeat_ms,
        election_timeout_ms,
        election_finalize_ms: rng.between(1, 20),
        sync_timeout_ms: 5_000,
        lease_margin_ms: (election_timeout_ms / 10).max(5),
        disk_probe_ms: 1_000,
        disk_stall_ms: rng.between(1_000, 3_000),
        inflight_entries_max: rng.between(2, 40) as usize,
        inflight_bytes_max,
        message_bytes_max: rng.between(500, 50_000),
        txn_bytes_max: 1 << 20,
        log_window_bytes,
        log_bytes_max: log_window_bytes + inflight_bytes_max + rng.between(50_000, 1_000_000),
        reads_max: 100,
        lease_reads: rng.chance(700),
        ..Config::new(PeerId(0))
    };
    let weather = Weather {
        // A round trip must fit into the timeouts, with room for the rest.
        delay_max_ms: rng.pick(&[1, 3, 15, 60]).min(election_timeout_ms / 6),
        loss: rng.pick(&[0, 0, 2, 20]),
        repeat: rng.pick(&[0, 0, 20]),
        reorder: rng.pick(&[0, 0, 0, 10]),
    };
    Shape {
        voters: rng.pick(&[3, 3, 5]),
        observers: rng.pick(&[0, 0, 1, 2]),
        is_unbound: rng.chance(200),
        clients: rng.between(2, 4) as u32,
        data_servers: rng.pick(&[0, 0, 3]),
        zab,
        weather,
        sync_max_ms: rng.pick(&[0, 2, 10, 40]),
        has_drift: rng.chance(500),
        checkpoint_bytes: rng.pick(&[2_000, 20_000, 200_000]),
        think_ms: rng.pick(&[50, 200, 800]),
        chaos_ms: rng.between(20_000, 120_000),
        fault_every_ms: rng.pick(&[500, 2_000, 6_000]),
        is_changing: rng.chance(500),
    }
}

impl World {
    /// Rounds of chaos and healing until `simulated_ms` have passed.
    pub(crate) fn live(&mut self, simulated_ms: u64) -> Result<(), String> {
        let start = self.time + 2_000;
        self.run_until(start)?;
        loop {
            self.is_chaos = true;
            self.schedule_in(1, Happening::Fault);
            if self.shape.is_changing {
                self.schedule_in(1, Happening::Administer);
            }
            let end = self.time + self.shape.chaos_ms;
            self.run_until(end)?;
            self.heal();
            self.demand_liveness()?;
            self.begin_round()?;
            if self.time >= simulated_ms {
                return Ok(());
            }
        }
    }

    /// One fault, and the appointment for the next.
    pub(crate) fn fault(&mut self) -> Result<(), String> {
        if !self.is_chaos {
            return Ok(());
        }
        self.counts.faults += 1;
        let wait = self.rng.between(1, 2 * self.shape.fault_every_ms);
        self.schedule_in(wait, Happening::Fault);
        let ids = self.ids();
        let victim = match self.leader() {
            // Leaders are where it hurts.
            Some(leader) if self.rng.chance(400) => leader,
            _ => self.rng.pick(&ids),
        };
        match self.rng.below(100) {
            0..8 => self.end_and_restart(victim, false),
            8..18 => self.end_and_restart(victim, true),
            18..21 => {
                let with_power = self.rng.chance(700);
                ids.iter().for_each(|id| self.end_and_restart(*id, with_power));
            }
            21..25 => self.desert_leader(),
            25..33 => self.pause(victim),
            33..41 => self.isolate(victim),
            41..47 => self.block_some(),
            47..52 => self.cut_off_actors(victim),
            52..55 => self.cut_off_one_actor(),
            55..58 => {
                let other = self.rng.pick(&ids);
                self.network.reset(victim, other);
            }
            58..65 => self.stall_disk(victim),
            65..69 => self.spoil_disk(victim),
            69..75 => {
                let operations = self.rng.below(20);
                self.log(|| format!("{victim}'s power will fail after {operations} operations"));
                self.server(victim).disk.fail_power_after(operations);
            }
            75..79 => self.flip_a_bit(victim),
            79..80 => self.lose_directory(victim),
            80..83 => return self.step(victim, |running, moment| running.peer.step_down(moment.tick)),
            83..88 => self.set_wall_clock(victim),
            88..91 => self.break_connections(),
            91..93 => self.end_an_actor(),
            93..95 => self.freeze_leader(),
            95..97 => self.bring_to_the_brink(),
            _ => {
                let incarnation = self.server(victim).incarnation;
                self.schedule_in(0, Happening::CheckpointDue { server: victim, incarnation });
            }
        }
        Ok(())
    }

    fn restart_later(&mut self, id: PeerId) {
        let after = self.rng.pick(&[1, 50, 500, 2_000, 20_000]);
        let after = self.rng.between(1, after);
        self.schedule_in(after, Happening::Restart { server: id });
    }

    fn end_and_restart(&mut self, id: PeerId, by_power: bool) {
        if self.server(id).running.is_none() {
            return;
        }
        if by_power {
            self.lose_power(id);
        } else {
            self.kill(id);
        }
        self.restart_later(id);
    }

    /// The leader of a change ends in the middle of it.
    pub(crate) fn end_of_leader(&mut self, id: PeerId, incarnation: u64) {
        if self.is_chaos && self.server(id).incarnation == incarnation {
            let by_power = self.rng.chance(500);
            self.end_and_restart(id, by_power);
        }
    }

    /// Everybody but the leader restarts at once and cannot hear it any more, while it may hold a lease.
    fn desert_leader(&mut self) {
        let Some(leader) = self.leader() else { return };
        if self.rng.chance(700) {
            self.split_actors(leader);
        }
        for id in self.ids().into_iter().filter(|id| *id != leader) {
            self.network.block(leader, id);
            self.network.block(id, leader);
            if self.server(id).running.is_some() {
                self.kill(id);
                let after = self.rng.between(1, 5);
                self.schedule_in(after, Happening::Restart { server: id });
            }
        }
        self.reconnect_later();
    }

    fn pause(&mut self, id: PeerId) {
        let since = self.time;
        let server = self.server(id);
        if server.running.is_none() || server.is_paused {
            return;
        }
        server.is_paused = true;
        let incarnation = server.incarnation;
        let longest = self.rng.pick(&[100, 1_000, 15_000]);
        let (pause, is_suspend) = (self.rng.between(1, longest), self.rng.chance(500));
        if self.rng.chance(300) {
            self.split_actors(id);
        }
        self.log(|| format!("{id} pauses for {pause} ms{}", if is_suspend { ", suspended" } else { "" }));
        self.schedule_in(pause, Happening::Resume { server: id, incarnation, is_suspend, since });
    }

    /// The leader stands still for longer than sessions last. Some actors reach nobody else: what they ask is the first
    /// thing that it sees when it goes on.
    fn freeze_leader(&mut self) {
        let Some(leader) = self.leader() else { return };
        let (since, incarnation) = (self.time, self.server(leader).incarnation);
        self.server(leader).is_paused = true;
        let (pause, is_suspend) = (self.rng.between(5_000, 15_000), self.rng.chance(500));
        self.log(|| format!("{leader} freezes for {pause} ms"));
        for actor in self.actors.keys().copied().collect::<Vec<_>>() {
            if self.rng.chance(500) {
                self.ids()
                    .into_iter()
                    .filter(|id| *id != leader)
                    .for_each(|id| self.network.cut_off(actor, id));
            }
        }
        self.schedule_in(pause, Happening::Resume { server: leader, incarnation, is_suspend, since });
        let after = pause + self.rng.between(1, 1_000);
        self.schedule_in(after, Happening::Reconnect);
    }

    /// A client comes back when the end of its session is proposed and cannot commit, as all disks are slow.
    fn bring_to_the_brink(&mut self) {
        let clients: Vec<(u32, u64)> = self
            .actors
            .values()
            .filter_map(|actor| match actor {
                Actor::Client(client) => Some((client.id, client.timeout_ms())),
                Actor::Data(_) | Actor::Reader(_) => None,
            })
            .collect();
        let (actor, timeout_ms) = self.rng.pick(&clients);
        self.log(|| format!("actor {actor} is brought to the brink"));
        for server in self.ids() {
            self.network.cut_off(actor, server);
        }
        // It was heard up to a third of the timeout ago, and gets half a second more.
        let stall = timeout_ms * 2 / 3 + 400;
        self.schedule_in(stall, Happening::DisksStall { until: self.time + timeout_ms + 2_500 });
        let back = self.rng.between(timeout_ms * 2 / 3 + 500, timeout_ms + 1_000);
        self.schedule_in(back, Happening::Reconnect);
    }

    pub(crate) fn all_disks_stall(&mut self, until: u64) {
        if !self.is_chaos {
            return;
        }
        for id in self.ids() {
            self.server(id).stalled_until = until;
            self.schedule(until, Happening::Unstall { server: id });
        }
    }

    fn isolate(&mut self, id: PeerId) {
        let direction = self.rng.below(3);
        self.log(|| format!("{id} is cut off, kind {direction}"));
        if self.rng.chance(400) {
            self.split_actors(id);
        }
        for other in self.ids() {
            if direction != 1 {
                self.network.block(id, other);
            }
            if direction != 2 {
                self.network.block(other, id);
            }
        }
        self.reconnect_later();
    }

    fn block_some(&mut self) {
        for from in self.ids() {
            for to in self.ids() {
                if self.rng.chance(250) {
                    self.log(|| format!("{from} no longer reaches {to}"));
                    self.network.block(from, to);
                }
            }
        }
        self.reconnect_later();
    }

    /// Half of the actors reach only `server`, the others everybody else: who asks a leader that was deposed meets
    /// those who ask its successor.
    fn split_actors(&mut self, server: PeerId) {
        for actor in self.actors.keys().copied().collect::<Vec<_>>() {
            let stays = self.rng.chance(500);
            for other in self.ids().into_iter().filter(|other| (*other == server) != stays) {
                self.network.cut_off(actor, other);
            }
        }
        self.reconnect_later();
    }

    fn cut_off_actors(&mut self, server: PeerId) {
        for actor in self.actors.keys().copied().collect::<Vec<_>>() {
            if self.rng.chance(500) {
                self.log(|| format!("actor {actor} no longer reaches {server}"));
                self.network.cut_off(actor, server);
            }
        }
        self.reconnect_later();
    }

    /// One client or data server reaches nobody, perhaps for so long that its session ends.
    fn cut_off_one_actor(&mut self) {
        let actors: Vec<u32> = self.actors.keys().copied().collect();
        let actor = self.rng.pick(&actors);
        self.log(|| format!("actor {actor} no longer reaches anybody"));
        for server in self.ids() {
            self.network.cut_off(actor, server);
        }
        let after = self.rng.between(1, 30_000);
        self.schedule_in(after, Happening::Reconnect);
    }

    /// A client ends and begins anew, with nothing remembered.
    fn end_an_actor(&mut self) {
        let clients: Vec<u32> = self.actors.keys().copied().filter(|id| *id < DATA_SERVERS).collect();
        let client = self.rng.pick(&clients);
        self.log(|| format!("client {client} ends and begins anew"));
        if let Some(connection) = self.links.remove(&client) {
            self.break_connection(connection);
        }
        if let Some(Actor::Client(client)) = self.actors.get_mut(&client) {
            client.forget(self.time, &mut self.oracle);
        }
        self.schedule_in(1, Happening::Actor { actor: client });
    }

    fn break_connections(&mut self) {
        for connection in self.links.values().copied().collect::<Vec<_>>() {
            if self.rng.chance(400) {
                self.break_connection(connection);
            }
        }
    }

    fn reconnect_later(&mut self) {
        let longest = self.rng.pick(&[500, 3_000, 20_000]);
        let after = self.rng.between(1, longest);
        self.schedule_in(after, Happening::Reconnect);
    }

    fn stall_disk(&mut self, id: PeerId) {
        let until = self.time + self.rng.between(1, 6_000);
        self.server(id).stalled_until = until;
        self.log(|| format!("{id}'s disk stalls until {until}"));
        self.schedule(until, Happening::Unstall { server: id });
    }

    /// The disk is full, or refuses everything, until the server was restarted a few times.
    fn spoil_disk(&mut self, id: PeerId) {
        let is_full = self.rng.chance(500);
        self.log(|| format!("{id}'s disk {}", if is_full { "is full" } else { "refuses everything" }));
        if is_full {
            self.server(id).disk.set_full(true);
        } else {
            self.server(id).disk.set_broken(true);
        }
        let after = self.rng.between(1, 10_000);
        self.schedule_in(after, Happening::Repaired { server: id });
    }

    pub(crate) fn repaired(&mut self, id: PeerId) {
        self.server(id).disk.set_full(false);
        self.server(id).disk.set_broken(false);
    }

    /// Whether losing what `id` acknowledged leaves it in a majority of the others, whatever membership may come to
    /// count again.
    pub(crate) fn can_lose(&self, id: PeerId) -> bool {
        let formed =
            self.servers[&id].running.as_ref().is_some_and(|r| r.stream.record().membership.is_bound());
        let living = self.servers.values().filter(|server| !server.is_gone);
        formed
            && living.flat_map(Server::memberships).all(|membership| {
                let rest = membership.voters.iter().filter(|(voter, _)| **voter != id);
                let whole = rest.filter(|(voter, uuid)| self.is_whole_directory(**voter, **uuid)).count();
                whole > membership.voters.len() / 2 || !membership.is_bound()
            })
    }

    fn flip_a_bit(&mut self, id: PeerId) {
        if !self.can_lose(id) {
            return;
        }
        self.lose_power(id);
        let World { servers, rng, .. } = self;
        let server = servers.get_mut(&id).expect("a server of this world");
        let flipped = server.disk.flip_bit(rng, |name| name.starts_with("log-") || name == "record");
        if let Some((name, at)) = flipped {
            server.is_damaged = true;
            self.log(|| format!("{id}: a bit of {name} at {at} flips"));
        }
        self.restart_later(id);
    }

    /// A directory is lost: the id remains, everything else is new. It learns, and votes again when it was replaced.
    fn lose_directory(&mut self, id: PeerId) {
        if !self.can_lose(id) {
            return;
        }
        self.empty(id);
        self.restart_later(id);
    }

    fn set_wall_clock(&mut self, id: PeerId) {
        let offset = self.rng.between(0, 200_000) as i64 - 100_000;
        self.server(id).clocks.wall_offset = offset;
        self.log(|| format!("{id}'s wall clock is set off by {offset} s"));
    }

    // ---- healing ------------------------------------------------------------------------------------------------

    fn heal(&mut self) {
        self.log(|| "everything heals".to_owned());
        self.is_chaos = false;
        self.network.heal();
        self.network.weather.loss = 0;
        self.network.weather.repeat = 0;
        self.network.weather.reorder = 0;
        for id in self.ids() {
            self.repaired(id);
            let (incarnation, since) = (self.server(id).incarnation, self.time);
            if !self.server(id).disk.has_power() || self.rng.chance(100) {
                self.lose_power(id);
            }
            let server = self.server(id);
            server.stalled_until = 0;
            server.disk.keep_power();
            self.schedule_in(0, Happening::Resume { server: id, incarnation, is_suspend: false, since });
            self.schedule_in(0, Happening::Unstall { server: id });
            self.schedule_in(1, Happening::Restart { server: id });
        }
    }

    /// Everybody is served, then everybody rests, and all states are one.
    fn demand_liveness(&mut self) -> Result<(), String> {
        let end = self.time + HEALING_MS;
        let before = self.completed();
        self.is_busy_time = true;
        let is_served = |now: &Vec<u64>| now.iter().zip(&before).all(|(now, before)| now > before);
        loop {
            let is_mended = !self.shape.is_changing || self.mend_membership()?;
            if is_mended && is_served(&self.completed()) && self.is_in_role() {
                break;
            }
            self.wait(end, "not everybody was served")?;
        }
        self.is_busy_time = false;
        while let Some(what) = self.unrest()? {
            self.wait(end, &format!("there is no rest ({what})"))?;
        }
        let rows = self.rows(self.leader().ok_or("there is no leader")?)?;
        for id in self.members() {
            if self.rows(id)? != rows {
                return Err(format!("the state of {id} differs from the leader's, and both are at the end"));
            }
        }
        Ok(())
    }

    fn wait(&mut self, end: u64, what: &str) -> Result<(), String> {
        if self.time >= end {
            let servers = self.servers.values().map(|server| {
                server.running.as_ref().map_or(format!("{} is down", server.id), |r| r.peer.to_string())
            });
            let clients = self.actors.values().filter_map(|actor| match actor {
                Actor::Client(client) => Some(client.describe()),
                Actor::Data(_) | Actor::Reader(_) => None,
            });
            let lines: Vec<String> = servers.chain(clients).collect();
            return Err(format!("{what} within {HEALING_MS} ms after healing:\n  {}", lines.join("\n  ")));
        }
        self.run_until(self.time + 100)
    }

    fn completed(&self) -> Vec<u64> {
        let clients = self.actors.values();
        clients.filter_map(|a| if let Actor::Client(c) = a { Some(c.completed) } else { None }).collect()
    }

    /// The servers that the leader's membership names, each with the directory that it has.
    fn members(&self) -> Vec<PeerId> {
        let Some((_, membership)) = self.leaders_membership() else { return Vec::new() };
        let is_member = |id: &PeerId| membership.is_member(*id, self.servers[id].uuid());
        self.ids().into_iter().filter(is_member).collect()
    }

    /// Whether every server is what the leader's membership says.
    fn is_in_role(&self) -> bool {
        let Some((_, membership)) = self.leaders_membership() else { return false };
        self.servers.values().filter(|server| !server.is_gone).all(|server| {
            let (id, uuid) = (server.id, server.uuid());
            match server.running.as_ref().map(|r| r.peer.role()) {
                Some(Role::Following { .. } | Role::Leading { .. }) => membership.is_voter(id, uuid),
                Some(Role::Observing { .. }) => {
                    !membership.is_voter(id, uuid) && membership.is_member(id, uuid)
                }
                Some(Role::NotMember) => !membership.is_member(id, uuid),
                _ => false,
            }
        })
    }

    /// What is still under way: a call, a lock, a proposal, a transaction that not everybody applied; or what is left
    /// behind in the state although nobody needs it.
    fn unrest(&self) -> Result<Option<String>, String> {
        let idle = self.actors.values().all(|actor| match actor {
            Actor::Client(client) => client.is_idle() && client.is_attached(),
            Actor::Data(server) => server.is_attached(),
            Actor::Reader(_) => true,
        });
        let Some(leader) = self.leader().filter(|_| idle && self.is_in_role()) else {
            return Ok(Some("somebody is busy".to_owned()));
        };
        let ends = |id: &PeerId| {
            let peer = self.servers[id].running.as_ref().map(|running| &running.peer);
            peer.map(|peer| (peer.last_zxid(), peer.delivered(), peer.committed()))
        };
        let Some((last, delivered, committed)) = ends(&leader) else {
            return Ok(Some("the leader is away".to_owned()));
        };
        let equal = last == delivered && last == committed;
        let has_all = |id: &PeerId| ends(id).is_some_and(|e| (e.0, e.1) == (last, last));
        if !equal || !self.members().iter().all(has_all) {
            return Ok(Some("not everybody applied everything".to_owned()));
        }
        let Some(running) = &self.servers[&leader].running else { return Ok(None) };
        self.left_behind(&running.core.machine().committed())
    }

    /// Rows that nobody needs, or that are missing: sessions that were left behind have ended, and with them what they
    /// held; what is pinned is what living clients have open without a name, and what is held is theirs.
    fn left_behind(&self, state: &impl View) -> Result<Option<String>, String> {
        let rows =
            |table: u8| state.scan(&[table], &[table + 1], usize::MAX).map_err(|error| error.to_string());
        let keys = |table: u8| -> Result<BTreeSet<Key>, String> {
            Ok(rows(table)?.into_iter().map(|(key, _)| key).collect())
        };
        let clients = || {
            self.actors.values().filter_map(|actor| match actor {
                Actor::Client(client) => Some(client),
                Actor::Data(_) | Actor::Reader(_) => None,
            })
        };
        let pins: BTreeSet<Key> = clients().filter_map(|c| c.pinned()).map(|(i, s)| key::pin(i, s)).collect();
        let holds: BTreeSet<Key> = clients().flat_map(|c| c.held()).map(key::hold).collect();
        let mut nameless = BTreeSet::new();
        for (row, value) in rows(key::INODE)? {
            let inode: Inode = postcard::from_bytes(&value).map_err(|e| e.to_string())?;
            if inode.attr.nlink == 0 {
                nameless.extend(key::number_at(&row, 1).map(InodeId));
            }
        }
        let open: BTreeSet<InodeId> = clients().filter_map(|c| c.pinned()).map(|(inode, _)| inode).collect();
        let owned = pins.len() + holds.len();
        let with_sessions = self.actors.values().filter(|actor| !matches!(actor, Actor::Reader(_))).count();
        let rules = [
            (keys(key::LOCK)?.is_empty(), "a lock is left"),
            (keys(key::SESSION)?.len() == with_sessions, "a session is left"),
            (keys(key::ENDING)?.is_empty(), "a session's end is not through"),
            (keys(key::PIN)? == pins, "other inodes are pinned than are open without a name"),
            (keys(key::HOLD)? == holds, "other files are held than clients hold"),
            (keys(key::OWNED)?.len() == owned, "sessions own more or less than they have"),
            (nameless == open, "an inode without a name is there that nobody has open"),
        ];
        Ok(rules.iter().find(|(holds, _)| !holds).map(|(_, what)| (*what).to_owned()))
    }

    fn rows(&self, id: PeerId) -> Result<Vec<(Key, Bytes)>, String> {
        let running = self.servers[&id].running.as_ref().ok_or("it does not run")?;
        let rows = running.core.rows().map_err(|e| e.to_string())?;
        // Written by checkpoints, which everybody makes when it likes.
        Ok(rows.into_iter().filter(|(k, _)| *k != key::system("progress")).collect())
    }

    /// Judges what clients were told, and begins new histories: nothing is under way.
    fn begin_round(&mut self) -> Result<(), String> {
        let leader = self.leader().ok_or("there is no leader")?;
        for register in 0..REGISTERS {
            let value = self.register_value(leader, register)?;
            let now = self.time;
            self.oracle.register_call(register, RegisterOp::Read(value), now, Some(now));
        }
        self.oracle.judge()?;
        let running = self.servers[&leader].running.as_ref().ok_or("it does not run")?;
        self.base = running.core.applied_zxid();
        self.checker = Checker::new();
        self.committed.clear();
        for id in self.ids() {
            self.checker.restored(id, Vec::new())?;
        }
        self.network.weather = self.shape.weather;
        self.is_busy_time = true;
        for actor in self.actors.keys().copied().collect::<Vec<_>>() {
            self.schedule_in(1, Happening::Actor { actor });
        }
        Ok(())
    }

    fn register_value(&self, id: PeerId, register: u32) -> Result<u64, String> {
        let running = self.servers[&id].running.as_ref().ok_or("it does not run")?;
        let state = running.core.machine().committed();
        let name = EntryName::new(format!("r{register}")).map_err(|e| e.to_string())?;
        let lookup = ReadOp::Lookup { parent: InodeId::ROOT, name };
        let Ok(MetaReply::Entry(attr)) = read(&state, SessionId::default(), &lookup, Space::default()) else {
            return Ok(0);
        };
        let view = ReadOp::View { inode: attr.inode, known: 0 };
        match read(&state, SessionId::default(), &view, Space::default()) {
            Ok(MetaReply::View(view)) => match view.layout {
                Layout::Inline(mut bytes) => {
                    bytes.resize(8, 0);
                    let mut eight = [0; 8];
                    eight.copy_from_slice(&bytes);
                    Ok(u64::from_le_bytes(eight))
                }
                Layout::Chunks => Err("a register has moved to chunks".to_owned()),
            },
            other => Err(format!("a register cannot be read: {other:?}")),
        }
    }
}
