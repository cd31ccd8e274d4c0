//! Settings of a metadata server.

use protocol::MetadataServerId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Everything that a metadata server is told at its start.
#[derive(Clone, Debug)]
pub struct MetadataServerConfig {
    /// Its number among the voters.
    pub id: MetadataServerId,
    /// Its directory: log, record, state.
    pub dir: PathBuf,
    /// Directory with its certificate, key and CA.
    pub identity: PathBuf,
    /// Addresses of all voters, its own included.
    pub voters: BTreeMap<MetadataServerId, SocketAddr>,
    /// Replicas of the first pool. Only read when a new cluster begins.
    pub pool_size: u32,
    /// Milliseconds after which a data server that stays away is taken out of placement, so that its groups
    /// are copied elsewhere.
    pub down_out_ms: u64,
    /// Whether this server, when it leads, answers reads under a lease instead of asking its quorum each time. The
    /// lease supposes that clocks of metadata servers drift apart by less than one eighth: see
    /// [`zab::Config::lease_margin_ms`].
    pub leader_lease: bool,
}

impl MetadataServerConfig {
    /// Default of [`Self::down_out_ms`].
    pub const DOWN_OUT_MS_DEFAULT: u64 = 60_000;

    /// Refuses impossible combinations with a sentence.
    pub fn validate(&self) -> Result<(), String> {
        if !self.voters.contains_key(&self.id) {
            return Err(format!(
                "metadata server {} is not among the voters {:?}: check --id and the cluster file",
                self.id,
                self.voters.keys().map(|id| id.0).collect::<Vec<_>>()
            ));
        }
        if self.voters.len() > 7 {
            return Err(format!(
                "{} voters are too many: use 3 or 5, and observers beyond",
                self.voters.len()
            ));
        }
        if !(1..=7).contains(&self.pool_size) {
            return Err(format!("a pool of {} replicas is impossible: choose 1 to 7", self.pool_size));
        }
        Ok(())
    }

    /// This server's own address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.voters.get(&self.id).copied()
    }
}
