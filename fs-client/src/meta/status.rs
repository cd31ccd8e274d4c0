//! Asking metadata servers without a session: for `zabfs status` and what administrators order.

use super::link::MetaLink;
use protocol::meta::{ClusterStatus, MetaError, MetaReply, MetaRequest};
use protocol::transport::Endpoint;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Once some server answered, its leader has this long to do so too.
const LEADER_PATIENCE: Duration = Duration::from_millis(500);
/// One question to one server, when the leader is looked for.
const CALL_PATIENCE: Duration = Duration::from_secs(3);
/// Between two rounds through all servers.
const ROUND: Duration = Duration::from_millis(200);

/// The state of the cluster: the leader's answer if it comes in time, else that of any server. Must be called
/// within a `LocalSet`.
///
/// # Errors
/// Nobody answered within `patience`: one sentence per server.
pub async fn ask_cluster(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<ClusterStatus, String> {
    let mut asking = JoinSet::new();
    for address in addresses.iter().copied() {
        let endpoint = endpoint.clone();
        asking.spawn_local(async move { (address, ask(&endpoint, address).await) });
    }
    let mut deadline = Instant::now() + patience;
    let mut best: Option<ClusterStatus> = None;
    let mut problems = Vec::new();
    while let Ok(Some(ended)) = timeout_at(deadline, asking.join_next()).await {
        match ended {
            Ok((_, Ok(status))) if status.leader == Some(status.answered_by) => return Ok(status),
            Ok((_, Ok(status))) => {
                deadline = deadline.min(Instant::now() + LEADER_PATIENCE);
                best.get_or_insert(status);
            }
            Ok((address, Err(why))) => problems.push(format!("{address}: {why}")),
            Err(_) => {}
        }
    }
    best.ok_or_else(|| match problems.as_slice() {
        [] => format!("no metadata server answered within {} ms", patience.as_millis()),
        problems => format!("no metadata server answered: {}", problems.join("; ")),
    })
}

/// Asks the leader to do something, whoever it is, again and again until it answers. For requests that may be
/// repeated. Must be called within a `LocalSet`.
///
/// # Errors
/// The leader says no, or nobody who leads answered within `patience`.
pub async fn ask_leader(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    request: &MetaRequest,
    patience: Duration,
) -> Result<MetaReply, String> {
    let deadline = Instant::now() + patience;
    let mut problem = "no address of a metadata server is known".to_owned();
    while Instant::now() < deadline {
        for address in addresses {
            let asking = async {
                let link = MetaLink::open(endpoint, *address, drop).await.map_err(|e| e.to_string())?;
                link.call(request).await.map_err(|e| e.to_string())
            };
            match timeout_at(deadline.min(Instant::now() + CALL_PATIENCE), asking).await {
                Ok(Ok(Ok(reply))) => return Ok(reply),
                Ok(Ok(Err(MetaError::NotLeader { .. } | MetaError::Overloaded))) => {
                    problem = format!("{address} does not lead");
                }
                Ok(Ok(Err(error))) => return Err(error.to_string()),
                Ok(Err(why)) => problem = format!("{address}: {why}"),
                Err(_) => problem = format!("{address} does not answer"),
            }
        }
        tokio::time::sleep(ROUND).await;
    }
    Err(format!("no metadata leader answered within {} s ({problem})", patience.as_secs()))
}

async fn ask(endpoint: &Endpoint, address: SocketAddr) -> Result<ClusterStatus, String> {
    let link = MetaLink::open(endpoint, address, drop).await.map_err(|error| error.to_string())?;
    match link.call(&MetaRequest::Status).await {
        Ok(Ok(MetaReply::Status(status))) => Ok(status),
        Ok(Ok(_)) => {
            Err("it gave an answer of the wrong kind; compare the versions of both sides".to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
