//! What must hold whenever something is answered or changed.

use super::*;
use crate::pg::table::Seen;

impl World {
    /// A success may leave a server only while no other server can be serving.
    pub(super) fn check_reply(&mut self, server: DataServerId, pg: PgId, response: &DataResponse) {
        let Some(config) = self.meta.groups.get(&pg) else { return };
        let deposed = config.activated && config.primary != Some(server);
        if response.is_ok() && deposed {
            let primary = config.primary;
            self.problem = Some(format!(
                "server {server} answered {response:?} for {pg} while {primary:?} served ({})",
                self.now
            ));
        }
    }

    /// Whoever comes into the in-sync set holds everything that a sync was answered for, on disk.
    pub(super) fn check_change(&mut self, pg: PgId, change: &PgChange) {
        let (PgChange::Promote(member) | PgChange::MakeCertain(member)) = change else { return };
        let node = &self.nodes[&member.server];
        let durable = node.store.durable_log_end(pg);
        let synced = self.synced.get(&pg).copied().unwrap_or(0);
        // Stopped meanwhile, it will register again before it counts.
        if node.alive && node.incarnation == member.incarnation && durable < synced {
            let server = member.server;
            self.problem = Some(format!("{change:?}: server {server} has {durable} of {synced} on disk"));
        }
    }

    /// The group that a split made is on the disk of every certain member. One that was there before, since the metadata
    /// was restored, has gone its own way since: its log is no continuation of its parent's.
    pub(super) fn check_split(&mut self, parent: PgId, child: PgId) {
        let synced = self.synced.get(&child).or(self.synced.get(&parent)).copied().unwrap_or(0);
        let members: Vec<_> = self.meta.groups[&child].certain().copied().collect();
        for member in members {
            let node = &self.nodes[&member.server];
            let alive = node.alive && node.clean && node.incarnation == member.incarnation;
            let durable = node.store.durable_log_end(child);
            if alive && (durable == 0 || durable < synced) {
                let server = member.server;
                self.problem = Some(format!(
                    "group {child} begins and server {server} has {durable} of {synced} on disk ({})",
                    self.now
                ));
            }
        }
        self.synced.insert(child, synced);
        let acknowledged = self.acknowledged.get(&parent).copied().unwrap_or(0);
        self.acknowledged.entry(child).or_insert(acknowledged);
    }

    /// What a sync was answered for is on the disk of every certain member.
    pub(super) fn check_sync(&mut self, server: DataServerId, pg: PgId, head: u64) {
        let synced = self.synced.entry(pg).or_default();
        *synced = head.max(*synced);
        let members: Vec<_> = self.meta.groups[&pg].certain().copied().collect();
        for member in members {
            let node = &self.nodes[&member.server];
            let alive = node.incarnation == member.incarnation && node.alive;
            let durable = node.store.durable_log_end(pg);
            if alive && node.clean && durable < head {
                self.problem = Some(format!(
                    "server {server} answered a sync of {pg} up to {head}, server {} is durable up to {durable} ({})",
                    member.server, self.now
                ));
            }
        }
    }

    /// What was acknowledged is in the files of every certain member, and stays there. Looked at now and then: it
    /// takes as long as all the rest.
    pub(super) fn check_acknowledged(&mut self, server: DataServerId, pg: PgId, token: RequestToken) {
        let node = self.node(server);
        let request = node.requests.remove(&token);
        let table = node.replicas.get(&pg).map(|replica| &replica.group.copy.table);
        let seen = table.zip(request).map(|(table, request)| table.seen(request));
        let end = self.acknowledged.entry(pg).or_default();
        if let Some(Seen::Ordered { at, .. }) = seen {
            *end = at.max(*end);
        }
        let end = *end;
        self.acknowledgements += 1;
        if !self.acknowledgements.is_multiple_of(16) {
            return;
        }
        let Some(config) = self.meta.groups.get(&pg) else { return };
        for member in config.certain() {
            let node = &self.nodes[&member.server];
            let counts = node.incarnation == member.incarnation && node.alive && node.clean;
            let written = node.store.written_log_end(pg);
            if counts && written < end {
                let member = member.server;
                self.problem = Some(format!(
                    "{end} of {pg} was acknowledged by server {server}, server {member} has {written} in its files ({})",
                    self.now
                ));
                return;
            }
        }
    }

    /// Power is lost where it matters: only what was synced has to be there from now on.
    pub(super) fn forget_unsynced(&mut self) {
        for (pg, end) in &mut self.acknowledged {
            *end = self.synced.get(pg).copied().unwrap_or(0).min(*end);
        }
    }
}
