//! What has to hold at every moment.

use super::*;
use crate::pg::table::Seen;

impl World {
    /// A success may leave a server only while no other server can be serving.
    pub(super) fn check_reply(&mut self, server: DataServerId, response: &DataResponse) {
        let config = &self.meta.config;
        let deposed = config.activated && config.primary != Some(server);
        if response.is_ok() && deposed {
            let primary = config.primary;
            self.problem = Some(format!(
                "server {server} answered {response:?} while {primary:?} served ({})",
                self.now
            ));
        }
    }

    /// Whoever comes into the in-sync set holds everything that a sync was answered for, on disk.
    pub(super) fn check_change(&mut self, change: &PgChange) {
        let (PgChange::Promote(member) | PgChange::MakeCertain(member)) = change else { return };
        let node = &self.nodes[&member.server];
        let durable = node.store.durable_log_end(PG);
        // Stopped meanwhile, it will register again before it counts.
        if node.replica.is_some() && node.incarnation == member.incarnation && durable < self.synced {
            let (server, synced) = (member.server, self.synced);
            self.problem = Some(format!("{change:?}: server {server} has {durable} of {synced} on disk"));
        }
    }

    /// What a sync was answered for is on the disk of every certain member.
    pub(super) fn check_sync(&mut self, server: DataServerId, head: u64) {
        self.synced = self.synced.max(head);
        let members: Vec<_> = self.meta.config.certain().copied().collect();
        for member in members {
            let node = &self.nodes[&member.server];
            let alive = node.incarnation == member.incarnation && node.replica.is_some();
            let durable = node.store.durable_log_end(PG);
            if alive && node.clean && durable < head {
                self.problem = Some(format!(
                    "server {server} answered a sync up to {head}, server {} is durable up to {durable} ({})",
                    member.server, self.now
                ));
            }
        }
    }

    /// What was acknowledged is in the files of every certain member, and stays there. Looked at now and then: it
    /// takes as long as all the rest.
    pub(super) fn check_acknowledged(&mut self, server: DataServerId, token: RequestToken) {
        let node = self.node(server);
        let request = node.requests.remove(&token);
        let table = node.replica.as_ref().map(|replica| &replica.group.copy.table);
        let seen = table.zip(request).map(|(table, request)| table.seen(request));
        if let Some(Seen::Ordered { at, .. }) = seen {
            self.acknowledged.0 = self.acknowledged.0.max(at);
        }
        self.acknowledged.1 += 1;
        if !self.acknowledged.1.is_multiple_of(16) {
            return;
        }
        let end = self.acknowledged.0;
        for member in self.meta.config.certain() {
            let node = &self.nodes[&member.server];
            let counts = node.incarnation == member.incarnation && node.replica.is_some() && node.clean;
            let written = node.store.written_log_end(PG);
            if counts && written < end {
                let member = member.server;
                self.problem = Some(format!(
                    "{end} was acknowledged by server {server}, server {member} has {written} in its files ({})",
                    self.now
                ));
                return;
            }
        }
    }
}
