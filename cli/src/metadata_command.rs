//! `zabfs metadata`: who the metadata servers are, and changes of that.

use crate::admin::Admin;
use crate::client_arguments::ClientArguments;
use crate::metadata_backup_command::{BackupCommand, RestoreCommand};
use crate::metadata_stat_command::StatCommand;
use crate::runtime;
use anyhow::{bail, ensure};
use clap::{Args, Subcommand};
use protocol::MetadataServerId;
use protocol::meta::{MetaReply, MetaRequest, MetadataChange, MetadataServers};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks at whether a change is done, or may be made now.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Metadata servers: list, add, promote, remove, replace
#[derive(Debug, Subcommand)]
pub(crate) enum MetadataCommand {
    /// Show every metadata server
    List(ListCommand),
    /// Add a server, as an observer; it may be started before or afterwards
    Add(AddCommand),
    /// Make a voter of an observer, as soon as it is up to date
    Promote(ServerCommand),
    /// Remove a server; it may be switched off when this returns
    Remove(ServerCommand),
    /// Let a voter that lost its directory vote with its new one, or move a server to another address
    Replace(ReplaceCommand),
    /// Write a backup of the whole metadata to a file, while the cluster works; or check one
    Backup(BackupCommand),
    /// Make the directories of all metadata servers from a backup; none of them may run
    Restore(RestoreCommand),
    /// Show a path's attributes as any metadata server has them, followers included
    Stat(StatCommand),
}

/// Show every metadata server
#[derive(Debug, Args)]
pub(crate) struct ListCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Add a server, as an observer
#[derive(Debug, Args)]
pub(crate) struct AddCommand {
    #[command(flatten)]
    server: ServerCommand,
    /// Where it listens
    #[arg(value_name = "ADDRESS")]
    address: SocketAddr,
}

/// Let a voter that lost its directory vote with its new one
#[derive(Debug, Args)]
pub(crate) struct ReplaceCommand {
    #[command(flatten)]
    server: ServerCommand,
    /// Where it listens from now on [default: where it did]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<SocketAddr>,
}

/// One server
#[derive(Debug, Args)]
pub(crate) struct ServerCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Number of the metadata server
    id: u32,
    /// Seconds to wait for the change at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

impl MetadataCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Backup(backup) => backup.run().map(|()| ExitCode::SUCCESS),
            Self::Restore(restore) => restore.run().map(|()| ExitCode::SUCCESS),
            other => other.ask(),
        }
    }

    fn ask(self) -> anyhow::Result<ExitCode> {
        runtime::block_on_local(async {
            match self {
                Self::Backup(_) | Self::Restore(_) => {}
                Self::Stat(stat) => stat.run().await?,
                Self::List(list) => list.run().await?,
                Self::Add(add) => {
                    let (id, address) = (MetadataServerId(add.server.id), add.address);
                    let is_done = move |now: &MetadataServers| address_of(now, id) == Some(address);
                    add.server.change(MetadataChange::Add { id, address }, is_done).await?;
                    println!("metadata server {id} observes; promote it when it is to vote");
                }
                Self::Promote(server) => {
                    let id = MetadataServerId(server.id);
                    server.change(MetadataChange::Promote { id }, move |now| votes(now, id)).await?;
                    println!("metadata server {id} votes");
                }
                Self::Remove(server) => {
                    let id = MetadataServerId(server.id);
                    let is_done = move |now: &MetadataServers| now.members.iter().all(|one| one.id != id);
                    server.change(MetadataChange::Remove { id }, is_done).await?;
                    println!("metadata server {id} is removed; stop it and delete its directory");
                }
                Self::Replace(replace) => replace.run().await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl ReplaceCommand {
    async fn run(self) -> anyhow::Result<()> {
        let (id, address) = (MetadataServerId(self.server.id), self.address);
        let before = self.server.members().await?;
        let moves = address.is_some() && address_of(&before, id) != address;
        if moves {
            let is_done = move |now: &MetadataServers| address_of(now, id) == address;
            self.server.change(MetadataChange::Replace { id, address }, is_done).await?;
            println!("metadata server {id} is expected at its new address");
        }
        if votes(&before, id) {
            let change = MetadataChange::Replace { id, address: None };
            match self.server.change(change, |_| true).await {
                Err(error) if moves && error.to_string().contains("nothing to replace") => {}
                other => other?,
            }
        }
        println!("metadata server {id} is replaced");
        Ok(())
    }
}

impl ServerCommand {
    async fn members(&self) -> anyhow::Result<MetadataServers> {
        let admin = Admin::new(&self.client)?;
        match admin.ask(&MetaRequest::MetadataServers).await? {
            MetaReply::MetadataServers(servers) => Ok(servers),
            _ => bail!("the leader gave an answer of the wrong kind; compare the versions of both sides"),
        }
    }

    /// Asks for a change until it is made, and waits until it is settled. `is_reached`: the members are as they are to
    /// be, for an answer that was lost.
    async fn change(
        &self,
        change: MetadataChange,
        is_reached: impl Fn(&MetadataServers) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let mut admin = Admin::new(&self.client)?;
        let mut first = self.members().await?.version;
        let mut told = String::new();
        loop {
            let reply = admin.ask(&MetaRequest::ChangeMetadataServers(change.clone())).await?;
            let MetaReply::MetadataServers(answer) = reply else {
                bail!("the leader gave an answer of the wrong kind; compare the versions of both sides")
            };
            admin.learn(&answer);
            let Some(refused) = answer.refused.clone() else {
                // As it was when the change was proposed.
                first = answer.version;
                break;
            };
            if !refused.passing && is_reached(&answer) && answer.version > first {
                first = answer.version - 1;
                break;
            }
            ensure!(refused.passing, "{}", refused.why);
            ensure!(Instant::now() < deadline, "{}; gave up after {} s", refused.why, self.timeout);
            if told != refused.why {
                eprintln!("waiting: {}", refused.why);
                told = refused.why;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.wait_until_settled(&mut admin, first, deadline).await
    }

    /// A change that is settled never needs a server again that it removed.
    async fn wait_until_settled(
        &self,
        admin: &mut Admin,
        first: u64,
        deadline: Instant,
    ) -> anyhow::Result<()> {
        loop {
            if let Ok(status) = admin.leader_members().await {
                admin.learn(&status);
                if status.settled && status.version > first {
                    return Ok(());
                }
            }
            ensure!(
                Instant::now() < deadline,
                "the change was made, but is not on the disks of enough servers after {} s; keep all of them running \
                 and look again with 'zabfs metadata list'",
                self.timeout
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl ListCommand {
    async fn run(self) -> anyhow::Result<()> {
        let status = Admin::new(&self.client)?.status().await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&status.metadata)?);
            return Ok(());
        }
        println!("{:>4}  {:<22} {:<11} {:>16}", "id", "address", "role", "on its disk");
        for server in &status.metadata {
            let zxid = format!("({},{})", server.zxid.0, server.zxid.1);
            println!("{:>4}  {:<22} {:<11} {zxid:>16}", server.id.0, server.address.to_string(), server.role);
        }
        Ok(())
    }
}

fn address_of(servers: &MetadataServers, id: MetadataServerId) -> Option<SocketAddr> {
    servers.members.iter().find(|member| member.id == id)?.address
}

fn votes(servers: &MetadataServers, id: MetadataServerId) -> bool {
    servers.members.iter().any(|member| member.id == id && member.votes)
}
