//! `zabfs data-server`.

use crate::cluster_file::ClusterFile;
use crate::runtime;
use anyhow::Context as _;
use clap::Args;
use data_server::DataServerConfig;
use data_server::driver::ScrubIntervals;
use protocol::DataServerId;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run a data server in the foreground until SIGTERM or SIGINT
#[derive(Debug, Args)]
pub(crate) struct DataServerCommand {
    /// Its directory, with the chunk store; made if it does not exist
    #[arg(long)]
    dir: PathBuf,
    /// The cluster file that 'zabfs init' wrote
    #[arg(long)]
    cluster: PathBuf,
    /// Its number, as in its certificate
    #[arg(long)]
    id: u32,
    /// Directory with ca.pem, cert.pem and key.pem [default: DIR/tls]
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Where to listen [default: the cluster file's address for this number]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Failure domain: replicas go to different ones [default: data-ID, so that each server counts as a host]
    #[arg(long)]
    host: Option<String>,
    /// Bytes that it may hold [default: what the file system has free]
    #[arg(long)]
    capacity: Option<u64>,
    /// Seconds of silence after which the cluster takes this server for dead
    #[arg(long, default_value_t = DataServerConfig::SESSION_TIMEOUT_MS_DEFAULT / 1000)]
    session_timeout: u32,
    /// File that identifies the running kernel: if it changed, unsynced writes may be lost
    #[arg(long, env = "ZABFS_BOOT_ID", default_value = DataServerConfig::BOOT_ID_DEFAULT, hide = true)]
    boot_id: PathBuf,
    /// Memory of the chunk store in MiB: what is not in the index yet, and a cache of the index
    #[arg(long, default_value_t = DataServerConfig::STORE_MEMORY_BYTES_DEFAULT >> 20, value_name = "MIB")]
    store_memory: usize,
    /// Compare the copies of each placement group this often; 0 for never by itself
    #[arg(long, default_value_t = ScrubIntervals::default().light_s, value_name = "SECONDS")]
    scrub_interval: u64,
    /// Read every block of every copy this often; 0 for never by itself
    #[arg(long, default_value_t = ScrubIntervals::default().deep_s, value_name = "SECONDS")]
    deep_scrub_interval: u64,
}

impl DataServerCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let cluster = ClusterFile::load(&self.cluster)?;
        let listen = self.listen.or_else(|| cluster.data_address(self.id)).with_context(|| {
            format!("{} names no data server {}: give --listen ADDRESS:PORT", self.cluster.display(), self.id)
        })?;
        let config = DataServerConfig {
            id: DataServerId(self.id),
            identity: self.identity.unwrap_or_else(|| self.dir.join("tls")),
            dir: self.dir.join("store"),
            listen,
            metadata: cluster.metadata_addresses(),
            host: self.host.unwrap_or_else(|| format!("data-{}", self.id)),
            capacity_bytes: self.capacity,
            session_timeout_ms: self.session_timeout.saturating_mul(1000),
            boot_id: self.boot_id,
            store_memory_bytes: self.store_memory.saturating_mul(1 << 20),
            scrub_every: ScrubIntervals { light_s: self.scrub_interval, deep_s: self.deep_scrub_interval },
        };
        std::fs::create_dir_all(&config.dir)
            .with_context(|| format!("cannot make the store's directory {}", config.dir.display()))?;
        let (ready, _) = tokio::sync::oneshot::channel();
        runtime::block_on_local(async {
            data_server::server::run(config, ready, runtime::termination())
                .await
                .context("the data server stopped")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
