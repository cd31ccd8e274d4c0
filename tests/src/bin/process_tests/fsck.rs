//! A check of a cluster that is being used finds nothing; real damage, done while servers are down, is found and repaired.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use cluster_tests::harness::{Cluster, Server, Signal, Target};
use cluster_tests::workload::bytes;
use metadata_server::backup::format::{BackupReader, BackupWriter};
use metadata_server::disk_layer::next_row;
use metadata_server::state::key;
use metadata_server::state::record::{Dentry, Inode, encode};
use protocol::{EntryName, FileKind, InodeId};

use crate::Row;
use crate::maintenance::zabfs;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("fsck::a_cluster_that_is_being_used_is_clean", (120, 300), in_use),
    ("fsck::damage_is_found_and_repaired", (240, 300), damaged),
];

const LIMIT: Duration = Duration::from_secs(120);

/// Runs a check. Returns its exit code and what it printed.
fn fsck(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
    let ran = zabfs(cluster, &[&["fsck"], arguments].concat(), LIMIT)?;
    Ok((ran.status.code().context("the check was killed")?, format!("{}{}", ran.stdout, ran.stderr)))
}

/// Makes, extends, cuts, renames and deletes files of all sizes.
fn churn(dir: &Path, stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let path = dir.join(format!("f{}", round % 7));
        fs::write(&path, bytes(round, [100, 20_000, 5_000_000][round as usize % 3]))?;
        fs::OpenOptions::new().write(true).open(&path)?.set_len(60 + round * 1000 % 4_500_000)?;
        fs::rename(&path, dir.join(format!("g{}", round % 5)))?;
        fs::create_dir_all(dir.join(format!("d{}", round % 3)))?;
        if round % 4 == 3 {
            fs::remove_file(dir.join(format!("g{}", round % 5)))?;
            fs::remove_dir(dir.join(format!("d{}", round % 3)))?;
        }
        round += 1;
    }
    Ok(round)
}

fn in_use(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let stop = AtomicBool::new(false);
    let checks = scene.size(3, 30);
    let rounds = std::thread::scope(|threads| {
        let load = threads.spawn(|| churn(&mnt, &stop));
        let checked = (0..checks).try_for_each(|_| {
            let (code, said) = fsck(&cluster, &[])?;
            print!("{said}");
            ensure!(code == 0, "exit code {code} of a check beside a load: {said}");
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let rounds = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        checked.and(rounds)
    });
    let rounds = rounds.map_err(|error| cluster.with_logs(error))?;
    println!("{rounds} rounds of load");
    let (code, said) = fsck(&cluster, &["--json", "--memory", "1"])?;
    ensure!(code == 0 && said.contains("\"exit_code\": 0"), "{code}: {said}");
    Ok(())
}

/// Changes the rows of a backup.
fn damage(from: &Path, to: &Path, change: impl Fn(&[u8], &Bytes) -> Option<Bytes>) -> anyhow::Result<()> {
    let mut reader = BackupReader::open(from)?;
    let mut writer = BackupWriter::new(fs::File::create(to)?, reader.head().clone())?;
    while let Some(mut block) = reader.next_block()? {
        let mut rows = BytesMut::new();
        while let Some((key, value)) = next_row(&mut block).map_err(|why| anyhow::anyhow!(why))? {
            let Some(value) = change(&key, &value) else { continue };
            rows.put_u32_le(key.len() as u32);
            rows.put_u32_le(value.len() as u32);
            rows.put_slice(&key);
            rows.put_slice(&value);
        }
        if !rows.is_empty() {
            writer.push(&rows.freeze())?;
        }
    }
    writer.finish()?;
    Ok(())
}

fn inode_of(path: &Path) -> anyhow::Result<InodeId> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(InodeId(fs::metadata(path).with_context(|| format!("stat {}", path.display()))?.ino()))
}

fn damaged(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    fs::create_dir(mnt.join("dir"))?;
    for (number, size) in [5, 9_000, 300_000, 9_000_000].into_iter().enumerate() {
        fs::write(mnt.join(format!("dir/f{number}")), bytes(number as u64, size))?;
    }
    let (lost, counted, gone) =
        (inode_of(&mnt.join("dir/f3"))?, inode_of(&mnt.join("dir/f1"))?, inode_of(&mnt.join("dir/f0"))?);
    let dir = inode_of(&mnt.join("dir"))?;
    scene.bash(60, &format!("sync -f '{}'", mnt.display()))?;
    let backups = scene.scratch("backups")?;
    let (whole, hurt) = (backups.join("whole"), backups.join("hurt"));
    zabfs(&cluster, &["metadata", "backup", whole.to_str().context("a name")?], LIMIT)?.success()?;
    // After the backup: its objects are nobody's after the restore.
    fs::write(mnt.join("later"), bytes(9, 6_000_000))?;
    scene.bash(60, &format!("sync -f '{}'", mnt.display()))?;
    cluster.umount(&mnt)?;

    let name = EntryName::new("f3")?;
    damage(&whole, &hurt, |row, value| {
        let is_lost_name = row == key::dentry(dir, &name)
            || row == key::link(lost, dir, &name)
            || (row.first() == Some(&key::ORDER) && value[..] == *b"f3");
        if is_lost_name || row == key::inode(gone) {
            return None;
        }
        if row == key::inode(counted) {
            let mut inode: Inode = postcard::from_bytes(value).ok()?;
            inode.attr.nlink = 7;
            return Some(encode(&inode));
        }
        if row == key::dentry(dir, &EntryName::new("f2").ok()?) {
            let entry: Dentry = postcard::from_bytes(value).ok()?;
            return Some(encode(&Dentry { kind: FileKind::Fifo, ..entry }));
        }
        Some(value.clone())
    })?;
    for id in 1..=3 {
        cluster.kill(&Target::Server(Server::metadata(id)), Signal::KILL)?;
    }
    zabfs(&cluster, &["metadata", "restore", hurt.to_str().context("a name")?, "--replace"], LIMIT)?
        .success()?;
    for id in 1..=3 {
        cluster.start(Server::metadata(id))?;
    }
    cluster.wait_ready(LIMIT)?;

    let (code, said) = fsck(&cluster, &[])?;
    println!("{said}");
    ensure!(code == 4, "exit code {code}: {said}");
    for wrong in [
        "unreferenced: no directory names it",
        "/dir/f1 (inode",
        "link count is 7, should be 1",
        "entry 'f0' of directory",
        "says another kind than the inode",
        "directory size is 4 entries, should be 3",
        "of an inode that does not exist",
        "inode count is",
    ] {
        ensure!(said.contains(wrong), "{wrong:?} is missing in: {said}");
    }
    let (code, said) = fsck(&cluster, &["--repair"])?;
    println!("{said}");
    ensure!(code == 1, "exit code {code} of the repair: {said}");
    let (code, said) = fsck(&cluster, &["--repair"])?;
    ensure!(code == 0, "exit code {code} after the repair: {said}");

    let fresh = scene.mount(&cluster, "fresh")?;
    let found = fs::read(fresh.join(format!("lost+found/#{lost}")))?;
    ensure!(found == bytes(3, 9_000_000), "what came to lost+found differs");
    ensure!(!fresh.join("dir/f0").exists(), "an entry that names nothing is there");
    ensure!(fs::read(fresh.join("dir/f1"))? == bytes(1, 9_000), "f1 differs");
    ensure!(fs::read(fresh.join("dir/f2"))? == bytes(2, 300_000), "f2 differs");
    fs::remove_file(fresh.join("dir/f1"))?;
    Ok(())
}
