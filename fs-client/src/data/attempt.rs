//! One operation: found a primary, sent, judged, sent again.

use super::servers::ServerKey;
use super::{DataClient, DataFailure};
use crate::backoff::Backoff;
use bytes::Bytes;
use protocol::data::{DataError, DataReply, DataRequest, DataResponse};
use protocol::map::ClusterMap;
use protocol::split::Extent;
use protocol::transport::rpc::RpcError;
use protocol::{MapEpoch, ObjectId, PgId, mutant};
use std::borrow::Cow;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// Without a change of the map, a group that cannot be reached is tried again after this time at most.
const RETRY_MAX: Duration = Duration::from_millis(200);
/// An operation that waits this long is logged, and again after each such time.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Who must execute an operation.
pub(super) enum Target {
    /// The primary of the object's group.
    Object(ObjectId),
    /// The primary of the group; [`DataFailure::Scattered`] once the group was split.
    Group(Extent),
    /// The common primary of several groups; [`DataFailure::Scattered`] if they do not have one (any more).
    GroupsOnce(Vec<Extent>),
}

/// Where an operation goes now. Compared to see whether a new map changes that.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Route {
    version: u64,
    pg_num: u32,
    key: ServerKey,
}

/// What to do about an answer.
enum Verdict {
    Done(DataReply),
    Failed(DataFailure),
    Fenced,
    /// A newer map is on its way.
    WaitForMap(String),
    WaitALittle(String),
}

impl DataClient {
    /// Sends an operation until it has a final answer or its session is lost.
    pub(super) async fn execute(
        &self,
        generation: u64,
        target: Target,
        request: &DataRequest,
        payload: Bytes,
    ) -> Result<(DataReply, Bytes), DataFailure> {
        let mut generations = self.meta.generations();
        generations.mark_unchanged();
        if self.meta.generation() != generation && !mutant!("old-writes-under-a-new-session") {
            return Err(DataFailure::SessionLost);
        }
        tokio::select! {
            biased;
            result = self.attempts(&target, request, payload) => result,
            _ = generations.changed() => Err(DataFailure::SessionLost),
        }
    }

    async fn attempts(
        &self,
        target: &Target,
        request: &DataRequest,
        payload: Bytes,
    ) -> Result<(DataReply, Bytes), DataFailure> {
        let mut backoff = Backoff::new(Duration::from_millis(3), RETRY_MAX);
        let mut changes = self.map.changes();
        let mut patience = Patience::new();
        loop {
            changes.mark_unchanged();
            let verdict = match (route(&self.map.current(), target), target) {
                (Some(route), _) => {
                    match self.attempt(route, target, request, payload.clone(), &mut changes).await {
                        Ok((Verdict::Done(reply), payload)) => return Ok((reply, payload)),
                        Ok((verdict, _)) => verdict,
                        Err(why) => Verdict::WaitALittle(why),
                    }
                }
                (None, Target::GroupsOnce(_)) => return Err(DataFailure::Scattered),
                (None, Target::Group(extent)) if was_split(&self.map.current(), *extent) => {
                    return Err(DataFailure::Scattered);
                }
                (None, _) => Verdict::WaitForMap("its group has no primary".to_owned()),
            };
            let (pause, why) = match verdict {
                Verdict::Done(_) => continue,
                Verdict::Failed(failure) => return Err(failure),
                Verdict::Fenced => {
                    self.meta.lose_session("a data server says that it was fenced");
                    return Err(DataFailure::SessionLost);
                }
                Verdict::WaitForMap(why) => (RETRY_MAX, why),
                Verdict::WaitALittle(why) => (backoff.step(), why),
            };
            patience.complain(request, &why);
            // A changed map is worth a try at once.
            let _ = timeout(pause, changes.changed()).await;
        }
    }

    /// One try. Given up when a new map names another primary. `Err` says why there is no answer.
    async fn attempt(
        &self,
        route: Route,
        target: &Target,
        request: &DataRequest,
        payload: Bytes,
        changes: &mut watch::Receiver<MapEpoch>,
    ) -> Result<(Verdict, Bytes), String> {
        let trying = async {
            let rpc = self.servers.connect(route.key).await.map_err(|error| error.to_string())?;
            let answer = rpc.call(&*addressed(request, route.pg_num), payload).await;
            if matches!(answer, Err(RpcError::Disconnected(_) | RpcError::Malformed(_))) {
                self.servers.discard(route.key).await;
            }
            match answer {
                Ok((response, payload)) => Ok((judge(response, route.version), payload)),
                Err(RpcError::Unsendable(error)) => {
                    Ok((Verdict::Failed(DataFailure::Rejected(error.to_string())), Bytes::new()))
                }
                Err(error) => Err(error.to_string()),
            }
        };
        tokio::pin!(trying);
        loop {
            tokio::select! {
                biased;
                result = &mut trying => return result,
                changed = changes.changed() => {
                    if changed.is_ok() && self::route(&self.map.current(), target).map(|now| now.key) != Some(route.key) {
                        return Err(format!("data server {} does not lead the group any more", route.key.id));
                    }
                }
            }
        }
    }
}

fn judge(response: DataResponse, version: u64) -> Verdict {
    match response {
        Ok(reply) => Verdict::Done(reply),
        Err(error @ DataError::NotPrimary { version: theirs }) if theirs > version => {
            Verdict::WaitForMap(error.to_string())
        }
        // Whoever meets this begins again, with new operations.
        Err(DataError::Unavailable(_)) if mutant!("retry-under-a-new-number") => {
            Verdict::Failed(DataFailure::Stale)
        }
        Err(DataError::Fenced) if mutant!("fenced-client-goes-on") => Verdict::WaitALittle(String::new()),
        Err(error @ (DataError::NotPrimary { .. } | DataError::Unavailable(_) | DataError::Overloaded)) => {
            Verdict::WaitALittle(error.to_string())
        }
        Err(DataError::StaleTruncation { .. }) => Verdict::Failed(DataFailure::Stale),
        Err(DataError::Fenced) => Verdict::Fenced,
        Err(DataError::Full) => Verdict::Failed(DataFailure::Full),
        Err(DataError::Corrupt(why)) => Verdict::Failed(DataFailure::Corrupt(why)),
        Err(DataError::Refused(why)) => Verdict::Failed(DataFailure::Refused(why)),
        Err(error @ (DataError::Malformed(_) | DataError::Superseded)) => {
            Verdict::Failed(DataFailure::Rejected(error.to_string()))
        }
    }
}

fn route(map: &ClusterMap, target: &Target) -> Option<Route> {
    match target {
        Target::Object(object) => route_of_group(map, map.locate(*object)?.0),
        Target::Group(extent) => route_of_extent(map, *extent),
        Target::GroupsOnce(pgs) => {
            let first = route_of_extent(map, *pgs.first()?)?;
            let same =
                |extent: &Extent| route_of_extent(map, *extent).is_some_and(|route| route.key == first.key);
            (pgs.iter().all(same) || mutant!("sync-asks-who-does-not-lead")).then_some(first)
        }
    }
}

/// The group holds less by now: who asked for it has to ask for what was split off, too.
fn was_split(map: &ClusterMap, extent: Extent) -> bool {
    map.pgs.get(&extent.pg).is_some_and(|config| config.pg_num != extent.pg_num)
}

fn route_of_extent(map: &ClusterMap, extent: Extent) -> Option<Route> {
    if was_split(map, extent) { None } else { route_of_group(map, extent.pg) }
}

/// The request as it names the group of its object by the map at hand.
fn addressed(request: &DataRequest, now: u32) -> Cow<'_, DataRequest> {
    match request {
        DataRequest::Read { context, .. }
        | DataRequest::Write { context, .. }
        | DataRequest::Zero { context, .. }
            if context.pg_num != now => {}
        _ => return Cow::Borrowed(request),
    }
    let mut request = request.clone();
    if let DataRequest::Read { context, .. }
    | DataRequest::Write { context, .. }
    | DataRequest::Zero { context, .. } = &mut request
    {
        context.pg_num = now;
    }
    Cow::Owned(request)
}

fn route_of_group(map: &ClusterMap, pg: PgId) -> Option<Route> {
    let config = map.pgs.get(&pg)?;
    let id = config.primary?;
    let server = map.data_servers.get(&id)?;
    let key = ServerKey { id, address: server.address, incarnation: server.incarnation };
    Some(Route { version: config.version, pg_num: config.pg_num, key })
}

/// Says in the log when an operation waits for long.
struct Patience {
    since: Instant,
    complained: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { since: Instant::now(), complained: Duration::ZERO }
    }

    fn complain(&mut self, request: &DataRequest, why: &str) {
        let waited = self.since.elapsed();
        if waited >= self.complained + LOG_EVERY {
            self.complained = waited;
            let what = match request {
                DataRequest::Read { context, .. } => format!("a read of {}", context.object),
                DataRequest::Write { context, .. } => format!("a write to {}", context.object),
                DataRequest::Zero { context, .. } => format!("a hole in {}", context.object),
                DataRequest::Sync { .. } | DataRequest::TrimInode { .. } => "a sync".to_owned(),
                DataRequest::Scrub { .. } => "a scrub".to_owned(),
                DataRequest::List { pg, .. } => format!("a list of the objects of group {pg}"),
            };
            tracing::warn!("{what} has waited for {} s: {why}; it goes on waiting", waited.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::map::{DataServerInfo, PgConfig, Pool};
    use protocol::{DataServerId, InodeId, PoolId, SessionId, StoreUuid};

    fn map_with(primaries: &[u32]) -> ClusterMap {
        let mut map = ClusterMap::default();
        let pool = Pool {
            name: "data".to_owned(),
            size: 3,
            min_size: 2,
            pg_num: primaries.len() as u32,
            rule: 0,
            chunk_size: 4096,
            inline_limit: 0,
        };
        map.pools.insert(PoolId(1), pool);
        for (seed, primary) in primaries.iter().enumerate() {
            let (leader, pg_num) = (Some(DataServerId(*primary)), primaries.len() as u32);
            let config = PgConfig { version: 5, primary: leader, pg_num, ..PgConfig::default() };
            map.pgs.insert(PgId { pool: PoolId(1), seed: seed as u32 }, config);
            let info = DataServerInfo {
                address: ([127, 0, 0, 1], 7000 + *primary as u16).into(),
                host: String::new(),
                up: true,
                session: SessionId(1),
                store: StoreUuid(u128::from(*primary)),
                incarnation: 1,
                crush_weight: 0,
                reweight: 0,
                failure: None,
            };
            map.data_servers.insert(DataServerId(*primary), info);
        }
        map
    }

    #[test]
    fn an_object_goes_to_its_groups_primary() {
        let map = map_with(&[3, 3, 3, 3]);
        let object = ObjectId { pool: PoolId(1), inode: InodeId(9), chunk: 4 };
        let route = route(&map, &Target::Object(object)).expect("there is a primary");
        assert_eq!((route.key.id, route.key.address.port(), route.version), (DataServerId(3), 7003, 5));
    }

    #[test]
    fn several_groups_have_a_route_only_while_their_primary_is_one() {
        let pgs: Vec<Extent> =
            (0..2).map(|seed| Extent { pg: PgId { pool: PoolId(1), seed }, pg_num: 2 }).collect();
        assert!(route(&map_with(&[1, 1]), &Target::GroupsOnce(pgs.clone())).is_some());
        assert!(route(&map_with(&[1, 2]), &Target::GroupsOnce(pgs)).is_none());
    }

    #[test]
    fn answers_are_final_or_ask_for_patience() {
        assert!(matches!(judge(Err(DataError::NotPrimary { version: 9 }), 5), Verdict::WaitForMap(_)));
        assert!(matches!(judge(Err(DataError::NotPrimary { version: 5 }), 5), Verdict::WaitALittle(_)));
        assert!(matches!(judge(Err(DataError::Fenced), 5), Verdict::Fenced));
        assert!(matches!(judge(Err(DataError::Full), 5), Verdict::Failed(DataFailure::Full)));
        assert!(matches!(
            judge(Err(DataError::StaleTruncation { known: 3 }), 5),
            Verdict::Failed(DataFailure::Stale)
        ));
    }
}
