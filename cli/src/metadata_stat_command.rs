//! `zabfs metadata stat`: attributes of a path, read from any metadata server.

use crate::client_arguments::ClientArguments;
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use fs_client::meta::reader::Reader;
use fs_client::mount;
use protocol::identity::Identity;
use protocol::meta::{ReadAnswer, ReadOp};
use protocol::{Attr, EntryName, InodeId};
use std::net::SocketAddr;

/// Show a path's attributes as any metadata server has them, followers included
#[derive(Debug, Args)]
pub(crate) struct StatCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// From the root of the cluster, e.g. /dir/file
    path: String,
    /// Ask only the server at this address
    #[arg(long, value_name = "ADDRESS")]
    server: Option<SocketAddr>,
    /// Ask a quorum first: everything that was done before this command is seen
    #[arg(long)]
    sync: bool,
}

impl StatCommand {
    /// Runs it.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let client = self.client.resolve(&["admin", "client"])?;
        let identity = Identity::load(&client.identity)
            .with_context(|| format!("cannot use the certificate in {}", client.identity.display()))?;
        let endpoint = mount::bind(&client.metadata, identity)?;
        let servers = self.server.map_or_else(|| client.metadata.clone(), |one| vec![one]);
        let mut reader = Reader::new(endpoint, servers, client.metadata);
        if self.sync {
            reader.sync().await.map_err(|why| anyhow!(why))?;
        }
        let mut attr = look(&mut reader, ReadOp::Getattr(InodeId::ROOT), "/").await?;
        for name in self.path.split('/').filter(|name| !name.is_empty()) {
            let entry = EntryName::new(name.as_bytes()).map_err(|errno| anyhow!("'{name}': {errno}"))?;
            attr = look(&mut reader, ReadOp::Lookup { parent: attr.inode, name: entry }, name).await?;
        }
        println!(
            "inode {} kind {:?} mode {:04o} uid {} gid {} links {} size {} revision {} answered by {}",
            attr.inode,
            attr.kind,
            attr.mode,
            attr.uid,
            attr.gid,
            attr.nlink,
            attr.size,
            reader.seen(),
            reader.answered_by().map_or_else(|| "nobody".to_owned(), |address| address.to_string())
        );
        Ok(())
    }
}

async fn look(reader: &mut Reader, op: ReadOp, what: &str) -> anyhow::Result<Attr> {
    match reader.read(&op).await.map_err(|why| anyhow!(why))? {
        ReadAnswer::Attr(attr) => Ok(attr),
        ReadAnswer::Errno(errno) => bail!("'{what}': {errno}"),
        _ => bail!("a metadata server gave an answer of the wrong kind; compare the versions of both sides"),
    }
}
