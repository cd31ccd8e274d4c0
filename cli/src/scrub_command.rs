//! `zabfs scrub`: comparing and reading all copies of the data.

use crate::admin::Admin;
use crate::client_arguments::ClientArguments;
use crate::runtime;
use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use fs_client::status_text::ago;
use protocol::data::{DataRequest, DataResponse};
use protocol::identity::Role;
use protocol::map::ClusterMap;
use protocol::meta::{MetaReply, MetaRequest, PgReport};
use protocol::transport::Expect;
use protocol::transport::rpc::RpcClient;
use protocol::{DataServerId, MapEpoch, PgId, PoolId, channel_kind};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One question to a data server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Comparing and reading all copies of the data
#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Show when each placement group was scrubbed, and what was found
    Status(StatusCommand),
    /// Begin a scrub of all placement groups, or of one; it goes on in the background
    Start(StartCommand),
}

/// Show when each placement group was scrubbed, and what was found
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Begin a scrub of all placement groups, or of one
#[derive(Debug, Args)]
pub(crate) struct StartCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Read every block of every copy, not only compare what the copies should hold
    #[arg(long)]
    deep: bool,
    /// The placement group, POOL.SEED with SEED in hexadecimal, as 'zabfs scrub status' shows it
    pg: Option<PgName>,
}

/// A placement group as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PgName(PgId);

impl FromStr for PgName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parsed = text.split_once('.').and_then(|(pool, seed)| {
            Some(PgId { pool: PoolId(pool.parse().ok()?), seed: u32::from_str_radix(seed, 16).ok()? })
        });
        parsed
            .map(Self)
            .ok_or_else(|| anyhow!("'{text}' is no placement group: write POOL.SEED, for instance 1.1f"))
    }
}

impl ScrubCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        runtime::block_on_local(async {
            match self {
                Self::Status(status) => status.run().await?,
                Self::Start(start) => start.run().await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl StatusCommand {
    async fn run(self) -> anyhow::Result<()> {
        let MetaReply::Scrubs(groups) = Admin::new(&self.client)?.ask(&MetaRequest::ScrubStatus).await?
        else {
            bail!(
                "the metadata server answered something else than was asked; compare the versions of both sides"
            );
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&groups)?);
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        println!(
            "{:<8} {:>7} {:>9} {:>14} {:>14} {:>6} {:>8} {:>9}  now",
            "group", "primary", "objects", "compared", "read", "found", "repaired", "undecided"
        );
        for (pg, primary, report) in groups {
            println!("{}", line(pg, primary, &report, now));
        }
        Ok(())
    }
}

fn line(pg: PgId, primary: DataServerId, report: &PgReport, now: u64) -> String {
    let scrub = report.scrub;
    let running = scrub.run.map_or(String::new(), |run| {
        format!(
            "{} scrub, {} of {} objects",
            if run.deep { "deep" } else { "light" },
            run.objects,
            report.objects
        )
    });
    format!(
        "{:<8} {:>7} {:>9} {:>14} {:>14} {:>6} {:>8} {:>9}  {running}",
        pg.to_string(),
        primary.to_string(),
        report.objects,
        ago(now, scrub.last_light),
        ago(now, scrub.last_deep),
        scrub.found,
        scrub.repaired,
        scrub.undecided
    )
}

impl StartCommand {
    async fn run(self) -> anyhow::Result<()> {
        let admin = Admin::new(&self.client)?;
        let MetaReply::Map(map) = admin.ask(&MetaRequest::SubscribeMap { known: MapEpoch(0) }).await? else {
            bail!("there is no cluster map yet: start the data servers first");
        };
        let wanted: Vec<PgId> = match self.pg {
            Some(PgName(pg)) if !map.pgs.contains_key(&pg) => bail!("there is no placement group {pg}"),
            Some(PgName(pg)) => vec![pg],
            None => map.pgs.keys().copied().collect(),
        };
        let (by_primary, without) = by_primary(&map, &wanted);
        for (server, pgs) in &by_primary {
            let begun = begin(&admin, &map, *server, pgs.clone(), self.deep).await;
            begun.with_context(|| format!("data server {server} did not begin"))?;
        }
        let begun: usize = by_primary.values().map(Vec::len).sum();
        println!("{begun} placement groups are scrubbed; 'zabfs scrub status' shows how far they are");
        if !without.is_empty() {
            bail!("{} placement groups have no primary now and are not scrubbed: {without:?}", without.len());
        }
        Ok(())
    }
}

fn by_primary(map: &ClusterMap, wanted: &[PgId]) -> (BTreeMap<DataServerId, Vec<PgId>>, Vec<String>) {
    let (mut found, mut without) = (BTreeMap::<_, Vec<PgId>>::new(), Vec::new());
    for pg in wanted {
        match map.primary_address(*pg) {
            Some((server, _)) => found.entry(server).or_default().push(*pg),
            None => without.push(pg.to_string()),
        }
    }
    (found, without)
}

async fn begin(
    admin: &Admin,
    map: &ClusterMap,
    server: DataServerId,
    pgs: Vec<PgId>,
    deep: bool,
) -> anyhow::Result<()> {
    let address = map.data_servers.get(&server).map(|info| info.address).context("it is not in the map")?;
    let asking = async {
        let connection = admin.endpoint.connect(address, Expect::server(Role::Data, server.0)).await?;
        let rpc = RpcClient::<DataRequest, DataResponse>::new(&connection, channel_kind::DATA);
        let (response, _) = rpc.call(&DataRequest::Scrub { pgs, deep }, Bytes::new()).await?;
        response?;
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, asking).await.context("it does not answer")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_as_they_are_shown() {
        let pg = PgId { pool: PoolId(1), seed: 0x1f };
        assert_eq!("1.1f".parse::<PgName>().expect("a group"), PgName(pg));
        assert_eq!(pg.to_string(), "1.1f");
        for wrong in ["1", "1.", "1.xyz", "a.1"] {
            assert!(wrong.parse::<PgName>().is_err(), "{wrong}");
        }
    }
}
