//! Sessions of clients.

use super::flow::{Attaching, Flow, Next, Opening, Step};
use super::{ClientId, Output, Turn};
use crate::state::key;
use crate::state::layers::{Disk, View};
use crate::state::prep::{NewSession, load};
use crate::state::record::SessionKind;
use protocol::meta::{MetaError, MetaReply, MetaResponse};
use protocol::{MapEpoch, SessionId};
use zab::mutant;

/// Bounds of a session's timeout in milliseconds.
const TIMEOUT_MS: std::ops::RangeInclusive<u32> = 1_000..=300_000;

impl<D: Disk, T> Turn<'_, D, T> {
    fn certificate(&self, client: ClientId) -> String {
        self.core.clients.get(&client).map(|c| c.peer.name.clone()).unwrap_or_default()
    }

    pub(super) fn open_session(&mut self, client: ClientId, opening: Opening) -> Flow {
        let Opening { nonce, timeout_ms, info } = opening;
        let certificate = self.certificate(client);
        // A session that an earlier leader opened is left to expire: its owner may have learned of it and have files
        // open, which only an attach can tell, and until then everything that loses its name would be pinned for it.
        if let Some(session) = self.core.leader.by_nonce(&certificate, nonce)
            && (self.core.machine.open.is_known(session) || mutant!("resumed-session-stays-unknown"))
        {
            return self.confirm(Step::Resume(session));
        }
        let timeout_ms = timeout_ms.clamp(*TIMEOUT_MS.start(), *TIMEOUT_MS.end());
        let new = NewSession { nonce, timeout_ms, certificate, info, kind: SessionKind::Client };
        self.change(|prep| prep.open_session(new), Step::Opened)
    }

    pub(super) fn resume(&mut self, client: ClientId, session: SessionId) -> Flow {
        if !self.renew(session)? {
            return self.settle(Step::Say(Err(MetaError::SessionExpired)));
        }
        self.opened(client, session)
    }

    pub(super) fn opened(&mut self, client: ClientId, session: SessionId) -> Flow {
        self.bind(client, session);
        self.session_reply(session).map(Next::Reply)
    }

    pub(super) fn attach(&mut self, client: ClientId, attaching: &Attaching) -> Flow {
        let Attaching { session, nonce, open } = attaching;
        let certificate = self.certificate(client);
        match self.core.leader.clocks.get(session) {
            Some(clock) if clock.is_of(&certificate, *nonce) => {}
            Some(_) => {
                return Err(MetaError::Refused(format!("session {session} belongs to another client")));
            }
            None => return Err(MetaError::SessionExpired),
        }
        if !self.renew(*session)? {
            return self.settle(Step::Say(Err(MetaError::SessionExpired)));
        }
        self.bind(client, *session);
        let unseen = self.core.machine.prepare(self.now.wall, |prep| prep.opened_by_replies(*session));
        let unseen = unseen.map(|(_, unseen)| unseen).unwrap_or_default();
        self.core.machine.open.assert_all(*session, open, unseen);
        self.settle(Step::Attached(*session))
    }

    /// Gives back pins that were taken while nobody knew what the session has open.
    pub(super) fn drop_needless_pins(&mut self, session: SessionId) -> Flow {
        let machine = &self.core.machine;
        let pins = machine.prepare(self.now.wall, |prep| prep.pins(session));
        let pins = pins.map(|(_, pins)| pins).unwrap_or_default();
        let needless: Vec<_> = pins.into_iter().filter(|i| !machine.open.is_open(session, *i)).collect();
        if needless.is_empty() {
            return self.session_reply(session).map(Next::Reply);
        }
        self.change(|prep| prep.release_pins(session, needless), |_| Step::SessionReply(session))
    }

    /// From now on this connection alone speaks for the session.
    pub(super) fn bind(&mut self, client: ClientId, session: SessionId) {
        self.core.leader.heard(self.now.ms, session);
        // Whoever asked may be gone; then nobody speaks for the session.
        let Some(asking) = self.core.clients.get_mut(&client) else { return };
        asking.session = Some(session);
        if let Some(old) = self.core.attached.insert(session, client)
            && old != client
            && self.core.clients.contains_key(&old)
        {
            let why = "the session was attached by a newer connection";
            self.core.outputs.push_back(Output::Close { client: old, why });
        }
    }

    /// The session was heard of. `false` if its end is under way, which is to be decided first: nobody may be told
    /// that a session goes on which ends at the next moment.
    pub(super) fn renew(&mut self, session: SessionId) -> Result<bool, MetaError> {
        let record = if mutant!("renewal-of-an-ending-session") {
            self.core.machine.committed().get(&key::session(session))
        } else {
            self.core.machine.proposed().get(&key::session(session))
        };
        let goes_on = self.core.stored(record)?.is_some();
        if goes_on {
            self.core.leader.heard(self.now.ms, session);
        }
        Ok(goes_on)
    }

    pub(super) fn heartbeat(&mut self, session: SessionId, low_water: u64) -> Flow {
        if !self.renew(session)? {
            return self.settle(Step::Say(Err(MetaError::SessionExpired)));
        }
        self.forget_replies(session, low_water);
        self.session_reply(session).map(Next::Reply)
    }

    /// A session that is quiet after a burst still lets go of its replies, and of what only they keep open.
    fn forget_replies(&mut self, session: SessionId, low_water: u64) {
        const WORTH_A_TRANSACTION: usize = 512;
        let Some(clock) = self.core.leader.clocks.get(&session) else { return };
        let finished: Vec<u64> = clock.replies.range(..low_water).copied().collect();
        let needless = self.kept_by_replies(session, &finished);
        if finished.len() < WORTH_A_TRANSACTION && needless.is_empty() {
            return;
        }
        let (_, result) = self.propose(|prep| {
            prep.forget_replies(session, finished.iter().copied());
            prep.release_pins(session, needless)
        });
        if result.is_ok() {
            self.forgot_replies(session, &finished);
        }
    }

    pub(super) fn closed(&mut self, client: ClientId) -> Flow {
        if let Some(client) = self.core.clients.get_mut(&client) {
            client.session = None;
        }
        Ok(Next::Reply(MetaReply::Done))
    }

    pub(super) fn session_reply(&mut self, session: SessionId) -> MetaResponse {
        let clock = self.core.leader.clocks.get(&session).ok_or(MetaError::SessionExpired)?;
        let timeout_ms = clock.session.timeout_ms;
        let fence = load::<MapEpoch>(&self.core.machine.committed(), &key::system("fence"));
        let fence = self.core.stored(fence)?.unwrap_or_default();
        let now = self.core.machine.progress().time.max(self.now.wall);
        Ok(MetaReply::Session { session, timeout_ms, fence, now })
    }
}
