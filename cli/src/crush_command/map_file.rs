//! Map files: read as text or in Ceph's binary form, written whole or not at all.

use anyhow::{Context, bail};
use crush::CrushMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bound on the size of a map file; 10,000 devices take about half a megabyte.
const MAP_BYTES_MAX: u64 = 256 << 20;

/// Where a command reads its map.
#[derive(Debug, clap::Args)]
pub(crate) struct MapSource {
    /// A map: crushtool's text format, or its binary form
    #[arg(long, short = 'i', value_name = "FILE")]
    pub(super) map: PathBuf,
}

impl MapSource {
    pub(super) fn read(&self) -> anyhow::Result<CrushMap> {
        read_map(&self.map)
    }
}

/// Where a command writes.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Write here instead of to standard output; the file is replaced when it is complete
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Target {
    pub(super) fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        match &self.output {
            Some(path) => {
                replace_file(path, bytes).with_context(|| format!("write the map to {}", path.display()))
            }
            None => Ok(io::stdout().lock().write_all(bytes)?),
        }
    }

    /// As text, after checking that the text means this map: weights that the text format cannot express
    /// would otherwise change silently.
    pub(super) fn write_text(&self, map: &CrushMap) -> anyhow::Result<()> {
        let text = map.to_text();
        let again = CrushMap::parse_text(&text).context("the changed map does not fit the text format")?;
        if !again.buckets().eq(map.buckets()) {
            bail!("the changed map has weights that the text format cannot express; use rounder weights");
        }
        self.write(text.as_bytes())
    }
}

/// Reads either form.
pub(super) fn read_map(path: &Path) -> anyhow::Result<CrushMap> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("read the map {}", path.display()))?;
    let read = file.take(MAP_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("read the map {}", path.display()))?;
    if bytes.len() as u64 > MAP_BYTES_MAX {
        bail!("{} is larger than {} MiB, so it is no map", path.display(), MAP_BYTES_MAX >> 20);
    }
    if CrushMap::is_binary(&bytes) {
        return CrushMap::from_binary(&bytes).with_context(|| format!("decode the map {}", path.display()));
    }
    let text = String::from_utf8(bytes)
        .ok()
        .with_context(|| format!("{} is neither text nor a map in Ceph's binary form", path.display()))?;
    CrushMap::parse_text(&text).with_context(|| format!("parse the map {}", path.display()))
}

/// Writes beside the file, syncs, and renames over it: a crash leaves the old file or the new one.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
    // A device or a pipe cannot be replaced, only written to.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return fs::write(path, bytes);
    }
    let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What failed is reported; a temporary file that cannot be removed either is its consequence.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(directory)?.sync_all()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
