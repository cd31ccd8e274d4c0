//! Who may ask what, and the first step of every request.

use super::flow::{Attaching, Chore, Flow, Next, Opening, Step};
use super::{ClientId, Turn};
use crate::state::layers::Disk;
use crate::state::prep::DEFAULT_POOL;
use crate::state::read::{ReadError, read};
use protocol::identity::Role;
use protocol::meta::{MetaError, MetaReply, MetaRequest, Push, ReadOp, Space, WriteOp};
use protocol::{DataServerId, Errno, MapEpoch, SessionId};
use zab::mutant;

/// Longest text that a client may say about itself, in bytes.
const INFO_BYTES_MAX: usize = 4096;
/// Device ids index a table of weights, so they are small.
const DATA_SERVER_ID_MAX: u32 = 100_000;

/// What a read-only certificate must not do. Locks are allowed: they protect reading too.
fn modifies_files(op: &WriteOp) -> bool {
    !matches!(op, WriteOp::Lock { .. } | WriteOp::Unlock { .. } | WriteOp::CancelWait { .. })
}

impl<D: Disk, T> Turn<'_, D, T> {
    /// A request that has just arrived.
    pub(super) fn begin(&mut self, client: ClientId, request: MetaRequest) -> Flow {
        self.authorize(client, &request)?;
        if let MetaRequest::Status = request {
            return Ok(Next::Reply(MetaReply::Status(self.status())));
        }
        if let MetaRequest::MetadataServers = request {
            return Ok(Next::Reply(MetaReply::MetadataServers(self.metadata_members())));
        }
        if let MetaRequest::ReadAt { at_least, op } = request {
            return self.read_at(at_least, op);
        }
        if let MetaRequest::BackupNext = request {
            return Ok(Next::Driver(Chore::BackupNext));
        }
        if !self.core.is_leader() {
            return Err(self.not_leader());
        }
        if let MetaRequest::ChangeMetadataServers(change) = request {
            return self.change_metadata_servers(change);
        }
        match self.form_cluster() {
            Some(formed) => Ok(Next::Applied(formed?, Step::Dispatch(Box::new(request)))),
            None => self.dispatch(client, request),
        }
    }

    pub(super) fn dispatch(&mut self, client: ClientId, request: MetaRequest) -> Flow {
        match request {
            MetaRequest::OpenSession { nonce, timeout_ms, info } => {
                if info.host.len() + info.mountpoint.len() > INFO_BYTES_MAX {
                    return Err(MetaError::Refused("host and mountpoint are too long".into()));
                }
                // A first attempt with the same nonce may be on its way.
                self.settle(Step::OpenSession(Box::new(Opening { nonce, timeout_ms, info })))
            }
            MetaRequest::Attach { session, nonce, open } => {
                self.confirm(Step::Attach(Box::new(Attaching { session, nonce, open })))
            }
            MetaRequest::Heartbeat { low_water } => {
                let session = self.session(client)?;
                if mutant!("heartbeat-without-a-round") {
                    return self.heartbeat(session, low_water);
                }
                self.confirm(Step::Heartbeat { session, low_water })
            }
            MetaRequest::CloseSession => {
                let session = self.session(client)?;
                self.change(|prep| prep.end_session(session, false), |_| Step::Closed)
            }
            MetaRequest::Read(op) => self.confirm_read(client, Step::Read(op)),
            MetaRequest::Write { sequence, low_water, op } => self.write(client, sequence, low_water, &op),
            MetaRequest::OpenFile { inode, handle } => {
                let session = self.session(client)?;
                self.confirm_read(client, Step::OpenFile { session, inode, handle })
            }
            MetaRequest::CloseFile { inode, handle, release_hold } => {
                self.close_file(client, inode, handle, release_hold)
            }
            MetaRequest::RegisterDataServer(said) => {
                if self.data_server(client).0 > DATA_SERVER_ID_MAX {
                    return Err(MetaError::Refused(format!("data server ids end at {DATA_SERVER_ID_MAX}")));
                }
                self.settle(Step::Register(Box::new(said)))
            }
            MetaRequest::DataHeartbeat(report) => {
                let session = self.session(client)?;
                self.confirm(Step::DataHeartbeat { session, report })
            }
            MetaRequest::LeaveDataServer { why } => {
                let (session, server) = (self.session(client)?, self.data_server(client));
                tracing::warn!("data server {server} leaves: {why}");
                self.change(|prep| prep.leave(server, session, &why), |()| Step::Closed)
            }
            MetaRequest::ProposePg { pg, version, change } => {
                let server = self.data_server(client);
                self.session(client)?;
                self.change(|prep| prep.change_group(server, pg, version, &change), done)
            }
            MetaRequest::SubscribeMap { known } => self.confirm_read(client, Step::Subscribe(known)),
            MetaRequest::SetIn { server, in_cluster } => {
                self.change(|prep| prep.set_in(server, in_cluster, false), done)
            }
            MetaRequest::RemoveDataServer { server } => self.change(|prep| prep.remove_server(server), done),
            MetaRequest::SetClass { server, class } => {
                self.change(|prep| prep.set_class(server, class.as_deref()), done)
            }
            MetaRequest::SetFullRatios(ratios) => {
                tracing::info!("an administrator changes when data servers are full: {ratios:?}");
                self.change(|prep| prep.set_full_ratios(ratios), done)
            }
            MetaRequest::ChangePool { nonce, change } => {
                tracing::info!("an administrator changes the pools: {change:?}");
                let changed = |warnings| Step::Say(Ok(MetaReply::PoolChanged(warnings)));
                self.change(|prep| prep.change_pool(nonce, &change), changed)
            }
            MetaRequest::ScrubStatus => {
                let groups = self.core.leader.led_groups(self.core.machine.map());
                let scrubs = groups.map(|(server, pg, report)| (pg, server, report)).collect();
                Ok(Next::Reply(MetaReply::Scrubs(scrubs)))
            }
            MetaRequest::Fsck(request) => self.fsck(request),
            MetaRequest::Sync => self.confirm(Step::Synced),
            MetaRequest::Backup => self.confirm(Step::Backup),
            MetaRequest::Status
            | MetaRequest::MetadataServers
            | MetaRequest::ChangeMetadataServers(_)
            | MetaRequest::ReadAt { .. }
            | MetaRequest::BackupNext => {
                unreachable!("answered when it arrived")
            }
        }
    }

    /// What a certificate's role and limits allow.
    fn authorize(&self, client: ClientId, request: &MetaRequest) -> Result<(), MetaError> {
        let Some(asking) = self.core.clients.get(&client) else { return Err(MetaError::NotAttached) };
        let peer = &asking.peer;
        let refuse = |what: &str| {
            // Whoever asks again and again fills no log.
            let refused = asking.refused.get() + 1;
            asking.refused.set(refused);
            self.core.refused.set(self.core.refused.get() + 1);
            if refused == 1 {
                tracing::warn!("refused {peer} at {}: {what}; what follows is counted", asking.address);
            }
            Err(MetaError::Refused(format!("{what}; the certificate has the role {}", peer.role)))
        };
        match request {
            MetaRequest::RegisterDataServer(_)
            | MetaRequest::DataHeartbeat(_)
            | MetaRequest::LeaveDataServer { .. }
            | MetaRequest::ProposePg { .. }
                if peer.role != Role::Data =>
            {
                refuse("only data servers register, leave, and change placement groups")
            }
            MetaRequest::SetFullRatios(_) if peer.role != Role::Admin => {
                refuse("only administrators say when data servers are full")
            }
            MetaRequest::SetIn { .. } | MetaRequest::RemoveDataServer { .. } if peer.role != Role::Admin => {
                refuse("only administrators take servers in and out and remove them")
            }
            MetaRequest::SetClass { .. } | MetaRequest::ChangePool { .. } if peer.role != Role::Admin => {
                refuse("only administrators change pools and device classes")
            }
            MetaRequest::ChangeMetadataServers(_) if peer.role != Role::Admin => {
                refuse("only administrators change who the metadata servers are")
            }
            MetaRequest::Fsck(_) if peer.role != Role::Admin => {
                refuse("only administrators check the filesystem")
            }
            MetaRequest::Backup | MetaRequest::BackupNext if peer.role != Role::Admin => {
                refuse("only administrators make backups")
            }
            MetaRequest::OpenSession { .. } | MetaRequest::Attach { .. } | MetaRequest::Write { .. }
                if !matches!(peer.role, Role::Client | Role::Admin) =>
            {
                refuse("only clients open sessions and change files")
            }
            MetaRequest::Write { op, .. } if peer.limits.read_only && modifies_files(op) => {
                Err(Errno::EROFS.into())
            }
            _ => Ok(()),
        }
    }

    /// The session that this connection speaks for; a later connection of the same session ends that.
    pub(super) fn session(&self, client: ClientId) -> Result<SessionId, MetaError> {
        let session = self.core.clients.get(&client).and_then(|c| c.session).ok_or(MetaError::NotAttached)?;
        if !self.core.leader.clocks.contains_key(&session) {
            return Err(MetaError::SessionExpired);
        }
        if self.core.attached.get(&session) != Some(&client) {
            return Err(MetaError::NotAttached);
        }
        Ok(session)
    }

    /// The number in a data server's certificate.
    pub(super) fn data_server(&self, client: ClientId) -> DataServerId {
        DataServerId(self.core.clients.get(&client).map_or(u32::MAX, |c| c.peer.id))
    }

    pub(super) fn read(&mut self, client: ClientId, op: &ReadOp) -> Flow {
        let session = self.core.clients.get(&client).and_then(|c| c.session).unwrap_or_default();
        let space = match op {
            ReadOp::Statfs => self.space_of(DEFAULT_POOL),
            ReadOp::StatfsAt(inode) => self.space_at(*inode),
            _ => Space::default(),
        };
        let core = &mut *self.core;
        let result = if mutant!("reads-see-speculation") {
            read(&core.machine.proposed(), session, op, space)
        } else {
            read(&core.machine.committed(), session, op, space)
        };
        match result {
            Ok(reply) => Ok(Next::Reply(reply)),
            Err(ReadError::Errno(errno)) => Err(errno.into()),
            Err(ReadError::Store(error)) => Err(core.store_failed(&error)),
            // The client asks again, so nothing has to be remembered here, and nothing waits in service.
            Err(ReadError::Deferred { holder, inode, .. }) => {
                self.send_pushes([(holder, Push::Settle(inode))]);
                Err(MetaError::Busy)
            }
        }
    }

    pub(super) fn subscribe(&mut self, client: ClientId, known: MapEpoch) -> Flow {
        if let Some(client) = self.core.clients.get_mut(&client) {
            client.is_subscribed = true;
        }
        let map = self.core.machine.map();
        let is_newer = map.epoch > known;
        Ok(Next::Reply(if is_newer { MetaReply::Map(map.clone()) } else { MetaReply::Unchanged }))
    }
}

/// The answer to a change of which nothing else is to be said.
pub(super) fn done((): ()) -> Step {
    Step::Say(Ok(MetaReply::Done))
}
