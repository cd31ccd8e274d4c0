//! `zabfs umount`.

use anyhow::{Context as _, bail};
use clap::Args;
use fs_client::fuse::Unmount;
use fs_client::fuse::mount::{FILE_SYSTEM_TYPE, unmount};
use fs_client::fuse::mountinfo::top_at;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Take a mount away, after everything written through it is on stable storage
#[derive(Debug, Args)]
pub(crate) struct UmountCommand {
    /// Out of the tree at once, even if programs use it or servers are gone
    #[arg(long, short)]
    lazy: bool,
    /// The mountpoint
    mountpoint: PathBuf,
}

impl UmountCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mountpoint = resolve(&self.mountpoint)?;
        let shown = mountpoint.display();
        let top = top_at(&mountpoint).context("cannot read /proc/self/mountinfo")?;
        if top.is_none_or(|top| top.kind != FILE_SYSTEM_TYPE) {
            bail!("{shown} is not the mountpoint of a zabfs mount");
        }
        let how = if self.lazy { Unmount::Detach } else { Unmount::IfIdle };
        let mut is_dead = false;
        if !self.lazy
            && let Err(error) = std::fs::read(mountpoint.join(".zabfs/sync"))
        {
            is_dead = matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED));
            if !is_dead {
                bail!(
                    "what was written to {shown} could not be made durable: {error}; --lazy unmounts anyway"
                );
            }
        }
        let how = if is_dead { Unmount::Detach } else { how };
        match unmount(&mountpoint, how) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                bail!("{shown} is in use; 'fuser -vm {shown}' shows by whom, --lazy unmounts anyway")
            }
            Err(error) => Err(error).with_context(|| format!("cannot unmount {shown}")),
        }
    }
}

/// Absolute, with symbolic links above the last component resolved: the mount itself may be dead.
fn resolve(mountpoint: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(mountpoint)
        .with_context(|| format!("cannot resolve {}", mountpoint.display()))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            let parent =
                parent.canonicalize().with_context(|| format!("cannot find {}", parent.display()))?;
            Ok(parent.join(name))
        }
        _ => Ok(absolute),
    }
}
