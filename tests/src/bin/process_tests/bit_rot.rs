//! Bytes flip in a data server's files: reads return the right data, the fault is logged and counted.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Server};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] =
    &[("bit_rot::flipped_bytes_are_read_from_another_replica", (120, 120), flipped_bytes)];

/// Number and size of the files: enough that every server is primary of some.
pub(crate) const FILES: u64 = 40;
pub(crate) const FILE_BYTES: usize = 600_000;

fn flipped_bytes(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    for number in 0..FILES {
        let path = mnt.join(format!("f{number}"));
        fs::write(&path, bytes(number, FILE_BYTES))?;
        fs::File::open(&path)?.sync_all()?;
    }
    let victim = Server::data(1);
    println!("{} bytes flipped", flip_bytes_of(&cluster, victim)?);
    for round in 0..2 {
        for number in 0..FILES {
            let found = fs::read(mnt.join(format!("f{number}")))?;
            ensure!(found == bytes(number, FILE_BYTES), "file {number} in round {round}");
        }
    }
    let status = cluster.wait_status("the fault to be counted", Duration::from_secs(30), |status| {
        match status.data_server(victim.id).map(|server| server.corrupt_blocks) {
            Some(count) if count > 0 => Ok(()),
            other => Err(format!("{victim} reports {other:?} corrupt blocks")),
        }
    })?;
    println!("counted: {:?}", status.data_server(victim.id).map(|server| server.corrupt_blocks));
    let log = fs::read_to_string(cluster.layout().log(&victim.name()))?;
    ensure!(log.contains("checksum") || log.contains("corrupt"), "{victim} logged nothing about it");
    Ok(())
}

/// Flips bytes of the files in a server's store.
pub(crate) fn flip_bytes_of(cluster: &Cluster, victim: Server) -> anyhow::Result<usize> {
    let store = cluster.layout().server(&victim.name());
    let mut flipped = 0;
    for file in files_below(&store)? {
        flipped += flip(&file).with_context(|| format!("flip bytes in {}", file.display()))?;
    }
    ensure!(flipped > FILES as usize, "the contents were not found in {}: {flipped}", store.display());
    Ok(flipped)
}

/// Flips one byte in each place that holds the start of a 64 KiB piece of one of the files.
fn flip(path: &Path) -> anyhow::Result<usize> {
    let contents = fs::read(path)?;
    if contents.len() < 64 << 10 {
        return Ok(0);
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let mut needles = std::collections::BTreeSet::new();
    for number in 0..FILES {
        let wanted = bytes(number, FILE_BYTES);
        needles.extend(wanted.chunks(64 << 10).filter_map(|piece| piece.first_chunk::<16>().copied()));
    }
    let mut flipped = 0;
    // Contents lie on 512-byte borders at least in any store; look at every border.
    for at in (0..contents.len() - 16).step_by(512) {
        let Some(window) = contents[at..].first_chunk::<16>() else { break };
        if needles.contains(window) {
            file.write_all_at(&[contents[at + 5] ^ 0x40], at as u64 + 5)?;
            flipped += 1;
        }
    }
    Ok(flipped)
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
