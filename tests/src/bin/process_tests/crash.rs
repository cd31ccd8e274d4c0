//! The mount process is killed while calls of every kind wait in it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, MountCall, Signal, Target, wait_until};
use cluster_tests::programs::{Running, bash_command, spawn};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::programs::SHORT;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] =
    &[("crash::a_killed_mount_ends_its_calls_and_the_next_mount_takes_over", (150, 150), killed_mount)];

/// One script per kind of call; each is started several times in the directory `d` of the mount.
const CALLS: &[&str] = &[
    "exec cat large",
    "exec dd if=/dev/zero of=large bs=64k count=4 conv=notrunc oflag=direct",
    "exec dd if=/dev/zero of=new-$$ bs=4k count=4 conv=fsync",
    "exec mkdir dir-$$",
    "exec mv m$1 n$1",
    "exec rm r$1",
    "exec ln small link-$$",
    "exec ln -s small soft-$$",
    "exec stat small",
    "exec ls -l .",
    "exec chmod 600 small",
    "exec truncate -s 5 t$1",
    "exec touch touched-$$",
    "exec setfattr -n user.a -v b small",
    "exec getfattr -d small",
    "exec mkfifo pipe-$$",
    "exec rmdir e$1",
    "exec flock held true",
    "exec 9>../.zabfs/locks/held",
    "exec sqlite3 db.sqlite 'CREATE TABLE IF NOT EXISTS t(x)'",
    "exec readlink soft",
    "exec fallocate -l 100000 space-$$",
    "exec df .",
    "exec sync large",
    "cd ..; exec find . -name x",
];

fn killed_mount(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let wanted = bytes(1, 6 << 20);
    prepare(&mnt, &wanted)?;
    for busy in [false, true] {
        let sitter =
            if busy { Some(spawn(&mut bash_command(&mnt.join("d"), "exec sleep 600"))?) } else { None };
        kill_under_calls(&cluster, &mnt).with_context(|| format!("busy: {busy}"))?;
        let dead = fs::metadata(&mnt).err().and_then(|error| error.raw_os_error());
        ensure!(dead == Some(libc::ENOTCONN), "the dead mountpoint answers with errno {dead:?}");
        cluster.mount(&MountCall::at(&mnt)).context("mount over the dead mountpoint")?;
        // Size and every byte outside what the writers may have written.
        let found = fs::read(mnt.join("d/large"))?;
        ensure!(found.len() == wanted.len() && found[256 << 10..] == wanted[256 << 10..], "the large file");
        fs::write(mnt.join(format!("new-{busy}")), "works")?;
        drop(sitter);
    }
    cluster.umount(&mnt)
}

fn prepare(mnt: &Path, wanted: &[u8]) -> anyhow::Result<()> {
    let d = mnt.join("d");
    fs::create_dir(&d)?;
    fs::write(d.join("large"), wanted)?;
    fs::write(d.join("held"), "")?;
    fs::write(d.join("small"), "small")?;
    for number in 0..4 {
        for prefix in ["m", "r", "t"] {
            fs::write(d.join(format!("{prefix}{number}")), bytes(number, 100))?;
        }
        fs::create_dir(d.join(format!("e{number}")))?;
    }
    std::os::unix::fs::symlink("small", d.join("soft"))?;
    Ok(())
}

/// Freezes all servers, starts calls of every kind, kills the mount process under them, thaws the servers.
fn kill_under_calls(cluster: &Cluster, mnt: &Path) -> anyhow::Result<()> {
    let d = mnt.join("d");
    let holder = spawn(&mut bash_command(
        &d,
        "exec 9>../.zabfs/locks/held; exec 8>held; flock 8; touch ../ready; exec sleep 600",
    ))?;
    wait_until("the locks to be held", SHORT, || {
        if mnt.join("ready").exists() { Ok(()) } else { Err("not yet") }
    })?;
    fs::remove_file(mnt.join("ready"))?;
    all_servers(cluster, Signal::STOP)?;
    let mut callers = Vec::new();
    for number in 0..2 {
        for call in CALLS {
            callers.push((*call, spawn(&mut bash_command(&d, &format!("set -- {number}\n{call}")))?));
        }
    }
    // Every call is in the mount process once nothing starts or ends any more.
    std::thread::sleep(Duration::from_secs(2));
    let waiting =
        callers.iter_mut().filter_map(|(_, caller)| caller.is_running().ok()).filter(|runs| *runs).count();
    println!("{waiting} of {} calls wait", callers.len());
    let start = Instant::now();
    cluster.kill(&Target::Mount(mnt.to_owned()), Signal::KILL)?;
    let ended = end_all(callers);
    println!("all calls ended {:?} after the mount process", start.elapsed());
    all_servers(cluster, Signal::CONT)?;
    ended?;
    ensure!(waiting >= 45, "only {waiting} calls waited");
    drop(holder);
    cluster.wait_ready(Duration::from_secs(30))
}

fn end_all(callers: Vec<(&str, Running)>) -> anyhow::Result<()> {
    for (call, caller) in callers {
        caller.wait(Duration::from_secs(10)).with_context(|| format!("the call of `{call}` does not end"))?;
    }
    Ok(())
}

fn all_servers(cluster: &Cluster, signal: Signal) -> anyhow::Result<()> {
    for server in cluster.servers()? {
        cluster.kill(&Target::Server(server), signal)?;
    }
    Ok(())
}
