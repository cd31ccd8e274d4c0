//! Sessions of data servers.

use super::flow::{Flow, Next, Step};
use super::{ClientId, Turn};
use crate::state::key;
use crate::state::layers::{Disk, View};
use crate::state::prep::{NewSession, Registration};
use crate::state::record::SessionKind;
use protocol::meta::{
    ClientInfo, DataServerRegistration, DataServerReport, MetaError, MetaReply, MetaResponse,
};
use protocol::{DataServerId, SessionId};

/// Bounds of a data server's session timeout in milliseconds.
const TIMEOUT_MS: std::ops::RangeInclusive<u32> = 1_000..=60_000;

impl<D: Disk, T> Turn<'_, D, T> {
    pub(super) fn register(&mut self, said: Box<DataServerRegistration>) -> Flow {
        self.confirm(Step::Registering(said))
    }

    pub(super) fn registering(&mut self, client: ClientId, said: Box<DataServerRegistration>) -> Flow {
        let Some(asking) = self.core.clients.get(&client) else { return Err(MetaError::NotAttached) };
        let (server, name) = (DataServerId(asking.peer.id), asking.peer.name.clone());
        // Before the registration: nobody may judge this start by what an earlier one held.
        self.note_positions(server, &said);
        if let Some(session) = self.known_start(server, &said) {
            return self.registered(client, &said, session);
        }
        tracing::info!(
            "data server {server} at {} starts: store {:x}, start {}, {}",
            said.address,
            said.store,
            said.incarnation,
            if said.clean { "nothing lost" } else { "after an unclean stop" }
        );
        let new = NewSession {
            nonce: said.store.0 ^ u128::from(said.incarnation),
            timeout_ms: said.timeout_ms.clamp(*TIMEOUT_MS.start(), *TIMEOUT_MS.end()),
            certificate: name,
            info: ClientInfo { host: said.host.clone(), ..ClientInfo::default() },
            kind: SessionKind::Data(server),
        };
        let (zxid, result) = self.propose(|prep| {
            let session = prep.open_session(new)?;
            prep.register(&Registration { server, session, said: &said })?;
            Ok(session)
        });
        Ok(match result {
            Ok(session) => Next::Applied(zxid, Step::Registered(said, session)),
            Err(error) => Next::Applied(zxid, Step::Say(Err(error))),
        })
    }

    pub(super) fn registered(
        &mut self,
        client: ClientId,
        said: &DataServerRegistration,
        session: SessionId,
    ) -> Flow {
        let server = self.data_server(client);
        self.bind(client, session);
        // Again, as groups may have been made meanwhile.
        self.note_positions(server, said);
        self.core.leader.reports.entry(server).or_default().capacity = said.capacity;
        self.core.planner.wake();
        self.data_session_reply(session).map(Next::Reply)
    }

    fn note_positions(&mut self, server: DataServerId, said: &DataServerRegistration) {
        self.core.leader.note_positions(server, &said.positions, self.core.machine.map());
    }

    /// The session and the map epoch that its lease presupposes: a server counts the lease only once its map is
    /// as new, so that a primary that does not know of its replacement serves for one timeout at most.
    fn data_session_reply(&self, session: SessionId) -> MetaResponse {
        let clock = self.core.leader.clocks.get(&session).ok_or(MetaError::SessionExpired)?;
        let (timeout_ms, map_epoch) = (clock.session.timeout_ms, self.core.machine.map().epoch);
        let full_ratios = self.full_ratios();
        Ok(MetaReply::DataSession { session, timeout_ms, map_epoch, full_ratios })
    }

    /// The live session of this very start, which only changed its connection (a new leader, a lost link).
    fn known_start(&self, server: DataServerId, said: &DataServerRegistration) -> Option<SessionId> {
        let machine = &self.core.machine;
        let info = machine.map().data_servers.get(&server)?;
        let same = info.up
            && (info.store, info.incarnation, info.address) == (said.store, said.incarnation, said.address);
        let goes_on = || machine.proposed().get(&key::session(info.session)).is_ok_and(|r| r.is_some());
        (same && self.core.leader.clocks.contains_key(&info.session) && goes_on()).then_some(info.session)
    }

    pub(super) fn data_heartbeat(
        &mut self,
        client: ClientId,
        session: SessionId,
        report: DataServerReport,
    ) -> Flow {
        if !self.renew(session)? {
            return self.settle(Step::Say(Err(MetaError::SessionExpired)));
        }
        let server = self.data_server(client);
        self.core.leader.note_report(self.now.ms, server, report);
        self.data_session_reply(session).map(Next::Reply)
    }
}
