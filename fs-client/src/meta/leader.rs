//! A lasting connection to whoever leads, for commands that ask much.

use super::link::MetaLink;
use protocol::meta::{MetaError, MetaRequest, MetaResponse};
use protocol::transport::Endpoint;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// One question to one server.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// Between two rounds through all servers.
const ROUND: Duration = Duration::from_millis(100);

/// See the module. Lives within a `LocalSet`.
pub struct Leader {
    endpoint: Endpoint,
    addresses: Vec<SocketAddr>,
    link: Option<Rc<MetaLink>>,
}

impl Leader {
    /// One of these leads.
    pub fn new(endpoint: Endpoint, addresses: Vec<SocketAddr>) -> Self {
        Self { endpoint, addresses, link: None }
    }

    /// The leader's answer. The request may arrive more than once.
    ///
    /// # Errors
    /// Nobody who leads answered within `patience`.
    pub async fn call(&mut self, request: &MetaRequest, patience: Duration) -> Result<MetaResponse, String> {
        let deadline = Instant::now() + patience;
        let mut problem = "no address of a metadata server is known".to_owned();
        loop {
            if let Some(link) = self.link.clone() {
                match timeout(CALL_PATIENCE, link.call(request)).await {
                    Ok(Ok(Err(MetaError::NotLeader { .. } | MetaError::Overloaded))) => {
                        problem = "it does not lead any more".into();
                    }
                    Ok(Ok(response)) => return Ok(response),
                    Ok(Err(error)) => problem = error.to_string(),
                    Err(_) => problem = "it does not answer".into(),
                }
                self.link = None;
            }
            for address in self.addresses.clone() {
                match timeout(CALL_PATIENCE, MetaLink::open(&self.endpoint, address, drop)).await {
                    Ok(Ok(link)) => match timeout(CALL_PATIENCE, link.call(request)).await {
                        Ok(Ok(Err(MetaError::NotLeader { .. } | MetaError::Overloaded))) => {
                            problem = format!("{address} does not lead");
                        }
                        Ok(Ok(response)) => {
                            self.link = Some(link);
                            return Ok(response);
                        }
                        Ok(Err(error)) => problem = format!("{address}: {error}"),
                        Err(_) => problem = format!("{address} does not answer"),
                    },
                    Ok(Err(error)) => problem = format!("{address}: {error}"),
                    Err(_) => problem = format!("{address} does not answer"),
                }
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "no metadata leader answered within {} s ({problem})",
                    patience.as_secs()
                ));
            }
            sleep(ROUND).await;
        }
    }
}
