//! What administrators order, and what they watch meanwhile.

use crate::client_arguments::ClientArguments;
use anyhow::{Context as _, anyhow};
use fs_client::meta::backup::BackupRows;
use fs_client::meta::status::{ask_cluster, ask_leader};
use fs_client::mount;
use protocol::identity::Identity;
use protocol::meta::{ClusterStatus, MetaReply, MetaRequest, MetadataServers};
use protocol::transport::Endpoint;
use std::net::SocketAddr;
use std::time::Duration;

/// How long one server is waited for.
const CALL_PATIENCE: Duration = Duration::from_secs(1);
/// How long a leader is looked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to the metadata servers with an administrator's certificate. Lives within a `LocalSet`.
pub(crate) struct Admin {
    pub(crate) endpoint: Endpoint,
    metadata: Vec<SocketAddr>,
}

impl Admin {
    /// Takes the certificate `admin` of the cluster's directory, or that of `--identity`.
    pub(crate) fn new(arguments: &ClientArguments) -> anyhow::Result<Self> {
        let client = arguments.resolve(&["admin"])?;
        let identity = Identity::load(&client.identity)
            .with_context(|| format!("cannot use the certificate in {}", client.identity.display()))?;
        let endpoint = mount::bind(&client.metadata, identity)?;
        Ok(Self { endpoint, metadata: client.metadata })
    }

    /// Addresses of metadata servers.
    pub(crate) fn metadata_addresses(&self) -> &[SocketAddr] {
        &self.metadata
    }

    /// The leader's answer.
    pub(crate) async fn ask(&self, request: &MetaRequest) -> anyhow::Result<MetaReply> {
        ask_leader(&self.endpoint, &self.metadata, request, PATIENCE).await.map_err(|why| anyhow!(why))
    }

    /// From now on the servers of `servers` are asked, too.
    pub(crate) fn learn(&mut self, servers: &MetadataServers) {
        for address in servers.members.iter().filter_map(|member| member.address) {
            if !self.metadata.contains(&address) {
                self.metadata.push(address);
            }
        }
    }

    /// Who the metadata servers are, as the one knows whose word counts: a leader. Others never say that a change is
    /// settled.
    pub(crate) async fn leader_members(&self) -> anyhow::Result<MetadataServers> {
        let mut problem = anyhow!("no address of a metadata server is known");
        for address in &self.metadata {
            let asked = [*address];
            match ask_leader(&self.endpoint, &asked, &MetaRequest::MetadataServers, CALL_PATIENCE).await {
                Ok(MetaReply::MetadataServers(servers)) if servers.settled => return Ok(servers),
                Ok(_) => problem = anyhow!("no leader says that the change is settled"),
                Err(why) => problem = anyhow!(why),
            }
        }
        Err(problem)
    }

    /// Begins a backup.
    pub(crate) async fn backup(&self) -> anyhow::Result<BackupRows> {
        BackupRows::begin(&self.endpoint, &self.metadata, PATIENCE).await.map_err(|why| anyhow!(why))
    }

    /// The state as the leader sees it.
    pub(crate) async fn status(&self) -> anyhow::Result<ClusterStatus> {
        ask_cluster(&self.endpoint, &self.metadata, PATIENCE).await.map_err(|why| anyhow!(why))
    }
}
