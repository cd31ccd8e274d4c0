//! `zabfs metadata-server`.

use crate::cluster_file::ClusterFile;
use crate::runtime;
use anyhow::Context as _;
use clap::Args;
use metadata_server::MetadataServerConfig;
use protocol::MetadataServerId;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run a metadata server in the foreground until SIGTERM or SIGINT
#[derive(Debug, Args)]
pub(crate) struct MetadataServerCommand {
    /// Its directory: log and state; made if it does not exist
    #[arg(long)]
    dir: PathBuf,
    /// The cluster file that 'zabfs init' wrote
    #[arg(long)]
    cluster: PathBuf,
    /// Its number: among the metadata servers of the cluster file, or a new one that 'zabfs metadata add' adds
    #[arg(long)]
    id: u32,
    /// Where it listens, for a server that the cluster file does not list or lists elsewhere
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Directory with ca.pem, cert.pem and key.pem [default: DIR/tls]
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Seconds after which a data server that stays away is taken out and its data copied elsewhere
    #[arg(long, default_value_t = MetadataServerConfig::DOWN_OUT_MS_DEFAULT / 1000)]
    down_out: u64,
    /// Answer reads under the leader's lease, which supposes that the clocks of two metadata servers drift apart by less
    /// than 50 ms in 350 ms; 'off' asks a quorum at every read
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = on_or_off)]
    leader_lease: bool,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("say 'on' or 'off'".to_owned()),
    }
}

impl MetadataServerCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let cluster = ClusterFile::load(&self.cluster)?;
        let mut voters = cluster.voters();
        voters.extend(self.listen.map(|address| (MetadataServerId(self.id), address)));
        let config = MetadataServerConfig {
            id: MetadataServerId(self.id),
            identity: self.identity.unwrap_or_else(|| self.dir.join("tls")),
            dir: self.dir,
            voters,
            pool_size: cluster.pool_size,
            down_out_ms: self.down_out.saturating_mul(1000),
            leader_lease: self.leader_lease,
        };
        let (ready, _) = tokio::sync::oneshot::channel();
        runtime::block_on_local(async {
            metadata_server::server::run(config, ready, runtime::termination())
                .await
                .context("the metadata server stopped")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
