//! `zabfs dev`: a whole cluster and a mount in one process.

use crate::cluster_file::ClusterFile;
use crate::init_command::InitCommand;
use crate::runtime;
use anyhow::{Context as _, bail};
use clap::Args;
use data_server::DataServerConfig;
use data_server::driver::ScrubIntervals;
use fs_client::mount_options::MountConfig;
use metadata_server::MetadataServerConfig;
use protocol::{DataServerId, MetadataServerId};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::{oneshot, watch};

/// Ports are looked for from here on.
const PORTS_FROM: u16 = 17_000;
/// A block of ports holds those of three metadata and three data servers.
const PORTS_STEP: u16 = 200;

/// Run a whole cluster, three metadata and three data servers, and a mount of it in one process, until SIGTERM,
/// SIGINT or an umount
#[derive(Debug, Args)]
pub(crate) struct DevCommand {
    /// Where to mount: a directory
    #[arg(long)]
    mount: PathBuf,
    /// Where the cluster keeps its files; used again if it is there [default: a directory that is removed at the end]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Options of the mount, as for 'zabfs mount'
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

impl DevCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let mountpoint = std::path::absolute(&self.mount)
            .with_context(|| format!("cannot resolve the mountpoint {}", self.mount.display()))?;
        let temporary = match &self.dir {
            Some(_) => None,
            None => Some(TemporaryDir::create()?),
        };
        let dir = match (&self.dir, &temporary) {
            (Some(dir), _) => std::path::absolute(dir)
                .with_context(|| format!("cannot resolve the directory {}", dir.display()))?,
            (None, Some(temporary)) => temporary.0.clone(),
            (None, None) => bail!("no directory for the cluster"),
        };
        if !dir.join("cluster.json").exists() {
            InitCommand::for_one_machine(dir.clone(), free_ports()?).create()?;
        }
        let mut config = MountConfig::new(
            ClusterFile::load(&dir.join("cluster.json"))?.metadata_addresses(),
            dir.join("client/tls"),
            mountpoint.clone(),
        );
        self.options.iter().try_for_each(|options| config.apply(options))?;
        let servers = Servers::start(&dir)?;
        let result = serve(config, &dir, started);
        let stopped = servers.stop();
        result.and(stopped).map(|()| ExitCode::SUCCESS)
    }
}

fn serve(config: MountConfig, dir: &Path, started: Instant) -> anyhow::Result<()> {
    let mountpoint = config.mountpoint.clone();
    runtime::block_on_local(async {
        let (ready, became_ready) = oneshot::channel();
        let announcing = async {
            if became_ready.await.is_ok() {
                println!(
                    "zabfs is mounted on {} after {:.1} s; the cluster is in {}. Ctrl-C ends it.",
                    mountpoint.display(),
                    started.elapsed().as_secs_f64(),
                    dir.display()
                );
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = fs_client::mount::run(config, ready, runtime::termination()) => Ok(ended?),
            () = announcing => Ok(()),
        }
    })
}

/// The servers, each on a thread with a runtime of its own.
struct Servers {
    stop: watch::Sender<bool>,
    threads: Vec<(String, JoinHandle<anyhow::Result<()>>)>,
}

impl Servers {
    /// Starts all of them, or none.
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let cluster = ClusterFile::load(&dir.join("cluster.json"))?;
        let (stop, stopping) = watch::channel(false);
        let mut servers = Self { stop, threads: Vec::new() };
        match servers.start_all(dir, &cluster, &stopping) {
            Ok(()) => Ok(servers),
            Err(error) => {
                if let Err(other) = servers.stop() {
                    tracing::error!("{other:#}");
                }
                Err(error)
            }
        }
    }

    fn start_all(
        &mut self,
        dir: &Path,
        cluster: &ClusterFile,
        stopping: &watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        for server in &cluster.metadata {
            let home = dir.join(format!("metadata-{}", server.id));
            let config = MetadataServerConfig {
                id: MetadataServerId(server.id),
                identity: home.join("tls"),
                dir: home,
                voters: cluster.voters(),
                pool_size: cluster.pool_size,
                down_out_ms: MetadataServerConfig::DOWN_OUT_MS_DEFAULT,
                leader_lease: true,
            };
            let stopped = until(stopping.clone());
            self.spawn(format!("metadata-{}", server.id), move || {
                let (ready, _) = oneshot::channel();
                runtime::block_on_local(async {
                    Ok(metadata_server::server::run(config, ready, stopped).await?)
                })
            })?;
        }
        for server in &cluster.data {
            let home = dir.join(format!("data-{}", server.id));
            let config = DataServerConfig {
                id: DataServerId(server.id),
                identity: home.join("tls"),
                dir: home.join("store"),
                listen: server.address,
                metadata: cluster.metadata_addresses(),
                host: format!("data-{}", server.id),
                capacity_bytes: None,
                session_timeout_ms: DataServerConfig::SESSION_TIMEOUT_MS_DEFAULT,
                boot_id: DataServerConfig::BOOT_ID_DEFAULT.into(),
                store_memory_bytes: DataServerConfig::STORE_MEMORY_BYTES_DEFAULT,
                scrub_every: ScrubIntervals::default(),
            };
            std::fs::create_dir_all(&config.dir)
                .with_context(|| format!("cannot make {}", config.dir.display()))?;
            let stopped = until(stopping.clone());
            self.spawn(format!("data-{}", server.id), move || {
                let (ready, _) = oneshot::channel();
                runtime::block_on_local(async { Ok(data_server::server::run(config, ready, stopped).await?) })
            })?;
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let shown = name.clone();
        let run = move || body().inspect_err(|error| tracing::error!("{shown} ended: {error:#}"));
        let thread = std::thread::Builder::new().name(name.clone()).spawn(run)?;
        self.threads.push((name, thread));
        Ok(())
    }

    /// Ends all of them and waits for each, so that nobody uses their directories any more.
    fn stop(self) -> anyhow::Result<()> {
        // All of them may have ended already.
        let _ = self.stop.send(true);
        let mut first_failure = Ok(());
        for (name, thread) in self.threads {
            let ended = match thread.join() {
                Ok(result) => result.with_context(|| format!("{name} failed")),
                Err(_) => Err(anyhow::anyhow!("{name} panicked; its message is above")),
            };
            first_failure = first_failure.and(ended);
        }
        first_failure
    }
}

async fn until(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A block of ports that nobody uses now.
fn free_ports() -> anyhow::Result<u16> {
    let is_free = |port| UdpSocket::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)).is_ok();
    let blocks = (PORTS_FROM..40_000).step_by(usize::from(PORTS_STEP));
    for base in blocks {
        if (1..=3).all(|n| is_free(base + n) && is_free(base + 100 + n)) {
            return Ok(base);
        }
    }
    bail!("no free block of UDP ports between {PORTS_FROM} and 40000 on the loopback address")
}

/// Removed when dropped.
struct TemporaryDir(PathBuf);

impl TemporaryDir {
    fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("zabfs-dev-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("zabfs: cannot remove {}: {error}", self.0.display());
        }
    }
}
