//! Fetching a backup of the metadata.

use super::link::MetaLink;
use bytes::Bytes;
use protocol::meta::{BackupHead, MetaError, MetaReply, MetaRequest};
use protocol::transport::Endpoint;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// The leader answers once a checkpoint contains what was there when it was asked.
const BEGIN_PATIENCE: Duration = Duration::from_secs(60);
/// The next rows come within this time.
const NEXT_PATIENCE: Duration = Duration::from_secs(60);
/// Between two rounds through all servers.
const ROUND: Duration = Duration::from_millis(200);

/// A backup under way. Lives within a `LocalSet`.
pub struct BackupRows {
    link: Rc<MetaLink>,
    /// What it is of.
    pub head: BackupHead,
}

impl BackupRows {
    /// Begins a backup at the leader.
    ///
    /// # Errors
    /// The leader says no, or nobody who leads answered within `patience`.
    pub async fn begin(
        endpoint: &Endpoint,
        addresses: &[SocketAddr],
        patience: Duration,
    ) -> Result<Self, String> {
        let deadline = Instant::now() + patience;
        let mut problem = "no address of a metadata server is known".to_owned();
        while Instant::now() < deadline {
            for address in addresses {
                let link = match MetaLink::open(endpoint, *address, drop).await {
                    Ok(link) => link,
                    Err(error) => {
                        problem = format!("{address}: {error}");
                        continue;
                    }
                };
                match timeout(BEGIN_PATIENCE, link.call(&MetaRequest::Backup)).await {
                    Ok(Ok(Ok(MetaReply::Backup(head)))) => return Ok(Self { link, head }),
                    Ok(Ok(Err(MetaError::NotLeader { .. } | MetaError::Overloaded))) => {
                        problem = format!("{address} does not lead");
                    }
                    Ok(Ok(Err(error))) => return Err(error.to_string()),
                    Ok(Ok(Ok(_))) => {
                        return Err("the leader gave an answer of the wrong kind; compare versions".into());
                    }
                    Ok(Err(error)) => problem = format!("{address}: {error}"),
                    Err(_) => problem = format!("{address} does not answer"),
                }
            }
            sleep(ROUND).await;
        }
        Err(format!("no metadata leader began a backup within {} s ({problem})", patience.as_secs()))
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// The server is gone, or does not answer: the backup has to be begun anew.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let called = timeout(NEXT_PATIENCE, self.link.call_for_payload(&MetaRequest::BackupNext)).await;
        let answer = called.map_err(|_| "the leader does not send more of the backup".to_owned())?;
        let (response, rows) =
            answer.map_err(|error| format!("the backup broke off: {error}; run it again"))?;
        match response {
            Ok(MetaReply::BackupRows { crc }) if crc32c::crc32c(&rows) == crc => {
                Ok((!rows.is_empty()).then_some(rows))
            }
            Ok(MetaReply::BackupRows { .. }) => Err("rows of the backup came with a wrong checksum".into()),
            Ok(_) => Err("the leader gave an answer of the wrong kind; compare versions".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}
