//! Who may talk to the cluster, and what nonsense on the wire does.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Layout, MountCall, Options, is_mounted, wait_until};
use cluster_tests::programs;
use cluster_tests::workload::bytes;

use crate::Row;
use crate::programs::SHORT;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("security::a_read_only_certificate_reads_and_cannot_write", (90, 90), read_only),
    ("security::wrong_certificates_are_refused_with_a_sentence", (120, 120), wrong_certificates),
    ("security::garbage_to_every_port_disturbs_nothing", (120, 120), garbage),
    ("security::no_process_listens_without_tls", (60, 60), no_plaintext),
];

fn read_only(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    fs::create_dir(mnt.join("d"))?;
    for (name, len) in [("d/small", 100), ("d/large", 5 << 20)] {
        fs::write(mnt.join(name), bytes(1, len))?;
    }
    cluster.issue_client("reader", true)?;
    let reader = scene.scratch("reader-mnt")?;
    cluster.mount(&MountCall { identity: "reader".to_owned(), ..MountCall::at(&reader) })?;
    for (name, len) in [("d/small", 100), ("d/large", 5 << 20)] {
        ensure!(fs::read(reader.join(name))? == bytes(1, len), "{name} reads the same");
    }
    let refused = |what: &str, result: std::io::Result<()>| {
        let number = result.err().and_then(|error| error.raw_os_error());
        let allowed = [libc::EROFS, libc::EACCES].map(Some);
        ensure!(allowed.contains(&number), "{what}: errno {number:?}, neither EROFS nor EACCES");
        Ok(())
    };
    refused("create", fs::write(reader.join("new"), "x"))?;
    refused("overwrite a small file", fs::write(reader.join("d/small"), "x"))?;
    refused("overwrite a large file", fs::write(reader.join("d/large"), "x"))?;
    refused("mkdir", fs::create_dir(reader.join("new")))?;
    refused("unlink", fs::remove_file(reader.join("d/small")))?;
    refused("rename", fs::rename(reader.join("d/small"), reader.join("d/moved")))?;
    refused("link", fs::hard_link(reader.join("d/small"), reader.join("d/linked")))?;
    ensure!(fs::read(mnt.join("d/small"))? == bytes(1, 100), "nothing changed");
    Ok(())
}

fn wrong_certificates(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let foreign = Cluster::create(&scene.dir().join("foreign"), &Options::default())?;
    let mine = cluster.layout();
    let attempts: [(&str, PathBuf); 3] = [
        ("another cluster's client", foreign.layout().identity("client")),
        ("a data server", mine.identity("data-1")),
        ("no certificate", mine.dir().join("nobody/tls")),
    ];
    for (who, identity) in attempts {
        let place = scene.scratch("refused-mnt")?;
        let mut mount = std::process::Command::new(programs::zabfs_binary()?);
        mount.arg("mount").arg("--dir").arg(mine.dir()).arg("--identity").arg(identity).arg(&place);
        let output = programs::run(&mut mount, REFUSAL_LIMIT).with_context(|| who.to_owned())?;
        ensure!(!output.status.success(), "{who} could mount");
        ensure!(!output.stderr.trim().is_empty(), "{who} was refused without a word");
        println!("{who}: {}", output.stderr.trim());
        ensure!(!is_mounted(&place), "{who} has a mount");
    }
    let logs = all_logs(mine)?;
    ensure!(
        logs.lines().any(|line| line.contains("refus") || line.contains("certificate")),
        "no server's log says that it refused anyone:\n{logs}"
    );
    fs::write(mnt.join("still"), "works").context("the good mount works on")
}

/// How long `zabfs mount` may look for a server that takes it before it says why none does.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);

fn all_logs(layout: &Layout) -> anyhow::Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(layout.logs())?.flatten() {
        text.push_str(&String::from_utf8_lossy(&fs::read(entry.path())?));
    }
    Ok(text)
}

fn garbage(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, mnt) = scene.mounted()?;
    let wanted = bytes(2, 6 << 20);
    fs::write(mnt.join("f"), &wanted)?;
    let before = cluster.processes()?;
    let targets = udp_ports(before.iter().map(|process| process.2.pid()))?;
    ensure!(targets.len() >= 6, "only these ports were found: {targets:?}");
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for round in 0..scene.size(300_u64, 5000) {
        for target in &targets {
            let mut packet = bytes(round, 1 + (round as usize * 37) % 1400);
            match round % 4 {
                // What looks like the long header of a QUIC initial packet, and like a short one.
                1 => packet.splice(0..1, [0xc3, 0, 0, 0, 1, 8]).for_each(drop),
                2 => packet[0] = 0x40 | (packet[0] & 0x3f),
                3 => packet.fill(0),
                _ => {}
            }
            // A full buffer on the other side is no failure of this test.
            let _ = socket.send_to(&packet, target);
        }
        if round % 50 == 0 {
            fs::write(mnt.join("during"), bytes(round, 20_000))?;
            ensure!(fs::read(mnt.join("during"))? == bytes(round, 20_000), "a file written meanwhile");
        }
    }
    ensure!(fs::read(mnt.join("f"))? == wanted, "the file is as it was");
    let after = cluster.processes()?;
    let pids = |all: &[(String, String, cluster_tests::harness::ProcessRef, bool)]| -> Vec<i32> {
        all.iter().map(|process| process.2.pid()).collect()
    };
    ensure!(pids(&before) == pids(&after), "a process ended");
    cluster.wait_ready(Duration::from_secs(20))
}

fn no_plaintext(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, _mnt) = scene.mounted()?;
    for (role, id, process, _) in cluster.processes()? {
        let sockets = sockets_of(process.pid());
        let mut listening = Vec::new();
        for table in ["tcp", "tcp6"] {
            for row in rows(process.pid(), table)? {
                if sockets.contains(&row.inode) {
                    listening.push(row.local);
                }
            }
        }
        ensure!(listening.is_empty(), "{role} {id} has TCP sockets {listening:?}");
    }
    Ok(())
}

/// A row of `/proc/PID/net/{udp,tcp}`.
struct SocketRow {
    local: String,
    inode: u64,
}

fn rows(pid: i32, table: &str) -> anyhow::Result<Vec<SocketRow>> {
    let path = format!("/proc/{pid}/net/{table}");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some(SocketRow { local: (*fields.get(1)?).to_owned(), inode: fields.get(9)?.parse().ok()? })
    };
    Ok(text.lines().skip(1).filter_map(parse).collect())
}

/// Inodes of a process's sockets.
fn sockets_of(pid: i32) -> BTreeSet<u64> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
    let links = entries.into_iter().flatten().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    links.filter_map(inode).collect()
}

/// Every UDP port that these processes hold, the mounts' own included, as an address on this machine.
fn udp_ports(pids: impl Iterator<Item = i32>) -> anyhow::Result<BTreeSet<SocketAddr>> {
    let mut found = BTreeSet::new();
    for pid in pids {
        let sockets = sockets_of(pid);
        for row in rows(pid, "udp")?.into_iter().chain(rows(pid, "udp6")?) {
            if sockets.contains(&row.inode) {
                let port = row.local.rsplit(':').next().unwrap_or_default();
                let port =
                    u16::from_str_radix(port, 16).with_context(|| format!("a port in {}", row.local))?;
                found.insert(SocketAddr::from(([127, 0, 0, 1], port)));
            }
        }
    }
    wait_until("at least one socket", SHORT, || if found.is_empty() { Err("none") } else { Ok(()) })?;
    Ok(found)
}
