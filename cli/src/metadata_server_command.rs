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
