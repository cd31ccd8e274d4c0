//! Full disks, and the embedded cluster of `zabfs dev`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster_tests::harness::{Options, Settings, Signal, is_mounted, spawn_logged, wait_until};
use cluster_tests::programs::{self, zabfs_binary};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::programs::SHORT;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("bounds::full_data_servers_give_enospc_and_recover", (180, 180), full),
    ("bounds::dev_mounts_in_two_seconds_and_keeps_its_files", (60, 60), dev),
];

/// What each data server may hold.
const CAPACITY: u64 = 256 << 20;

fn full(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster_with(&Options {
        settings: Settings { capacity: Some(CAPACITY), ..Settings::default() },
        ..Options::default()
    })?;
    let mnt = scene.mount(&cluster, "mnt")?;
    fs::write(mnt.join("before"), bytes(1, 3 << 20))?;
    let fill = mnt.join("fill");
    let (written, error) = write_until_full(&fill)?;
    println!("{} MiB fitted into {} MiB", written >> 20, CAPACITY >> 20);
    ensure!(error.raw_os_error() == Some(libc::ENOSPC), "a full cluster gives {error}");
    ensure!(written > CAPACITY / 2, "only {written} bytes fitted");
    // What was acknowledged is there, the rest of the file system works.
    let file = fs::File::open(&fill)?;
    let mut piece = vec![0; 1 << 20];
    for number in 0..written >> 20 {
        file.read_exact_at(&mut piece, number << 20)?;
        ensure!(piece == bytes(number, 1 << 20), "MiB {number} of the full file");
    }
    ensure!(fs::read(mnt.join("before"))? == bytes(1, 3 << 20), "an earlier file");
    fs::create_dir(mnt.join("names"))?;
    fs::rename(mnt.join("before"), mnt.join("names/moved"))?;
    fs::remove_file(&fill)?;
    drop(file);
    wait_until("space to be free again", Duration::from_secs(60), || {
        fs::write(mnt.join("again"), bytes(7, 20 << 20)).map_err(|error| error.to_string())
    })?;
    ensure!(fs::read(mnt.join("again"))? == bytes(7, 20 << 20), "a file written after the full one went");
    Ok(())
}

/// Appends known pieces of 1 MiB until one fails; whole pieces only count.
fn write_until_full(path: &Path) -> anyhow::Result<(u64, std::io::Error)> {
    let mut file = fs::File::create(path)?;
    for number in 0..4096 {
        let result = file.write_all(&bytes(number, 1 << 20)).and_then(|()| file.sync_data());
        if let Err(error) = result {
            return Ok((number << 20, error));
        }
    }
    anyhow::bail!("4 GiB fitted into servers of {CAPACITY} bytes")
}

fn dev(scene: &Scene) -> anyhow::Result<()> {
    let mnt = scene.scratch("mnt")?;
    let state = scene.dir().join("state");
    for round in 0..2_u64 {
        let mut command = Command::new(zabfs_binary()?);
        command.arg("dev").arg("--mount").arg(&mnt).arg("--dir").arg(&state);
        let start = Instant::now();
        let process = spawn_logged(&mut command, &scene.dir().join("dev.log"))?;
        let ready = wait_until("zabfs dev to mount", Duration::from_secs(15), || {
            if !process.is_alive() {
                return Err(fs::read_to_string(scene.dir().join("dev.log")).unwrap_or_default());
            }
            if !is_mounted(&mnt) {
                return Err("it has not mounted".to_owned());
            }
            fs::write(mnt.join(format!("first-{round}")), "x").map_err(|error| error.to_string())
        });
        let took = start.elapsed();
        let result = ready.map_err(anyhow::Error::from).and_then(|()| {
            println!("zabfs dev took its first file after {took:?}");
            ensure!(took < Duration::from_secs(2), "it took {took:?}");
            use_it(&mnt, round)
        });
        process.signal(Signal::TERM)?;
        let gone = process.wait_gone(SHORT);
        if gone.is_err() {
            process.end()?;
        }
        cluster_tests::harness::detach(&mnt)?;
        result?;
        gone.context("end zabfs dev by SIGTERM")?;
    }
    Ok(())
}

fn use_it(mnt: &Path, round: u64) -> anyhow::Result<()> {
    for earlier in 0..round {
        let found = fs::read(mnt.join(format!("file-{earlier}")))?;
        ensure!(found == bytes(earlier, 9 << 20), "the file of round {earlier} is kept");
    }
    fs::write(mnt.join(format!("file-{round}")), bytes(round, 9 << 20))?;
    programs::bash(mnt, SHORT, "mkdir -p a/b; echo hi > a/b/c; ln -sf a/b/c l; test \"$(cat l)\" = hi")?;
    Ok(())
}
