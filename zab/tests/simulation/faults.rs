//! What goes wrong, and the two halves of a run: chaos under safety checks, then healing under a liveness check.

use zab::{Config, DataUuid, PeerId, Role};

use super::describe::members;
use super::facts::Fact;
use super::network::Weather;
use super::node::Node;
use super::rng::Rng;
use super::world::{Happening, Shape, Trace, World};

/// Simulated time in which a healed quorum must serve and agree.
const HEALING_MS: u64 = 20_000;

/// What a run did, for those who count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) digest: u64,
    pub(crate) delivered: usize,
    pub(crate) leaders: usize,
    pub(crate) lease_reads: u64,
    pub(crate) index_reads: u64,
    pub(crate) snapshots: u64,
    /// Changes of the membership that were committed.
    pub(crate) changes: u64,
}

/// The world that a seed stands for.
pub(crate) fn shape(seed: u64) -> Shape {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let heartbeat_ms = rng.between(10, 50);
    let inflight_bytes_max = rng.between(1_100, 6_000);
    let log_window_bytes = rng.pick(&[0, 300, 2_000, 20_000]);
    let election_timeout_ms = heartbeat_ms * rng.between(5, 10);
    let config = Config {
        heartbeat_ms,
        election_timeout_ms,
        election_finalize_ms: rng.between(1, 20),
        sync_timeout_ms: 2_000,
        lease_margin_ms: (election_timeout_ms / 10).max(5),
        disk_probe_ms: 300,
        disk_stall_ms: rng.between(300, 1_000),
        inflight_entries_max: rng.between(2, 40) as usize,
        inflight_bytes_max,
        message_bytes_max: rng.between(100, 1_000),
        txn_bytes_max: 1_000,
        log_window_bytes,
        log_bytes_max: log_window_bytes + inflight_bytes_max + rng.between(2_000, 50_000),
        reads_max: 100,
        ..Config::new(PeerId(0))
    };
    let weather = Weather {
        // A round trip must fit into the timeouts, with room for the rest.
        delay_max_ms: rng.pick(&[1, 3, 15, 15, 60]).min(election_timeout_ms / 6),
        loss: rng.pick(&[0, 0, 2, 20]),
        repeat: rng.pick(&[0, 0, 20]),
    };
    Shape {
        voters: rng.pick(&[3, 3, 5]),
        observer: rng.chance(200),
        unbound: rng.chance(200),
        config,
        weather,
        sync_max_ms: rng.pick(&[0, 2, 10, 40]),
        drift: rng.chance(500),
        chaos_ms: rng.between(1_000, 4_000),
        fault_every_ms: rng.pick(&[30, 100, 300]),
        workload_every_ms: rng.pick(&[3, 10, 40]),
        changing: rng.chance(600),
    }
}

/// One whole run.
pub(crate) fn run(seed: u64, trace: Trace) -> Result<Report, String> {
    run_shape(seed, shape(seed), trace)
}

pub(crate) fn run_shape(seed: u64, shape: Shape, trace: Trace) -> Result<Report, String> {
    let mut world = World::new(seed, shape, trace)?;
    world.live()?;
    let longest = world.checker.histories.iter().map(|(_, history)| history.len()).max().unwrap_or(0);
    Ok(Report {
        digest: world.digest,
        delivered: longest,
        leaders: world.established.len(),
        lease_reads: world.reads.lease_reads,
        index_reads: world.reads.index_reads,
        snapshots: world.snapshots(),
        changes: world.administration.changes(),
    })
}

/// A whole run, told as facts.
pub(crate) fn record(seed: u64, shape: Shape) -> Result<Vec<(PeerId, Fact)>, String> {
    let mut world = World::cold(seed, shape, Trace::Off);
    world.recorder.is_on = true;
    for id in world.ids() {
        world.boot(id)?;
    }
    world.live()?;
    Ok(world.recorder.facts)
}

impl World {
    /// Both halves of a run.
    fn live(&mut self) -> Result<(), String> {
        self.chaos = true;
        self.schedule_in(300, Happening::Workload);
        self.schedule_in(300, Happening::Fault);
        if self.shape.changing {
            self.schedule_in(300, Happening::Administer);
        }
        self.run_until(self.shape.chaos_ms)?;
        self.heal()?;
        self.demand_liveness()
    }

    /// One fault, and the appointment for the next.
    pub(crate) fn fault(&mut self) -> Result<(), String> {
        if !self.chaos {
            return Ok(());
        }
        let wait = self.rng.between(1, 2 * self.shape.fault_every_ms);
        self.schedule_in(wait, Happening::Fault);
        let ids = self.ids();
        let victim = match self.leader() {
            // Leaders are where it hurts.
            Some(leader) if self.rng.chance(400) => leader,
            _ => self.rng.pick(&ids),
        };
        match self.rng.below(100) {
            0..16 => self.crash_and_restart(victim),
            16..20 => self.crash_everything(),
            20..24 => self.desert_leader(),
            24..34 => self.pause(victim),
            34..44 => self.isolate(victim),
            44..52 => self.block_some(),
            52..60 => {
                let other = self.rng.pick(&ids);
                self.network.reset(victim, other);
            }
            60..66 => self.stall_disk(victim),
            66..70 => return self.fail_disk(victim),
            70..73 => self.damage(victim),
            73..75 => self.lose_directory(victim),
            75..78 => return self.step(victim, |peer, now| peer.step_down(now)),
            _ => self.schedule_in(0, Happening::Checkpoint { node: victim }),
        }
        Ok(())
    }

    fn restart_later(&mut self, id: PeerId) {
        let after = self.rng.pick(&[1, 50, 500, 2_000]);
        let after = self.rng.between(1, after);
        self.schedule_in(after, Happening::Restart { node: id });
    }

    fn crash_and_restart(&mut self, id: PeerId) {
        if self.node(id).peer.is_some() {
            self.crash(id);
            self.restart_later(id);
        }
    }

    fn crash_everything(&mut self) {
        for id in self.ids() {
            self.crash_and_restart(id);
        }
    }

    /// Everybody but the leader restarts at once and cannot hear it any more, while it may hold a lease.
    fn desert_leader(&mut self) {
        let Some(leader) = self.leader() else { return };
        for id in self.ids().into_iter().filter(|id| *id != leader) {
            self.network.block(leader, id);
            self.network.block(id, leader);
            if self.node(id).peer.is_some() {
                self.crash(id);
                let after = self.rng.between(1, 5);
                self.schedule_in(after, Happening::Restart { node: id });
            }
        }
        self.reconnect_later();
    }

    fn pause(&mut self, id: PeerId) {
        let node = self.node(id);
        if node.peer.is_none() || node.paused {
            return;
        }
        node.paused = true;
        let incarnation = node.incarnation;
        let pause = self.rng.between(1, 1_000);
        self.log(|| format!("{id} pauses for {pause} ms"));
        self.schedule_in(pause, Happening::Resume { node: id, incarnation });
    }

    fn isolate(&mut self, id: PeerId) {
        let direction = self.rng.below(3);
        self.log(|| format!("{id} is cut off, kind {direction}"));
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

    fn reconnect_later(&mut self) {
        let after = self.rng.between(1, 1_500);
        self.schedule_in(after, Happening::Reconnect);
    }

    fn stall_disk(&mut self, id: PeerId) {
        let until = self.time + self.rng.between(1, 2_500);
        self.node(id).disk_stalled_until = until;
        self.log(|| format!("{id}'s disk stalls until {until}"));
        self.schedule(until, Happening::Unstall { node: id });
    }

    fn fail_disk(&mut self, id: PeerId) -> Result<(), String> {
        if self.node(id).peer.is_some() && !self.node(id).paused {
            self.log(|| format!("{id}'s disk fails"));
            self.step(id, |peer, _| peer.handle_storage_failed())?;
            self.crash(id);
            self.restart_later(id);
        }
        Ok(())
    }

    /// Whether losing what `id` acknowledged leaves it in a majority of the others, whatever membership may come to
    /// count again.
    fn can_lose(&self, id: PeerId) -> bool {
        let is_whole = |voter: &PeerId, uuid: &Option<DataUuid>| {
            let node = self.nodes.get(voter).filter(|node| node.id != id && Some(node.uuid()) == *uuid);
            node.is_some_and(Node::is_whole)
        };
        self.nodes.values().filter(|node| !node.gone).flat_map(Node::memberships).all(|membership| {
            let whole = membership.voters.iter().filter(|(voter, uuid)| is_whole(voter, uuid)).count();
            whole > membership.voters.len() / 2 || membership.version == 0
        }) && self.nodes[&id].disk.record.membership.is_bound()
    }

    fn damage(&mut self, id: PeerId) {
        if self.can_lose(id) && self.node(id).peer.is_some() {
            self.crash(id);
            let node = self.nodes.get_mut(&id).expect("a node of this world");
            node.disk.damage(&mut self.rng);
            let history = node.disk.history();
            self.recorder.note(id, || Fact::Damaged(history));
            self.log(|| format!("{id}'s log is damaged"));
            self.restart_later(id);
        }
    }

    fn lose_directory(&mut self, id: PeerId) {
        if self.can_lose(id) && self.node(id).peer.is_some() {
            self.crash(id);
            self.wipe(id);
            self.restart_later(id);
        }
    }

    // ---- healing ------------------------------------------------------------------------------------------------

    fn heal(&mut self) -> Result<(), String> {
        self.log(|| "everything heals".to_owned());
        self.chaos = false;
        self.network.heal();
        self.network.weather.loss = 0;
        self.network.weather.repeat = 0;
        for id in self.ids() {
            self.node(id).disk_stalled_until = 0;
            let incarnation = self.node(id).incarnation;
            self.schedule_in(0, Happening::Resume { node: id, incarnation });
            self.schedule_in(0, Happening::Unstall { node: id });
            self.boot(id)?;
        }
        Ok(())
    }

    /// One leader, everybody with it in the role that the membership gives it, fresh writes, equal states; and lost
    /// directories are replaced.
    fn demand_liveness(&mut self) -> Result<(), String> {
        let end = self.time + HEALING_MS;
        let (mut written, mut written_in) = (None, None);
        while self.time < end {
            self.run_until(self.time + 20)?;
            if let Some(leader) = self.leader() {
                if self.shape.changing && !self.replace_lost_directories(leader)? {
                    continue;
                }
                // What was written to a leader that was still to be deposed may be lost, although its successor was
                // established before: write again whenever another one leads.
                let leadership = Some((leader, self.established.len()));
                if written.is_none() || written_in != leadership {
                    written = self.propose(leader)?;
                    written_in = leadership;
                    self.read(leader)?;
                }
                if written.is_some_and(|value| self.is_everywhere(leader, value)) {
                    return Ok(());
                }
            }
        }
        let status: Vec<String> = self
            .nodes
            .values()
            .map(|node| {
                let gone = if node.gone { "gone" } else { "down" };
                let peer = node.peer.as_ref();
                peer.map_or(format!("{} {gone}", node.id), |p| format!("{p} of {}", members(p.membership())))
            })
            .collect();
        Err(format!("no progress within {HEALING_MS} ms after healing:\n  {}", status.join("\n  ")))
    }

    fn is_everywhere(&self, leader: PeerId, value: u64) -> bool {
        let Some(leader) = &self.nodes[&leader].peer else { return false };
        let membership = leader.membership();
        let longest = self.checker.histories.iter().map(|(_, history)| history.len()).max();
        self.nodes.values().filter(|node| !node.gone).all(|node| {
            let history = self.checker.histories.of(node.id);
            let has_all = Some(history.len()) == longest && history.iter().any(|txn| txn.value == value);
            let uuid = node.uuid();
            if membership.is_voter(node.id, uuid) {
                has_all && matches!(node.role(), Some(Role::Following { .. } | Role::Leading { .. }))
            } else if membership.is_member(node.id, uuid) {
                has_all && matches!(node.role(), Some(Role::Observing { .. }))
            } else {
                matches!(node.role(), Some(Role::NotMember | Role::Looking))
            }
        })
    }
}
