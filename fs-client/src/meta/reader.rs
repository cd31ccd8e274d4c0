//! Reads from any metadata server, followers and observers included.
//!
//! A reader never goes back: it passes on the largest revision that it has seen, and whoever answers has applied that.
//! What others did since it sees after [`Reader::sync`].

use super::link::MetaLink;
use super::status::ask_leader;
use protocol::Revision;
use protocol::meta::{MetaError, MetaReply, MetaRequest, ReadAnswer, ReadOp};
use protocol::transport::Endpoint;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Somebody has to answer within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// One server has this long.
const CALL_PATIENCE: Duration = Duration::from_secs(3);
/// Between two rounds through all servers.
const ROUND: Duration = Duration::from_millis(100);

/// See the module. Lives within a `LocalSet`.
pub struct Reader {
    endpoint: Endpoint,
    servers: Vec<SocketAddr>,
    /// Where a leader is looked for.
    all: Vec<SocketAddr>,
    /// The connection that answered last.
    link: Option<Rc<MetaLink>>,
    turn: usize,
    seen: Revision,
}

impl Reader {
    /// Reads from `servers`; the leader, for [`Self::sync`], is one of `all`.
    pub fn new(endpoint: Endpoint, servers: Vec<SocketAddr>, all: Vec<SocketAddr>) -> Self {
        Self { endpoint, servers, all, link: None, turn: 0, seen: Revision(0) }
    }

    /// The largest revision seen.
    pub fn seen(&self) -> Revision {
        self.seen
    }

    /// Who answered last.
    pub fn answered_by(&self) -> Option<SocketAddr> {
        self.link.as_ref().map(|link| link.address)
    }

    /// From now on every answer contains what had been answered to anybody before this was called.
    ///
    /// # Errors
    /// No leader with a quorum answered.
    pub async fn sync(&mut self) -> Result<Revision, String> {
        match ask_leader(&self.endpoint, &self.all, &MetaRequest::Sync, PATIENCE).await? {
            MetaReply::Revision(revision) => {
                self.seen = self.seen.max(revision);
                Ok(revision)
            }
            _ => {
                Err("the leader gave an answer of the wrong kind; compare the versions of both sides".into())
            }
        }
    }

    /// Reads from the server that answered last, or another one.
    ///
    /// # Errors
    /// Nobody answered in time, or the certificate does not allow it.
    pub async fn read(&mut self, op: &ReadOp) -> Result<ReadAnswer, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut problem = "no address of a metadata server is known".to_owned();
        while Instant::now() < deadline {
            for _ in 0..self.servers.len() {
                let until = deadline.min(Instant::now() + CALL_PATIENCE);
                match timeout_at(until, self.ask(op)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(Problem::Final(why))) => return Err(why),
                    Ok(Err(Problem::Passing(why))) => problem = why,
                    Err(_) => problem = "it does not answer".to_owned(),
                }
                self.link = None;
                self.turn += 1;
            }
            tokio::time::sleep(ROUND).await;
        }
        Err(format!("no metadata server answered within {} s ({problem})", PATIENCE.as_secs()))
    }

    async fn ask(&mut self, op: &ReadOp) -> Result<ReadAnswer, Problem> {
        let link = match &self.link {
            Some(link) if link.is_open() => link.clone(),
            _ => {
                let address = self.servers[self.turn % self.servers.len()];
                let link = MetaLink::open(&self.endpoint, address, drop).await;
                link.map_err(|error| Problem::Passing(format!("{address}: {error}")))?
            }
        };
        let request = MetaRequest::ReadAt { at_least: self.seen, op: op.clone() };
        let answer = link.call(&request).await.map_err(|error| Problem::Passing(error.to_string()))?;
        match answer {
            Ok(MetaReply::ReadAt { revision, .. }) if revision < self.seen => {
                Err(Problem::Passing(format!("{} answered from the past", link.address)))
            }
            Ok(MetaReply::ReadAt { revision, answer }) => {
                self.seen = revision;
                self.link = Some(link);
                Ok(answer)
            }
            Ok(_) => Err(Problem::Final("a metadata server answered something else than was asked".into())),
            Err(MetaError::Refused(why)) => Err(Problem::Final(why)),
            Err(error) => Err(Problem::Passing(format!("{}: {error}", link.address))),
        }
    }
}

enum Problem {
    /// Another server, or a later moment, may do better.
    Passing(String),
    Final(String),
}
