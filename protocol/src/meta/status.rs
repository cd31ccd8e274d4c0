//! The cluster as `zabfs status` shows it.

use super::{ClientInfo, PoolStatus, Space};
use crate::id::{DataServerId, MapEpoch, MetadataServerId, Revision, SessionId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// State of one metadata server, as far as the answering one knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataServerStatus {
    /// Which.
    pub id: MetadataServerId,
    /// Its address.
    pub address: SocketAddr,
    /// `leader`, `follower`, `observer` (it learns and counts for nothing), `looking`, `removed` or `unreachable`.
    pub role: String,
    /// Last transaction known to be on its disk: Zab's epoch and counter.
    pub zxid: (u64, u64),
}

/// When data servers count as full, in ten-thousandths of their capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullRatios {
    /// From here on the status warns.
    pub nearfull: u32,
    /// From here on writes that need space are refused.
    pub full: u32,
}

impl Default for FullRatios {
    fn default() -> Self {
        Self { nearfull: 8500, full: 9500 }
    }
}

impl FullRatios {
    /// All of it.
    pub const ONE: u32 = 10_000;

    /// Bytes of `capacity` from which a server is full.
    pub fn full_at(self, capacity: u64) -> u64 {
        part(capacity, self.full)
    }

    /// Bytes of `capacity` from which a server is nearly full.
    pub fn nearfull_at(self, capacity: u64) -> u64 {
        part(capacity, self.nearfull)
    }
}

fn part(of: u64, ten_thousandths: u32) -> u64 {
    (u128::from(of) * u128::from(ten_thousandths) / u128::from(FullRatios::ONE)) as u64
}

/// State of one data server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataServerStatus {
    /// Which.
    pub id: DataServerId,
    /// Its address.
    pub address: SocketAddr,
    /// Its session is alive.
    pub up: bool,
    /// It takes part in placement.
    pub in_cluster: bool,
    /// Kind of its device, if an administrator said one.
    pub class: Option<String>,
    /// Bytes it can hold.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Groups that it is in.
    pub groups: u32,
    /// Groups that it is primary of.
    pub primaries: u32,
    /// Corrupt blocks found.
    pub corrupt_blocks: u64,
    /// Why it left, as it said itself; `None` while it is up, and if it was only silent.
    pub failure: Option<String>,
}

/// State of one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Which.
    pub session: SessionId,
    /// Whose.
    pub info: ClientInfo,
    /// Name in its certificate.
    pub certificate: String,
    /// Milliseconds until it expires if nothing is heard.
    pub expires_in_ms: u64,
}

/// State of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's id in hex.
    pub cluster: String,
    /// The answering server.
    pub answered_by: MetadataServerId,
    /// Metadata servers.
    pub metadata: Vec<MetadataServerStatus>,
    /// The leader, if there is one.
    pub leader: Option<MetadataServerId>,
    /// Zab's epoch.
    pub zab_epoch: u64,
    /// Revision of the committed state.
    pub revision: Revision,
    /// Version of the cluster map.
    pub map_epoch: MapEpoch,
    /// Data servers.
    pub data: Vec<DataServerStatus>,
    /// Number of placement groups by state, e.g. `active+clean`.
    pub groups: Vec<(String, u32)>,
    /// Objects still to copy.
    pub recovering: u64,
    /// Space.
    pub space: Space,
    /// Client sessions.
    pub sessions: Vec<SessionStatus>,
    /// What is still to be copied, by the primary that copies it. Empty when nothing is.
    pub recovery: Vec<RecoveryStatus>,
    /// What scrubs did and found.
    pub scrub: ScrubSummary,
    /// The pools, by number.
    pub pools: Vec<PoolStatus>,
    /// What the answering server refused.
    pub refusals: Refusals,
    /// When data servers count as full.
    pub full_ratios: FullRatios,
    /// What an administrator should do something about, in sentences.
    pub warnings: Vec<String>,
}

/// What a metadata server refused since it started. The first of each peer is in its log with the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// Connections: unknown or foreign certificates, wrong roles, other versions, too many at once.
    pub connections: u64,
    /// Connections closed because what came was malformed, too long, or of another cluster.
    pub malformed: u64,
    /// Requests that the certificate does not allow.
    pub requests: u64,
    /// Messages of metadata servers that their role does not allow, or for directories that are no members.
    pub foreign: u64,
    /// Messages of metadata servers that belong to an earlier epoch or connection. Some are normal.
    pub stale: u64,
}

impl Refusals {
    /// Whether anything happened that is not normal.
    pub fn is_noteworthy(&self) -> bool {
        self.connections + self.malformed + self.requests + self.foreign > 0
    }
}

/// What scrubs did and found in all groups whose primaries have reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubSummary {
    /// Groups that are being scrubbed.
    pub running: u32,
    /// The least recent time at which all copies of a group were compared, in seconds since 1970; 0 for never.
    pub oldest_light: u64,
    /// The least recent time at which all blocks of a group were read.
    pub oldest_deep: u64,
    /// Wrong copies and damaged blocks found.
    pub found: u64,
    /// How many of them were replaced by right ones.
    pub repaired: u64,
    /// Objects whose copies differ without anything telling which is right.
    pub undecided: u64,
}

/// What one data server has still to copy to members of the groups that it is primary of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// Who copies.
    pub server: DataServerId,
    /// Groups with something to copy.
    pub groups: u32,
    /// Objects to copy.
    pub objects: u64,
    /// About as many bytes as these have.
    pub bytes: u64,
    /// Objects per second, measured over the last seconds.
    pub objects_per_second: u64,
    /// Bytes per second, measured over the last seconds.
    pub bytes_per_second: u64,
    /// Seconds until everything is copied at this rate; `None` while nothing moves.
    pub seconds_left: Option<u64>,
}
