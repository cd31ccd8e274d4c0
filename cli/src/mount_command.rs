//! `zabfs mount`.

use crate::client_arguments::ClientArguments;
use crate::{daemon, runtime};
use anyhow::Context as _;
use clap::Args;
use fs_client::mount_options::MountConfig;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Mount a cluster; returns when the mount is ready and goes on in the background
#[derive(Debug, Args)]
pub(crate) struct MountCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Options, separated by commas: ro, timeout=SECONDS (calls fail with ETIMEDOUT instead of waiting),
    /// session_timeout=SECONDS, subtree=/PATH, noallow_other, nosuid, nodev, noexec
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground until the mount is taken away, or SIGTERM or SIGINT
    #[arg(long, short)]
    foreground: bool,
    /// Where the background process logs [default: /var/log/zabfs-mount-MOUNTPOINT.log]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Where to mount: a directory
    mountpoint: PathBuf,
}

impl MountCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.client.resolve(&["client", "admin"])?;
        let mountpoint = std::path::absolute(&self.mountpoint)
            .with_context(|| format!("cannot resolve the mountpoint {}", self.mountpoint.display()))?;
        let mut config = MountConfig::new(client.metadata, client.identity, mountpoint.clone());
        self.options.iter().try_for_each(|options| config.apply(options))?;
        let log_file = self.log_file.unwrap_or_else(|| default_log_file(&mountpoint));
        if self.foreground {
            return serve(config, || Ok(()));
        }
        match daemon::start()? {
            daemon::Process::Parent(exit) => Ok(exit),
            daemon::Process::Child(child) => serve(config, move || child.ready(&log_file)),
        }
    }
}

fn serve(config: MountConfig, is_ready: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    // Before any other thread exists.
    if let Err(error) = fs_client::fuse::mount::set_io_flusher() {
        tracing::debug!(%error, "not marked as a process that writes file systems back");
    }
    runtime::block_on_local(async {
        let (ready, became_ready) = tokio::sync::oneshot::channel();
        let announcing = async {
            if became_ready.await.is_ok()
                && let Err(error) = is_ready()
            {
                tracing::warn!("nobody learned that the mount is ready: {error:#}");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = fs_client::mount::run(config, ready, runtime::termination()) => Ok(ended?),
            () = announcing => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn default_log_file(mountpoint: &Path) -> PathBuf {
    let name = mountpoint.to_string_lossy().trim_matches('/').replace('/', "-");
    PathBuf::from(format!("/var/log/zabfs-mount-{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mountpoint_has_a_log_of_its_own() {
        assert_eq!(
            default_log_file(Path::new("/mnt/a b/c")),
            Path::new("/var/log/zabfs-mount-mnt-a b-c.log")
        );
    }
}
