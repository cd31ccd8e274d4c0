//! `zabfs data`: data servers of a cluster, as an administrator sees and moves them.

use crate::admin::Admin;
use crate::client_arguments::ClientArguments;
use crate::progress::Progress;
use crate::recovery_command::{LOOK_EVERY, left};
use crate::runtime;
use anyhow::bail;
use clap::{Args, Subcommand};
use fs_client::status_text::bytes;
use protocol::DataServerId;
use protocol::meta::{ClusterStatus, DataServerStatus, FullRatios, MetaRequest};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A server that is out and whose groups have nowhere else to go is given up after this.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Data servers: list, take out, empty, remove
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Show every data server
    List(ListCommand),
    /// Take a server out and wait until no placement group needs it
    Drain(DrainCommand),
    /// Take a server out of placement: its groups are copied to others
    Out(ServerCommand),
    /// Take a server back into placement
    In(ServerCommand),
    /// Forget an empty server for good
    Remove(ServerCommand),
    /// Say of which kind a server's device is, for pools that take only one kind
    Class(ClassCommand),
    /// From which share of its capacity on a server refuses writes that need space [initially: 0.95]
    SetFullRatio(RatioCommand),
    /// From which share of its capacity on the status warns [initially: 0.85]
    SetNearfullRatio(RatioCommand),
}

/// A share of every data server's capacity
#[derive(Debug, Args)]
pub(crate) struct RatioCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Between 0 and 1
    #[arg(value_parser = parse_ratio)]
    ratio: u32,
}

/// In ten-thousandths.
fn parse_ratio(text: &str) -> Result<u32, String> {
    let ratio: f64 = text.parse().map_err(|_| format!("'{text}' is no number"))?;
    let parts = (ratio * f64::from(FullRatios::ONE)).round();
    if !(1.0..=f64::from(FullRatios::ONE)).contains(&parts) {
        return Err(format!("{text} is not between 0.0001 and 1"));
    }
    Ok(parts as u32)
}

impl RatioCommand {
    async fn run(self, change: impl FnOnce(&mut FullRatios, u32)) -> anyhow::Result<()> {
        let admin = Admin::new(&self.client)?;
        let mut ratios = admin.status().await?.full_ratios;
        change(&mut ratios, self.ratio);
        admin.ask(&MetaRequest::SetFullRatios(ratios)).await?;
        let share = |part| f64::from(part) / f64::from(FullRatios::ONE);
        println!("nearfull_ratio {}, full_ratio {}", share(ratios.nearfull), share(ratios.full));
        Ok(())
    }
}

/// Say of which kind a server's device is
#[derive(Debug, Args)]
pub(crate) struct ClassCommand {
    #[command(flatten)]
    server: ServerCommand,
    /// For instance 'ssd' or 'hdd' [default: of no kind]
    class: Option<String>,
}

/// Show every data server
#[derive(Debug, Args)]
pub(crate) struct ListCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One server
#[derive(Debug, Args)]
pub(crate) struct ServerCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Number of the data server
    id: u32,
}

/// Take a server out and wait until no placement group needs it
#[derive(Debug, Args)]
pub(crate) struct DrainCommand {
    #[command(flatten)]
    server: ServerCommand,
    /// Seconds to wait at most; it stays out then [default: without end]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

impl DataCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        runtime::block_on_local(async {
            match self {
                Self::List(list) => list.run().await?,
                Self::Drain(drain) => drain.run().await?,
                Self::Out(server) => server.set_in(false).await?,
                Self::In(server) => server.set_in(true).await?,
                Self::Remove(server) => server.remove().await?,
                Self::Class(class) => class.run().await?,
                Self::SetFullRatio(ratio) => ratio.run(|ratios, to| ratios.full = to).await?,
                Self::SetNearfullRatio(ratio) => ratio.run(|ratios, to| ratios.nearfull = to).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl ListCommand {
    async fn run(self) -> anyhow::Result<()> {
        let status = Admin::new(&self.client)?.status().await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&status.data)?);
            return Ok(());
        }
        println!(
            "{:>4}  {:<22} {:<9} {:>10} {:>10} {:>7} {:>10}  class",
            "id", "address", "state", "used", "capacity", "groups", "primaries"
        );
        for server in &status.data {
            let state = format!(
                "{}, {}",
                if server.up { "up" } else { "down" },
                if server.in_cluster { "in" } else { "out" }
            );
            println!(
                "{:>4}  {:<22} {state:<9} {:>10} {:>10} {:>7} {:>10}  {}",
                server.id.0,
                server.address.to_string(),
                bytes(server.used),
                bytes(server.capacity),
                server.groups,
                server.primaries,
                server.class.as_deref().unwrap_or("-")
            );
        }
        Ok(())
    }
}

impl ServerCommand {
    async fn set_in(self, in_cluster: bool) -> anyhow::Result<()> {
        let server = DataServerId(self.id);
        Admin::new(&self.client)?.ask(&MetaRequest::SetIn { server, in_cluster }).await?;
        println!("data server {server} is {}", if in_cluster { "in" } else { "out" });
        Ok(())
    }

    async fn remove(self) -> anyhow::Result<()> {
        let server = DataServerId(self.id);
        Admin::new(&self.client)?.ask(&MetaRequest::RemoveDataServer { server }).await?;
        println!(
            "data server {server} is removed; a process that still runs for it stops, and its store is not taken back"
        );
        Ok(())
    }
}

impl ClassCommand {
    async fn run(self) -> anyhow::Result<()> {
        let (server, class) = (DataServerId(self.server.id), self.class);
        let admin = Admin::new(&self.server.client)?;
        admin.ask(&MetaRequest::SetClass { server, class: class.clone() }).await?;
        match class {
            Some(class) => println!("data server {server} has a device of class {class}"),
            None => println!("data server {server} has a device of no class"),
        }
        Ok(())
    }
}

impl DrainCommand {
    async fn run(self) -> anyhow::Result<()> {
        let id = DataServerId(self.server.id);
        let admin = Admin::new(&self.server.client)?;
        admin.ask(&MetaRequest::SetIn { server: id, in_cluster: false }).await?;
        let begin = Instant::now();
        let mut progress = Progress::new();
        let mut moved = (u64::MAX, begin);
        loop {
            let status = admin.status().await?;
            let server = find(&status, id)?;
            if server.groups == 0 {
                progress
                    .end(&format!("data server {id} holds no placement group any more: it can be removed"));
                return Ok(());
            }
            let message = format!("{} groups still on data server {id}; {}", server.groups, left(&status));
            progress.show(u64::from(server.groups), &message);
            let now = status.recovering + u64::from(server.groups);
            if now != moved.0 {
                moved = (now, Instant::now());
            }
            if status.recovering == 0 && moved.1.elapsed() >= STUCK_AFTER {
                bail!(
                    "{} groups stay on data server {id}: the other servers that are up and in are too few for the \
                     pool's replicas. Add a data server and the drain goes on, or take this one back with \
                     'zabfs data in {id}'",
                    server.groups
                );
            }
            if self.timeout.is_some_and(|seconds| begin.elapsed() >= Duration::from_secs(seconds)) {
                bail!("data server {id} is out and not empty yet: {message}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn find(status: &ClusterStatus, id: DataServerId) -> anyhow::Result<&DataServerStatus> {
    match status.data.iter().find(|server| server.id == id) {
        Some(server) => Ok(server),
        None => bail!("there is no data server {id}"),
    }
}
