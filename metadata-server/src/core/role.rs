//! What a change of role, and an applied transaction, mean for everything else.

use super::flow::Asker;
use super::leader::LeaderMemory;
use super::{Core, Now, Output, Turn};
use crate::state::key;
use crate::state::layers::{Disk, StoreError, View};
use crate::state::machine::Applied;
use crate::state::open::OpenTable;
use crate::state::prep::load;
use crate::state::record::{Session, SessionKind};
use protocol::SessionId;
use protocol::identity;
use protocol::map::MapDelta;
use protocol::meta::{MetaError, Push};
use zab::{Role, Zxid, mutant};

impl<D: Disk, T> Core<D, T> {
    pub(super) fn change_role(&mut self, role: Role, now: Now) {
        tracing::info!("the role in the metadata quorum is now {role:?}");
        self.role = role;
        let void = std::mem::take(&mut self.reads);
        self.give_up(void.into_values().map(|(asker, _)| asker));
        if self.is_leader()
            && let Err(error) = self.become_leader(now)
        {
            self.fail(error.to_string());
        }
    }

    fn become_leader(&mut self, now: Now) -> Result<(), StoreError> {
        self.last_proposed = self.applied_zxid();
        let sessions = self.sessions()?;
        let clients: Vec<SessionId> =
            sessions.iter().filter(|(_, s)| s.kind == SessionKind::Client).map(|(id, _)| *id).collect();
        self.machine.open = OpenTable::new(clients);
        self.leader = LeaderMemory::new(now.ms, sessions);
        for (id, clock) in self.leader.clocks.iter_mut().filter(|_| !mutant!("new-leader-forgets-replies")) {
            let prefix = key::prefix1(key::REPLY, id.0);
            let rows = self.machine.committed().scan(&prefix, &key::prefix_end(&prefix), usize::MAX)?;
            clock.replies = rows.iter().filter_map(|(k, _)| key::number_at(k, 9)).collect();
        }
        self.tick_at = now.ms;
        self.planner.begin();
        self.purger.begin();
        Ok(())
    }

    fn sessions(&self) -> Result<Vec<(SessionId, Session)>, StoreError> {
        let (from, to) = ([key::SESSION], [key::SESSION + 1]);
        let mut sessions = Vec::new();
        for (key, _) in self.machine.committed().scan(&from, &to, usize::MAX)? {
            if let (Some(id), Some(session)) =
                (key::number_at(&key, 1), load(&self.machine.committed(), &key)?)
            {
                sessions.push((SessionId(id), session));
            }
        }
        Ok(sessions)
    }

    pub(super) fn stop_leading(&mut self) {
        if !mutant!("speculation-outlives-the-role") {
            self.machine.drop_proposals();
        }
        // Who is told so asks the next leader; nobody is told where that is, as nobody knows yet.
        self.role = Role::Looking;
        let waiters = std::mem::take(&mut self.waiters);
        let reads = std::mem::take(&mut self.reads);
        self.give_up(waiters.into_iter().map(|(_, asker, _)| asker));
        self.give_up(reads.into_values().map(|(asker, _)| asker));
        self.attached.clear();
        self.leader = LeaderMemory::default();
        // Other metadata servers elect a leader over theirs.
        let others = self.clients.iter().filter(|(_, c)| c.peer.role != identity::Role::Metadata);
        let why = "this metadata server does not lead any more";
        self.outputs.extend(others.map(|(client, _)| Output::Close { client: *client, why }));
    }

    fn give_up(&mut self, askers: impl IntoIterator<Item = Asker<T>>) {
        for asker in askers {
            if let Asker::Client { token, .. } = asker {
                let error = MetaError::NotLeader { leader: None };
                self.reply(token, Err(error));
            }
        }
    }

    fn publish_map(&mut self, delta: &MapDelta) {
        self.planner.wake();
        let subscribed = self.clients.iter().filter(|(_, c)| c.is_subscribed);
        self.outputs
            .extend(subscribed.map(|(id, _)| Output::Push { client: *id, push: Push::Map(delta.clone()) }));
    }

    /// Keeps the session clocks in step with the committed sessions.
    fn update_clocks(&mut self, changed: &[SessionId], now: Now) -> Result<(), StoreError> {
        for id in changed {
            let session = load::<Session>(&self.machine.committed(), &key::session(*id))?;
            match session {
                Some(session) if !self.leader.clocks.contains_key(id) => {
                    self.leader.add(now.ms, *id, session);
                }
                Some(_) => {}
                None => {
                    self.leader.clocks.remove(id);
                    self.machine.open.forget(*id);
                }
            }
        }
        Ok(())
    }
}

impl<D: Disk, T> Turn<'_, D, T> {
    pub(super) fn apply(&mut self, zxid: Zxid, txn: &[u8]) {
        let result = match self.core.machine.apply(zxid, txn) {
            Ok(applied) => self.after_apply(applied).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = result {
            self.core.fail(why);
        }
    }

    fn after_apply(&mut self, applied: Applied) -> Result<(), StoreError> {
        if self.core.is_leader() {
            self.core.update_clocks(&applied.sessions, self.now)?;
            self.send_pushes(applied.pushes);
            for id in applied.sessions.iter().filter(|id| !self.core.leader.clocks.contains_key(id)) {
                self.core.attached.remove(id);
            }
        }
        if let Some(delta) = applied.map {
            self.core.publish_map(&delta);
        }
        if applied.purge {
            self.core.purger.wake();
        }
        self.ring();
        self.core.serve_behind(self.now.ms);
        Ok(())
    }
}
