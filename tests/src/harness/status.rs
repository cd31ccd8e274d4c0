//! What `zabfs status --json` says, as far as scripts and tests look at it.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

/// State of the cluster.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The leader's number, if there is one.
    pub leader: Option<u32>,
    /// The metadata servers.
    pub metadata: Vec<MetadataServer>,
    /// The data servers.
    pub data: Vec<DataServer>,
    /// Number of placement groups by state.
    #[serde(deserialize_with = "groups")]
    pub groups: BTreeMap<String, u32>,
    /// Objects still to copy.
    pub recovering: u64,
    /// Revision of the committed state.
    pub revision: u64,
    /// Version of the cluster map.
    pub map_epoch: u64,
}

/// One metadata server.
#[derive(Clone, Debug, Deserialize)]
pub struct MetadataServer {
    /// Its number.
    pub id: u32,
    /// `leader`, `follower`, `observer`, `looking`, `removed` or `unreachable`.
    pub role: String,
    /// Last transaction that is known to be on its disk: Zab's epoch and counter.
    pub zxid: (u64, u64),
}

/// One data server.
#[derive(Clone, Debug, Deserialize)]
pub struct DataServer {
    /// Its number.
    pub id: u32,
    /// Its session is alive.
    pub up: bool,
    /// Bytes in use.
    pub used: u64,
    /// Placement groups that it is in.
    pub groups: u32,
    /// Corrupt blocks found.
    pub corrupt_blocks: u64,
    /// Why it left, in its own words.
    pub failure: Option<String>,
}

impl Status {
    /// Reads the command's output.
    pub fn parse(json: &str) -> anyhow::Result<Status> {
        serde_json::from_str(json).with_context(|| format!("understand the status {json:?}"))
    }

    /// What is missing until a cluster of this many servers is entirely well; `Ok` when nothing is.
    pub fn missing(&self, metadata: usize, data: usize) -> Result<(), String> {
        if self.leader.is_none() {
            return Err("there is no leader".to_owned());
        }
        let following = self.metadata.iter().filter(|m| m.role == "leader" || m.role == "follower").count();
        if following < metadata {
            return Err(format!("{following} of {metadata} metadata servers are in the quorum"));
        }
        let up = self.data.iter().filter(|server| server.up).count();
        if up < data {
            return Err(format!("{up} of {data} data servers are up"));
        }
        // Without data servers there are no groups.
        if data == 0 { Ok(()) } else { self.clean() }
    }

    /// What is missing until every placement group is active and clean.
    pub fn clean(&self) -> Result<(), String> {
        let total: u32 = self.groups.values().sum();
        let clean = self.groups.get("active+clean").copied().unwrap_or(0);
        if total == 0 {
            return Err("there are no placement groups yet".to_owned());
        }
        if clean < total {
            return Err(format!("{clean} of {total} placement groups are active+clean: {:?}", self.groups));
        }
        Ok(())
    }

    /// A data server by number.
    pub fn data_server(&self, id: u32) -> Option<&DataServer> {
        self.data.iter().find(|server| server.id == id)
    }
}

/// Groups come as an object `{"state": n}` or as pairs `[["state", n]]`.
fn groups<'de, D: serde::Deserializer<'de>>(input: D) -> Result<BTreeMap<String, u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Groups {
        Object(BTreeMap<String, u32>),
        Pairs(Vec<(String, u32)>),
    }
    Ok(match Groups::deserialize(input)? {
        Groups::Object(groups) => groups,
        Groups::Pairs(pairs) => pairs.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = r#"{"cluster":"ab","answered_by":1,"leader":2,"zab_epoch":1,"revision":9,"map_epoch":4,
        "recovering":0,"metadata":[{"id":1,"role":"follower","zxid":[1,9]},{"id":2,"role":"leader","zxid":[1,9]}],
        "data":[{"id":1,"up":true,"used":0,"groups":64,"primaries":64,"corrupt_blocks":0}],
        "groups":[["active+clean",63],["active+degraded",1]]}"#;

    #[test]
    fn what_is_missing_is_said_in_order() {
        let mut status = Status::parse(THREE).unwrap();
        assert_eq!(status.missing(3, 1).unwrap_err(), "2 of 3 metadata servers are in the quorum");
        assert_eq!(status.missing(2, 3).unwrap_err(), "1 of 3 data servers are up");
        assert!(status.missing(2, 1).unwrap_err().starts_with("63 of 64 placement groups"));
        status.groups.remove("active+degraded");
        assert_eq!(status.missing(2, 1), Ok(()));
        status.leader = None;
        assert_eq!(status.missing(2, 1).unwrap_err(), "there is no leader");
    }

    #[test]
    fn groups_may_be_an_object() {
        let json = THREE.replace(r#"[["active+clean",63],["active+degraded",1]]"#, r#"{"active+clean":64}"#);
        assert_eq!(Status::parse(&json).unwrap().clean(), Ok(()));
    }
}
