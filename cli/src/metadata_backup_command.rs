//! `zabfs metadata backup` and `zabfs metadata restore`.

use crate::admin::Admin;
use crate::client_arguments::ClientArguments;
use crate::cluster_file::ClusterFile;
use crate::runtime;
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use metadata_server::backup::BackupError;
use metadata_server::backup::format::{BackupWriter, Summary, verify};
use metadata_server::backup::restore::{Home, Restore};
use protocol::identity::Identity;
use protocol::{DataServerId, MetadataServerId, Timestamp};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Write a backup of the whole metadata to a file, while the cluster works; or check one
#[derive(Debug, Args)]
pub(crate) struct BackupCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Where to
    file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Only read and check the file, without a cluster
    #[arg(long, conflicts_with = "force")]
    verify: bool,
}

/// Make the directories of all metadata servers from a backup; none of them may run
#[derive(Debug, Args)]
pub(crate) struct RestoreCommand {
    /// The backup
    file: PathBuf,
    /// Directory of the cluster: cluster.json says which metadata servers there are, metadata-N/tls has their certificates
    #[arg(long, value_name = "CLUSTERDIR")]
    dir: PathBuf,
    /// Set aside the state that the directories hold, in before-restore-N
    #[arg(long)]
    replace: bool,
    /// A data server that is gone for good, so that no placement group waits for it; may be given several times
    #[arg(long, value_name = "ID")]
    lost_data: Vec<u32>,
}

impl BackupCommand {
    /// Runs it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if self.verify {
            let summary = verify(&self.file)?;
            println!("{} is whole: {}", self.file.display(), describe(&summary));
            return Ok(());
        }
        if self.file.exists() && !self.force {
            bail!("{} is there already; --force replaces it", self.file.display());
        }
        let partial = partial_name(&self.file)?;
        let made = runtime::block_on_local(self.fetch(&partial)).and_then(|()| self.keep(&partial));
        if made.is_err() {
            // It may not have been made at all.
            let _ = fs::remove_file(&partial);
        }
        let summary = made?;
        println!("{} is written: {}", self.file.display(), describe(&summary));
        Ok(())
    }

    async fn fetch(&self, partial: &Path) -> anyhow::Result<()> {
        let mut rows = Admin::new(&self.client)?.backup().await?;
        let failed = || format!("cannot write {}", partial.display());
        let file = File::options().write(true).create_new(true).open(partial).with_context(failed)?;
        let mut writer = BackupWriter::new(BufWriter::new(file), rows.head.clone()).with_context(failed)?;
        while let Some(chunk) = rows.next().await.map_err(|why| anyhow!(why))? {
            writer.push(&chunk)?;
        }
        let (file, _) = writer.finish()?;
        let file = file.into_inner().map_err(|error| error.into_error()).with_context(failed)?;
        file.sync_all().with_context(failed)
    }

    /// Reads everything back, and only then gives the file its name.
    fn keep(&self, partial: &Path) -> anyhow::Result<Summary> {
        let summary = verify(partial)?;
        if self.force {
            fs::rename(partial, &self.file)
                .with_context(|| format!("cannot replace {}", self.file.display()))?;
        } else {
            // Unlike a renaming this replaces nothing that came into being meanwhile.
            fs::hard_link(partial, &self.file)
                .with_context(|| format!("cannot make {}", self.file.display()))?;
            fs::remove_file(partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        let dir = parent(&self.file);
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .with_context(|| format!("cannot sync {}", dir.display()))?;
        Ok(summary)
    }
}

impl RestoreCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let cluster = ClusterFile::load(&self.dir.join("cluster.json"))?;
        let mut homes = std::collections::BTreeMap::new();
        let mut of = None;
        for server in &cluster.metadata {
            let dir = self.dir.join(format!("metadata-{}", server.id));
            let tls = dir.join("tls");
            let identity = Identity::load(&tls)
                .with_context(|| format!("cannot use the certificate in {}", tls.display()))?;
            of.get_or_insert(identity.me().cluster);
            homes.insert(MetadataServerId(server.id), Home { dir, address: server.address });
        }
        let cluster = of.context("the cluster file names no metadata server")?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() };
        let lost = self.lost_data.into_iter().map(DataServerId).collect();
        let restore = Restore { file: self.file, cluster, homes, lost, replace: self.replace, now };
        let made = restore.run().map_err(|error| match error {
            BackupError::NotEmpty { .. } => anyhow!("{error}"),
            error => anyhow!("{error}\nnothing was restored"),
        })?;
        println!("restored: {}", describe(&made.backup));
        println!(
            "generation {}, revision {}: {} sessions ended, {} files were cut at their size",
            made.generation.number, made.revision, made.sessions, made.files
        );
        for dir in made.set_aside {
            println!("what was there before is in {}", dir.display());
        }
        println!("start all metadata servers; data servers and mounts come back by themselves");
        Ok(())
    }
}

fn describe(summary: &Summary) -> String {
    format!(
        "revision {} of generation {}, {} entries, {} bytes",
        summary.head.revision, summary.head.generation, summary.rows, summary.bytes
    )
}

fn parent(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Beside the file, so that a renaming suffices.
fn partial_name(file: &Path) -> anyhow::Result<PathBuf> {
    let name = file.file_name().with_context(|| format!("{} is no name of a file", file.display()))?;
    let name = format!(".{}.partial-{}", name.to_string_lossy(), std::process::id());
    Ok(parent(file).join(name))
}
