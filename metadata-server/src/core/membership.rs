//! Who the metadata servers are, and changes of that.

use super::Turn;
use super::flow::{Flow, Next, Step};
use crate::state::layers::Disk;
use protocol::MetadataServerId;
use protocol::meta::{
    MetaError, MetaReply, MetadataChange, MetadataChangeRefused, MetadataMember, MetadataServers,
};
use std::net::SocketAddr;
use zab::{ChangeError, MembershipChange, PeerId, Role};

impl<D: Disk, T> Turn<'_, D, T> {
    /// Everybody with the addresses of the membership; where it has none, those that this server was told at its
    /// start.
    pub(super) fn metadata_members(&self) -> MetadataServers {
        let (membership, settled) = self.quorum.membership();
        let mut ids: Vec<PeerId> = membership.members().collect();
        ids.sort_unstable();
        let member = |id: PeerId| {
            let known = membership.addresses.get(&id).and_then(|address| address.parse().ok());
            let told = || self.core.config.voters.get(&MetadataServerId(id.0)).copied();
            MetadataMember {
                id: MetadataServerId(id.0),
                address: known.or_else(told),
                votes: membership.voters.contains_key(&id),
            }
        };
        let members = ids.into_iter().map(member).collect();
        MetadataServers { version: membership.version, members, settled, refused: None }
    }

    /// The leader to ask instead, as far as it is known.
    pub(super) fn not_leader(&self) -> MetaError {
        let leader = match self.core.role() {
            Role::Following { leader } | Role::Observing { leader } => {
                let id = MetadataServerId(leader.0);
                self.metadata_address(id).map(|address| (id, address))
            }
            _ => None,
        };
        MetaError::NotLeader { leader }
    }

    fn metadata_address(&self, id: MetadataServerId) -> Option<SocketAddr> {
        self.metadata_members().members.into_iter().find(|member| member.id == id)?.address
    }

    /// Proposes a change. It is answered when it is committed and applied here; when it is *settled*, the asker finds
    /// out by asking for the members.
    pub(super) fn change_metadata_servers(&mut self, change: MetadataChange) -> Flow {
        let change = match change {
            MetadataChange::Add { id, address } => {
                MembershipChange::Add { id: PeerId(id.0), address: address.to_string() }
            }
            MetadataChange::Promote { id } => MembershipChange::Promote { id: PeerId(id.0) },
            MetadataChange::Remove { id } => MembershipChange::Remove { id: PeerId(id.0) },
            MetadataChange::Replace { id, address } => {
                let address = address.map(|address| address.to_string());
                MembershipChange::Replace { id: PeerId(id.0), address }
            }
        };
        match self.quorum.change_membership(&change) {
            Ok(zxid) => {
                tracing::info!("An administrator changes the metadata servers: {change:?}.");
                self.core.last_proposed = zxid;
                let members = self.metadata_members();
                Ok(Next::Applied(zxid, Step::Say(Ok(MetaReply::MetadataServers(members)))))
            }
            Err(ChangeError::NotLeading) => Err(self.not_leader()),
            Err(error) => {
                let passing = matches!(
                    error,
                    ChangeError::InProgress
                        | ChangeError::Overloaded
                        | ChangeError::Absent(_)
                        | ChangeError::Behind { .. }
                        | ChangeError::CannotVote(_)
                );
                let refused = Some(MetadataChangeRefused { why: error.to_string(), passing });
                let members = MetadataServers { refused, ..self.metadata_members() };
                Ok(Next::Reply(MetaReply::MetadataServers(members)))
            }
        }
    }
}
