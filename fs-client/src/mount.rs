//! One mount from start to end.
//!
//! Start: certificate, session, root directory, then mount(2), so that whatever is wrong is said before anybody
//! sees the mount. End: the kernel says that nobody uses it any more (umount), or the caller wants it gone; then what
//! is still on its way is committed and the session closed.

use crate::data::DataClient;
use crate::fs::{FsConfig, ZabFs};
use crate::fuse::mount::unmount;
use crate::fuse::{Dispatcher, Ended, Mount, MountError, Unmount, Waiting};
use crate::map_holder::MapHolder;
use crate::meta::{MetaClient, MetaConfig};
use crate::mount_options::{MountConfig, START_PATIENCE};
use crate::os;
use protocol::identity::{Identity, Role};
use protocol::meta::{ClientInfo, MetaReply, ReadOp};
use protocol::transport::{Endpoint, TransportConfig, TransportError};
use protocol::{EntryName, FileKind, InodeId};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long committing what is on its way may take at the end.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// How long closing the session may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// How long users of a mount that is taken away have until their calls fail.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the farewell to servers may take.
const FAREWELL_PATIENCE: Duration = Duration::from_millis(500);

/// Why a mount ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Certificate or key.
    #[error("cannot use the certificate in {}: {why}", dir.display())]
    Identity {
        /// Directory.
        dir: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No server, or none that takes this client.
    #[error("cannot reach the cluster: {0}")]
    Cluster(String),
    /// The directory that was to be mounted.
    #[error("cannot mount '{path}' of the cluster: {why}")]
    Subtree {
        /// As asked for.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The network.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// mount(2).
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel's device failed.
    #[error("the mount's device failed: {0}; the mount is dead, mount again")]
    Device(#[from] std::io::Error),
}

/// Mounts, tells `ready`, serves until the mount is taken away or `shutdown` resolves, and settles. Must be called
/// within a `LocalSet` on a `current_thread` runtime.
///
/// # Errors
/// It did not start, or the kernel's device failed.
pub async fn run(
    config: MountConfig,
    ready: oneshot::Sender<()>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let unusable = |why: String| RunError::Identity { dir: config.identity.clone(), why };
    let identity = Identity::load(&config.identity).map_err(|error| unusable(error.to_string()))?;
    let me = identity.me().clone();
    if !matches!(me.role, Role::Client | Role::Admin) {
        return Err(unusable(format!(
            "it is of role {}, and mounts need one of role client or admin",
            me.role
        )));
    }
    let endpoint = bind(&config.metadata, identity)?;
    let map = Rc::new(MapHolder::default());
    let meta = MetaClient::start(endpoint.clone(), meta_config(&config), map.clone());
    meta.ready(START_PATIENCE).await.map_err(RunError::Cluster)?;
    let root = resolve(&meta, &config.subtree).await?;
    let data = DataClient::new(endpoint.clone(), meta.clone(), map);
    let waiting = Waiting::default();
    let mut options = config.options.clone();
    options.read_only |= me.limits.read_only;
    let fs_config = FsConfig {
        root,
        read_only: options.read_only,
        host: os::host_name(),
        mountpoint: config.mountpoint.display().to_string(),
    };
    let fs = ZabFs::new(meta.clone(), data, fs_config, waiting.clone());
    let timeout = options.request_timeout;
    tokio::task::spawn_local(fs.clone().keep_last_known());
    let mountpoint = config.mountpoint.clone();
    // On a thread of its own: looking at a mount that is there already may take seconds.
    let mounting = tokio::task::spawn_blocking(move || Mount::establish(&mountpoint, &options));
    let mount = mounting.await.map_err(std::io::Error::other)??;
    let dispatcher = Dispatcher::new(&mount, fs.clone(), waiting, timeout)?;
    // Nobody may wait for it.
    let _ = ready.send(());
    let ended = serve(&mount, dispatcher, shutdown).await;
    settle(&fs, &meta).await;
    drop(mount);
    endpoint.close("the mount ends");
    let _ = tokio::time::timeout(FAREWELL_PATIENCE, endpoint.wait_idle()).await;
    ended
}

/// An endpoint of a client, for servers at these addresses.
pub fn bind(servers: &[SocketAddr], identity: Identity) -> Result<Endpoint, TransportError> {
    let any: SocketAddr = match servers.iter().any(SocketAddr::is_ipv6) {
        true => ([0_u16; 8], 0).into(),
        false => ([0_u8; 4], 0).into(),
    };
    Endpoint::bind(any, Arc::new(identity), TransportConfig::default())
}

fn meta_config(config: &MountConfig) -> MetaConfig {
    let info = ClientInfo {
        host: os::host_name(),
        pid: std::process::id(),
        mountpoint: config.mountpoint.display().to_string(),
    };
    MetaConfig { addresses: config.metadata.clone(), session_timeout: config.session_timeout, info }
}

/// The inode of the directory that is to be the root.
async fn resolve(meta: &MetaClient, path: &str) -> Result<InodeId, RunError> {
    let wrong = |why: String| RunError::Subtree { path: path.to_owned(), why };
    let mut inode = InodeId::ROOT;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let name = EntryName::new(part).map_err(|error| wrong(error.to_string()))?;
        match meta.read(ReadOp::Lookup { parent: inode, name }).await {
            Ok(MetaReply::Entry(attr)) if attr.kind == FileKind::Directory => inode = attr.inode,
            Ok(MetaReply::Entry(_)) => return Err(wrong(format!("'{part}' is not a directory"))),
            Ok(_) => return Err(wrong("the metadata server's answer makes no sense".to_owned())),
            Err(failure) => return Err(wrong(format!("'{part}': {failure}"))),
        }
    }
    Ok(inode)
}

async fn serve(
    mount: &Mount,
    dispatcher: Dispatcher<ZabFs>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let serving = dispatcher.run();
    tokio::pin!(serving, shutdown);
    let ended = tokio::select! {
        ended = &mut serving => Some(ended?),
        () = &mut shutdown => None,
    };
    match ended {
        Some(Ended::Unmounted) => tracing::info!(mountpoint = %mount.mountpoint().display(), "unmounted"),
        Some(Ended::Aborted) => tracing::warn!(
            mountpoint = %mount.mountpoint().display(),
            "somebody aborted the connection of this mount; mount again"
        ),
        None => {
            // Not from this thread: taking it away may write pages back, which this thread serves.
            let mountpoint = mount.mountpoint().to_owned();
            let leaving = tokio::task::spawn_blocking(move || unmount(&mountpoint, Unmount::Detach));
            let leave = async {
                match leaving.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "the mount could not be taken away"),
                    Err(error) => tracing::warn!(%error, "the mount could not be taken away"),
                }
                // Programs that still use it keep it; after this their calls fail.
                tokio::time::sleep(LEAVE_PATIENCE).await;
            };
            tokio::select! {
                ended = &mut serving => drop(ended?),
                () = leave => tracing::warn!("programs still use the mount; their calls fail from now on"),
            }
        }
    }
    Ok(())
}

/// Commits what is on its way and closes the session.
async fn settle(fs: &Rc<ZabFs>, meta: &Rc<MetaClient>) {
    if tokio::time::timeout(SETTLE_PATIENCE, fs.settle()).await.is_err() {
        tracing::warn!("some closed files were not closed in the cluster; they are when the session expires");
    }
    meta.close(CLOSE_PATIENCE).await;
}
