//! Leader memory: what a leader knows beyond the replicated state, and a new one learns again.
//!
//! Pure bookkeeping with time as an argument, in milliseconds of the server's monotonic clock.

use crate::state::planner::Positions;
use crate::state::record::{Session, SessionKind};
use protocol::map::ClusterMap;
use protocol::meta::{DataServerReport, FullRatios, PgReport, RecoveryStatus, ScrubSummary, Space};
use protocol::replication::Position;
use protocol::{DataServerId, PgId, PoolId, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use zab::mutant;

/// A pause of the server's own clock longer than this is not counted against anybody: the server, not its
/// clients, was away.
const TICK_GAP_MS: u64 = 1_000;
/// Rates of copying are measured over this many milliseconds.
const RATE_WINDOW_MS: u64 = 10_000;
/// Sessions are given this much longer than they count themselves.
const EXPIRY_MARGIN_MS: u64 = 500;

/// One session's clock.
#[derive(Debug)]
pub struct Clock {
    /// The replicated record.
    pub session: Session,
    /// When it was last heard of.
    pub heard: u64,
    /// Its expiry has been proposed.
    pub expiring: bool,
    /// Sequences whose replies are stored.
    pub replies: BTreeSet<u64>,
}

impl Clock {
    /// Whether a client with this certificate opened the session with `nonce`. The nonces of data servers' sessions
    /// are no secret, so they prove nothing.
    pub fn is_of(&self, certificate: &str, nonce: u128) -> bool {
        let session = &self.session;
        session.kind == SessionKind::Client && session.nonce == nonce && session.certificate == certificate
    }
}

/// What a data server had copied at each of its last reports: milliseconds, objects, bytes. At most one entry per
/// report within the window.
#[derive(Debug, Default)]
struct Rate(VecDeque<(u64, u64, u64)>);

impl Rate {
    fn note(&mut self, now: u64, objects: u64, bytes: u64) {
        if self.0.back().is_some_and(|last| objects < last.1 || bytes < last.2) {
            // A new start of the server counts from zero.
            self.0.clear();
        }
        self.0.push_back((now, objects, bytes));
        while self.0.len() > 2 && self.0.front().is_some_and(|first| now - first.0 > RATE_WINDOW_MS) {
            self.0.pop_front();
        }
    }

    /// Objects and bytes per second.
    fn per_second(&self) -> (u64, u64) {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return (0, 0) };
        let ms = (last.0 - first.0).max(1);
        ((last.1 - first.1) * 1000 / ms, (last.2 - first.2) * 1000 / ms)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct LeaderMemory {
    /// When this server became leader.
    pub since: u64,
    /// Sessions by id.
    pub clocks: BTreeMap<SessionId, Clock>,
    /// What data servers last reported.
    pub reports: BTreeMap<DataServerId, DataServerReport>,
    /// How fast data servers copy.
    rates: BTreeMap<DataServerId, Rate>,
    /// Positions of groups as data servers registered.
    pub positions: Positions,
    /// Since when data servers are down.
    pub down_since: BTreeMap<DataServerId, u64>,
    last_tick: u64,
}

impl LeaderMemory {
    /// A new leader's: every session was just heard of, as nobody knows better.
    pub fn new(now: u64, sessions: impl IntoIterator<Item = (SessionId, Session)>) -> Self {
        let mut memory = Self { since: now, last_tick: now, ..Self::default() };
        for (id, session) in sessions {
            let silent = if mutant!("new-leader-counts-its-absence") { session.timeout_ms } else { 0 };
            memory.add(now.saturating_sub(u64::from(silent)), id, session);
        }
        memory
    }

    /// A session was opened.
    pub fn add(&mut self, now: u64, id: SessionId, session: Session) {
        self.clocks.insert(id, Clock { session, heard: now, expiring: false, replies: BTreeSet::new() });
    }

    /// A session was heard of.
    pub fn heard(&mut self, now: u64, id: SessionId) {
        if let Some(clock) = self.clocks.get_mut(&id) {
            clock.heard = clock.heard.max(now);
        }
    }

    /// Sessions to expire now; each is named once until [`Self::expiry_failed`].
    pub fn expired(&mut self, now: u64) -> Vec<SessionId> {
        let gap = now.saturating_sub(self.last_tick);
        if gap > TICK_GAP_MS && !mutant!("servers-pause-counts") {
            for clock in self.clocks.values_mut() {
                clock.heard += gap;
            }
        }
        self.last_tick = now;
        let mut expired = Vec::new();
        for (id, clock) in &mut self.clocks {
            let limit = u64::from(clock.session.timeout_ms) + EXPIRY_MARGIN_MS;
            let limit = if mutant!("sessions-end-early") { limit / 2 } else { limit };
            if !clock.expiring && now.saturating_sub(clock.heard) > limit {
                clock.expiring = true;
                expired.push(*id);
            }
        }
        expired
    }

    /// An expiry could not be proposed: try again at the next tick.
    pub fn expiry_failed(&mut self, id: SessionId) {
        if let Some(clock) = self.clocks.get_mut(&id) {
            clock.expiring = false;
        }
    }

    /// The newest session that the client with this certificate opened with `nonce`.
    pub fn by_nonce(&self, certificate: &str, nonce: u128) -> Option<SessionId> {
        self.clocks.iter().rev().find(|(_, clock)| clock.is_of(certificate, nonce)).map(|(id, _)| *id)
    }

    /// A data server said how far its groups are. One that it is in and does not name is empty there.
    pub fn note_positions(&mut self, server: DataServerId, said: &[(PgId, Position)], map: &ClusterMap) {
        self.positions.retain(|(other, _), _| *other != server);
        let member_of = map.pgs.iter().filter(|(_, config)| config.member(server).is_some());
        self.positions.extend(member_of.map(|(pg, _)| ((server, *pg), Position::default())));
        self.positions.extend(said.iter().map(|(pg, position)| ((server, *pg), *position)));
    }

    /// The live session of a data server.
    pub fn session_of(&self, server: DataServerId) -> Option<SessionId> {
        let kind = SessionKind::Data(server);
        self.clocks.iter().find(|(_, clock)| clock.session.kind == kind).map(|(id, _)| *id)
    }

    /// Data servers that have been down for `limit` milliseconds and still take part in placement.
    pub fn overdue(&mut self, now: u64, map: &ClusterMap, limit: u64) -> Vec<DataServerId> {
        let mut overdue = Vec::new();
        for (id, info) in &map.data_servers {
            if info.up {
                self.down_since.remove(id);
            } else if now.saturating_sub(*self.down_since.entry(*id).or_insert(now)) >= limit
                && info.reweight > 0
            {
                overdue.push(*id);
            }
        }
        overdue
    }

    /// Objects still to be copied, as the groups' present primaries count them: what a server said that has died
    /// since, or has handed a group on, is nobody's work any more.
    pub fn recovering(&self, map: &ClusterMap) -> u64 {
        let leads = |server, pg| map.pgs.get(pg).is_some_and(|config| config.primary == Some(server));
        let groups = self.reports.iter().flat_map(|(id, report)| report.groups.iter().map(move |g| (*id, g)));
        groups.filter(|(id, (pg, _))| leads(*id, pg)).map(|(_, (_, group))| group.recovering).sum()
    }

    /// A data server said what it holds.
    pub fn note_report(&mut self, now: u64, server: DataServerId, report: DataServerReport) {
        self.rates.entry(server).or_default().note(now, report.copied_objects, report.copied_bytes);
        self.reports.insert(server, report);
    }

    /// What is still to be copied, by the primaries that copy it, as in [`Self::recovering`].
    pub fn recovery(&self, map: &ClusterMap) -> Vec<RecoveryStatus> {
        let of = |(server, report): (&DataServerId, &DataServerReport)| {
            let leads = |pg: &PgId| map.pgs.get(pg).is_some_and(|config| config.primary == Some(*server));
            let own = report.groups.iter().filter(|(pg, group)| leads(pg) && group.recovering > 0);
            let mut status = RecoveryStatus {
                server: *server,
                groups: 0,
                objects: 0,
                bytes: 0,
                objects_per_second: 0,
                bytes_per_second: 0,
                seconds_left: None,
            };
            for (_, group) in own {
                status.groups += 1;
                status.objects += group.recovering;
                status.bytes += group.recovering_bytes;
            }
            let rate = self.rates.get(server).map_or((0, 0), Rate::per_second);
            (status.objects_per_second, status.bytes_per_second) = rate;
            let by_bytes = status.bytes.checked_div(rate.1);
            status.seconds_left = by_bytes.max(status.objects.checked_div(rate.0));
            (status.objects > 0).then_some(status)
        };
        self.reports.iter().filter_map(of).collect()
    }

    /// What the present primaries said about their groups.
    pub fn led_groups(&self, map: &ClusterMap) -> impl Iterator<Item = (DataServerId, PgId, PgReport)> {
        let leads = |server, pg| map.pgs.get(pg).is_some_and(|config| config.primary == Some(server));
        let groups = self.reports.iter().flat_map(|(id, report)| report.groups.iter().map(move |g| (*id, g)));
        groups.filter(move |(id, (pg, _))| leads(*id, pg)).map(|(id, (pg, report))| (id, *pg, *report))
    }

    /// What scrubs did and found.
    pub fn scrub_summary(&self, map: &ClusterMap) -> ScrubSummary {
        let mut sum =
            ScrubSummary { oldest_light: u64::MAX, oldest_deep: u64::MAX, ..ScrubSummary::default() };
        for (_, _, PgReport { scrub, .. }) in self.led_groups(map) {
            sum.running += u32::from(scrub.run.is_some());
            sum.oldest_light = sum.oldest_light.min(scrub.last_light);
            sum.oldest_deep = sum.oldest_deep.min(scrub.last_deep);
            sum.found += scrub.found;
            sum.repaired += scrub.repaired;
            sum.undecided += scrub.undecided;
        }
        if sum.oldest_light == u64::MAX {
            (sum.oldest_light, sum.oldest_deep) = (0, 0);
        }
        sum
    }

    /// Space of a pool, replicas counted once: what is in it, and what can be written until the first of the data servers
    /// that hold it is full. Each server's share is that of the pool's groups which are on it, so that the one that fills
    /// up first decides. `None` while none of them has reported.
    pub fn space(&self, map: &ClusterMap, pool: PoolId, full: FullRatios) -> Option<Space> {
        let (mut groups, mut on) = (0u64, BTreeMap::<DataServerId, u64>::new());
        for (_, config) in map.pgs.iter().filter(|(pg, _)| pg.pool == pool) {
            groups += 1;
            for member in config.in_sync.iter().chain(&config.learners) {
                *on.entry(member.server).or_default() += 1;
            }
        }
        let free = |(server, count): (&DataServerId, &u64)| {
            let report = self.reports.get(server).filter(|report| report.capacity > 0)?;
            let left = u128::from(full.full_at(report.capacity).saturating_sub(report.used));
            Some((left * u128::from(groups) / u128::from(*count)) as u64)
        };
        let free = on.iter().filter_map(free).min()?;
        let stored: u64 = self
            .led_groups(map)
            .filter(|(_, pg, _)| pg.pool == pool)
            .map(|(_, _, report)| report.bytes)
            .sum();
        Some(Space { total: stored.saturating_add(free), free, inodes: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Timestamp;
    use protocol::meta::{ClientInfo, PgReport};

    fn session(timeout_ms: u32) -> Session {
        Session {
            nonce: 7,
            timeout_ms,
            certificate: "client".into(),
            info: ClientInfo::default(),
            kind: SessionKind::Client,
            opened: Timestamp::default(),
        }
    }

    #[test]
    fn a_silent_session_expires_once() {
        let mut memory = LeaderMemory::new(0, [(SessionId(1), session(1000))]);
        assert!(memory.expired(1000).is_empty());
        memory.heard(1000, SessionId(1));
        for now in (1100..=2500).step_by(100) {
            assert!(memory.expired(now).is_empty(), "at {now}");
        }
        assert_eq!(memory.expired(2600), [SessionId(1)]);
        assert!(memory.expired(2700).is_empty());
    }

    #[test]
    fn a_pause_of_the_server_is_not_held_against_its_clients() {
        let mut memory = LeaderMemory::new(0, [(SessionId(1), session(1000))]);
        assert!(memory.expired(100).is_empty());
        assert!(memory.expired(60_000).is_empty(), "the server slept for a minute");
    }

    #[test]
    fn the_rate_of_copying_is_measured_and_tells_when_it_ends() {
        use protocol::map::PgConfig;
        let (server, pg) = (DataServerId(1), PgId { pool: PoolId(1), seed: 0 });
        let config = PgConfig { primary: Some(server), ..PgConfig::default() };
        let map = ClusterMap { pgs: [(pg, config)].into(), ..ClusterMap::default() };
        let mut memory = LeaderMemory::default();
        let mut report = |now, copied_objects, copied_bytes, left| {
            let group = PgReport { recovering: left, recovering_bytes: left * 1000, ..PgReport::default() };
            let groups = vec![(pg, group)];
            let report =
                DataServerReport { copied_objects, copied_bytes, groups, ..DataServerReport::default() };
            memory.note_report(now, server, report);
            memory.recovery(&map)
        };
        assert_eq!(report(0, 0, 0, 100)[0].seconds_left, None, "nothing is measured yet");
        let after = &report(2000, 20, 20_000, 80)[0];
        assert_eq!((after.objects_per_second, after.bytes_per_second), (10, 10_000));
        assert_eq!(after.seconds_left, Some(8));
        assert_eq!(report(3000, 1, 10, 79)[0].seconds_left, None, "another start of the server counts anew");
        assert!(report(4000, 80, 80_000, 0).is_empty(), "nothing is left");
    }

    #[test]
    fn the_server_that_fills_up_first_decides_what_a_pool_can_take() {
        use protocol::map::{Member, PgConfig};
        let member = |server| Member {
            server: DataServerId(server),
            store: Default::default(),
            incarnation: 1,
            uncertain: false,
        };
        let group = |seed, on: &[u32]| {
            let in_sync = on.iter().map(|server| member(*server)).collect();
            let config = PgConfig { primary: Some(DataServerId(on[0])), in_sync, ..PgConfig::default() };
            (PgId { pool: PoolId(1), seed }, config)
        };
        // Two replicas; server 1 has a copy of everything, 2 and 3 of half.
        let pgs = [group(0, &[1, 2]), group(1, &[1, 3])].into();
        let map = ClusterMap { pgs, ..ClusterMap::default() };
        let full = FullRatios { nearfull: 8000, full: 9000 };
        let mut memory = LeaderMemory::default();
        assert_eq!(memory.space(&map, PoolId(1), full), None, "nobody has reported");
        let mut report = |server, capacity, used, bytes| {
            let groups = (0..2)
                .map(|seed| (PgId { pool: PoolId(1), seed }, PgReport { bytes, ..PgReport::default() }));
            let report = DataServerReport { capacity, used, groups: groups.collect(), ..Default::default() };
            memory.reports.insert(DataServerId(server), report);
            memory.space(&map, PoolId(1), full).expect("somebody has reported")
        };
        let space = report(1, 1000, 200, 100);
        assert_eq!((space.total, space.free), (900, 700), "900 less 200, and two groups of 100 bytes");
        assert_eq!(report(2, 1000, 100, 0).free, 700, "what 2 has left suffices for twice as much");
        assert_eq!(report(3, 300, 100, 0).free, 340, "170 left, for half of what is written");
        assert_eq!(report(3, 300, 290, 0).free, 0, "full");
    }

    #[test]
    fn a_session_answers_to_its_own_client_only() {
        let server = Session { kind: SessionKind::Data(DataServerId(1)), ..session(1000) };
        let memory = LeaderMemory::new(0, [(SessionId(1), server), (SessionId(2), session(1000))]);
        assert_eq!(
            memory.by_nonce("client", 7),
            Some(SessionId(2)),
            "not the data server's, whose nonce is known"
        );
        assert_eq!(memory.by_nonce("another", 7), None);
        assert_eq!(memory.by_nonce("client", 8), None);
    }

    #[test]
    fn what_a_dead_primary_had_to_copy_is_not_counted() {
        use protocol::map::PgConfig;
        let pg = |seed| PgId { pool: PoolId(1), seed };
        let led_by = |server| PgConfig { primary: Some(DataServerId(server)), ..PgConfig::default() };
        let map =
            ClusterMap { pgs: [(pg(0), led_by(1)), (pg(1), led_by(2))].into(), ..ClusterMap::default() };
        let said = |seed, recovering| (pg(seed), PgReport { recovering, ..PgReport::default() });
        let report = |groups: &[_]| DataServerReport { groups: groups.to_vec(), ..Default::default() };
        let mut memory = LeaderMemory::default();
        memory.reports.insert(DataServerId(1), report(&[said(0, 5), said(1, 13)]));
        memory.reports.insert(DataServerId(2), report(&[said(1, 2)]));
        assert_eq!(memory.recovering(&map), 7);
    }

    #[test]
    fn a_start_replaces_all_positions_of_the_one_before() {
        use protocol::map::{Member, PgConfig};
        let server = DataServerId(1);
        let pg = |seed| PgId { pool: PoolId(1), seed };
        let at = |sequence| Position { version: 1, sequence };
        let member = Member { server, store: Default::default(), incarnation: 1, uncertain: false };
        let config = PgConfig { in_sync: vec![member], ..PgConfig::default() };
        let map =
            ClusterMap { pgs: [(pg(0), config.clone()), (pg(1), config)].into(), ..ClusterMap::default() };
        let mut memory = LeaderMemory::default();
        memory.note_positions(server, &[(pg(0), at(9)), (pg(1), at(4))], &map);
        memory.note_positions(DataServerId(2), &[(pg(0), at(3))], &map);
        memory.note_positions(server, &[(pg(0), at(5))], &map);
        assert_eq!(memory.positions[&(server, pg(0))], at(5));
        assert_eq!(memory.positions[&(server, pg(1))], Position::default(), "nothing was ever written there");
        assert_eq!(memory.positions[&(DataServerId(2), pg(0))], at(3));
    }
}
