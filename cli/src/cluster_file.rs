//! `cluster.json`: where the servers of a cluster listen. Written by `zabfs init`, read by everything else.

use anyhow::Context as _;
use protocol::MetadataServerId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerEntry {
    /// Number in its certificate.
    pub(crate) id: u32,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterFile {
    /// Cluster id in hex.
    pub(crate) cluster: String,
    /// Replicas of the first pool.
    pub(crate) pool_size: u32,
    /// Metadata servers: all voters.
    pub(crate) metadata: Vec<ServerEntry>,
    /// Data servers that `init` made certificates for; others may join.
    pub(crate) data: Vec<ServerEntry>,
}

impl ClusterFile {
    /// Reads the file.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the cluster file {shown}; 'zabfs init' makes one"))?;
        serde_json::from_str(&text).with_context(|| format!("the cluster file {shown} does not parse"))
    }

    /// Writes the file; replaces an old one atomically.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let shown = path.display();
        let new = path.with_extension("json.new");
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
        std::fs::rename(&new, path).with_context(|| format!("cannot replace the cluster file {shown}"))
    }

    /// The voters by id.
    pub(crate) fn voters(&self) -> BTreeMap<MetadataServerId, SocketAddr> {
        self.metadata.iter().map(|s| (MetadataServerId(s.id), s.address)).collect()
    }

    /// Addresses of the metadata servers, for clients.
    pub(crate) fn metadata_addresses(&self) -> Vec<SocketAddr> {
        self.metadata.iter().map(|s| s.address).collect()
    }

    /// Address of data server `id`.
    pub(crate) fn data_address(&self, id: u32) -> Option<SocketAddr> {
        self.data.iter().find(|s| s.id == id).map(|s| s.address)
    }
}
