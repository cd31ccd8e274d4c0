//! What every command that acts as a client takes: which cluster, and as whom.

use crate::cluster_file::ClusterFile;
use anyhow::{Context as _, bail};
use clap::Args;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

/// Which cluster, and as whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientArguments {
    /// Directory of a cluster that 'zabfs init' made: gives the addresses and the certificate
    #[arg(long, value_name = "CLUSTERDIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Addresses of metadata servers, HOST:PORT, separated by commas
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub(crate) metadata: Vec<String>,
    /// Directory with ca.pem, cert.pem and key.pem [default: CLUSTERDIR/client/tls]
    #[arg(long, value_name = "DIR")]
    pub(crate) identity: Option<PathBuf>,
}

/// The arguments, resolved.
pub(crate) struct ClientOf {
    /// Addresses of metadata servers.
    pub(crate) metadata: Vec<SocketAddr>,
    /// The identity directory, absolute.
    pub(crate) identity: PathBuf,
}

impl ClientArguments {
    /// Finds addresses and certificate. `roles` are sub-directories of the cluster's directory, in order of
    /// preference.
    pub(crate) fn resolve(&self, roles: &[&str]) -> anyhow::Result<ClientOf> {
        let metadata = match (&self.dir, self.metadata.as_slice()) {
            (Some(dir), []) => ClusterFile::load(&dir.join("cluster.json"))?.metadata_addresses(),
            (None, []) => {
                bail!("say which cluster: --dir CLUSTERDIR, or --metadata HOST:PORT[,…] --identity DIR")
            }
            (_, names) => {
                names.iter().map(|name| address_of(name)).collect::<anyhow::Result<Vec<_>>>()?.concat()
            }
        };
        let identity = match (&self.identity, &self.dir) {
            (Some(identity), _) => identity.clone(),
            (None, Some(dir)) => identity_in(dir, roles)?,
            (None, None) => bail!("say who you are: --identity DIR with ca.pem, cert.pem and key.pem"),
        };
        let identity = std::path::absolute(&identity)
            .with_context(|| format!("cannot resolve the path {}", identity.display()))?;
        Ok(ClientOf { metadata, identity })
    }
}

fn identity_in(dir: &Path, roles: &[&str]) -> anyhow::Result<PathBuf> {
    let candidates: Vec<PathBuf> = roles.iter().map(|role| dir.join(role).join("tls")).collect();
    match candidates.iter().find(|path| path.join("cert.pem").exists()) {
        Some(found) => Ok(found.clone()),
        None => {
            let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
            bail!("there is no certificate in {}; 'zabfs cert issue' makes one", tried.join(" or "))
        }
    }
}

fn address_of(name: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let found = name
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve the address '{name}'; it must be HOST:PORT"))?;
    Ok(found.collect())
}
