//! A data server as the metadata cluster sees it: registers, reports, moves its groups on, dies and comes back.

use std::net::SocketAddr;

use protocol::map::{ClusterMap, PgChange};
use protocol::meta::{
    DataServerRegistration, DataServerReport, MetaError, MetaReply, MetaRequest, MetaResponse, Push,
};
use protocol::{DataServerId, MapEpoch, SessionId, StoreUuid};

use super::actor::{Link, Stage};

/// See the module.
pub(crate) struct DataServer {
    id: DataServerId,
    rate: u64,
    incarnation: u64,
    was_clean: bool,
    pub(crate) link: Link,
    session: Option<SessionId>,
    /// The session of this start.
    owned: Option<SessionId>,
    session_call: Option<(u64, u64)>,
    map_call: Option<u64>,
    heartbeat_at: u64,
    dies_at: u64,
    map: ClusterMap,
    pub(crate) changes: u64,
}

impl DataServer {
    pub(crate) fn new(id: u32, rate: u64) -> DataServer {
        DataServer {
            id: DataServerId(id),
            rate,
            incarnation: 1,
            was_clean: true,
            link: Link::new(2_500),
            session: None,
            owned: None,
            session_call: None,
            map_call: None,
            heartbeat_at: 0,
            dies_at: u64::MAX,
            map: ClusterMap::default(),
            changes: 0,
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.link.is_up && self.session.is_some()
    }

    pub(crate) fn wakes_at(&self) -> u64 {
        if !self.link.is_up {
            return self.link.retry_at;
        }
        let gives_up_at = self.link.gives_up_at().unwrap_or(u64::MAX);
        gives_up_at.min(if self.session_call.is_none() { self.heartbeat_at } else { u64::MAX })
    }

    pub(crate) fn tick(&mut self, stage: &mut Stage<'_>) -> Result<(), String> {
        if self.link.gives_up_at().is_some_and(|at| at <= stage.time) {
            self.link.drop_connection(stage);
        }
        if stage.is_busy_time && self.dies_at <= stage.time && self.link.is_up {
            self.die(stage);
        }
        if !self.link.is_up {
            if self.link.retry_at <= stage.time {
                self.begin_connection(stage);
            }
            return Ok(());
        }
        if self.session.is_some() && self.session_call.is_none() && self.heartbeat_at <= stage.time {
            let report = DataServerReport { capacity: 1 << 30, ..DataServerReport::default() };
            let call = self.link.send(MetaRequest::DataHeartbeat(report), stage);
            self.session_call = Some((call, stage.time));
            self.move_groups_on(stage);
        }
        Ok(())
    }

    fn die(&mut self, stage: &mut Stage<'_>) {
        self.link.drop_connection(stage);
        if let Some(session) = self.owned.take() {
            stage.oracle.closing(session);
        }
        self.incarnation += 1;
        self.was_clean = stage.rng.chance(500);
        (self.session, self.map) = (None, ClusterMap::default());
        let away = stage.rng.pick(&[10, 1_000, 20_000]);
        self.link.retry_at = stage.time + stage.rng.between(1, away);
        self.dies_at = stage.time + stage.rng.between(10_000, 120_000);
    }

    fn begin_connection(&mut self, stage: &mut Stage<'_>) {
        if self.dies_at == u64::MAX {
            self.dies_at = stage.time + stage.rng.between(10_000, 120_000);
        }
        self.link.connect(stage);
        (self.session, self.map_call) = (None, None);
        let said = DataServerRegistration {
            store: StoreUuid(u128::from(self.id.0) << 8),
            incarnation: self.incarnation,
            clean: self.was_clean,
            address: SocketAddr::from(([127, 0, 0, 1], 9000 + self.id.0 as u16)),
            host: format!("host{}", self.id),
            capacity: 1 << 30,
            timeout_ms: 5_000,
            positions: Vec::new(),
        };
        let call = self.link.send(MetaRequest::RegisterDataServer(said), stage);
        self.session_call = Some((call, stage.time));
    }

    /// As the primary of groups: the next step of some of them.
    fn move_groups_on(&mut self, stage: &mut Stage<'_>) {
        let me = Some(self.id);
        let mut wanted = Vec::new();
        for (pg, config) in self.map.pgs.iter().filter(|(_, config)| config.primary == me) {
            let change = if !config.activated {
                PgChange::Activate
            } else if let Some(learner) = config.learners.first() {
                PgChange::Promote(*learner)
            } else if let Some(uncertain) = config.in_sync.iter().find(|m| m.uncertain) {
                PgChange::MakeCertain(*uncertain)
            } else {
                continue;
            };
            wanted.push(MetaRequest::ProposePg { pg: *pg, version: config.version, change });
        }
        for request in wanted.into_iter().take(8) {
            self.changes += 1;
            self.link.send(request, stage);
        }
    }

    pub(crate) fn answered(
        &mut self,
        call: u64,
        response: MetaResponse,
        stage: &mut Stage<'_>,
    ) -> Result<(), String> {
        if self.link.waiting.remove(&call).is_none() {
            return Ok(());
        }
        match response {
            Err(MetaError::NotLeader { leader }) => {
                self.link.not_leader(leader.map(|(id, _)| id.0), stage);
            }
            Err(MetaError::NotAttached | MetaError::SessionExpired | MetaError::Overloaded) => {
                self.link.drop_connection(stage);
            }
            Ok(MetaReply::DataSession { session, timeout_ms, map_epoch, .. }) => {
                let Some((_, sent_at)) = self.session_call.take() else { return Ok(()) };
                let is_new = self.session != Some(session);
                (self.session, self.owned) = (Some(session), Some(session));
                self.heartbeat_at = stage.time + u64::from(timeout_ms) / 3;
                stage.oracle.confirmed(session, sent_at + u64::from(timeout_ms) * 1000 / self.rate)?;
                if is_new || (map_epoch > self.map.epoch && self.map_call.is_none()) {
                    let known = self.map.epoch;
                    self.map_call = Some(self.link.send(MetaRequest::SubscribeMap { known }, stage));
                }
            }
            Ok(MetaReply::Map(map)) => (self.map, self.map_call) = (map, None),
            Ok(MetaReply::Unchanged) => self.map_call = None,
            Ok(MetaReply::Done) | Err(MetaError::PgChanged { .. } | MetaError::Errno(_)) => {}
            Err(MetaError::Refused(_) | MetaError::Busy) => {}
            other => return Err(format!("data server {} was answered {other:?}", self.id)),
        }
        Ok(())
    }

    pub(crate) fn pushed(&mut self, push: &Push) {
        if let Push::Map(delta) = push
            && delta.from == self.map.epoch
            && self.map.apply(delta.clone()).is_err()
        {
            self.map.epoch = MapEpoch(0);
        }
    }
}
